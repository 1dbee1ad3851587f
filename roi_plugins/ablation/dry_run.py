"""What the trials of a plan lack: data, weights, room for checkpoints, as the tools that run them see it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

from roi_plugins.ablation.plan import Trial
from roi_plugins.ablation.trial import Job
from roi_plugins.integrations.registry import FRAMEWORKS


def find_problems(jobs: Sequence[Job]) -> list[Job]:
    """The jobs, each with its ``problem``, if it has one.

    A trial that is finished has none. Of trials that differ in their seeds alone, the first is looked at, for
    all of them: data, annotations, evaluator, model, weights to start from, output folder, disk.
    """
    questions: dict[str, dict[Trial, Job]] = {}
    for job in jobs:
        if FRAMEWORKS[job.trial.framework].module and not job.finished and not job.problem:
            questions.setdefault(job.trial.framework, {}).setdefault(_without_seed(job), job)
    problems: dict[Trial, str] = {}
    for framework, asked in questions.items():
        answers = _ask(FRAMEWORKS[framework].module, list(asked.values()))
        problems |= dict(zip(asked, answers, strict=True))
    return [
        job if job.problem or job.finished else replace(job, problem=problems.get(_without_seed(job), ''))
        for job in jobs
    ]


def _without_seed(job: Job) -> Trial:
    # A checkpoint stays, which may be of the seed.
    return replace(job.trial, seed=0)


def _ask(module: str, jobs: Sequence[Job]) -> list[str]:
    arguments = [job.commands[0][job.commands[0].index(module) + 1 :] for job in jobs]
    process = subprocess.run(
        [sys.executable, '-m', module, 'check'],
        input=json.dumps(arguments),
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ['no output'])[-1]
        return [f'{module} check ended with {process.returncode}: {reason}'] * len(jobs)
    return json.loads(process.stdout)
