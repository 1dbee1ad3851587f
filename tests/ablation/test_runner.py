"""The runner of plans, with trials that take milliseconds: nothing is lost, whatever happens."""

import errno
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fake_framework import FAKE, hear_signals
from rich.console import Console

from roi_plugins.ablation import locks, progress, runner
from roi_plugins.ablation.job import AblationError
from roi_plugins.ablation.plan import Plan
from roi_plugins.ablation.trial import Trial
from roi_plugins.integrations.base import Inputs
from roi_plugins.integrations.registry import FRAMEWORKS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def make_plan(tmp_path, monkeypatch):
    monkeypatch.setitem(FRAMEWORKS, 'fake', FAKE)

    def make(configs, seeds=(0,)):
        for extractor, config in configs.items():
            (tmp_path / f'{extractor}.json').write_text(json.dumps(config))
        trials = tuple(
            Trial('tiny', 'fake', tmp_path / f'{extractor}.json', extractor, seed)
            for seed in seeds
            for extractor in configs
        )
        return Plan('small', tmp_path / 'work', next(iter(configs)), trials)

    return make


def run(plan, options=None):
    output = io.StringIO()
    failed = runner.run(plan, plan.work_dir, options or {}, Console(file=output, width=80))
    return [job.trial.name for job in failed], output.getvalue()


def read(plan, trial, file):
    return json.loads((plan.work_dir / trial / file).read_text())


def steps(plan, trial):
    return [int(line) for line in (plan.work_dir / trial / 'steps.txt').read_text().split()]


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.02)


def test_runs_each_trial_once(make_plan):
    plan = make_plan({'max': {'steps': 2}, 'avg': {'steps': 2}}, seeds=(0, 5))
    failed, output = run(plan)
    assert failed == []
    for trial in plan.trials:
        assert read(plan, trial.name, 'metrics.json')['seed'] == trial.seed
        assert steps(plan, trial.name) == [1, 2]
    record = read(plan, 'tiny.avg.seed5', 'trial.json')
    assert {key: record[key] for key in ('format', 'plan', 'framework', 'config_name')} == {
        'format': 1,
        'plan': 'small',
        'framework': 'fake',
        'config_name': 'tiny',
    }
    assert (record['extractor'], record['seed'], record['state']) == ('avg', 5, 'finished')
    assert 0 < record['seconds'] < 60
    assert record['started'] <= record['finished']
    assert [command[2] for command in record['commands']] == ['train', 'test']
    assert 'step 2/2' in (plan.work_dir / 'tiny.avg.seed5' / 'trial.log').read_text()

    failed, output = run(plan)
    assert failed == []
    assert '4 of 4 trials are finished already' in output
    assert all(steps(plan, trial.name) == [1, 2] for trial in plan.trials)


@pytest.mark.parametrize('phase', ['train', 'test'])
def test_a_failed_trial_stops_no_other_and_is_tried_again(make_plan, tmp_path, phase):
    plan = make_plan({'bad': {'steps': 2, 'fail': phase}, 'good': {'steps': 1}})
    failed, output = run(plan)
    assert failed == ['tiny.bad.seed0']
    assert f'FAILED tiny.bad.seed0: {phase} fails as asked' in output
    assert str(plan.work_dir / 'tiny.bad.seed0' / 'trial.log') in output
    assert read(plan, 'tiny.bad.seed0', 'trial.json')['state'] == 'failed'
    assert read(plan, 'tiny.good.seed0', 'metrics.json')['seed'] == 0

    if phase == 'train':  # it left no checkpoint: a mended config may take its place
        make_plan({'bad': {'steps': 2}, 'good': {'steps': 1}})
        assert run(plan)[0] == []
        assert steps(plan, 'tiny.bad.seed0') == [1, 2]
    else:
        assert run(plan)[0] == ['tiny.bad.seed0']
        assert steps(plan, 'tiny.bad.seed0') == [1, 2]  # what was trained is not trained again


def test_a_trial_without_metrics_has_failed(make_plan, monkeypatch):
    plan = make_plan({'max': {'steps': 1}})
    monkeypatch.setitem(
        FRAMEWORKS,
        'fake',
        replace(FAKE, commands=lambda *args: FAKE.commands(*args)[:1]),
    )
    assert run(plan)[0] == ['tiny.max.seed0']


def test_options_reach_every_trial_and_win(make_plan, tmp_path):
    plan = make_plan({'max': {'steps': 5}})
    trials = tuple(replace(trial, cfg_options={'steps': 3}) for trial in plan.trials)
    plan = replace(plan, trials=trials)
    assert run(plan, {'steps': 2})[0] == []
    assert steps(plan, 'tiny.max.seed0') == [1, 2]


@pytest.mark.parametrize('change', ['config', 'options', 'num_gpus'])
def test_a_finished_trial_whose_config_has_changed_is_kept_and_named(make_plan, change):
    plan = make_plan({'other': {'steps': 1}, 'max': {'steps': 2}})
    run(plan)
    before = read(plan, 'tiny.max.seed0', 'trial.json')
    if change == 'config':
        plan = make_plan({'other': {'steps': 1}, 'max': {'steps': 3}})
    if change == 'num_gpus':
        plan = replace(plan, num_gpus=8)
    with pytest.raises(AblationError, match=r'trial tiny\.\w+\.seed0: .*--work-dir.*move'):
        run(plan, {'lr': 0.1} if change == 'options' else {})
    assert steps(plan, 'tiny.max.seed0') == [1, 2]
    assert read(plan, 'tiny.max.seed0', 'trial.json') == before


def test_results_that_are_not_of_a_plan_are_not_taken_over(make_plan):
    plan = make_plan({'max': {'steps': 1}})
    run_dir = plan.work_dir / 'tiny.max.seed0'
    run_dir.mkdir(parents=True)
    (run_dir / 'metrics.json').write_text('{}')
    with pytest.raises(AblationError, match=r'trial tiny\.max\.seed0'):
        run(plan)


def test_a_config_that_cannot_be_read_is_named_before_anything_runs(make_plan, tmp_path):
    plan = make_plan({'max': {'steps': 1}, 'broken': {}})
    (tmp_path / 'broken.json').write_text('{')
    with pytest.raises(AblationError, match=r'trial tiny\.broken\.seed0: the config .*broken\.json'):
        run(plan)
    assert not (plan.work_dir / 'tiny.max.seed0').exists()


@pytest.fixture
def trained(make_plan):
    """A finished plan, and one that tests its weights with another extractor, in a work directory beside."""
    plan = make_plan({'avg': {'steps': 2}}, seeds=(0, 5))
    assert run(plan)[0] == []
    trials = [
        replace(
            trial,
            extractor='max',
            checkpoint=Path(f'../work/tiny.avg.seed{trial.seed}'),
            trained_with='avg',
        )
        for trial in plan.trials
    ]
    return plan, replace(plan, work_dir=plan.work_dir.with_name('swapped'), trials=tuple(trials))


def test_a_trial_with_a_checkpoint_trains_nothing(trained):
    plan, swapped = trained
    weights = plan.work_dir / 'tiny.avg.seed5' / 'last_checkpoint'
    assert run(swapped)[0] == []
    assert [trial.name for trial in swapped.trials] == ['tiny.avg.max.seed0', 'tiny.avg.max.seed5']
    assert not (swapped.work_dir / 'tiny.avg.max.seed5' / 'steps.txt').exists()
    metrics = read(swapped, 'tiny.avg.max.seed5', 'metrics.json')
    assert (metrics['seed'], metrics['checkpoint'], metrics['weights']) == (5, str(weights), '2')
    record = read(swapped, 'tiny.avg.max.seed5', 'trial.json')
    assert (record['trained_with'], record['extractor'], record['state']) == ('avg', 'max', 'finished')
    assert record['checkpoint'] == {
        'given': '../work/tiny.avg.seed5',
        'path': str(weights),
        'sha256': hashlib.sha256(b'2').hexdigest(),
    }
    assert [command[2] for command in record['commands']] == ['test']
    assert read(plan, 'tiny.avg.seed5', 'trial.json')['checkpoint'] is None

    # Not again, not even if the weights were removed to save space.
    weights.unlink()
    assert '2 of 2 trials are finished already' in run(swapped)[1]
    assert read(swapped, 'tiny.avg.max.seed5', 'trial.json') == record


def test_another_checkpoint_at_the_same_path_is_another_trial(trained):
    plan, swapped = trained
    assert run(swapped)[0] == []
    before = read(swapped, 'tiny.avg.max.seed0', 'metrics.json')
    (plan.work_dir / 'tiny.avg.seed0' / 'last_checkpoint').write_text('7')
    with pytest.raises(AblationError, match=r'tiny\.avg\.max\.seed0: .*another checkpoint.*--work-dir'):
        run(swapped)
    assert read(swapped, 'tiny.avg.max.seed0', 'metrics.json') == before
    # Where the trained runs were moved to is not.
    (plan.work_dir / 'tiny.avg.seed0' / 'last_checkpoint').write_text('2')
    plan.work_dir.rename(plan.work_dir.with_name('moved'))
    trials = [
        replace(trial, checkpoint=Path(str(trial.checkpoint).replace('work', 'moved')))
        for trial in swapped.trials
    ]
    assert '2 of 2 trials are finished already' in run(replace(swapped, trials=tuple(trials)))[1]


def test_a_checkpoint_may_be_a_file(trained, tmp_path):
    _, swapped = trained
    (tmp_path / 'weights.pth').write_text('of elsewhere')
    trial = replace(swapped.trials[0], checkpoint=tmp_path / 'weights.pth')
    assert run(replace(swapped, trials=(trial,)))[0] == []
    assert read(swapped, trial.name, 'metrics.json')['weights'] == 'of elsewhere'


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda run: run.rename(run.with_name('elsewhere')), 'no checkpoint or finished run {}$'),
        (lambda run: (run / 'metrics.json').unlink(), '{} is not a finished run'),
        (lambda run: (run / 'metrics.json').write_text('{'), '{}/metrics.json: the record is not JSON'),
        (lambda run: (run / 'last_checkpoint').unlink(), '{}/last_checkpoint, .* is not there any more'),
        (lambda run: edit(run / 'trial.json', seed=3), '{} was trained with the seed 3, but the plan says 0'),
        (lambda run: edit(run / 'trial.json', extractor='max'), "extractor 'max', but the plan says 'avg'"),
        (lambda run: edit(run / 'metrics.json', framework='mmdet'), 'a run of mmdet; expected one of fake'),
    ],
)
def test_a_checkpoint_that_cannot_be_tested_stops_no_other(trained, damage, message):
    plan, swapped = trained
    run_dir = plan.work_dir / 'tiny.avg.seed0'
    damage(run_dir)
    failed, output = run(swapped)
    assert failed == ['tiny.avg.max.seed0']
    (problem,) = re.findall(r'NOT RUN tiny\.avg\.max\.seed0: (.*)', output)
    assert re.search(message.replace('{}', re.escape(str(run_dir)), 1), problem)
    assert not (swapped.work_dir / 'tiny.avg.max.seed0').exists()
    assert read(swapped, 'tiny.avg.max.seed5', 'trial.json')['state'] == 'finished'


def test_a_plan_may_test_what_it_trains(make_plan, tmp_path):
    plan = make_plan({'avg': {'steps': 2}})
    (trial,) = plan.trials
    (tmp_path / 'max.json').write_text('{}')
    tested = replace(
        trial,
        config=tmp_path / 'max.json',
        extractor='max',
        checkpoint=Path('tiny.avg.seed0'),
        trained_with='avg',
    )
    assert run(replace(plan, trials=(trial, tested)))[0] == []
    assert read(plan, 'tiny.avg.max.seed0', 'metrics.json')['weights'] == '2'


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_option_that_names_other_weights_is_refused(trained):
    _, swapped = trained
    with pytest.raises(AblationError, match=r'got the option weights, but the trial tests \.\./work/tiny'):
        run(swapped, {'weights': 'other.pth'})


# Runs the plan in a process of its own, to be interrupted.
PROGRAM = """
import pickle, signal, sys
from pathlib import Path
from fake_framework import FAKE
from rich.console import Console
from roi_plugins.ablation import runner
from roi_plugins.integrations.registry import FRAMEWORKS
FRAMEWORKS['fake'] = FAKE
plan = pickle.loads(Path(sys.argv[1]).read_bytes())
runner.run(plan, plan.work_dir, {}, Console())
"""


@pytest.fixture
def start(tmp_path):
    import pickle

    processes = []

    def start(plan):
        (tmp_path / 'plan.pkl').write_bytes(pickle.dumps(plan))
        processes.append(
            subprocess.Popen(
                [sys.executable, '-c', PROGRAM, str(tmp_path / 'plan.pkl')],
                env={**os.environ, 'PYTHONPATH': f'{ROOT}:{Path(__file__).parent}'},
                preexec_fn=hear_signals,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def child_of(plan, trial):
    """The process id of the running training, by its command line."""
    run_dir = str(plan.work_dir / trial)
    for process in Path('/proc').glob('[0-9]*'):
        try:
            arguments = (process / 'cmdline').read_bytes().decode().split('\0')
        except OSError:
            continue
        if run_dir in arguments:
            return int(process.name)
    return None


def test_an_interrupt_stops_the_child_and_the_next_run_goes_on(make_plan, start, tmp_path):
    hold = tmp_path / 'go'
    plan = make_plan({'max': {'steps': 3, 'hold': str(hold)}})
    process = start(plan)
    checkpoint = plan.work_dir / 'tiny.max.seed0' / 'last_checkpoint'
    wait_for(checkpoint.exists)
    process.send_signal(signal.SIGINT)
    process.wait(120)
    assert process.returncode != 0
    assert child_of(plan, 'tiny.max.seed0') is None
    assert read(plan, 'tiny.max.seed0', 'trial.json')['state'] == 'running'

    hold.touch()
    failed, output = run(plan)
    assert failed == []
    assert 'resuming tiny.max.seed0' in output
    assert steps(plan, 'tiny.max.seed0') == [1, 2, 3]
    assert read(plan, 'tiny.max.seed0', 'trial.json')['state'] == 'finished'


def test_a_trial_is_run_by_one_process_even_if_its_parent_was_killed(make_plan, start, tmp_path):
    hold = tmp_path / 'go'
    plan = make_plan({'max': {'steps': 2, 'hold': str(hold)}})
    process = start(plan)
    wait_for((plan.work_dir / 'tiny.max.seed0' / 'last_checkpoint').exists)
    process.kill()
    process.wait()
    assert child_of(plan, 'tiny.max.seed0') is not None

    other = start(plan)
    first = other.stdout.readline()
    assert f'waiting for tiny.max.seed0, run by process {process.pid} on ' in first
    assert steps(plan, 'tiny.max.seed0') == [1]
    hold.touch()
    assert 'finished tiny.max.seed0' in other.communicate(timeout=60)[0]
    assert other.returncode == 0
    assert steps(plan, 'tiny.max.seed0') == [1, 2]
    assert read(plan, 'tiny.max.seed0', 'trial.json')['state'] == 'finished'


def test_two_processes_share_the_trials_of_a_plan(make_plan, start, tmp_path):
    """One of the trials tests what another trains, and one fails: neither is run twice."""
    hold = tmp_path / 'go'
    plan = make_plan({'a': {'steps': 2, 'hold': str(hold)}, 'b': {'steps': 2}, 'c': {'fail': 'train'}})
    tested = replace(plan.trials[1], trained_with='a', checkpoint=Path('tiny.a.seed0'))
    plan = replace(plan, trials=(*plan.trials, tested))
    first = start(plan)
    wait_for((plan.work_dir / 'tiny.a.seed0' / 'last_checkpoint').exists)
    second = start(plan)
    wait_for((plan.work_dir / 'tiny.c.seed0' / 'trial.log').exists)
    hold.touch()
    outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    for output in outputs:
        assert output.count('finished tiny') == 3
        assert 'FAILED tiny.c.seed0' in output or 'NOT RUN tiny.c.seed0: another process ran it' in output
    for name in ('tiny.a.seed0', 'tiny.b.seed0', 'tiny.c.seed0', 'tiny.a.b.seed0'):
        log = (plan.work_dir / name / 'trial.log').read_text()
        assert log.count(' $ ') == {'tiny.a.b.seed0': 1, 'tiny.c.seed0': 1}.get(name, 2)
    assert sum('running tiny.a.b.seed0' in output for output in outputs) == 1


def test_a_file_system_without_locks_is_an_error(make_plan, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(locks.fcntl, 'flock', flock)
    with pytest.raises(AblationError, match=r'tiny\.max\.seed0 cannot be locked \(No locks.*--work-dir'):
        run(make_plan({'max': {'steps': 1}}))


def test_the_log_shows_progress_with_an_estimate(make_plan, monkeypatch):
    monkeypatch.setattr(progress, '_LINE_EVERY_SECONDS', 0)
    monkeypatch.setattr(runner, '_POLL_SECONDS', 0.02)
    plan = make_plan({'a': {'steps': 3, 'seconds': 0.1}, 'b': {'steps': 3, 'seconds': 0.1}})
    _, output = run(plan)
    lines = output.splitlines()
    assert all(len(line) < 200 and line.startswith('[') for line in lines)
    assert any('tiny.a.seed0: starting, ETA of all trials unknown' in line for line in lines)
    # 7 s left of this trial as it says itself, and as much and what has passed for the other.
    pattern = 'tiny.a.seed0: train 2/3, ETA of all trials 0:00:(1[4-9]|2[0-9])'
    assert any(re.search(pattern, line) for line in lines)
    # Nothing else is left; what the finished trial took is less than what the running one says.
    assert any('tiny.b.seed0: train 2/3, ETA of all trials 0:00:07' in line for line in lines)


def test_a_terminal_gets_a_live_line(make_plan):
    plan = make_plan({'a': {'steps': 1}, 'b': {'steps': 1}})
    output = io.StringIO()
    runner.run(plan, plan.work_dir, {}, Console(file=output, width=100, force_terminal=True))
    assert '2/2' in output.getvalue()
    assert 'finished tiny.b.seed0' in output.getvalue()


class TestMMDetection:
    """What the runner knows of MMDetection; training with it is in tests/tools."""

    mmdet = FRAMEWORKS['mmdet']

    def test_progress_is_read_from_mmengines_log(self):
        prefix = '11/21 03:40:10 - mmengine - INFO - '
        log = (
            f'{prefix}Epoch(train)  [1][  50/7330]  lr: 1.0e-03  eta: 1 day, 2:03:04  time: 0.2\n'
            f'{prefix}Saving checkpoint at 1 epochs\n'
        )
        assert self.mmdet.progress(log) == ('train 50/7330', 26 * 3600 + 3 * 60 + 4)
        log += f'{prefix}Epoch(test) [ 20/625]    eta: 0:01:05  time: 0.1  data_time: 0.01\n'
        assert self.mmdet.progress(log) == ('test 20/625', 65)
        assert self.mmdet.progress('nothing yet') is None

    def test_options_are_passed_in_mmengines_language_or_refused(self):
        pytest.importorskip('mmengine')
        options = {'a.b': [1, 2.5], 'c': None, 'd': True, 'e': 'text', 'lr': '1e-3', 'f': []}
        train, test = self.mmdet.commands(Path('c.py'), Path('run'), options, Inputs(), None, 1, 1)
        for command in (train, test):
            arguments = command[command.index('--cfg-options') + 1 :]
            assert arguments == ['a.b=[1,2.5]', 'c=None', 'd=True', 'e=text', 'lr=1e-3', 'f=[]']
        for bad in ('two words', 'a,b', 'None', '[1]'):
            with pytest.raises(ValueError, match=r'the option x=.*write it into the config'):
                self.mmdet.commands(Path('c.py'), Path('run'), {'x': bad}, Inputs(), None, 1, 1)

    def test_several_gpus_are_joined_by_torchrun(self):
        pytest.importorskip('mmengine')
        for command in self.mmdet.commands(Path('c.py'), Path('run'), {'a': 1}, Inputs(), None, 8, 1):
            at = command.index('--nproc_per_node')
            assert command[1:at] == ['-m', 'torch.distributed.run', '--standalone']
            assert command[at + 1 : at + 4] == ['8', '-m', 'roi_plugins.integrations.mmdet.command_line']
            assert command[-4:] == ['--launcher', 'pytorch', '--cfg-options', 'a=1']

    def test_several_machines_have_an_agent_each(self):
        pytest.importorskip('mmengine')
        pytest.importorskip('detectron2')
        for name, framework in FRAMEWORKS.items():
            for command in framework.commands(Path('c.py'), Path('run'), {}, Inputs(), None, 8, 2):
                start = command[: command.index('-m')]
                assert start[0] == 'srun' and start[start.index('--ntasks') + 1] == '2'
                agent = ['torch.distributed.run', '--nnodes', '2', '--rdzv_backend', 'c10d']
                agent += ['--nproc_per_node', '4', '-m', f'roi_plugins.integrations.{name}.command_line']
                assert command[len(start) + 1 :][: len(agent)] == agent
                assert '--num-gpus' not in command

    def test_what_decides_a_trial_includes_inherited_files_and_options(self, tmp_path):
        pytest.importorskip('mmengine')
        (tmp_path / 'base.py').write_text('model = dict(depth=18)')
        config = tmp_path / 'config.py'
        config.write_text("_base_ = 'base.py'")
        resolved = self.mmdet.resolve(config, {'model.width': 3})
        assert resolved['model'] == {'depth': 18, 'width': 3}
