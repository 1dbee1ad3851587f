"""Runs the trials of a plan, one after the other, each in processes of its own.

The state of an ablation is only in its files. So you can stop it at any moment and in any way; the same
command then goes on where it was::

    WORK_DIR/
      .locks/                            a file for each trial, locked while a process runs the trial
      {config_name}.{extractor}.seed{seed}/
        trial.json                       what was run, and how far it came
        tracking.json                    the trial's run of an experiment tracker, if there is one
        trial.log                        the output of the trial's processes
        last_checkpoint, *.pth, ...      the framework's own files
        predictions.*.json metrics.json  the finished run

Any number of processes may run one plan in one work directory, on one machine or on several machines that
share it. Each trial is run by one of them, see ``locks.py``.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

import roi_plugins
from roi_plugins.ablation.job import AblationError, Job, now, prepare, prepare_trial, warn_of_confounded
from roi_plugins.ablation.locks import claim
from roi_plugins.ablation.plan import Plan
from roi_plugins.ablation.progress import Display
from roi_plugins.ablation.tracking import Tracking
from roi_plugins.files import write_json
from roi_plugins.run_record import METRICS_FILE, TRIAL_FILE

_POLL_SECONDS = 0.5

_STOP_SECONDS = 15  # how long a stopped process may take to end by itself


def run(plan: Plan, work_dir: Path, cfg_options: Mapping[str, Any], console: Console) -> list[Job]:
    """Runs all trials of a plan that are not finished. A failed trial does not stop the others.

    If another process runs a trial, this function waits for it. If that process is killed, it takes over.

    Args:
        plan: the plan.
        work_dir: the folder of the run directories.
        cfg_options: config options for every trial. They win over those of the plan.
        console: where the progress is shown: a live line on a terminal, plain lines elsewhere.

    Returns:
        The jobs that failed. The cause is in their ``problem``, or else at the end of the ``trial.log`` in
        their ``run_dir``.

    Raises:
        AblationError: see :func:`~roi_plugins.ablation.job.prepare`; or the file system has no locks.
        OSError: the work directory is full or gone. As after an interrupt, nothing is lost.
        KeyboardInterrupt: the running trial has been stopped, and can be resumed.
    """
    jobs = prepare(plan, work_dir, cfg_options)
    warn_of_confounded(jobs, plan, console)
    tracking = Tracking(plan, work_dir, cfg_options, console)
    failed = []
    with Display(jobs, console) as display:
        todo = [job for job in jobs if not job.finished]
        while todo:
            held = []
            for job in todo:
                with claim(job.trial, work_dir) as (lock, holder):
                    if lock is None:
                        held.append(job)
                        display.wait(job, holder)
                        continue
                    job = _renewed(job, plan, work_dir, cfg_options)
                    if job.problem and held:  # another process may be training what this trial tests
                        held.append(job)
                        continue
                    display.start(job)
                    succeeded = job.finished
                    if not job.finished and not job.problem:
                        tracking.start(job.trial)
                        if succeeded := _run_job(job, plan.name, lock, display):
                            tracking.end(job.trial)
                    display.end(job, succeeded)
                    if not succeeded:
                        failed.append(job)
            todo = held
            if held:
                time.sleep(_POLL_SECONDS)
    return failed


def _renewed(job: Job, plan: Plan, work_dir: Path, cfg_options: Mapping[str, Any]) -> Job:
    """Prepares a job again: another process may have run its trial, or trained what the trial tests."""
    try:
        renewed = prepare_trial(job.trial, work_dir, cfg_options, plan)
    except AblationError as error:
        return replace(job, problem=str(error))
    if renewed.record != job.record and renewed.record.get('state') == 'failed':
        return replace(renewed, problem=f'another process ran it, and it failed: see {renewed.log}')
    return renewed


def _run_job(job: Job, plan_name: str, lock: int, display: Display) -> bool:
    start = time.monotonic()
    spent = job.record.get('seconds', 0)
    record = {
        'format': 1,
        'plan': plan_name,
        'framework': job.trial.framework,
        'config_name': job.trial.config_name,
        'extractor': job.trial.extractor,
        'seed': job.trial.seed,
        'trained_with': job.trial.trained_with,
        'checkpoint': job.checkpoint
        and {
            'given': str(job.trial.checkpoint),
            'path': str(job.checkpoint.path),
            'sha256': job.checkpoint.sha256,
        },
        'state': 'running',
        'started': job.record.get('started', now()),
        'finished': None,
        'seconds': spent,
        'commands': job.commands,
        'completed': job.record.get('completed', 0),  # how many of the commands
        'digest': job.digest,
    }

    def save(**changes: Any) -> None:
        record.update(changes, seconds=round(spent + time.monotonic() - start, 3))
        write_json(job.run_dir / TRIAL_FILE, record)

    job.run_dir.mkdir(parents=True, exist_ok=True)
    for half_written in job.run_dir.glob('.*.tmp'):  # left by a process that was killed
        half_written.unlink()
    save()
    try:
        for command in job.commands[record['completed'] :]:
            if _run_command(command, job.log, lock, display.tick) != 0:
                # The next time all commands run, not only the one that failed: where a test cannot read the
                # weights, the training has to make them again.
                save(state='failed', finished=now(), completed=0)
                return False
            save(completed=record['completed'] + 1)
    except BaseException:
        with contextlib.suppress(OSError):  # a full disk may be the very error that is being raised
            save()  # the state stays 'running', so that the trial is resumed
        raise
    # A trial is finished only if its commands have left metrics.
    succeeded = (job.run_dir / METRICS_FILE).exists()
    save(state='finished' if succeeded else 'failed', finished=now())
    return succeeded


def _run_command(command: list[str], log: Path, lock: int, tick: Callable[[], None]) -> int:
    with open(log, 'ab') as output:
        output.write(f'[{now()}] $ {shlex.join(command)}\n'.encode())
        output.flush()
        # The child inherits the lock, which then holds even if this process is killed and the child lives on.
        # It has a session of its own, because Ctrl-C in a terminal must not reach it: it is stopped below,
        # with all its workers.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, 'PYTHONPATH': python_path()},
            start_new_session=True,
            pass_fds=(lock,),
        )
        try:
            while True:
                try:
                    return process.wait(_POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    tick()
        finally:
            _stop(process)


def python_path() -> str:
    """Returns a ``PYTHONPATH`` on which processes find this package even if it is not installed."""
    root = Path(roi_plugins.__file__).parents[1]
    return os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))


def _stop(process: subprocess.Popen) -> None:
    """Ends a process and all processes that it has started. A second interrupt ends them at once."""
    try:
        if process.poll() is None:
            process.terminate()
            process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
