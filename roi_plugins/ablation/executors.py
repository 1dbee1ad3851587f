"""Runs trials of a plan side by side, on this machine or on a Slurm cluster, through submitit.

A job runs one trial as :func:`roi_plugins.ablation.runner.run` does, and claims it in the same way, so that
jobs of several commands on one plan share its trials. All that the progress view needs is in the files of
the trials. Beside those are::

    WORK_DIR/.submitit/
      {id}_0_log.out    what a job has printed
      {trial}.job        the id of the Slurm job that was submitted last for a trial
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import submitit
from filelock import FileLock
from rich.console import Console
from submitit.core.utils import FailedJobError, JobPaths
from submitit.helpers import DelayedSubmission

from roi_plugins.ablation import runner
from roi_plugins.ablation.locks import holder
from roi_plugins.ablation.plan import Plan
from roi_plugins.ablation.progress import Display
from roi_plugins.ablation.trial import AblationError, Job, prepare, read_record, recorded, warn_of_confounded
from roi_plugins.files import written_aside

FOLDER = '.submitit'

_TIMEOUTS = 100  # of one trial: enough for any training, and an end for one that never gets on
_YEAR = 366 * 24 * 60  # minutes; submitit's local jobs have a time limit


class Executor(Protocol):
    """Where the jobs run."""

    poll_seconds: float

    def submit(self, tasks: Mapping[str, Sequence[Any]]) -> None:
        """Takes the arguments of a :class:`TrialTask` for each trial, by its name."""

    def alive(self) -> set[str]:
        """The names of the trials whose jobs run or wait."""

    def leave(self) -> str:
        """Called when this process is to end before its jobs; says what becomes of them."""

    def logs(self, trial: str) -> str:
        """Where a trial's job has left what it had to say."""


class TrialTask:
    """What a job runs: one trial, as on one machine."""

    def __call__(
        self, plan: Plan, work_dir: Path, cfg_options: Mapping[str, Any], devices: str | None
    ) -> int:
        """Returns the number of failed trials. ``devices`` are the GPUs to use; None: all that are there."""
        # submitit ignores it; the trial is to stop its own processes first.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if devices is not None:
            os.environ['CUDA_VISIBLE_DEVICES'] = devices
        if plan.num_nodes > 1:
            with socket.socket() as found:
                found.bind(('', 0))
                os.environ['PET_RDZV_ENDPOINT'] = f'{socket.gethostname()}:{found.getsockname()[1]}'
            os.environ['PET_RDZV_ID'] = submitit.JobEnvironment().job_id
        try:
            return len(runner.run(plan, work_dir, cfg_options, Console(width=200)))
        except KeyboardInterrupt:
            if devices is not None:  # of a job on this machine
                raise
            # Slurm puts a job that it preempts back into the queue only if it had to kill it.
            while True:
                signal.pause()

    def checkpoint(self, *arguments: Any) -> DelayedSubmission:
        """submitit calls it before it puts a job that was preempted or timed out back into the queue."""
        return DelayedSubmission(self, *arguments)


class Local:
    """Several trials at a time on this machine.

    Args:
        work_dir: of the plan.
        jobs: trials at a time.
        gpus_per_trial: GPUs that each trial has to itself; where there are none, its processes on the CPU.

    Attributes:
        devices: ``CUDA_VISIBLE_DEVICES`` of each of the trials at a time.

    Raises:
        AblationError: there are GPUs, but not as many.
    """

    poll_seconds = 0.5

    def __init__(self, work_dir: Path, jobs: int, gpus_per_trial: int) -> None:
        self._executor = submitit.LocalExecutor(work_dir / FOLDER)
        self._executor.update_parameters(timeout_min=_YEAR, stderr_to_stdout=True)
        self.devices = _devices(jobs, gpus_per_trial)
        self._free = list(self.devices)
        self._waiting: dict[str, Sequence[Any]] = {}
        self._running: dict[str, tuple[submitit.LocalJob, str]] = {}
        self._logs: dict[str, str] = {}

    def submit(self, tasks: Mapping[str, Sequence[Any]]) -> None:
        self._waiting.update(tasks)

    def alive(self) -> set[str]:
        for name, (job, devices) in list(self._running.items()):
            if job.done():
                del self._running[name]
                self._free.append(devices)
        while self._waiting and self._free:
            name = next(iter(self._waiting))
            devices = self._free.pop(0)
            with _deaf_children():
                job = self._executor.submit(TrialTask(), *self._waiting.pop(name), devices)
            self._running[name] = job, devices
            self._logs[name] = str(job.paths.stdout)
        return {*self._running, *self._waiting}

    def leave(self) -> str:
        self._waiting.clear()
        for job, _ in self._running.values():
            job._process.terminate()  # cancel() would kill before the trial has stopped its own processes
        while self.alive():
            time.sleep(self.poll_seconds)
        return 'the running trials were stopped'

    def logs(self, trial: str) -> str:
        return self._logs[trial]


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """What is started here leaves a terminal's signals to this process, which stops it in its turn."""
    numbers = (signal.SIGINT, signal.SIGHUP)
    handlers = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


def _devices(jobs: int, gpus_per_trial: int) -> list[str]:
    import torch  # it takes seconds, and nothing else here needs it

    count = torch.cuda.device_count()
    if count == 0:
        return [''] * jobs
    if count < jobs * gpus_per_trial:
        raise AblationError(
            f'--jobs {jobs} of --gpus-per-trial {gpus_per_trial} need {jobs * gpus_per_trial} GPUs, but '
            f'there are {count} here; give fewer of either'
        )
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    names = visible.split(',')[:count] if visible else [str(index) for index in range(count)]
    starts = range(0, jobs * gpus_per_trial, gpus_per_trial)
    return [','.join(names[start : start + gpus_per_trial]) for start in starts]


class Slurm:
    """An array of Slurm jobs, one for each trial, which this process need not outlive.

    A job that is preempted, or whose time is up, goes back into the queue, and its trial resumes. Whatever
    else a cluster asks for, ``sbatch`` takes from its environment: ``SBATCH_ACCOUNT``, ``SBATCH_QOS`` ...

    Args:
        work_dir: of the plan, on storage that the machines of the cluster share.
        name: of the jobs.
        jobs: trials at a time; None: as many as the cluster runs.
        gpus_per_node, nodes: of each trial.
        partition: None: the cluster's default.
        minutes: time limit of a job, after which its trial goes back into the queue.

    Raises:
        AblationError: Slurm's commands are not there.
    """

    poll_seconds = 5.0

    def __init__(
        self,
        work_dir: Path,
        name: str,
        jobs: int | None,
        gpus_per_node: int,
        nodes: int,
        partition: str | None,
        minutes: int,
    ) -> None:
        self._folder = work_dir / FOLDER
        try:
            self._executor = submitit.SlurmExecutor(self._folder, max_num_timeout=_TIMEOUTS)
        except RuntimeError:
            raise AblationError(
                "--executor slurm: Slurm's command srun is not here; start on a machine of the cluster, "
                'or leave the option out'
            ) from None
        parameters = {
            'job_name': name,
            'array_parallelism': jobs,
            'gpus_per_node': gpus_per_node or None,
            'nodes': nodes,
            'ntasks_per_node': 1,
            'partition': partition,
            'time': minutes,
            'stderr_to_stdout': True,
            'srun_args': ['--nodes=1', '--ntasks=1'],  # it watches; the trial's command starts all the rest
            'additional_parameters': {'requeue': True},
        }
        self._executor.update_parameters(**{k: v for k, v in parameters.items() if v is not None})
        self._ids: dict[str, str] = {}
        self._alive: set[str] = set()

    def submit(self, tasks: Mapping[str, Sequence[Any]]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / '.lock'):  # two commands submit no trial twice
            self._ids = {name: self._last_id(name) for name in tasks}
            self._alive = self._queued()
            new = {name: arguments for name, arguments in tasks.items() if name not in self._alive}
            if new:
                arguments = [(*task, None) for task in new.values()]
                try:
                    jobs = self._executor.map_array(TrialTask(), *zip(*arguments, strict=True))
                except FailedJobError as error:
                    said = re.findall(r'^sbatch: (?:error: )*(.*)', str(error), re.MULTILINE)
                    raise AblationError(f'Slurm does not take the jobs: {"; ".join(said) or error}') from None
                self._alive = set(tasks)
                for name, job in zip(new, jobs, strict=True):
                    self._ids[name] = job.job_id
                    with written_aside(self._folder / f'{name}.job') as aside:
                        aside.write_text(job.job_id)

    def alive(self) -> set[str]:
        with contextlib.suppress(AblationError):  # its controller may be away for a while; the jobs go on
            self._alive = self._queued()
        return self._alive

    def leave(self) -> str:
        arrays = sorted({self._ids[name].partition('_')[0] for name in self._alive})
        return f'the trials go on in the queue of Slurm; scancel {" ".join(arrays)} ends them'

    def logs(self, trial: str) -> str:
        return str(JobPaths(self._folder, self._ids[trial]).stdout)

    def _queued(self) -> set[str]:
        """The names of the trials whose jobs run or wait."""
        arrays = {id_.partition('_')[0] for id_ in self._ids.values()} - {''}
        if not arrays:
            return set()
        command = ['squeue', '--noheader', '--array', '--format=%i', '--jobs', ','.join(sorted(arrays))]
        answer = subprocess.run(command, capture_output=True, text=True)
        # Slurm forgets jobs that are over, and then knows no such id where it is the only one asked for.
        if answer.returncode and 'Invalid job id' not in answer.stderr:
            raise AblationError(f'Slurm does not answer: {shlex.join(command)}: {answer.stderr.strip()}')
        queued = set(answer.stdout.split())
        return {name for name, id_ in self._ids.items() if id_ in queued}

    def _last_id(self, name: str) -> str:
        try:
            return (self._folder / f'{name}.job').read_text()
        except FileNotFoundError:
            return ''


def run(
    plan: Plan, work_dir: Path, cfg_options: Mapping[str, Any], console: Console, executor: Executor
) -> list[Job]:
    """As :func:`roi_plugins.ablation.runner.run`, with a job of the executor for each trial.

    A trial that tests what other trials train is submitted when those are done.
    """
    jobs = prepare(plan, work_dir, cfg_options)
    warn_of_confounded(jobs, plan, console)
    failed, tried = [], set()
    os.environ['PYTHONPATH'] = runner.python_path()  # of the jobs
    with Display(jobs, console) as display:
        while ready := [j for j in jobs if not (j.finished or j.problem or j.trial in tried)]:
            tried |= {job.trial for job in ready}
            tasks = {
                job.trial.name: (replace(plan, trials=(job.trial,)), work_dir, cfg_options) for job in ready
            }
            later = {job.trial.name for job in jobs} - tasks.keys()
            executor.submit(tasks)
            try:
                while alive := executor.alive():
                    failed += _follow(display, work_dir, alive | later)
                    time.sleep(executor.poll_seconds)
            except BaseException:
                console.print(executor.leave(), highlight=False, soft_wrap=True)
                raise
            failed += _follow(display, work_dir, later)
            for job in display.pending:
                if job.trial.name in tasks:
                    problem = f'its job ended before it was finished: see {executor.logs(job.trial.name)}'
                    failed.append(replace(job, problem=problem))
                    display.end(failed[-1], False)
            jobs = prepare(plan, work_dir, cfg_options)
        for job in jobs:
            if job.problem and job.trial not in tried:
                failed.append(job)
                display.end(job, False)
    return failed


def watch(plan: Plan, work_dir: Path, console: Console) -> list[Job]:
    """Shows how far the trials of a plan are until all are done, whoever runs them, and runs none.

    Returns:
        Those that failed.
    """
    failed = []
    with Display(recorded(plan, work_dir), console) as display:
        while True:
            failed += _follow(display, work_dir, set())
            if not display.pending:
                return failed
            time.sleep(Slurm.poll_seconds)


def _follow(display: Display, work_dir: Path, to_be_run: set[str]) -> list[Job]:
    """Shows what is new in the files of the trials, and returns those that have failed for good.

    What is ``to_be_run`` may have failed before, or lost its processes to the signal that ended its job.
    """
    failed = []
    running = {job.trial for job in display.running}
    for job in display.pending:
        if where := holder(job.trial, work_dir):
            if job.trial not in running:
                display.start(job, where)
            continue
        state = read_record(job.run_dir).get('state')
        if state == 'finished':
            display.end(job, True)
        elif state == 'failed' and job.trial.name not in to_be_run:
            display.end(job, False)
            failed.append(job)
        elif job.trial in running:
            display.interrupt(job)
    display.tick()
    return failed
