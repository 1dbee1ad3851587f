"""What is left of a plan, in hours: by its own finished trials, by the model zoo, or unknown."""

from pathlib import Path

import pytest

from roi_plugins.ablation.cost import HERE, estimate, summarize
from roi_plugins.ablation.plan import Trial, ZooTime
from roi_plugins.ablation.trial import Job

ZOO = ZooTime(seconds_per_iter=0.2, iterations=90000, hardware='8 x V100', source='the zoo')  # 5 h


def job(config='mask', extractor='avg', seed=0, seconds=None, zoo=ZOO, trained_with=None):
    trial = Trial(config, 'fake', Path('c'), extractor, seed, zoo_time=zoo, trained_with=trained_with)
    record = {} if seconds is None else {'seconds': seconds}
    return Job(trial, Path('run'), [], '', record, finished=seconds is not None)


def test_the_zoo_is_asked_where_no_trial_is_finished():
    found = estimate(job(), [job(), job('faster', seconds=60)])
    assert (found.hours, found.hardware) == (5, '8 x V100')
    assert '0.2 s x 90000 iterations' in found.source and 'the zoo' in found.source


def test_finished_trials_know_better_those_of_the_same_extractor_best():
    others = [job('mask', 'max', seconds=3600), job('mask', 'adaptive', seconds=10800)]
    found = estimate(job(), [job(), *others])
    assert (found.hours, found.hardware) == (2, HERE)
    assert '2 trials of this config with other extractors' in found.source
    found = estimate(job(), [job(), *others, job(seed=1, seconds=1800)])
    assert found.hours == 0.5
    assert '1 trial of this config with the same extractor' in found.source
    # A test takes other time than a training, and so may that of other weights.
    tested = job(trained_with='max', zoo='no zoo')
    assert estimate(tested, [tested, *others]).hours is None


def test_the_sum_is_of_what_is_left():
    jobs = [
        job('mask', 'avg'),
        job('mask', 'max'),
        job('faster', 'avg', seconds=7200),
        job('faster', 'max'),
        job('cascade', 'avg', zoo='the zoo has none'),
        job('mask', 'avg', trained_with='max', zoo='a test'),
    ]
    lines = summarize(jobs)
    assert lines[0] == '6 trials: 1 finished, 5 to run'
    text = '\n'.join(lines)
    assert '  mask: 2 trials of 5.0 h on 8 x V100: 10.0 h\n' in text
    assert f'  faster: 1 trial of 2.0 h on {HERE}: 2.0 h\n' in text
    assert '  cascade: 1 trial, unknown: the zoo has none' in lines
    assert '  mask, trained with max: 1 trial, unknown: a test' in lines
    assert lines[-3:] == [
        'in sum 10.0 h on 8 x V100',
        f'in sum 2.0 h on {HERE}',
        'and 2 trials of which nothing is known',
    ]


@pytest.mark.parametrize(
    ('jobs', 'lines'),
    [
        ([job(seconds=5)], ['1 trial: 1 finished, 0 to run']),
        (
            [job(zoo='none')],
            ['1 trial: 0 finished, 1 to run', '  mask: 1 trial, unknown: none', 'in sum unknown'],
        ),
    ],
)
def test_where_nothing_is_left_or_known_no_number_is_given(jobs, lines):
    assert summarize(jobs) == lines


def test_short_times_are_given_in_minutes():
    assert summarize([job(seconds=90), job(seed=1)])[-1] == f'in sum 1.5 min on {HERE}'
