"""Finds what the trials of a plan lack, such as data or disk space, by asking the tools that run them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

from roi_plugins.ablation.job import Job
from roi_plugins.ablation.trial import Trial
from roi_plugins.integrations.registry import FRAMEWORKS


def find_problems(jobs: Sequence[Job]) -> list[Job]:
    """Checks data, evaluator, model, weights, output folder and disk space of trials before they run.

    Finished trials are not checked. Of trials that differ only in their seeds, the first is checked for all.

    Args:
        jobs: all trials of the plan.

    Returns:
        The same jobs, with ``problem`` set where something is missing.
    """
    questions: dict[str, dict[Trial, Job]] = {}
    for job in jobs:
        module = FRAMEWORKS[job.trial.framework].module
        if module and not job.finished and not job.problem:
            questions.setdefault(module, {}).setdefault(_without_seed(job), job)
    problems: dict[Trial, str] = {}
    for module, asked in questions.items():
        answers = _ask(module, list(asked.values()))
        problems |= dict(zip(asked, answers, strict=True))
    return [
        job if job.problem or job.finished else replace(job, problem=problems.get(_without_seed(job), ''))
        for job in jobs
    ]


def _without_seed(job: Job) -> Trial:
    # The checkpoint stays in the key: each seed may have another one.
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
