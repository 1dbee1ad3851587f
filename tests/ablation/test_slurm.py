"""Plans on a Slurm cluster: a real one, of two nodes on this machine, with trials that take milliseconds."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from sweeps import read_until, wait_for

CLUSTER = Path(__file__).with_name('slurm_cluster.sh')

MISSING = [name for name in ('slurmctld', 'slurmd', 'munged') if not shutil.which(name)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f'no {", ".join(MISSING)}: apt-get install slurm-wlm munge'),
    pytest.mark.skipif(os.geteuid() != 0, reason='a Slurm daemon of a test needs root'),
]


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp('slurm')
    subprocess.run(['bash', CLUSTER, 'start', folder], check=True, timeout=60)
    yield folder / 'slurm.conf'
    subprocess.run(['bash', CLUSTER, 'stop', folder], check=True, timeout=60)


@pytest.fixture
def sweep(sweep, cluster):
    sweep.environment['SLURM_CONF'] = str(cluster)
    yield sweep
    subprocess.run(['scancel', '--user=root'], env=sweep.environment, check=True)


SLURM = ('--executor', 'slurm', '--time', '10', '--gpus-per-trial', '1')


def test_an_array_of_trials_is_run_and_watched_from_elsewhere(sweep):
    go = sweep.folder / 'go'
    sweep.write(a={'steps': 3, 'hold': str(go)}, b={'steps': 3, 'hold': str(go)}, c={'fail': 'train'})
    command = sweep.start(*SLURM, '--jobs', '2')
    watcher = sweep.start('--watch')
    wait_for(lambda: sweep.steps('tiny.a.seed0') == [1] and sweep.steps('tiny.b.seed0') == [1])
    # An array of one job for each trial, each with a GPU of its own, two at a time.
    assert sweep.job_of('tiny.a.seed0') == sweep.job_of('tiny.c.seed0').replace('_2', '_0')
    running = sweep.slurm('squeue', '--noheader', '--states=R', '--Format=tres-per-node')
    assert running == ['gres:gpu:1'] * 2
    logs = [sweep.path(f'tiny.{trial}.seed0', 'trial.log').read_text() for trial in 'ab']
    assert {re.search('CUDA_VISIBLE_DEVICES=(.*)', log)[1] for log in logs} == {'0', '1'}
    assert sweep.state('tiny.c.seed0') is None
    # The same command again: it submits nothing, and can be left.
    other = sweep.start(*SLURM, '--jobs', '2')
    assert 'warning: confounded: tiny: c: differs from a' in other.stdout.readline()  # it is made to fail
    assert 'tiny.a.seed0 as process ' in other.stdout.readline()
    other.send_signal(signal.SIGINT)
    array = sweep.job_of('tiny.a.seed0').partition('_')[0]
    output = other.communicate(timeout=30)[0]
    assert f'the trials go on in the queue of Slurm; scancel {array} ends them' in output
    assert other.returncode == 130
    assert len(sweep.slurm('squeue', '--noheader', '--array', '--format=%i')) == 3

    go.touch()
    for process in (command, watcher):
        output = process.communicate(timeout=60)[0]
        assert process.returncode == 1
        assert 'ing tiny.a.seed0 as process ' in output
        assert output.count('finished tiny') == 2
        assert 'FAILED tiny.c.seed0: train fails as asked' in output
    assert sweep.steps('tiny.a.seed0') == sweep.steps('tiny.b.seed0') == [1, 2, 3]


def test_trials_resume_after_a_time_limit_and_a_requeue_but_not_when_cancelled(sweep):
    def log_of_job(trial):
        return sweep.path('.submitit', f'{sweep.job_of(trial)}_0_log.out').read_text()

    go = sweep.folder / 'go'
    names = ('timed', 'requeued', 'cancelled')
    trials = [f'tiny.{name}.seed0' for name in names]
    sweep.write(**{name: {'steps': 2, 'hold': str(go)} for name in names})
    command = sweep.start(*SLURM)
    wait_for(lambda: all(sweep.steps(trial) == [1] for trial in trials))
    seen = read_until(command, *(f'running {trial}' for trial in trials))  # or it will not say interrupted
    timed, requeued, cancelled = ids = [sweep.job_of(trial) for trial in trials]
    sweep.slurm('scancel', '--signal=USR2', timed)  # what Slurm sends before the time is up
    sweep.slurm('scontrol', 'requeue', requeued)
    sweep.slurm('scancel', cancelled)
    wait_for(lambda: not sweep.trainings())
    assert [sweep.state(trial) for trial in trials] == ['running'] * 3  # to be resumed
    go.touch()
    output = seen + command.stdout.read()
    for trial in trials[:2]:
        assert output.index(f'interrupted {trial}') < output.index(f'finished {trial}')
        assert f'resuming {trial}' in log_of_job(trial)
        assert sweep.steps(trial) == [1, 2]
    assert f'NOT RUN {trials[2]}: its job ended before it was finished: see ' in output
    assert 'CANCELLED' in log_of_job(trials[2])

    output = sweep.start(*SLURM).communicate(timeout=60)[0]
    assert '2 of 3 trials are finished already' in output
    assert f'finished {trials[2]}' in output
    assert sweep.steps(trials[2]) == [1, 2]
    assert [sweep.job_of(trial) for trial in trials[:2]] == ids[:2]


def test_a_trial_resumes_after_a_job_of_a_higher_partition(sweep):
    trial, go = 'tiny.a.seed0', sweep.folder / 'go'
    sweep.write(a={'steps': 2, 'hold': str(go)})
    command = sweep.start(*SLURM)
    wait_for(lambda: sweep.steps(trial) == [1])
    seen = read_until(command, f'running {trial}')  # or it will not say interrupted
    urgent = ('sbatch', '--partition=urgent', '--nodes=2', '--exclusive', '--output=/dev/null', '--parsable')
    (urgent_id,) = sweep.slurm(*urgent, '--wrap', f'while [ ! -e {go} ]; do sleep 0.1; done')
    queue = ('squeue', '--noheader', '--array', '--format=%i=%T')
    wait_for(lambda: set(sweep.slurm(*queue)) == {f'{urgent_id}=RUNNING', f'{sweep.job_of(trial)}=PENDING'})
    assert sweep.state(trial) == 'running'
    assert not sweep.trainings()
    go.touch()
    output = seen + command.stdout.read()
    assert output.index(f'interrupted {trial}') < output.index(f'finished {trial}')
    assert sweep.steps(trial) == [1, 2]


def test_what_slurm_refuses_is_one_clear_line(sweep):
    sweep.write(a={'steps': 1})
    output = sweep.start(*SLURM, '--partition', 'nowhere').communicate(timeout=60)[0]
    assert 'error: Slurm does not take the jobs: ' in output
    assert 'invalid partition specified: nowhere' in output
    assert 'Traceback' not in output
    assert sweep.state('tiny.a.seed0') is None


def test_a_trial_over_two_nodes(sweep):
    sweep.write(a={'steps': 2})
    options = ('--executor', 'slurm', '--time', '10', '--gpus-per-trial', '2', '--nodes', '2')
    assert 'finished tiny.a.seed0' in sweep.start(*options).communicate(timeout=100)[0]
    log = sweep.path('tiny.a.seed0', 'trial.log').read_text()
    pattern = r'^rank (\d) WORLD_SIZE=2 SLURMD_NODENAME=(node\d) CUDA_VISIBLE_DEVICES=0$'
    ranks, nodes = zip(*re.findall(pattern, log, re.MULTILINE), strict=True)
    assert sorted(ranks) == ['0', '1']
    assert sorted(nodes) == ['node1', 'node2']
    assert sweep.steps('tiny.a.seed0') == [1, 2]
