"""What is left of a plan, in hours: by its own finished trials, or unknown."""

from pathlib import Path

import pytest

from roi_plugins.ablation.cost import estimate, summarize
from roi_plugins.ablation.job import Job
from roi_plugins.ablation.trial import Trial

HERE = 'on the machine that ran the finished trials'
UNKNOWN = 'no trial of this config is finished'


def job(config='mask', extractor='avg', seed=0, seconds=None, trained_with=None):
    trial = Trial(config, 'fake', Path('c'), extractor, seed, trained_with=trained_with)
    record = {} if seconds is None else {'seconds': seconds}
    return Job(trial, Path('run'), [], '', record, finished=seconds is not None)


def test_nothing_is_known_where_no_trial_of_the_config_is_finished():
    found = estimate(job(), [job(), job('faster', seconds=60)])
    assert (found.hours, found.source) == (None, UNKNOWN)


def test_finished_trials_know_better_those_of_the_same_extractor_best():
    others = [job('mask', 'max', seconds=3600), job('mask', 'adaptive', seconds=10800)]
    found = estimate(job(), [job(), *others])
    assert found.hours == 2
    assert '2 trials of this config with other extractors' in found.source
    found = estimate(job(), [job(), *others, job(seed=1, seconds=1800)])
    assert found.hours == 0.5
    assert '1 trial of this config with the same extractor' in found.source
    # A test takes other time than a training, and so may that of other weights.
    tested = job(trained_with='max')
    assert estimate(tested, [tested, *others]).hours is None


def test_the_sum_is_of_what_is_left():
    jobs = [
        job('mask', 'avg', seconds=18000),
        job('mask', 'max'),
        job('mask', 'adaptive'),
        job('faster', 'avg', seconds=7200),
        job('faster', 'max'),
        job('cascade', 'avg'),
        job('mask', 'avg', trained_with='max'),
    ]
    lines = summarize(jobs)
    assert lines[0] == '7 trials: 2 finished, 5 to run'
    text = '\n'.join(lines)
    assert '  mask: 2 trials of 5.0 h: 10.0 h\n' in text
    assert '  faster: 1 trial of 2.0 h: 2.0 h\n' in text
    assert f'  cascade: 1 trial, unknown: {UNKNOWN}' in lines
    assert f'  mask, trained with max: 1 trial, unknown: {UNKNOWN}' in lines
    assert lines[-2:] == [f'in total 12.0 h {HERE}', 'plus 2 trials of unknown length']


@pytest.mark.parametrize(
    ('jobs', 'lines'),
    [
        ([job(seconds=5)], ['1 trial: 1 finished, 0 to run']),
        (
            [job()],
            ['1 trial: 0 finished, 1 to run', f'  mask: 1 trial, unknown: {UNKNOWN}', 'in total unknown'],
        ),
    ],
)
def test_where_nothing_is_left_or_known_no_number_is_given(jobs, lines):
    assert summarize(jobs) == lines


def test_short_times_are_given_in_minutes():
    assert summarize([job(seconds=90), job(seed=1)])[-1] == f'in total 1.5 min {HERE}'
