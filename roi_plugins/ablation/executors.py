"""Runs trials of a plan side by side, on this machine or on a Slurm cluster, through submitit.

Each job runs one trial. It claims the trial as :func:`roi_plugins.ablation.runner.run` does, so several
commands can work on one plan at the same time. The progress is read from the files of the trials. There are
two more kinds of files::

    WORK_DIR/.submitit/
      {id}_0_log.out    the output of a job
      {trial}.job        the id of the Slurm job that was last submitted for a trial
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
from roi_plugins.ablation.job import (
    AblationError,
    Job,
    prepare,
    read_trial_file,
    recorded,
    warn_of_confounded,
)
from roi_plugins.ablation.locks import holder
from roi_plugins.ablation.plan import Plan
from roi_plugins.ablation.progress import Display
from roi_plugins.files import atomic_write

FOLDER = '.submitit'

_TIMEOUTS = 100  # how often a trial may run out of time: enough for any training, but not for ever
_YEAR = 366 * 24 * 60  # minutes: submitit's local jobs must have a time limit, and ours need none


class Executor(Protocol):
    """Runs trials, each as a job.

    Attributes:
        poll_seconds: how long to wait before :meth:`alive` is called again.
    """

    poll_seconds: float

    def submit(self, tasks: Mapping[str, Sequence[Any]]) -> None:
        """Submits a job for each trial.

        Args:
            tasks: the arguments of a :class:`TrialTask`, without the devices, by the name of the trial.
        """

    def alive(self) -> set[str]:
        """Returns the names of the trials whose jobs are running or waiting."""

    def leave(self) -> str:
        """Prepares for the end of this process before its jobs have ended.

        Returns:
            What happens to the jobs, as a sentence for the user.
        """

    def logs(self, trial: str) -> str:
        """Returns the path of the output of a trial's job.

        Args:
            trial: the name of the trial.
        """


class TrialTask:
    """The function that a job runs: it runs one trial."""

    def __call__(
        self, plan: Plan, work_dir: Path, cfg_options: Mapping[str, Any], devices: str | None
    ) -> int:
        """Runs the trial.

        Args:
            plan: a plan of this one trial.
            work_dir: the folder of the run directories.
            cfg_options: config options; they win over those of the plan.
            devices: ``CUDA_VISIBLE_DEVICES``; None to use all GPUs of the job.

        Returns:
            The number of failed trials.
        """
        # submitit ignores SIGTERM. Here it interrupts, so that the trial stops its own processes first.
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
            if devices is not None:  # this job runs on this machine, without Slurm
                raise
            # Slurm puts a preempted job back into the queue only if it had to kill it. So wait for that.
            while True:
                signal.pause()

    def checkpoint(self, *arguments: Any) -> DelayedSubmission:
        """Tells submitit what to run when it puts a preempted or timed-out job back into the queue."""
        return DelayedSubmission(self, *arguments)


class Local:
    """Runs several trials at a time on this machine.

    Args:
        work_dir: the folder of the run directories.
        jobs: how many trials run at a time.
        gpus_per_trial: how many GPUs each trial has to itself. On a machine without GPUs, how many processes
            each trial has on the CPU.

    Attributes:
        devices: ``CUDA_VISIBLE_DEVICES`` for each of the trials that run at a time.

    Raises:
        AblationError: the machine has GPUs, but too few.
    """

    poll_seconds = 0.5

    def __init__(self, work_dir: Path, jobs: int, gpus_per_trial: int) -> None:
        self._executor = submitit.LocalExecutor(work_dir / FOLDER)
        self._executor.update_parameters(timeout_min=_YEAR, stderr_to_stdout=True)
        self.devices = _devices(jobs, gpus_per_trial)
        self._free = list(self.devices)
        self._waiting: dict[str, Sequence[Any]] = {}
        self._running: dict[str, tuple[submitit.LocalJob[int], str]] = {}
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
                started = self._executor.submit(TrialTask(), *self._waiting.pop(name), devices)
            assert isinstance(started, submitit.LocalJob)  # submitit's types do not say so
            self._running[name] = started, devices
            self._logs[name] = str(started.paths.stdout)
        return {*self._running, *self._waiting}

    def leave(self) -> str:
        self._waiting.clear()
        for job, _ in self._running.values():
            if job._process:  # cancel() would end the job before the trial has stopped its own processes
                job._process.terminate()
        while self.alive():
            time.sleep(self.poll_seconds)
        return 'the running trials were stopped'

    def logs(self, trial: str) -> str:
        return self._logs[trial]


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """Makes the processes that start here ignore the signals of a terminal.

    This process gets these signals too, and stops the others itself.
    """
    numbers = (signal.SIGINT, signal.SIGHUP)
    handlers = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


def _devices(jobs: int, gpus_per_trial: int) -> list[str]:
    import torch  # here, because the import takes seconds and nothing else needs it

    count = torch.cuda.device_count()
    if count == 0:
        return [''] * jobs
    if count < jobs * gpus_per_trial:
        raise AblationError(
            f'--jobs {jobs} of --gpus-per-trial {gpus_per_trial} need {jobs * gpus_per_trial} GPUs, but '
            f'there are {count} here; lower one of the two'
        )
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    names = visible.split(',')[:count] if visible else [str(index) for index in range(count)]
    starts = range(0, jobs * gpus_per_trial, gpus_per_trial)
    return [','.join(names[start : start + gpus_per_trial]) for start in starts]


class Slurm:
    """Runs trials as an array of Slurm jobs, one for each trial. The jobs go on when this process ends.

    A job that is preempted, or runs out of time, goes back into the queue, and its trial resumes. Set other
    options of ``sbatch`` in its environment variables: ``SBATCH_ACCOUNT``, ``SBATCH_QOS`` and so on.

    Args:
        work_dir: the folder of the run directories, on storage that the machines of the cluster share.
        name: the name of the jobs.
        jobs: how many trials run at a time; None for as many as the cluster runs.
        gpus_per_node: how many GPUs each trial uses on each of its machines.
        nodes: how many machines each trial uses.
        partition: the partition; None for the default of the cluster.
        minutes: the time limit of a job. After it, the trial goes back into the queue.

    Raises:
        AblationError: the commands of Slurm are not installed here.
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
            # One process watches the trial; the commands of the trial start the others.
            'srun_args': ['--nodes=1', '--ntasks=1'],
            'additional_parameters': {'requeue': True},
        }
        self._executor.update_parameters(**{k: v for k, v in parameters.items() if v is not None})
        self._ids: dict[str, str] = {}
        self._alive: set[str] = set()

    def submit(self, tasks: Mapping[str, Sequence[Any]]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / '.lock'):  # so that two commands do not submit the same trial
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
                    with atomic_write(self._folder / f'{name}.job') as aside:
                        aside.write_text(job.job_id)

    def alive(self) -> set[str]:
        with contextlib.suppress(AblationError):  # the jobs go on while Slurm's controller does not answer
            self._alive = self._queued()
        return self._alive

    def leave(self) -> str:
        arrays = sorted({self._ids[name].partition('_')[0] for name in self._alive})
        return f'the trials go on in the queue of Slurm; scancel {" ".join(arrays)} ends them'

    def logs(self, trial: str) -> str:
        return str(JobPaths(self._folder, self._ids[trial]).stdout)

    def _queued(self) -> set[str]:
        """Asks Slurm for the names of the trials whose jobs are running or waiting."""
        arrays = {id_.partition('_')[0] for id_ in self._ids.values()} - {''}
        if not arrays:
            return set()
        command = ['squeue', '--noheader', '--array', '--format=%i', '--jobs', ','.join(sorted(arrays))]
        answer = subprocess.run(command, capture_output=True, text=True)
        # Slurm forgets finished jobs. If it has forgotten all that are asked for, it calls the ids invalid.
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
    """Runs all trials of a plan that are not finished, each as a job of an executor.

    Trials that test what other trials train are submitted when these are done.

    Args:
        plan: the plan.
        work_dir: the folder of the run directories.
        cfg_options: config options for every trial. They win over those of the plan.
        console: where the progress is shown.
        executor: what runs the jobs.

    Returns:
        The jobs that failed, as :func:`roi_plugins.ablation.runner.run` returns them.

    Raises:
        AblationError: see :func:`roi_plugins.ablation.job.prepare`; or Slurm does not take the jobs.
        OSError: the work directory is full or gone.
        KeyboardInterrupt: after the executor was told, see :meth:`Executor.leave`.
    """
    jobs = prepare(plan, work_dir, cfg_options)
    warn_of_confounded(jobs, plan, console)
    failed, tried = [], set()
    os.environ['PYTHONPATH'] = runner.python_path()  # the jobs inherit it
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
    """Shows the progress of the trials of a plan until all are done. It runs none of them.

    Args:
        plan: the plan.
        work_dir: the folder of the run directories.
        console: where the progress is shown.

    Returns:
        The jobs that failed.
    """
    failed = []
    with Display(recorded(plan, work_dir), console) as display:
        while True:
            failed += _follow(display, work_dir, set())
            if not display.pending:
                return failed
            time.sleep(Slurm.poll_seconds)


def _follow(display: Display, work_dir: Path, to_be_run: set[str]) -> list[Job]:
    """Shows what is new in the files of the trials, and returns the trials that have failed for good.

    A failure of a trial in ``to_be_run`` does not count: it failed before, or a signal ended its job, and it
    will run again.
    """
    failed = []
    running = {job.trial for job in display.running}
    for job in display.pending:
        if where := holder(job.trial, work_dir):
            if job.trial not in running:
                display.start(job, where)
            continue
        state = read_trial_file(job.run_dir).get('state')
        if state == 'finished':
            display.end(job, True)
        elif state == 'failed' and job.trial.name not in to_be_run:
            display.end(job, False)
            failed.append(job)
        elif job.trial in running:
            display.interrupt(job)
    display.tick()
    return failed
