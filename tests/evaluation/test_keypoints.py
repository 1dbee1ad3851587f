"""Keypoint AP against pycocotools' own evaluation, and what is refused."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from roi_plugins.evaluation.coco import METRICS, evaluate, match_predictions
from roi_plugins.evaluation.coco_files import check_annotations
from roi_plugins.evaluation.matching import COCO_SIGMAS, precision_and_recall, resampled_ap
from roi_plugins.files import DataError, write_json
from roi_plugins.run_record import write_run

# Where ``COCOeval.stats`` has our quantities for keypoints; it has no APs.
STATS = {'AP': 0, 'AP50': 1, 'AP75': 2, 'APm': 3, 'APl': 4, 'AR': 5}


def pycocotools_eval(dataset, results, sigmas=COCO_SIGMAS, max_dets=20, areas=None):
    coco = COCO()
    coco.dataset = copy.deepcopy(dataset)
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), 'keypoints')
        evaluation.params.maxDets = [max_dets]
        evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        if areas:
            evaluation.params.areaRng, evaluation.params.areaRngLbl = areas.areaRng, areas.areaRngLbl
        evaluation.evaluate()
        evaluation.accumulate()
        if max_dets == 20:
            evaluation.summarize()
    return evaluation


# Few places, so that many are equal.
_coordinates = st.sampled_from([-3.0, 0.0, 1.0, 2.5, 7.0, 40.0, 400.0])
_scores = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0])
_images, _categories = st.sampled_from([1, 2, 3]), st.sampled_from([1, 2])
_boxes = st.tuples(_coordinates, _coordinates, *[st.sampled_from([0.0, 5.0, 40.0, 200.0])] * 2).map(list)


def _keypoints(count, visibilities):
    point = st.tuples(_coordinates, _coordinates, visibilities)
    return st.lists(point, min_size=count, max_size=count).map(lambda points: [v for p in points for v in p])


@st.composite
def wild_data(draw):
    """Ties, crowds, objects without a visible keypoint, areas on borders, results with or without boxes."""
    count = draw(st.sampled_from([1, 4, 17]))
    sigmas = (
        COCO_SIGMAS if count == 17 else draw(st.lists(st.floats(0.01, 0.2), min_size=count, max_size=count))
    )
    annotations = []
    for id_ in range(1, draw(st.integers(2, 9))):
        keypoints = draw(_keypoints(count, st.sampled_from(draw(st.sampled_from([[0], [0, 1, 2], [2]])))))
        annotations.append(
            {
                'id': id_,
                'image_id': draw(_images),
                'category_id': draw(_categories),
                'bbox': draw(_boxes),
                'area': draw(st.sampled_from([0.0, 64.0, 32.0**2, 32.0**2 + 1, 96.0**2, 1e5, 1e10])),
                'iscrowd': draw(st.sampled_from([0, 0, 1])),
                'keypoints': keypoints,
                'num_keypoints': sum(v > 0 for v in keypoints[2::3]),
            }
        )
    with_boxes = draw(st.booleans())
    results = []
    for _ in range(draw(st.integers(1, 30))):
        near = draw(st.sampled_from(annotations))
        found = {'image_id': near['image_id'], 'category_id': near['category_id'], 'score': draw(_scores)}
        if draw(st.booleans()):
            found['keypoints'] = draw(_keypoints(count, _scores))
        else:  # close to an object
            shift = draw(st.sampled_from([0.0, 0.5, 2.0, 10.0]))
            found['keypoints'] = [v + shift * (i % 3 < 2) for i, v in enumerate(near['keypoints'])]
        results.append(found | ({'bbox': draw(_boxes)} if with_boxes else {}))
    images = [{'id': i, 'height': 480, 'width': 640} for i in (1, 2, 3)]
    dataset = {'images': images, 'annotations': annotations, 'categories': [{'id': 1}, {'id': 2}]}
    return dataset, results, sigmas


def load(dataset):
    coco = COCO()
    coco.dataset = copy.deepcopy(dataset)
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


@settings(max_examples=60, deadline=None)
@given(wild_data(), st.sampled_from([1, 3, 20]))
def test_wild_keypoints_are_as_pycocotools_has_them(data, max_dets):
    dataset, results, sigmas = data
    expected = pycocotools_eval(dataset, results, sigmas, max_dets)
    matches = match_predictions(load(dataset), results, 'keypoints', max_dets, sigmas)
    precision, recall = precision_and_recall(matches)
    of_coco = [0, 2, 3]  # all, medium, large
    assert np.array_equal(precision[..., of_coco], expected.eval['precision'][..., -1])
    assert np.array_equal(recall[..., of_coco], expected.eval['recall'][..., -1])
    # COCO's ranges of areas for boxes have the small ones too.
    every_area = pycocotools_eval(dataset, results, sigmas, max_dets, areas=Params('bbox'))
    assert np.array_equal(precision, every_area.eval['precision'][..., -1])
    if max_dets == 20:
        found = evaluate(load(dataset), results, 'keypoints', sigmas=sigmas)
        assert {metric: found[metric] for metric in STATS} == {
            metric: expected.stats[index] for metric, index in STATS.items()
        }
    whole = resampled_ap(matches, np.ones((3, 1), int)).curves[0, :, 0]
    present = precision[..., 0][precision[..., 0] > -1]
    assert np.nan_to_num(whole.mean(), nan=-1) == pytest.approx(
        present.mean() if present.size else -1, abs=1e-12
    )


def make_persons():
    """Persons in six images, with 25 detections of each image that get worse."""
    rng = np.random.default_rng(0)
    annotations, results = [], []
    for id_ in range(1, 13):
        w, h = rng.uniform(40, 200, 2)
        points = np.c_[rng.uniform(0, w, 17), rng.uniform(0, h, 17)] + (50, 20)
        visible = rng.integers(0, 3, 17) * (id_ != 5)
        annotations.append(
            {
                'id': id_,
                'image_id': 1 + id_ % 6,
                'category_id': 1,
                'bbox': [50.0, 20.0, w, h],
                'area': w * h * 0.6,
                'iscrowd': 0,
                'keypoints': np.c_[points, visible].ravel().tolist(),
                'num_keypoints': int((visible > 0).sum()),
            }
        )
        for worse in range(13):
            moved = points + rng.normal(0, 2 + 2 * worse, points.shape)
            results.append(
                {
                    'image_id': 1 + id_ % 6,
                    'category_id': 1,
                    'score': float(rng.random()),
                    'keypoints': np.c_[moved, np.ones(17)].ravel().tolist(),
                }
            )
    images = [{'id': i, 'height': 480, 'width': 640} for i in range(1, 7)]
    return {
        'images': images,
        'annotations': annotations,
        'categories': [{'id': 1, 'name': 'person'}],
    }, results


@pytest.fixture
def persons(tmp_path):
    dataset, results = make_persons()
    write_json(tmp_path / 'annotations.json', dataset)
    return tmp_path / 'annotations.json', dataset, results


def test_the_best_20_count_whatever_the_limit_of_boxes(persons):
    ann_file, dataset, results = persons
    expected = pycocotools_eval(dataset, results).stats
    found = evaluate(ann_file, results, 'keypoints')  # the default is COCO's 100
    assert {metric: found[metric] for metric in STATS} == {m: expected[i] for m, i in STATS.items()}
    assert 0.1 < found['AP'] < 0.9
    assert found['AR'] < pycocotools_eval(dataset, results, max_dets=100).eval['recall'][:, 0, 0, 0].mean()
    assert evaluate(ann_file, [], 'keypoints')['AP'] == 0


def test_a_box_gives_the_area_of_a_detection(persons):
    ann_file, dataset, results = persons
    tiny = [{**result, 'bbox': [0, 0, 2, 2]} for result in results]
    for some in (results, tiny):
        expected = pycocotools_eval(dataset, some).stats
        assert evaluate(ann_file, some, 'keypoints')['APl'] == expected[STATS['APl']]
    of_tiny, of_all = (evaluate(ann_file, some, 'keypoints') for some in (tiny, results))
    assert of_tiny['AP'] == of_all['AP']
    assert of_tiny['APl'] > of_all['APl']  # what is not large is not wrong


def test_a_run_records_its_sigmas(persons, tmp_path):
    ann_file, _, results = persons
    options = {
        'framework': 'detectron2',
        'config': 'c',
        'checkpoint': 'c',
        'ann_file': ann_file,
        'command': [],
    }
    (tmp_path / 'run').mkdir()
    write_json(tmp_path / 'run/predictions.keypoints.json', results)
    sigmas = [0.2] * 17
    record = write_run(tmp_path / 'run', **options, sigmas=sigmas)
    assert record['oks_sigmas'] == sigmas
    found = evaluate(ann_file, results, 'keypoints', sigmas=sigmas)
    assert record['metrics']['keypoints'] == {metric: found[metric] for metric in METRICS}
    assert found['AP'] > evaluate(ann_file, results, 'keypoints')['AP']


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda a: a.pop('keypoints'), 'annotation 3 has the keypoints None; expected a list'),
        (lambda a: a.pop('num_keypoints'), 'annotation 3 has num_keypoints None'),
        (
            lambda a: a.update(keypoints=[1, 2, 2] * 4),
            'annotation 3 has keypoints of 12 numbers.*17 keypoints',
        ),
        (lambda a: a.update(keypoints=[float('inf')] * 51), 'annotation 3 has the keypoints'),
    ],
)
def test_annotations_without_keypoints_are_named(persons, change, message):
    ann_file, dataset, results = persons
    change(dataset['annotations'][2])
    ann_file.write_text(json.dumps(dataset))
    check_annotations(ann_file, ['bbox'])
    for check in (
        lambda: check_annotations(ann_file, ['bbox', 'keypoints']),
        lambda: evaluate(ann_file, results, 'keypoints'),
    ):
        with pytest.raises(DataError, match=rf'annotations\.json: {message}'):
            check()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'keypoints': [1.0, 2.0, 1.0] * 4}, 'keypoints of 12 numbers.*17 keypoints.*KEYPOINT_OKS_SIGMAS'),
        ({'keypoints': None}, 'the keypoints None'),
        ({'keypoints': [float('nan')] * 51}, 'the keypoints'),
        ({'image_id': 99}, 'image_id 99'),
    ],
)
def test_a_bad_prediction_of_keypoints_is_named(persons, change, message):
    ann_file, _, results = persons
    results[3] |= change
    with pytest.raises(DataError, match=f'prediction 3 .*{message}'):
        evaluate(ann_file, results, 'keypoints')


def test_some_boxes_are_not_enough(persons):
    ann_file, _, results = persons
    results[0]['bbox'] = [0, 0, 2, 2]
    with pytest.raises(DataError, match='prediction 1 lacks bbox'):
        evaluate(ann_file, results, 'keypoints')
