"""Runs that are evaluated in processes of their own have the results that they have in this one."""

import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
from synthetic import detect, make_annotations

from roi_plugins.ablation import evaluate_runs as module
from roi_plugins.ablation.evaluate_runs import evaluate_runs
from roi_plugins.evaluation.bootstrap import resample_images
from roi_plugins.evaluation.coco_files import load_annotations
from roi_plugins.evaluation.matching import COCO_SIGMAS, MAX_DETS
from roi_plugins.files import DataError, write_json


@pytest.fixture
def arguments(tmp_path):
    """Five runs, of which the second is damaged, and what their evaluation takes beside them."""
    rng = np.random.default_rng(0)
    dataset = make_annotations(rng, images=8, classes=2, objects=4)
    write_json(tmp_path / 'annotations.json', dataset)
    runs = []
    for i in range(5):
        path = tmp_path / f'{i}.bbox.json'
        write_json(path, detect(rng, dataset, noise=0.05 * (i + 1), per_image=20) if i != 1 else {})
        options = {'max_dets': MAX_DETS, 'sigmas': COCO_SIGMAS}
        runs.append(SimpleNamespace(name=f'run {i}', predictions={'bbox': path}, **options))
    coco = load_annotations(tmp_path / 'annotations.json')
    return runs, coco, resample_images(8, 10, 0), ('bbox', 'segm'), True


@pytest.fixture
def parallel(monkeypatch):
    monkeypatch.setattr(module, 'PARALLEL_BYTES', 0)
    monkeypatch.setattr(module, '_cores', lambda: 2)


def test_results_and_errors_are_those_of_one_process_in_their_order(arguments, request):
    expected = list(evaluate_runs(*arguments))
    request.getfixturevalue('parallel')
    actual = list(evaluate_runs(*arguments))
    assert [type(outcome) for outcome in actual] == [type(outcome) for outcome in expected]
    assert isinstance(actual[1], DataError) and str(actual[1]) == str(expected[1])
    assert str(arguments[0][1].predictions['bbox']) in str(actual[1])
    for a, e in zip(actual, expected, strict=True):
        if not isinstance(e, DataError):
            assert a.metrics == e.metrics
            (sample, errors), (expected_sample, expected_errors) = a.samples['bbox'], e.samples['bbox']
            np.testing.assert_array_equal(sample.values, expected_sample.values)
            np.testing.assert_array_equal(sample.resampled, expected_sample.resampled)
            assert errors.equals(expected_errors)


def test_other_errors_end_it_and_leave_no_process(arguments, parallel):
    arguments[0][2].max_dets = 0
    outcomes = evaluate_runs(*arguments)
    assert [type(next(outcomes)).__name__ for _ in range(2)] == ['RunResult', 'DataError']
    with pytest.raises(ValueError, match='max_dets is 0; expected 1 or more') as caught:
        next(outcomes)
    assert 'in the process of run 2' in str(caught.value.__cause__)
    assert not module.multiprocessing.active_children()


def test_a_process_that_is_killed_is_named(arguments, parallel, monkeypatch):
    monkeypatch.setattr(module, 'evaluate_run', lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(RuntimeError, match=r'run 0: .* ended with exit code -9; was it out of memory\?'):
        next(evaluate_runs(*arguments))
    assert not module.multiprocessing.active_children()


def test_processes_end_with_the_one_that_waits_for_them(arguments, parallel):
    outcomes = evaluate_runs(*arguments)
    next(outcomes)
    outcomes.close()
    assert not module.multiprocessing.active_children()
