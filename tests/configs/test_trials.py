"""The trials of the plans are those of the published results: trials.json says what they were."""

import json

import pytest

pytest.importorskip('mmdet', reason='MMDetection is not installed')
pytest.importorskip('mmcv.ops', reason="MMCV's compiled ops are not installed")
pytest.importorskip('detectron2', reason='Detectron2 is not installed')

import resolved_trials

WRITTEN = json.loads(resolved_trials.TRIALS.read_text(encoding='utf-8'))


# Its config said aligned=True, which is what the row precise-aligned says; precise is as published.
RENAMED = {'precise': 'precise-aligned'}


def written(plan):
    """What was written of a plan, by the names of today."""
    trials = {}
    for name, trial in WRITTEN.items():
        if name.startswith(f'{plan}/'):
            above, _, row = name.rpartition('/')
            trials[f'{above}/{RENAMED.get(row, row)}'] = trial
    return trials


def test_every_plan_is_written_down():
    plans = {name.partition('/')[0] for name in WRITTEN} - {'mmdet', 'detectron2'}
    assert plans == {path.stem for path in resolved_trials.PLANS}


@pytest.mark.slow
@pytest.mark.parametrize('path', resolved_trials.PLANS, ids=lambda path: path.stem)
def test_a_trial_is_what_it_was(path):
    trials, before = resolved_trials.resolve_plan(path), written(path.stem)
    assert trials.keys() == before.keys()
    # By name and part, what it was and what it is.
    changed = {
        (name, part): (before[name].get(part), trial.get(part))
        for name, trial in trials.items()
        for part in trial.keys() | before[name].keys()
        if before[name].get(part) != trial.get(part)
    }
    assert changed == {}


@pytest.mark.parametrize('path', resolved_trials.OTHERS)
def test_a_config_of_its_own_is_what_it_was(path):
    assert resolved_trials.resolve_config(path) == WRITTEN[path]
