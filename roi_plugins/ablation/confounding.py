"""Warns of runs that differ in more than their extractor, because then it alone does not explain their AP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from roi_plugins.ablation.results import Run
from roi_plugins.ablation.trial import Trial
from roi_plugins.settings import CONFOUNDED, differences

AnyRun = TypeVar('AnyRun', Trial, Run)

SHOWN = 5
"""How many differing settings a warning shows."""


def find_confounded(
    runs: Sequence[AnyRun],
    baseline: str | None,
    settings_of: Callable[[AnyRun], Mapping[str, Any] | None],
) -> list[str]:
    """Finds the extractors whose runs differ from the reference in other settings too.

    Args:
        runs: the runs of a comparison, or the trials of a plan.
        baseline: the extractor whose runs are the reference within each config. If None, the first extractor.
        settings_of: gives the settings of a run by their dotted keys, see :mod:`roi_plugins.settings`. Runs
            for which it gives None are not looked at.

    Returns:
        A warning for each of these extractors.

    Raises:
        DataError: recorded settings cannot be read.
    """
    found: dict[tuple[str, str, str], list[str]] = {}
    for run in runs:
        reference = reference_run(run, runs, baseline)
        if reference is run:
            continue
        key = run.config_name, run.extractor, reference.extractor
        if run.framework and reference.framework and run.framework != reference.framework:
            found.setdefault(key, []).append(f'framework: {reference.framework} → {run.framework}')
            continue
        base, own = settings_of(reference), settings_of(run)
        if base is not None and own is not None:
            confounded = [str(d) for d in differences(base, own) if d.kind == CONFOUNDED]
            found.setdefault(key, []).extend(confounded)
    return [_warning(*key, list(dict.fromkeys(texts))) for key, texts in found.items() if texts]


def reference_run(run: AnyRun, runs: Sequence[AnyRun], baseline: str | None) -> AnyRun:
    """Picks the run that a run is compared with: the baseline's run with the same config and seed.

    If the baseline has no run of this seed, it is the baseline's first run with this config. If it has no run
    with this config at all, the first extractor takes its place.

    Args:
        run: the run.
        runs: all runs, ``run`` included.
        baseline: the extractor that the others are compared with.
    """
    of_config = [other for other in runs if other.config_name == run.config_name]
    of_baseline = [other for other in of_config if other.extractor == baseline]
    if not of_baseline:
        of_baseline = [other for other in of_config if other.extractor == of_config[0].extractor]
    if run in of_baseline:
        return of_baseline[0]
    return next((other for other in of_baseline if other.seed == run.seed), of_baseline[0])


def _warning(config_name: str, extractor: str, reference: str, texts: Sequence[str]) -> str:
    where = f'{config_name}: ' if config_name else ''
    who = 'its runs differ' if extractor == reference else f'differs from {reference}'
    more = f'; and {len(texts) - SHOWN} more' if len(texts) > SHOWN else ''
    return (
        f'confounded: {where}{extractor}: {who} in more than the extractor, which may explain the AP: '
        f'{"; ".join(texts[:SHOWN])}{more}'
    )
