"""Trials side by side on this machine; those on a cluster are in test_slurm.py."""

import io
import os
import signal

import pytest
import torch
import yaml
from fake_framework import FAKE
from rich.console import Console
from sweeps import wait_for

from roi_plugins.ablation import executors, runner
from roi_plugins.ablation.executors import Local
from roi_plugins.ablation.job import AblationError
from roi_plugins.ablation.plan import load_plan
from roi_plugins.integrations.registry import FRAMEWORKS


class Here:
    """An executor whose jobs are done when they are submitted; those of ``lost`` trials never start."""

    poll_seconds = 0
    lost = ()

    def submit(self, tasks):
        for name, (plan, work_dir, cfg_options) in tasks.items():
            if name not in self.lost:
                runner.run(plan, work_dir, cfg_options, Console(file=io.StringIO()))

    def alive(self):
        return set()

    def logs(self, trial):
        return f'log of {trial}'


@pytest.fixture
def run(sweep, monkeypatch):
    monkeypatch.setitem(FRAMEWORKS, 'fake', FAKE)
    monkeypatch.chdir(sweep.folder)
    monkeypatch.setenv('PYTHONPATH', sweep.environment['PYTHONPATH'])  # which is added to

    def run(executor):
        output = io.StringIO()
        plan = load_plan('plan.yaml')
        failed = executors.run(plan, plan.work_dir, {}, Console(file=output), executor)
        return {job.trial.name: job.problem for job in failed}, output.getvalue()

    return run


@pytest.mark.slow
def test_trials_run_side_by_side_and_are_stopped_together(sweep, run):
    go = sweep.folder / 'go'
    sweep.write(**{name: {'steps': 2, 'hold': str(go)} for name in 'abc'})
    command = sweep.start('--jobs', '2')
    wait_for(lambda: sweep.steps('tiny.a.seed0') == [1] and sweep.steps('tiny.b.seed0') == [1])
    assert sweep.state('tiny.c.seed0') is None
    os.killpg(command.pid, signal.SIGINT)  # Ctrl-C: it goes to all that are in the foreground
    output = command.communicate(timeout=60)[0]
    assert command.returncode == 130
    assert 'the running trials were stopped' in output
    assert [sweep.state(f'tiny.{trial}.seed0') for trial in 'abc'] == ['running', 'running', None]
    assert not sweep.trainings()

    go.touch()
    assert run(Here())[0] == {}
    assert all(sweep.steps(f'tiny.{trial}.seed0') == [1, 2] for trial in 'abc')


def test_a_trial_that_tests_what_others_train_comes_after_them(sweep, run):
    sweep.write(a={'steps': 1}, b={'steps': 1})
    plan = yaml.safe_load((sweep.folder / 'plan.yaml').read_text())
    checkpoints = {'a': 'tiny.a.seed{seed}', 'b': 'tiny.none.seed{seed}'}
    swapped = {'swapped': {**plan['configs']['tiny'], 'checkpoints': checkpoints}}
    plan['configs'] = swapped | plan['configs']
    (sweep.folder / 'plan.yaml').write_text(yaml.safe_dump(plan, sort_keys=False))
    failed, output = run(Here())
    assert list(failed) == ['swapped.b.a.seed0', 'swapped.b.b.seed0']
    assert all(problem.startswith('there is no checkpoint') for problem in failed.values())
    assert output.index('finished tiny.b.seed0') < output.index('finished swapped.a.b.seed0')


def test_a_job_that_ends_before_its_trial_is_reported(sweep, run):
    sweep.write(a={'steps': 1}, b={'steps': 1, 'fail': 'train'})
    executor = Here()
    executor.lost = ['tiny.a.seed0']
    failed, output = run(executor)
    lost = 'its job ended before it was finished: see log of tiny.a.seed0'
    assert failed == {'tiny.b.seed0': '', 'tiny.a.seed0': lost}
    assert f'NOT RUN tiny.a.seed0: {lost}' in output
    assert 'FAILED tiny.b.seed0: train fails as asked' in output
    executor.lost = []
    assert list(run(executor)[0]) == ['tiny.b.seed0']


@pytest.mark.parametrize(
    ('visible', 'expected'), [(None, ['0,1', '2,3']), ('4,5,GPU-6,7', ['4,5', 'GPU-6,7'])]
)
def test_trials_have_gpus_of_their_own(tmp_path, monkeypatch, visible, expected):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if visible:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    assert Local(tmp_path, 2, 2).devices == expected
    with pytest.raises(AblationError, match='--jobs 3 of --gpus-per-trial 2 need 6 GPUs, but there are 4'):
        Local(tmp_path, 3, 2)
