"""Shows the progress of the trials of a plan, on a terminal or in a log."""

from __future__ import annotations

import os
import re
import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from roi_plugins.ablation.job import Job, read_trial_file
from roi_plugins.ablation.trial import Trial
from roi_plugins.integrations.registry import FRAMEWORKS
from roi_plugins.run_record import trial_file

_LINE_EVERY_SECONDS = 60  # if the output is not a terminal


class Display:
    """Shows the progress of trials: a live line on a terminal, else a plain line now and then.

    It reads everything from the files of the trials, so any process on any machine may run them.

    Args:
        jobs: all trials of the plan.
        console: where the progress is shown.

    Attributes:
        pending: the trials that are not done.
        running: the pending trials that a process is running now.
    """

    def __init__(self, jobs: list[Job], console: Console) -> None:
        self.console = console
        self.live = console.is_terminal
        self.pending = [job for job in jobs if not job.finished]
        self.running: list[Job] = []
        self.seconds: dict[str, list[float]] = {}  # of finished trials, under their config_name
        for job in jobs:
            if job.finished:
                self._remember(job, job.record['seconds'])
        self.waiting: set[tuple[Trial, str]] = set()
        self.line_time = time.monotonic()
        done = len(jobs) - len(self.pending)
        self.progress = Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn('trials'),
            console=console,
            disable=not self.live,
        )
        self.task = self.progress.add_task('', total=len(jobs), completed=done)
        if done:
            self._print(f'{done} of {len(jobs)} trials are finished already')

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def start(self, job: Job, where: str = '') -> None:
        """Shows that a trial runs now.

        Args:
            job: the trial.
            where: the process that runs it; empty if it is this one.
        """
        if job.problem or job.finished:
            return
        if not self.running:
            self.line_time = time.monotonic()
        self.running.append(job)
        verb = 'resuming' if job.record else 'running'
        self._print(f'{verb} {job.trial.name}{where and f" as {where}"}, log in {job.log}')

    def wait(self, job: Job, holder: str) -> None:
        """Shows, once, that another process runs a trial.

        Args:
            job: the trial.
            holder: the process that runs it.
        """
        if (job.trial, holder) not in self.waiting:
            self.waiting.add((job.trial, holder))
            self._print(f'waiting for {job.trial.name}, run by {holder} or by a training that it started')

    def tick(self) -> None:
        """Updates the live line, or prints a plain line if the last one is old."""
        if self.live:
            self.progress.update(self.task, description=self._status('\n'))
        elif time.monotonic() - self.line_time > _LINE_EVERY_SECONDS:
            self.line_time = time.monotonic()
            self._print(self._status('; '))

    def interrupt(self, job: Job) -> None:
        """Shows that no process runs a trial any more, although it is not done.

        Args:
            job: the trial.
        """
        self.running = _without(job, self.running)
        self.pending = [
            replace(other, record=read_trial_file(job.run_dir)) if other.trial == job.trial else other
            for other in self.pending
        ]
        self._print(f'interrupted {job.trial.name}: it is to be resumed')

    def end(self, job: Job, succeeded: bool) -> None:
        """Shows that a trial is done.

        Args:
            job: the trial.
            succeeded: whether it is finished; else it failed, or could not run.
        """
        self.running = _without(job, self.running)
        self.pending = _without(job, self.pending)
        self.progress.advance(self.task)
        if succeeded:
            seconds = read_trial_file(job.run_dir)['seconds']
            self._remember(job, seconds)
            self._print(f'finished {job.trial.name} in {_duration(seconds)}')
        elif job.problem:
            self._print(f'NOT RUN {job.trial.name}: {job.problem}')
        else:
            self._print(f'FAILED {job.trial.name}: {_last_line(job.log)}')
            self._print(f'  see {job.log}')

    def _status(self, separator: str) -> str:
        """Describes each running trial, and estimates the time until all trials are done."""
        if not self.running:
            return f'no trial is running, {len(self.pending)} to go'
        parts, lefts, wholes = [], [], []
        for job in self.running:
            found = FRAMEWORKS[job.trial.framework].progress(_log_of_command(job.log))
            what, command_left = found or ('starting', None)
            parts.append(f'{job.trial.name}: {what}')
            # The running command knows its own time exactly, but not the time of the commands after it.
            guesses = [] if command_left is None else [command_left]
            elapsed = _elapsed(job.run_dir)
            if (usual := self._usual_seconds(job)) is not None:
                guesses.append(usual - elapsed)
            if guesses:
                lefts.append(max(0, *guesses))
                wholes.append(elapsed + lefts[-1])
        eta = 'ETA of all trials unknown'
        if lefts:
            running = {job.trial for job in self.running}
            left = sum(lefts) + (len(running) - len(lefts)) * fmean(wholes)
            for job in self.pending:
                if job.trial not in running:
                    left += self._usual_seconds(job) or fmean(wholes)
            eta = f'ETA of all trials {_duration(left / len(running))}'
        return f'{separator.join(parts)}, {eta}'

    def _usual_seconds(self, job: Job) -> float | None:
        """Returns the mean time of the finished trials, of those with the same config if there are any."""
        same = self.seconds.get(job.trial.config_name)
        every = [seconds for group in self.seconds.values() for seconds in group]
        return fmean(same or every) if every else None

    def _remember(self, job: Job, seconds: float) -> None:
        self.seconds.setdefault(job.trial.config_name, []).append(seconds)

    def _print(self, text: str) -> None:
        stamp = '' if self.live else f'[{datetime.now():%H:%M:%S}] '
        self.console.print(stamp + text, markup=False, highlight=False, soft_wrap=True)


def _without(job: Job, jobs: list[Job]) -> list[Job]:
    return [other for other in jobs if other.trial != job.trial]


def _elapsed(run_dir: Path) -> float:
    """Returns how long a running trial has taken until now, in seconds."""
    try:
        since = time.time() - trial_file(run_dir).stat().st_mtime
    except FileNotFoundError:  # the trial has just been claimed, and the file is not written yet
        return 0
    return max(0, since) + read_trial_file(run_dir).get('seconds', 0)


def _log_of_command(log: Path) -> str:
    """Returns the end of the output of the last command."""
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
