"""The AP that a Detectron2 run leaves is the one that Detectron2's own ``COCOEvaluator`` reports."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('detectron2', reason='Detectron2 is not installed')

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO

from roi_plugins.datasets.shapes import ShapesSpec, generate_shapes
from roi_plugins.evaluation.coco import METRICS
from roi_plugins.evaluation.coco import evaluate as evaluate_predictions
from roi_plugins.integrations.detectron2.config import read_config
from roi_plugins.integrations.detectron2.datasets import coco_files, register_shapes
from roi_plugins.integrations.detectron2.describe import describe
from roi_plugins.integrations.detectron2.test import evaluate

ROOT = Path(__file__).resolve().parents[2]
YAML = ROOT / 'configs/detectron2/shapes/mask-rcnn_r50w16-c4_shapes.yaml'
LAZY = ROOT / 'configs/detectron2/shapes/mask-rcnn_r18-c4_shapes.py'
SMALL = {
    'SOLVER.IMS_PER_BATCH': 1,
    'DATALOADER.NUM_WORKERS': 0,
    'INPUT.MIN_SIZE_TRAIN': '(64,)',
}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes')
    generate_shapes(root, ShapesSpec(num_train=1, num_val=12, image_size=96))
    return root


class Detector(torch.nn.Module):
    """Finds most objects, some not quite where they are, some of another class, and many that are not there.

    Args:
        annotations: COCO annotations of the images.
        count: detections of each image.
        masks: whether it predicts masks.
        keypoints: whether it predicts keypoints.
    """

    def __init__(self, annotations: Path, count: int, masks: bool, keypoints: bool = False):
        super().__init__()
        self.coco = COCO(str(annotations))
        self.labels = {id_: label for label, id_ in enumerate(sorted(self.coco.cats))}
        self.count, self.masks, self.keypoints = count, masks, keypoints

    def forward(self, inputs):
        return [{'instances': self._find(image)} for image in inputs]

    def _find(self, image):
        rng = np.random.default_rng(image['image_id'])
        height, width = image['height'], image['width']
        truths = self.coco.imgToAnns[image['image_id']]
        boxes, labels, masks, keypoints = [], [], [], []
        for index in range(self.count):
            truth = truths[index % len(truths)]
            x, y, w, h = truth['bbox']
            worse = index // len(truths)
            dx, dy = rng.normal(0, 0.04 * (1 + worse), 2) * (w, h)
            boxes.append([x + dx, y + dy, x + w + dx, y + h + dy])
            label = self.labels[truth['category_id']]
            labels.append(label if rng.random() < 0.9 else int(rng.integers(len(self.labels))))
            masks.append(np.roll(self.coco.annToMask(truth), (round(dy), round(dx)), (0, 1)))
            if self.keypoints:
                points = np.reshape(truth['keypoints'], (-1, 3)) + np.array([0.5 + dx, 0.5 + dy, 0])
                keypoints.append(points + rng.normal(0, 0.03 * (w + h), points.shape) * (1, 1, 0))
        found = Instances((height, width))
        found.pred_boxes = Boxes(torch.tensor(boxes))
        found.scores = torch.tensor(np.sort(rng.random(self.count))[::-1].copy())
        found.pred_classes = torch.tensor(labels)
        if self.masks:
            found.pred_masks = torch.tensor(np.stack(masks)).bool()
        if self.keypoints:
            found.pred_keypoints = torch.tensor(np.stack(keypoints))
        return found


def own_annotations(data, path, change=lambda found: None):
    found = json.loads((data / 'annotations/instances_val.json').read_text())
    change(found)
    path.write_text(json.dumps(found))
    return path


def scatter_ids(found):
    """Ids with gaps, which do not rise in the order of the list."""
    ids = {c['id']: 91 - 7 * c['id'] for c in found['categories']}
    for entry in found['categories']:
        entry['id'] = ids[entry['id']]
    for entry in found['annotations']:
        entry['category_id'] = ids[entry['category_id']]


def add_crowds(found):
    for entry in found['annotations'][::4]:
        x, y, w, h = entry['bbox']
        entry.update(iscrowd=1, segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]])


def two_classes(found):
    found['categories'] = found['categories'][:2]
    kept = [c['id'] for c in found['categories']]
    found['annotations'] = [a for a in found['annotations'] if a['category_id'] in kept]
    seen = {a['image_id'] for a in found['annotations']}
    found['images'] = [image for image in found['images'] if image['id'] in seen]


@pytest.mark.parametrize(
    ('change', 'count', 'masks'),
    [
        (lambda found: None, 15, True),
        (lambda found: None, 15, False),
        (lambda found: None, 150, False),  # TEST.DETECTIONS_PER_IMAGE above COCO's limit
        (scatter_ids, 15, True),
        (add_crowds, 15, False),
        (two_classes, 9, True),
    ],
    ids=['masks', 'boxes', 'many', 'ids', 'crowds', 'two classes'],
)
@pytest.mark.parametrize('language', ['yaml', 'lazy'])
def test_metrics_are_those_of_the_coco_evaluator(data, tmp_path, language, change, count, masks):
    annotations = own_annotations(data, tmp_path / 'own.json', change)
    model = Detector(annotations, count, masks)
    compare(coco_files(annotations, data / 'val'), language, tmp_path, model)


@pytest.mark.parametrize('sigmas', [(0.05,) * 4, (0.02, 0.05, 0.2, 0.05)])
@pytest.mark.parametrize('count', [9, 60])  # below and above COCO's limit for keypoints
@pytest.mark.parametrize('language', ['yaml', 'lazy'])
def test_keypoints_are_evaluated_as_by_the_coco_evaluator(data, tmp_path, language, count, sigmas):
    annotations = own_annotations(data, tmp_path / 'own.json', add_crowds)
    model = Detector(annotations, count, masks=True, keypoints=True)
    compare(coco_files(annotations, data / 'val'), language, tmp_path, model, sigmas=sigmas)
    assert json.loads((tmp_path / 'out/metrics.json').read_text())['oks_sigmas'] == list(sigmas)


def test_images_that_are_left_out_count(data, tmp_path):
    """The evaluation is of all images of the annotations, found or not, in both."""
    annotations, name = own_annotations(data, tmp_path / 'own.json'), 'half_of_the_images'
    DatasetCatalog.register(name, lambda: load_coco_json(annotations, data / 'val', name)[::2])
    MetadataCatalog.get(name).set(json_file=str(annotations), evaluator_type='coco')
    try:
        compare(name, 'yaml', tmp_path, Detector(annotations, 15, True))
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.slow
@pytest.mark.parametrize('limit', [12, 120])
@pytest.mark.parametrize('language', ['yaml', 'lazy'])
def test_another_limit_of_detections(data, tmp_path, language, limit):
    """It is our setting with a YAML config, and the evaluator's own in a LazyConfig."""

    class Unsure(Detector):
        """Its best detections are not the best placed, so that a limit cuts some that match."""

        def _find(self, image):
            found = super()._find(image)
            found.scores = found.scores[np.random.default_rng(image['image_id']).permutation(self.count)]
            return found

    annotations = own_annotations(data, tmp_path / 'own.json')
    dataset = coco_files(annotations, data / 'val')
    at_limit = compare(dataset, language, tmp_path, Unsure(annotations, 8 * limit, True), limit)
    metrics = json.loads((tmp_path / 'out' / 'metrics.json').read_text())
    assert metrics['max_dets'] == limit
    assert metrics['image_dir'] == str(data / 'val')
    at_100 = evaluate_predictions(annotations, tmp_path / 'out' / 'predictions.bbox.json', 'bbox')
    assert at_limit['bbox']['AP'] != at_100['AP']


def compare(dataset, language, tmp_path, model, limit=None, sigmas=()):
    if language == 'yaml':
        options = ['DATASETS.TEST', f'("{dataset}",)', 'OUTPUT_DIR', str(tmp_path / 'out')]
        options += ['DATALOADER.NUM_WORKERS', '0', 'TEST.KEYPOINT_OKS_SIGMAS', str(list(sigmas))]
        run = describe(read_config(YAML, options), max_dets=limit)
    else:
        options = [f'dataloader.test.dataset.names="{dataset}"', f'train.output_dir="{tmp_path}/out"']
        options += ['dataloader.test.num_workers=0']
        options += [f'dataloader.evaluator.max_dets_per_image={limit}'] if limit else []
        options += [f'dataloader.evaluator.kpt_oks_sigmas={list(sigmas)}'] if sigmas else []
        run = describe(read_config(LAZY, options))
    # Its own faster evaluator is not compiled here, and need not be exact.
    evaluator = COCOEvaluator(
        dataset,
        output_dir=str(tmp_path / 'theirs'),
        use_fast_impl=False,
        max_dets_per_image=limit,
        kpt_oks_sigmas=sigmas,
    )
    theirs = inference_on_dataset(model, run.test_loader(), evaluator)
    ours = evaluate(run, model, config='c', checkpoint='c', command=['c'])['metrics']
    kinds = {'bbox', *['segm'] * model.masks, *['keypoints'] * model.keypoints}
    assert ours.keys() == theirs.keys() == kinds
    for iou_type, metrics in ours.items():
        assert 0.01 < metrics['AP'] < 0.95  # an evaluation that could go wrong
        for metric in theirs[iou_type].keys() & METRICS:  # for keypoints it has no APs
            expected = theirs[iou_type][metric]
            expected = -1 if math.isnan(expected) else expected / 100
            assert metrics[metric] == pytest.approx(expected, abs=1e-12), (iou_type, metric)
    return ours


def test_no_predictions(data, tmp_path):
    """The one difference: Detectron2 has no number for it, ours is 0: the detector has found nothing."""
    annotations = own_annotations(data, tmp_path / 'own.json')
    name = coco_files(annotations, data / 'val')
    run = describe(read_config(YAML, ['DATASETS.TEST', f'("{name}",)', 'OUTPUT_DIR', str(tmp_path / 'out')]))

    class Nothing(Detector):
        def _find(self, image):
            return super()._find(image)[[]]

    model = Nothing(annotations, 15, True)
    theirs = inference_on_dataset(model, run.test_loader(), COCOEvaluator(name, use_fast_impl=False))
    ours = evaluate(run, model, config='c', checkpoint='c', command=['c'])['metrics']
    assert math.isnan(theirs['bbox']['AP'])
    assert ours['bbox']['AP'] == ours['segm']['AP'] == 0


def test_a_script_of_ones_own_with_defaulttrainer_trains(tmp_path, data):
    """It writes to TensorBoard, unasked, and imports it after the training has begun."""
    pytest.importorskip('tensorboard', reason='tensorboard is not installed: run make setup')
    register_shapes(str(data))
    options = {**SMALL, 'SOLVER.MAX_ITER': 1, 'MODEL.DEVICE': 'cpu', 'DATASETS.TEST': '()'}
    options['OUTPUT_DIR'] = tmp_path
    cfg = read_config(YAML, [str(part) for pair in options.items() for part in pair])
    DefaultTrainer(cfg).train()
    assert list(tmp_path.glob('events.out.tfevents.*'))
