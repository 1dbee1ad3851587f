"""Estimates how long the rest of a plan will take, from its own finished trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from roi_plugins.ablation.job import Job


@dataclass(frozen=True)
class Estimate:
    """How long one trial takes on the machine that ran the finished ones.

    Attributes:
        hours: the estimate; None if no trial of its config is finished.
        source: where the number comes from, in words.
    """

    hours: float | None
    source: str


def estimate(job: Job, jobs: Sequence[Job]) -> Estimate:
    """Estimates how long a whole trial takes, from the finished trials with the same config.

    If there are any with the same extractor too, only these count.

    Args:
        job: the trial.
        jobs: all trials of the plan.
    """
    trial = job.trial
    finished = [
        (other.trial.extractor, other.record['seconds'])
        for other in jobs
        if other.finished
        and (other.trial.config_name, other.trial.trained_with) == (trial.config_name, trial.trained_with)
    ]
    for extractors, seconds in (
        ('the same extractor', [s for extractor, s in finished if extractor == trial.extractor]),
        ('other extractors', [s for _, s in finished]),
    ):
        if seconds:
            source = f'what {_trials(len(seconds))} of this config with {extractors} took'
            return Estimate(fmean(seconds) / 3600, source)
    return Estimate(None, 'no trial of this config is finished')


def summarize(jobs: Sequence[Job]) -> list[str]:
    """Says in lines of text how long the rest of a plan will take, for each config and in total.

    Args:
        jobs: all trials of the plan.
    """
    left = [job for job in jobs if not job.finished]
    lines = [f'{_trials(len(jobs))}: {len(jobs) - len(left)} finished, {len(left)} to run']
    groups: dict[tuple[str, Estimate], int] = {}
    for job in left:
        name = ', trained with '.join(filter(None, [job.trial.config_name, job.trial.trained_with]))
        key = name, estimate(job, jobs)
        groups[key] = groups.get(key, 0) + 1
    known, unknown = [], 0
    for (name, found), count in groups.items():
        if found.hours is None:
            unknown += count
            lines.append(f'  {name}: {_trials(count)}, unknown: {found.source}')
        else:
            known.append(count * found.hours)
            each = f'{_trials(count)} of {_hours(found.hours)}'
            lines.append(f'  {name}: {each}: {_hours(known[-1])}\n    {found.source}')
    if known:
        lines.append(f'in total {_hours(sum(known))} on the machine that ran the finished trials')
    if unknown:
        lines.append(f'plus {_trials(unknown)} of unknown length' if known else 'in total unknown')
    return lines


def _trials(count: int) -> str:
    return f'{count} trial' if count == 1 else f'{count} trials'


def _hours(hours: float) -> str:
    return f'{hours:.1f} h' if hours >= 0.95 else f'{60 * hours:.1f} min'
