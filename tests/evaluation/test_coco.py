import contextlib
import copy
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from roi_plugins.evaluation.coco import COUNT, CURVE, IOU_THRESHOLDS, METRICS, evaluate, print_metrics
from roi_plugins.evaluation.coco_files import check_annotations, load_annotations
from roi_plugins.files import DataError, write_json
from roi_plugins.run_record import write_run

HEIGHT, WIDTH = 240, 320


def rle(x, y, w, h):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order='F')
    mask[y : y + h, x : x + w] = 1
    encoded = mask_utils.encode(mask)
    return {'size': encoded['size'], 'counts': encoded['counts'].decode()}


def make_dataset():
    """Objects of all sizes and a crowd in six images of two categories; one image is empty."""
    rng = np.random.default_rng(0)
    annotations = []
    for index in range(30):
        w, h = (int(s) for s in rng.integers(8, (24, 80, 160)[index % 3], 2))
        x, y = int(rng.integers(0, WIDTH - w)), int(rng.integers(0, HEIGHT - h))
        annotations.append(
            {
                'id': index + 1,
                'image_id': 10 + index % 5,
                'category_id': (3, 7)[index % 2],
                'bbox': [x, y, w, h],
                'area': w * h,
                'iscrowd': int(index == 4),
                'segmentation': rle(x, y, w, h),
            }
        )
    images = [{'id': 10 + i, 'height': HEIGHT, 'width': WIDTH} for i in range(6)]
    categories = [{'id': 3, 'name': 'cat'}, {'id': 7, 'name': 'dog'}]
    return {'images': images, 'annotations': annotations, 'categories': categories}


def test_the_console_shows_points_as_the_tables_do(capsys):
    values = {'AP': 0.2334, 'AP50': 1.0, 'AP75': 0.0005, 'APs': 0.0, 'APm': -1.0, 'APl': 0.31250000000000006}
    print_metrics({'bbox': values})
    assert capsys.readouterr().out == 'bbox  AP 23.3  AP50 100.0  AP75 0.1  APs 0.0  APm -  APl 31.3\n'


def detect(dataset, iou_type, jitter):
    rng = np.random.default_rng(1)
    predictions = []
    for annotation in dataset['annotations']:
        x, y, w, h = annotation['bbox']
        dx, dy = (rng.normal(0, jitter, 2) * (w, h)).round().astype(int).tolist()
        x, y = min(max(x + dx, 0), WIDTH - w), min(max(y + dy, 0), HEIGHT - h)
        region = {'bbox': [x, y, w, h]} if iou_type == 'bbox' else {'segmentation': rle(x, y, w, h)}
        predictions.append(
            {
                'image_id': annotation['image_id'],
                'category_id': annotation['category_id'],
                'score': float(rng.random()),
                **region,
            }
        )
    return predictions


STATS = {'AP': 0, 'AP50': 1, 'AP75': 2, 'APs': 3, 'APm': 4, 'APl': 5, 'AR': 8}
"""Where ``COCOeval.stats`` has each of our quantities."""


def stats_by_name(coco_eval):
    assert STATS.keys() == set(METRICS)
    return {metric: coco_eval.stats[index] for metric, index in STATS.items()}


def pycocotools_stats(ann_file, predictions, iou_type):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(ann_file))
        coco_eval = COCOeval(coco, coco.loadRes(copy.deepcopy(predictions)), iou_type)
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    return coco_eval


@pytest.fixture
def dataset():
    return make_dataset()


@pytest.fixture
def ann_file(dataset, tmp_path):
    path = tmp_path / 'annotations.json'
    write_json(path, dataset)
    return path


@pytest.mark.parametrize('iou_type', ['bbox', 'segm'])
@pytest.mark.parametrize('jitter', [0.0, 0.12])
def test_equals_pycocotools_in_full_precision(dataset, ann_file, iou_type, jitter, capsys):
    predictions = detect(dataset, iou_type, jitter)
    expected = pycocotools_stats(ann_file, predictions, iou_type)
    result = evaluate(ann_file, predictions, iou_type)
    assert {metric: result[metric] for metric in METRICS} == stats_by_name(expected)
    assert result[COUNT] == 30
    curve = [expected.eval['precision'][t, :, :, 0, 2].mean() for t in range(10)]
    assert result[CURVE] == pytest.approx(curve, abs=1e-15)
    assert result[CURVE][0] == result['AP50']
    assert result[CURVE][IOU_THRESHOLDS.index(0.75)] == result['AP75']
    assert np.mean(result[CURVE]) == pytest.approx(result['AP'])
    if jitter == 0:
        assert result['AP'] == pytest.approx(1)
    else:
        assert 0.1 < result['AP'] < 0.9
    assert capsys.readouterr().out == ''


def test_no_predictions_have_ap_0_and_no_ground_truth_minus_1(dataset, ann_file):
    assert evaluate(ann_file, [], 'segm')['AP'] == 0
    dataset['annotations'] = [a for a in dataset['annotations'] if a['area'] < 32**2]
    write_json(ann_file, dataset)
    result = evaluate(ann_file, detect(dataset, 'bbox', 0.1), 'bbox')
    assert result['APl'] == -1
    assert result['APs'] > 0
    dataset['annotations'] = []
    write_json(ann_file, dataset)
    assert evaluate(ann_file, [], 'bbox')[CURVE] == [-1] * 10


def test_area_of_a_mask_is_its_own_and_the_predictions_stay_as_they_are(dataset, ann_file):
    predictions = detect(dataset, 'segm', 0.05)
    # Unmatched masks with a box of another size class: counted by the class of the mask.
    with_boxes = [{**p, 'bbox': [0, 0, 2, 2]} for p in predictions]
    before = copy.deepcopy(with_boxes)
    coco = load_annotations(ann_file)
    assert evaluate(coco, with_boxes, 'segm') == evaluate(coco, predictions, 'segm')
    assert with_boxes == before
    # The annotations that were read once give the same again, for boxes too.
    boxes = detect(dataset, 'bbox', 0.05)
    assert evaluate(coco, boxes, 'bbox') == evaluate(ann_file, boxes, 'bbox')


@pytest.mark.parametrize(
    ('change', 'iou_type', 'message'),
    [
        ({'image_id': 999}, 'bbox', 'image_id 999.*another dataset'),
        ({'category_id': 0}, 'bbox', 'category_id 0'),
        ({'score': float('nan')}, 'bbox', 'score nan'),
        ({'score': '0.5'}, 'bbox', "score '0.5'"),
        ({'bbox': [0, 0, float('inf'), 1]}, 'bbox', 'four finite numbers'),
        ({'bbox': [0, 0, 1]}, 'bbox', 'four finite numbers'),
        ({'segmentation': [[0, 0, 5, 0, 5, 5]]}, 'segm', 'not compressed RLE'),
        ({'segmentation': {'size': [1, 2], 'counts': '02'}}, 'segm', r'size \[1, 2\]'),
    ],
)
def test_a_bad_prediction_is_named(dataset, ann_file, tmp_path, change, iou_type, message):
    predictions = detect(dataset, iou_type, 0.1)
    predictions[3] |= change
    path = tmp_path / 'bad.json'
    path.write_text(json.dumps(predictions))
    with pytest.raises(DataError, match=rf'bad\.json: prediction 3 .*{message}'):
        evaluate(ann_file, path, iou_type)


@pytest.mark.parametrize(
    ('text', 'message'),
    [('[{', 'not JSON'), ('{}', 'expected a list'), ('[1]', 'not an object'), ('[{}]', 'lacks')],
)
def test_a_bad_file_is_named(ann_file, tmp_path, text, message):
    path = tmp_path / 'bad.json'
    path.write_text(text)
    with pytest.raises(DataError, match=rf'bad\.json.*{message}'):
        evaluate(ann_file, path, 'bbox')
    with pytest.raises(DataError, match=r'gone\.json: the prediction file does not exist'):
        evaluate(ann_file, tmp_path / 'gone.json', 'bbox')
    with pytest.raises(DataError, match=r'bad\.json'):
        evaluate(path, [], 'bbox')
    with pytest.raises(ValueError, match="iou_type is 'box'"):
        evaluate(ann_file, [], 'box')


def double(part, index):
    def change(dataset):
        dataset[part].append(dict(dataset[part][index]))

    return change


def outline(value):
    def change(dataset):
        dataset['annotations'][2]['segmentation'] = value

    return change


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda d: d['annotations'][2].update(id=0), r'annotations\[2\] has id 0.*no match'),
        (double('annotations', 3), r'annotations\[30\] has the id 4 of annotations\[3\]'),
        (double('images', 1), r'images\[6\] has the id 11 of images\[1\]'),
        (double('categories', 1), r'categories\[2\] has the id 7 of categories\[1\]'),
        (lambda d: d['annotations'][2].pop('iscrowd'), r'annotations\[2\] lacks iscrowd'),
        (lambda d: d['annotations'][2].update(category_id=5), r'annotations\[2\] has category_id 5'),
        (lambda d: d['annotations'][2].update(id='3'), r"annotations\[2\] has id '3'"),
        (lambda d: d['images'].clear(), 'has no images'),
        (lambda d: d['annotations'].clear(), 'no image has an object to find'),
        (outline([[10, 10, 60, 50]]), r'annotation 3 has the segmentation \[\[10, 10, 60, 50\]\]'),
        (outline([[10, 10, 60, 50, 7]]), 'annotation 3 has the segmentation'),
        (outline([]), 'annotation 3 has the segmentation'),
        (outline(None), 'annotation 3 has the segmentation None'),
        (outline({'size': [2, 3], 'counts': [1, 4, 1]}), r'annotation 3 has a mask of size \[2, 3\]'),
        (outline({'size': [2, 3], 'counts': '02'}), 'annotation 3 has the segmentation'),
        (lambda d: d['images'][2].pop('height'), 'image 12 has no height and width'),
    ],
)
def test_annotations_that_cannot_be_evaluated_are_named_before_there_are_predictions(
    dataset, ann_file, change, message
):
    assert len(check_annotations(ann_file).anns) == 30
    change(dataset)
    write_json(ann_file, dataset)
    with pytest.raises(DataError, match=rf'annotations\.json: {message}'):
        check_annotations(ann_file)


def test_boxes_need_no_outlines(dataset, ann_file):
    for annotation in dataset['annotations']:
        del annotation['segmentation']
    write_json(ann_file, dataset)
    check_annotations(ann_file, ['bbox'])
    with pytest.raises(DataError, match='annotation 1 has the segmentation None'):
        check_annotations(ann_file, ['bbox', 'segm'])


def test_a_polygon_without_area_beside_another_is_as_pycocotools_has_it(dataset, ann_file):
    for annotation in dataset['annotations']:
        x, y, w, h = annotation['bbox']
        annotation['segmentation'] = [[x, y, x + w, y, x + w, y + h, x, y + h], [x, y, x + w, y + h]]
    write_json(ann_file, dataset)
    check_annotations(ann_file)
    predictions = detect(dataset, 'segm', 0.1)
    result = evaluate(ann_file, predictions, 'segm')
    expected = stats_by_name(pycocotools_stats(ann_file, predictions, 'segm'))
    assert {metric: result[metric] for metric in METRICS} == expected


def test_write_run(dataset, ann_file, tmp_path):
    run_dir = tmp_path / 'run'
    run_dir.mkdir()
    options = {
        'framework': 'mmdet',
        'config': 'configs/x.py',
        'checkpoint': Path('x.pth'),
        'ann_file': ann_file,
        'command': ['test.py', 'x'],
    }
    with pytest.raises(DataError, match=r'run: no predictions\.bbox\.json'):
        write_run(run_dir, **options)
    for iou_type in ('bbox', 'segm'):
        predictions = detect(dataset, iou_type, 0.1)
        write_json(run_dir / f'predictions.{iou_type}.json', predictions)
    record = write_run(run_dir, **options)
    assert json.loads((run_dir / 'metrics.json').read_text()) == record
    assert sorted(p.name for p in run_dir.iterdir()) == [
        'metrics.json',
        'predictions.bbox.json',
        'predictions.segm.json',
    ]
    for iou_type, name in record['predictions'].items():
        expected = evaluate(ann_file, run_dir / name, iou_type)
        assert record['metrics'][iou_type] == {metric: expected[metric] for metric in METRICS}
    assert record['checkpoint'] == 'x.pth'
    assert {'python', 'torch', 'roi_plugins'} <= record['versions'].keys()


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'a.json'
    write_json(path, {'a': 1})
    with pytest.raises(ValueError):
        write_json(path, {'a': float('nan')})
    assert json.loads(path.read_text()) == {'a': 1}
    assert os.listdir(tmp_path) == ['a.json']


@pytest.mark.skipif(
    'ROI_PLUGINS_TINY_COCO' not in os.environ,
    reason='ROI_PLUGINS_TINY_COCO does not say where the 50 + 50 images of COCO are',
)
@pytest.mark.parametrize('iou_type', ['bbox', 'segm'])
def test_equals_pycocotools_on_real_annotations(iou_type):
    root = Path(os.environ['ROI_PLUGINS_TINY_COCO'])
    ann_file = root / 'annotations' / 'instances_val2017.json'
    coco = load_annotations(ann_file)
    rng = np.random.default_rng(0)
    predictions = []
    for annotation in coco.anns.values():  # crowds too
        mask = np.roll(coco.annToMask(annotation), tuple(rng.integers(-3, 4, 2)), (0, 1))
        encoded = mask_utils.encode(np.asfortranarray(mask))
        region = {
            'bbox': (np.array(annotation['bbox']) + rng.normal(0, 3, 4)).tolist(),
            'segm': {'size': encoded['size'], 'counts': encoded['counts'].decode()},
        }[iou_type]
        predictions.append(
            {
                'image_id': annotation['image_id'],
                'category_id': annotation['category_id'],
                'score': float(rng.random()),
                'bbox' if iou_type == 'bbox' else 'segmentation': region,
            }
        )
    expected = stats_by_name(pycocotools_stats(ann_file, predictions, iou_type))
    result = evaluate(coco, predictions, iou_type)
    assert {metric: result[metric] for metric in METRICS} == expected
    assert 0.1 < result['AP'] < 0.95
