"""Runs the cells of a plan, one after the other, each in processes of its own.

The state of an ablation is in its files alone, so that it can be stopped at any moment, by any
means, and the same command goes on where it was::

    WORK_DIR/
      .locks/                            a file for each cell: locked while it is run, with who does
      {config_name}.{extractor}.seed{seed}/
        cell.json                        what was run, and how far it came
        cell.log                         the output of the cell's processes
        last_checkpoint, *.pth, ...      the framework's own files
        predictions.*.json metrics.json  the finished run

Any number of processes may run one plan in one work directory, on one machine or on several that share
it: each cell is run by one of them. The lock is the kernel's (``flock``), which ends with the last process
that holds it, however it ends. Over machines it holds where the file system passes it on: NFS does from
version 4 on, and version 3 with its lock service; not one mounted with ``nolock`` or ``local_lock``, nor
Lustre with ``localflock``.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import roi_plugins
from roi_plugins.ablation.checkpoints import (
    Checkpoint,
    CheckpointError,
    checkpoint_path,
    find_checkpoint,
)
from roi_plugins.ablation.confounding import find_confounded
from roi_plugins.ablation.frameworks import FRAMEWORKS, Inputs
from roi_plugins.ablation.plan import Cell, Plan
from roi_plugins.files import write_json
from roi_plugins.needs import explain_missing
from roi_plugins.run_record import CELL_FILE, METRICS_FILE
from roi_plugins.settings import flatten

LOG_FILE = 'cell.log'  # not log.txt, which Detectron2 writes itself: every line came twice
LOCKS = '.locks'

_POLL_SECONDS = 0.5
_LINE_EVERY_SECONDS = 60  # where the output is not a terminal
_STOP_SECONDS = 15  # what a stopped process gets to end by itself


class AblationError(RuntimeError):
    """An ablation that cannot be started as asked; the message says what to do."""


@dataclass(frozen=True)
class Job:
    """A cell with all that is needed to run it.

    Attributes:
        digest: of everything that decides the result: the config with all that it inherits, the
            options with the seed, and the checkpoint, if one is given, or the number of GPUs.
        record: the content of ``cell.json`` where the cell was run before, else empty.
        finished: its run directory holds the finished run.
        checkpoint: what a cell that trains nothing evaluates; else None.
        problem: why the cell cannot be run now; empty if it can.
        settings: what its config says, with its options, by dotted keys; not what swaps the extractor.
    """

    cell: Cell
    run_dir: Path
    commands: list[list[str]]
    digest: str
    record: Mapping[str, Any]
    finished: bool
    checkpoint: Checkpoint | None = None
    problem: str = ''
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """What its processes have printed."""
        return self.run_dir / LOG_FILE


def prepare(plan: Plan, work_dir: Path, cfg_options: Mapping[str, Any]) -> list[Job]:
    """Works out what is to be run for each cell of a plan, and what of it has been run.

    Args:
        plan: see :func:`roi_plugins.ablation.plan.load_plan`.
        work_dir: where the run directories are.
        cfg_options: config options for every cell; they win over those of the plan.

    Raises:
        AblationError: a run directory holds results of something else than its cell now says, or a
            config cannot be read.
    """
    return [_prepare(cell, work_dir, cfg_options, plan) for cell in plan.cells]


def recorded(plan: Plan, work_dir: Path) -> list[Job]:
    """The cells of a plan as their files tell of them: without commands, and without reading configs."""
    jobs = []
    for cell in plan.cells:
        run_dir = work_dir / cell.name
        record = read_record(run_dir)
        finished = record.get('state') == 'finished' and (run_dir / METRICS_FILE).exists()
        jobs.append(Job(cell, run_dir, [], record.get('digest', ''), record, finished))
    return jobs


def run(plan: Plan, work_dir: Path, cfg_options: Mapping[str, Any], console: Console) -> list[Job]:
    """Runs all cells of a plan that are not finished. A failed cell does not stop the others.

    A cell that another process runs is left to it, and waited for: where it was killed, it is taken over.

    Args:
        plan, work_dir, cfg_options: see :func:`prepare`.
        console: where the progress is shown: a live line on a terminal, plain lines elsewhere.

    Returns:
        The jobs that failed; the cause is their ``problem``, or at the end of the ``cell.log`` of their
        ``run_dir``.

    Raises:
        AblationError: see :func:`prepare`; or the file system knows no locks.
        OSError: the work directory is full or gone; as with an interrupt, nothing is lost.
        KeyboardInterrupt: after the running cell was stopped so that it can be resumed.
    """
    jobs = prepare(plan, work_dir, cfg_options)
    warn_of_confounded(jobs, plan, console)
    failed = []
    with Display(jobs, console) as display:
        todo = [job for job in jobs if not job.finished]
        while todo:
            held = []
            for job in todo:
                with claim(job.cell, work_dir) as (lock, holder):
                    if lock is None:
                        held.append(job)
                        display.wait(job, holder)
                        continue
                    job = _renewed(job, plan, work_dir, cfg_options)
                    if job.problem and held:  # it may test what another process is training
                        held.append(job)
                        continue
                    display.start(job)
                    succeeded = job.finished or (
                        not job.problem and _run_job(job, plan.name, lock, display)
                    )
                    display.end(job, succeeded)
                    if not succeeded:
                        failed.append(job)
            todo = held
            if held:
                time.sleep(_POLL_SECONDS)
    return failed


@contextlib.contextmanager
def claim(cell: Cell, work_dir: Path) -> Iterator[tuple[int | None, str]]:
    """Takes a cell for this process and those that it passes the lock on to.

    Yields:
        The file descriptor of the lock and ``''``; or None and who has the cell.

    Raises:
        AblationError: the file system knows no locks.
    """
    path = work_dir / LOCKS / cell.name
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None, os.read(lock, 1000).decode(errors='replace').strip()
            return
        except OSError as error:
            raise AblationError(
                f'{path} cannot be locked ({error.strerror}), so that two processes could run one cell; '
                'give a --work-dir on a file system with locks'
            ) from None
        os.ftruncate(lock, 0)
        os.write(lock, f'process {os.getpid()} on {socket.gethostname()} since {_now()}\n'.encode())
        yield lock, ''
    finally:
        os.close(lock)


def holder(cell: Cell, work_dir: Path) -> str:
    """Who has claimed a cell, on any machine; empty where nobody has.

    One who claims it at this very moment finds it taken, and tries again.
    """
    try:
        lock = os.open(work_dir / LOCKS / cell.name, os.O_RDONLY)
    except FileNotFoundError:
        return ''
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return ''
    except BlockingIOError:
        return os.read(lock, 1000).decode(errors='replace').strip() or 'a process that has just begun'
    finally:
        os.close(lock)


def _renewed(job: Job, plan: Plan, work_dir: Path, cfg_options: Mapping[str, Any]) -> Job:
    """The job as it is now: its cell was free or another process' since, and this plan has trained others."""
    try:
        now = _prepare(job.cell, work_dir, cfg_options, plan)
    except AblationError as error:
        return replace(job, problem=str(error))
    if now.record != job.record and now.record.get('state') == 'failed':
        return replace(now, problem=f'another process ran it, and it failed: see {now.log}')
    return now


def _prepare(cell: Cell, work_dir: Path, cfg_options: Mapping[str, Any], plan: Plan) -> Job:
    framework = FRAMEWORKS[cell.framework]
    run_dir = work_dir / cell.name
    options = {**cell.cfg_options, **cfg_options, framework.seed_option: cell.seed}
    record = read_record(run_dir)
    checkpoint, problem = None, ''
    if cell.checkpoint is not None:
        if double := [name for name in framework.weights_options if name in options]:
            raise AblationError(
                f'cell {cell.name}: got the option {double[0]}, but the cell tests {cell.checkpoint} '
                'and trains nothing; leave the option out'
            )
        checkpoint, problem = _find_checkpoint(cell, work_dir, record)
    try:
        resolved = framework.resolve(cell.config, options)
        weights = checkpoint.path if checkpoint else None
        commands = framework.commands(
            cell.config, run_dir, options, cell.inputs, weights, plan.num_gpus, plan.num_nodes
        )
    except Exception as error:  # configs are programs: anything can happen in them
        missing = explain_missing(error) if isinstance(error, ImportError) else None
        if missing:
            raise AblationError(f'cell {cell.name} needs {missing}') from error
        raise AblationError(
            f'cell {cell.name}: the config {cell.config} cannot be read with its options: '
            f'{type(error).__name__}: {" ".join(str(error).split())}'
        ) from error
    decisive = resolved
    if checkpoint:
        decisive = [resolved, checkpoint.sha256]
    elif plan.num_gpus > 1:  # it decides the batches; a test is the same on any number
        decisive = [resolved, plan.num_gpus]
    if cell.inputs != Inputs():
        decisive = [decisive, asdict(cell.inputs)]
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()
    has_metrics = (run_dir / METRICS_FILE).exists()
    if record.get('digest') != digest:
        if has_metrics or (run_dir / 'last_checkpoint').exists():
            raise AblationError(
                f'cell {cell.name}: {run_dir} holds the results of another config, other options, '
                'another checkpoint or number of GPUs than the plan has now. To keep them and run all '
                f'cells anew, give another --work-dir; to run this cell anew, move {run_dir} away'
            )
        record = {}
    finished = has_metrics and record.get('state') == 'finished'
    return Job(
        cell, run_dir, commands, digest, record, finished, checkpoint, problem, flatten(resolved)
    )


def warn_of_confounded(jobs: Sequence[Job], plan: Plan, console: Console) -> None:
    """Prints which extractors of a plan have configs that differ in more than the extractor.

    Rows over one config cannot; the configs of a path with ``{extractor}`` can.
    """
    settings = {job.cell: job.settings for job in jobs}
    for warning in find_confounded([job.cell for job in jobs], plan.baseline, settings.__getitem__):
        console.print(f'warning: {warning}', markup=False, highlight=False, soft_wrap=True)


def _find_checkpoint(
    cell: Cell, work_dir: Path, record: Mapping[str, Any]
) -> tuple[Checkpoint, str]:
    """What the cell evaluates, and why it cannot, if it cannot."""
    try:
        return find_checkpoint(cell, work_dir), ''
    except CheckpointError as error:
        recorded = record.get('checkpoint') or {}
        if record.get('state') == 'finished' and recorded.get('given') == str(cell.checkpoint):
            # Its result stands, even if the weights were removed since to save space.
            return Checkpoint(Path(recorded['path']), recorded['sha256']), ''
        return Checkpoint(checkpoint_path(cell, work_dir), ''), str(error)


def read_record(run_dir: Path) -> dict[str, Any]:
    """The content of ``cell.json``; empty where a cell was never run."""
    try:
        return json.loads((run_dir / CELL_FILE).read_text(encoding='utf-8'))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise AblationError(
            f'{run_dir / CELL_FILE} cannot be read: {error}; move {run_dir} away to run anew'
        ) from None


def _run_job(job: Job, plan_name: str, lock: int, display: Display) -> bool:
    start = time.monotonic()
    spent = job.record.get('seconds', 0)
    record = {
        'format': 1,
        'plan': plan_name,
        'framework': job.cell.framework,
        'config_name': job.cell.config_name,
        'extractor': job.cell.extractor,
        'seed': job.cell.seed,
        'trained_with': job.cell.trained_with,
        'checkpoint': job.checkpoint
        and {
            'given': str(job.cell.checkpoint),
            'path': str(job.checkpoint.path),
            'sha256': job.checkpoint.sha256,
        },
        'state': 'running',
        'started': job.record.get('started', _now()),
        'finished': None,
        'seconds': spent,
        'commands': job.commands,
        'completed': job.record.get('completed', 0),  # of the commands
        'digest': job.digest,
    }

    def save(**changes: Any) -> None:
        record.update(changes, seconds=round(spent + time.monotonic() - start, 3))
        write_json(job.run_dir / CELL_FILE, record)

    job.run_dir.mkdir(parents=True, exist_ok=True)
    for half_written in job.run_dir.glob('.*.tmp'):  # by a process that was killed
        half_written.unlink()
    save()
    try:
        for command in job.commands[record['completed'] :]:
            if _run_command(command, job.log, lock, display.tick) != 0:
                # All are run again, and go on where they were: what a test cannot read is trained anew.
                save(state='failed', finished=_now(), completed=0)
                return False
            save(completed=record['completed'] + 1)
    except BaseException:
        with contextlib.suppress(OSError):  # of a full disk, maybe the one that is on its way
            save()  # it stays 'running': to be resumed
        raise
    # A finished cell is one whose metrics are there, so its commands must have left them.
    succeeded = (job.run_dir / METRICS_FILE).exists()
    save(state='finished' if succeeded else 'failed', finished=_now())
    return succeeded


def _run_command(command: list[str], log: Path, lock: int, tick: Callable[[], None]) -> int:
    with open(log, 'ab') as output:
        output.write(f'[{_now()}] $ {shlex.join(command)}\n'.encode())
        output.flush()
        # The lock goes to the child, so that it holds even if this process is killed and the child
        # lives on. A session of its own keeps the terminal's Ctrl-C from the child: it is stopped
        # below, with all its workers.
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
    """For processes that import this package, which need not be installed."""
    root = Path(roi_plugins.__file__).parents[1]
    return os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))


def _stop(process: subprocess.Popen) -> None:
    """Ends a process and all that it has started; a second interrupt ends them at once."""
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


class Display:
    """Shows how far the cells are: a live line on a terminal, else a plain line now and then.

    All that it shows is in the cells' files, so that the process that runs them may be any, anywhere.

    Attributes:
        pending: the cells that are not done.
        running: those of them that are run.
    """

    def __init__(self, jobs: list[Job], console: Console) -> None:
        self.console = console
        self.live = console.is_terminal
        self.pending = [job for job in jobs if not job.finished]
        self.running: list[Job] = []
        self.seconds: dict[str, list[float]] = {}  # of finished cells, under their config_name
        for job in jobs:
            if job.finished:
                self._remember(job, job.record['seconds'])
        self.waiting: set[tuple[Cell, str]] = set()
        self.line_time = time.monotonic()
        done = len(jobs) - len(self.pending)
        self.progress = Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn('cells'),
            console=console,
            disable=not self.live,
        )
        self.task = self.progress.add_task('', total=len(jobs), completed=done)
        if done:
            self._print(f'{done} of {len(jobs)} cells are finished already')

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def start(self, job: Job, where: str = '') -> None:
        if job.problem or job.finished:
            return
        if not self.running:
            self.line_time = time.monotonic()
        self.running.append(job)
        verb = 'resuming' if job.record else 'running'
        self._print(f'{verb} {job.cell.name}{where and f" as {where}"}, log in {job.log}')

    def wait(self, job: Job, holder: str) -> None:
        if (job.cell, holder) not in self.waiting:
            self.waiting.add((job.cell, holder))
            self._print(f'leaving {job.cell.name} to {holder}, or to a training that it has started')

    def tick(self) -> None:
        if self.live:
            self.progress.update(self.task, description=self._status('\n'))
        elif time.monotonic() - self.line_time > _LINE_EVERY_SECONDS:
            self.line_time = time.monotonic()
            self._print(self._status('; '))

    def interrupt(self, job: Job) -> None:
        self.running = _without(job, self.running)
        self.pending = [
            replace(other, record=read_record(job.run_dir)) if other.cell == job.cell else other
            for other in self.pending
        ]
        self._print(f'interrupted {job.cell.name}: it is to be resumed')

    def end(self, job: Job, succeeded: bool) -> None:
        self.running = _without(job, self.running)
        self.pending = _without(job, self.pending)
        self.progress.advance(self.task)
        if succeeded:
            seconds = read_record(job.run_dir)['seconds']
            self._remember(job, seconds)
            self._print(f'finished {job.cell.name} in {_duration(seconds)}')
        elif job.problem:
            self._print(f'NOT RUN {job.cell.name}: {job.problem}')
        else:
            self._print(f'FAILED {job.cell.name}: {_last_line(job.log)}')
            self._print(f'  see {job.log}')

    def _status(self, separator: str) -> str:
        """A part on each running cell, with the estimated time until all cells are done."""
        if not self.running:
            return f'no cell is run now, {len(self.pending)} to go'
        parts, lefts, wholes = [], [], []
        for job in self.running:
            found = FRAMEWORKS[job.cell.framework].progress(_log_of_command(job.log))
            what, command_left = found or ('starting', None)
            parts.append(f'{job.cell.name}: {what}')
            # What the running command says is exact, but knows nothing of the commands after it.
            guesses = [] if command_left is None else [command_left]
            elapsed = _elapsed(job.run_dir)
            if (usual := self._usual_seconds(job)) is not None:
                guesses.append(usual - elapsed)
            if guesses:
                lefts.append(max(0, *guesses))
                wholes.append(elapsed + lefts[-1])
        eta = 'ETA of all cells unknown'
        if lefts:
            running = {job.cell for job in self.running}
            left = sum(lefts) + (len(running) - len(lefts)) * fmean(wholes)
            for job in self.pending:
                if job.cell not in running:
                    left += self._usual_seconds(job) or fmean(wholes)
            eta = f'ETA of all cells {_duration(left / len(running))}'
        return f'{separator.join(parts)}, {eta}'

    def _usual_seconds(self, job: Job) -> float | None:
        """What a cell takes by the finished ones, those of the same config if there are any."""
        same = self.seconds.get(job.cell.config_name)
        every = [seconds for group in self.seconds.values() for seconds in group]
        return fmean(same or every) if every else None

    def _remember(self, job: Job, seconds: float) -> None:
        self.seconds.setdefault(job.cell.config_name, []).append(seconds)

    def _print(self, text: str) -> None:
        stamp = '' if self.live else f'[{datetime.now():%H:%M:%S}] '
        self.console.print(stamp + text, markup=False, highlight=False, soft_wrap=True)


def _without(job: Job, jobs: list[Job]) -> list[Job]:
    return [other for other in jobs if other.cell != job.cell]


def _elapsed(run_dir: Path) -> float:
    """What a running cell has taken until now."""
    try:
        since = time.time() - (run_dir / CELL_FILE).stat().st_mtime
    except FileNotFoundError:  # it is about to be written
        return 0
    return max(0, since) + read_record(run_dir).get('seconds', 0)


def _log_of_command(log: Path) -> str:
    """The end of what the last command has written."""
    try:
        with open(log, 'rb') as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 10_000))
            tail = file.read().decode(errors='replace')
    except FileNotFoundError:
        return ''
    return re.split(r'^\[[^]]+\] \$ .*$', tail, flags=re.MULTILINE)[-1]


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding='utf-8', errors='replace').split('\n')
    return next((line.strip() for line in reversed(lines) if line.strip()), 'no output')


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec='seconds')
