import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from synthetic import detect, make_annotations

from roi_plugins.evaluation import tide
from roi_plugins.evaluation.coco import evaluate
from roi_plugins.evaluation.coco_files import read_predictions
from roi_plugins.evaluation.tide import ERRORS, break_down_errors


def index(dataset):
    truth = COCO()
    truth.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def break_down(objects, detections):
    """Of one image with objects (category, x), 100 pixels wide, and detections (category, x, score)."""
    truth = index(
        {
            'images': [{'id': 1, 'height': 100, 'width': 1000}],
            'annotations': [
                {
                    'id': i,
                    'image_id': 1,
                    'category_id': category,
                    'bbox': [x, 0, 100, 50],
                    'area': 5000,
                    'iscrowd': int(bool(crowd)),
                }
                for i, (category, x, *crowd) in enumerate(objects, 1)
            ],
            'categories': [{'id': 1, 'name': 'a'}, {'id': 2, 'name': 'b'}],
        }
    )
    results = [
        {'image_id': 1, 'category_id': category, 'bbox': [x, 0, 100, 50], 'score': score}
        for category, x, score in detections
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        result = break_down_errors(truth, results, 'bbox')
    assert result.index.tolist() == list(ERRORS)
    found = result[result['count'] > 0]
    return {kind: (row['count'], row['ap50_lost']) for kind, row in found.iterrows()}


def test_no_errors():
    assert break_down([(1, 0), (2, 500)], [(1, 0, 0.9), (2, 510, 0.8)]) == {}


@pytest.mark.parametrize(
    ('objects', 'detections', 'expected'),
    [
        # A shift of 60 of 100 pixels: IoU 40 / 160.
        pytest.param([(1, 0)], [(1, 60, 0.9)], {'localization': (1, 1.0)}, id='localization'),
        pytest.param(
            [(1, 0), (2, 500)],
            [(1, 0, 0.9), (1, 505, 0.8)],
            {'classification': (1, 0.5)},  # AP50 of a: 1; of b: 0, which becomes 1
            id='classification',
        ),
        pytest.param(
            [(1, 0), (2, 500)],
            [(1, 560, 0.9), (1, 0, 0.8), (2, 500, 0.7)],
            {'both': (1, 0.25)},  # AP50 of a: 0.5 by the false detection before the right one
            id='both',
        ),
        pytest.param(
            [(1, 0), (1, 500)],
            [(1, 0, 0.9), (1, 5, 0.8), (1, 500, 0.7)],
            {'duplicate': (1, 50 / 101 / 3)},  # 2 / 3 beyond recall 0.5
            id='duplicate',
        ),
        pytest.param([(1, 0)], [(1, 800, 0.9), (1, 0, 0.8)], {'background': (1, 0.5)}, id='background'),
        pytest.param(
            [(1, 0), (1, 500)],
            [(1, 0, 0.9)],
            {'missed': (1, 50 / 101)},
            id='missed',
        ),
        pytest.param(
            [(1, 0)],
            [(1, 60, 0.9), (1, -60, 0.8), (1, 0, 0.7)],
            # The object has its detection: the two can only vanish, from above it.
            {'localization': (2, 2 / 3)},
            id='two near misses of an object that is found',
        ),
        pytest.param(
            [(1, 0)],
            [(1, 60, 0.9), (1, -60, 0.8)],
            {'localization': (2, 1.0)},  # the better one becomes right, the other vanishes
            id='two near misses of an object that is not found',
        ),
        pytest.param([(1, 0), (1, 500, True)], [(1, 0, 0.9), (1, 500, 0.95)], {}, id='crowd'),
        pytest.param([], [(1, 0, 0.9)], {'background': (1, 0.0)}, id='nothing to find'),
    ],
)
def test_each_kind(objects, detections, expected):
    actual = break_down(objects, detections)
    assert actual == {kind: pytest.approx(values) for kind, values in expected.items()}


def test_the_ap50_that_is_broken_down_is_that_of_pycocotools(monkeypatch):
    rng = np.random.default_rng(0)
    dataset = make_annotations(rng, images=30, classes=4, objects=5, crowds=0.1)
    results = detect(rng, dataset, noise=0.1, per_image=15)
    rankings = []
    rank = tide._rank
    monkeypatch.setattr(tide, '_rank', lambda *args: rankings.append(rank(*args)) or rankings[0])
    truth = index(dataset)
    with contextlib.redirect_stdout(io.StringIO()):
        broken = break_down_errors(truth, read_predictions(truth, results, 'bbox'), 'bbox')
    assert tide._ap50(rankings[0], None) == pytest.approx(evaluate(truth, results, 'bbox')['AP50'], abs=1e-12)
    assert (broken['count'] > 0).all()
    is_error = rankings[0].error >= 0
    assert broken['count'].iloc[:-1].sum() == is_error.sum()
    assert (broken['ap50_lost'] >= 0).all()
