"""AP from matches against pycocotools' own evaluation, of all images and of resampled ones."""

import contextlib
import copy
import io
import sys
import warnings

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from synthetic import detect, make_annotations

from roi_plugins.evaluation.coco_files import load_results
from roi_plugins.evaluation.matching import match, precision_and_recall, resampled_ap


def index(dataset):
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def coco_eval(dataset, results, iou_type, max_dets=100):
    """pycocotools' own evaluation."""
    truth = index(copy.deepcopy(dataset))
    evaluation = COCOeval(truth, load_results(truth, copy.deepcopy(results)), iou_type)
    evaluation.params.maxDets = [1, 10, max_dets]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


@pytest.fixture(autouse=True)
def quiet():
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@pytest.fixture(scope='module')
def boxes():
    """Few images with all that is special: crowds, absent classes, too many detections, ties."""
    rng = np.random.default_rng(0)
    dataset = make_annotations(rng, images=12, classes=4, objects=5, crowds=0.15)
    dataset['annotations'] = [a for a in dataset['annotations'] if a['category_id'] != 4]
    detections = detect(rng, dataset, noise=0.08, per_image=40)
    crowded = [dict(d, image_id=3, category_id=c) for c in (1, 4) for d in detections[:150]]
    results = [d for d in detections + crowded if d['image_id'] != 5]
    for image in range(1, 13):  # the same scores in every image, and none twice in one
        scores = iter(rng.permutation(400) / 400)
        for result in results:
            if result['image_id'] == image:
                result['score'] = float(next(scores))
    return dataset, results


@pytest.fixture(scope='module')
def masks(boxes):
    dataset, results = copy.deepcopy(boxes)

    def rle(box):
        canvas = np.zeros((480, 640), np.uint8, order='F')
        x, y, w, h = map(int, box)
        yy, xx = np.ogrid[:480, :640]
        canvas[((xx - x - w / 2) / (w / 2 + 1)) ** 2 + ((yy - y - h / 2) / (h / 2 + 1)) ** 2 <= 1] = 1
        return mask_utils.encode(canvas)

    for annotation in dataset['annotations']:
        annotation['segmentation'] = rle(annotation['bbox'])
    for result in results:
        result['segmentation'] = rle(result.pop('bbox'))
    return dataset, results


@pytest.mark.parametrize('iou_type', ['bbox', 'segm'])
def test_precision_and_recall_are_those_of_pycocotools(iou_type, request):
    dataset, results = request.getfixturevalue({'bbox': 'boxes', 'segm': 'masks'}[iou_type])
    for some in (results, [r for r in results if r['image_id'] > 10], results[:1], []):
        expected = coco_eval(dataset, some, iou_type).eval
        truth = index(copy.deepcopy(dataset))
        matches = match(truth, load_results(truth, copy.deepcopy(some)), iou_type)
        for name, measure in zip(('precision', 'recall'), precision_and_recall(matches), strict=True):
            assert np.array_equal(measure, expected[name][..., -1])
            assert (measure[..., -1, 0] == -1).all()  # the class without objects


@pytest.mark.parametrize('max_dets', [11, 99, 120])
@pytest.mark.parametrize('iou_type', ['bbox', 'segm'])
def test_precision_at_another_limit(iou_type, max_dets, request):
    dataset, results = request.getfixturevalue({'bbox': 'boxes', 'segm': 'masks'}[iou_type])
    expected = coco_eval(dataset, results, iou_type, max_dets).eval
    truth = index(copy.deepcopy(dataset))
    found = load_results(truth, copy.deepcopy(results))
    precision, recall = precision_and_recall(match(truth, found, iou_type, max_dets))
    assert np.array_equal(precision, expected['precision'][..., -1])
    assert np.array_equal(recall, expected['recall'][..., -1])
    precision, _ = precision_and_recall(match(truth, found, iou_type))
    assert not np.array_equal(precision, expected['precision'][..., -1])
    with pytest.raises(ValueError, match='max_dets is 0; expected 1 or more'):
        match(truth, found, iou_type, 0)


def test_boundary_ap_is_that_of_faster_coco_eval(masks):
    """The library finds the boundaries in both, and evaluates by itself in one."""
    faster_coco_eval = pytest.importorskip('faster_coco_eval')
    dataset, results = masks
    as_text = copy.deepcopy(dataset)
    for annotation in as_text['annotations']:
        annotation['segmentation']['counts'] = annotation['segmentation']['counts'].decode()
    truth = faster_coco_eval.COCO(as_text)
    evaluation = faster_coco_eval.COCOeval_faster(
        truth, truth.loadRes(copy.deepcopy(results)), 'boundary', boundary_cpu_count=1
    )
    evaluation.run()
    truth = index(copy.deepcopy(dataset))
    matches = match(truth, load_results(truth, copy.deepcopy(results)), 'boundary')
    precision, recall = precision_and_recall(matches)
    assert precision == pytest.approx(evaluation.eval['precision'][..., -1], abs=1e-12)
    assert recall == pytest.approx(evaluation.eval['recall'][..., -1], abs=1e-12)
    of_masks, _ = precision_and_recall(match(truth, load_results(truth, copy.deepcopy(results)), 'segm'))
    assert 0.05 < precision[..., :3, 0].mean() < of_masks[..., :3, 0].mean()


def test_faster_coco_eval_that_is_missing_is_asked_for(masks, monkeypatch):
    monkeypatch.setitem(sys.modules, 'faster_coco_eval.core.mask', None)
    dataset, results = masks
    truth = index(copy.deepcopy(dataset))
    with pytest.raises(ImportError, match='pip install faster-coco-eval'):
        match(truth, load_results(truth, copy.deepcopy(results)), 'boundary')


def resample(dataset, results, counts):
    """The data set with copies of images, which get ids of their own, side by side."""
    images = [
        (image['id'], 1000 * image['id'] + copy)
        for image, count in zip(dataset['images'], counts, strict=True)
        for copy in range(count)
    ]

    def of_copies(records):
        return [
            dict(record, image_id=new)
            for old, new in images
            for record in records
            if record['image_id'] == old
        ]

    annotations = of_copies(dataset['annotations'])
    resampled = {
        **dataset,
        'images': [{'id': new, 'height': 480, 'width': 640} for _, new in images],
        'annotations': [dict(a, id=i) for i, a in enumerate(annotations, 1)],
    }
    return resampled, of_copies(results)


@pytest.mark.parametrize('iou_type', ['bbox', 'segm'])
def test_resamples_are_those_of_a_direct_implementation(iou_type, request):
    dataset, results = request.getfixturevalue({'bbox': 'boxes', 'segm': 'masks'}[iou_type])
    rng = np.random.default_rng(1)
    counts = rng.multinomial(12, [1 / 12] * 12, size=12 if iou_type == 'bbox' else 3).T
    counts[:, 0] = 1
    objects = {a['image_id'] for a in dataset['annotations'] if a['category_id'] == 3}
    counts[[i for i in range(12) if i + 1 in objects], 1] = 0  # no object of a class is left
    counts[0, 1] += 1
    truth = index(copy.deepcopy(dataset))
    matches = match(truth, load_results(truth, copy.deepcopy(results)), iou_type)
    actual = resampled_ap(matches, counts)
    for column, resampled in enumerate(counts.T):
        evaluation = coco_eval(*resample(dataset, results, resampled), iou_type)
        precision = evaluation.eval['precision'][..., -1]
        curves = actual.curves[..., column]
        ap, ap50, ap75, *by_area = evaluation.stats[:6]
        assert curves[0].mean() == pytest.approx(ap, abs=1e-12)
        assert curves[0, [0, 5]] == pytest.approx([ap50, ap75], abs=1e-12)
        by_area = np.where(np.array(by_area) < 0, np.nan, by_area)
        assert curves[1:].mean(axis=1) == pytest.approx(by_area, abs=1e-12, nan_ok=True)
        recall = np.where(evaluation.stats[8:12] < 0, np.nan, evaluation.stats[8:12])
        assert actual.recall[..., column].mean(axis=1) == pytest.approx(recall, abs=1e-12, nan_ok=True)
        per_class = precision[..., 0].mean(axis=(0, 1))
        per_class[per_class < 0] = np.nan
        assert actual.per_class[:, column] == pytest.approx(per_class, abs=1e-12, nan_ok=True)
    assert np.isnan(actual.per_class[2, 1])
    assert not np.isnan(actual.per_class[0]).any()


def test_nothing_is_found_in_what_is_empty():
    dataset = make_annotations(np.random.default_rng(0), images=3, classes=2, objects=4)
    truth = index(dataset)
    counts = np.ones((3, 2), int)
    nothing = resampled_ap(match(truth, load_results(truth, []), 'bbox'), counts)
    assert (nothing.curves[0] == 0).all() and (nothing.recall[0] == 0).all()
    truth = index({**dataset, 'annotations': []})
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # no AP is no mishap
        empty = resampled_ap(match(truth, load_results(truth, []), 'bbox'), counts)
    assert all(np.isnan(part).all() for part in (empty.curves, empty.recall, empty.per_class))


def wild_data(rng):
    """Boxes of few places and sizes, so that many are equal; some without an area, some beyond any image."""

    def box():
        return [*rng.choice([0, 1, 3.5], 2).tolist(), *rng.choice([0, 1, 8, 32, 96, 1e155], 2).tolist()]

    def where():
        return {'image_id': int(rng.integers(1, 4)), 'category_id': int(rng.integers(1, 3)), 'bbox': box()}

    areas = [0, 64, 32**2, 32**2 + 1, 96**2, 1e10, 1e11]
    annotations = [
        where() | {'id': i, 'area': float(rng.choice(areas)), 'iscrowd': int(rng.random() < 0.3)}
        for i in (rng.permutation(rng.integers(1, 9)) + 1).tolist()
    ]
    results = [where() | {'score': float(rng.choice([-1, 0, 0.5, 1]))} for _ in range(rng.integers(1, 99))]
    images = [{'id': i, 'height': 480, 'width': 640} for i in (1, 2, 3)]
    return {'images': images, 'annotations': annotations, 'categories': [{'id': 1}, {'id': 2}]}, results


@pytest.mark.parametrize('max_dets', [11, 100])
def test_matches_of_wild_boxes_are_those_of_pycocotools(max_dets):
    """Ties, crowds, areas on the borders, duplicates, empty boxes, and boxes whose IoU is NaN."""
    for seed in range(20):
        dataset, results = wild_data(np.random.default_rng(seed))
        expected = coco_eval(dataset, results, 'bbox', max_dets).eval
        truth = index(copy.deepcopy(dataset))
        matches = match(truth, load_results(truth, copy.deepcopy(results)), 'bbox', max_dets)
        for name, measure in zip(('precision', 'recall'), precision_and_recall(matches), strict=True):
            assert np.array_equal(measure, expected[name][..., -1])
        assert resampled_ap(matches, np.ones((3, 2), int)).curves.shape == (4, 10, 2)
