"""Tables of average precision: extractors side by side, over seeds, against a baseline.

All figures are computed anew from the predictions, by :func:`roi_plugins.evaluation.evaluate`, and
stay in full precision here; ``tables`` rounds them.
"""

from __future__ import annotations

import filecmp
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track

from roi_plugins.ablation.results import Run, find_runs
from roi_plugins.evaluation import (
    COUNT,
    CURVE,
    IOU_TYPES,
    METRICS,
    EvaluationError,
    evaluate,
    load_annotations,
)


class ComparisonError(ValueError):
    """Runs that cannot be compared with each other; the message says which and why."""


@dataclass(frozen=True)
class Group:
    """The runs of one extractor with one config, which differ in their seeds.

    Attributes:
        runs: metrics by run, as fractions; NaN where there is no ground truth. Index: the seeds.
            Columns: ``METRICS``.
        curves: AP, (runs, IoU thresholds).
        difference: to the baseline, of the means; None for the baseline itself and without one.
        difference_std: of the differences of equal seeds; NaN for one seed, and where the two do
            not have the same seeds.
    """

    iou_type: str
    config_name: str
    extractor: str
    runs: pd.DataFrame
    curves: np.ndarray
    difference: pd.Series | None
    difference_std: pd.Series | None

    @property
    def mean(self) -> pd.Series:
        return self.runs.mean()

    @property
    def std(self) -> pd.Series:
        """Sample standard deviation; NaN for one run."""
        return self.runs.std()


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found.

    Attributes:
        ann_file: the annotations of all runs.
        num_images: how many images they have.
        baseline: the extractor that the others are compared with, if any.
        metrics: what :func:`~roi_plugins.evaluation.evaluate` gave, by IoU type, for each run.
        groups: by IoU type, then in the order of the runs.
        problems: runs that were asked for and are not in the comparison, and why.
        notes: what else the user should know.
    """

    ann_file: Path
    num_images: int
    baseline: str | None
    metrics: list[tuple[Run, dict[str, dict[str, Any]]]]
    groups: list[Group]
    problems: list[str]
    notes: list[str]


def compare(
    paths: Sequence[str | Path],
    ann_file: str | Path | None = None,
    baseline: str | None = None,
) -> Comparison:
    """Evaluates runs on their common annotations and groups them by config and extractor.

    A run that cannot be read or evaluated is left out and reported in ``problems``.

    Args:
        paths: see :func:`~roi_plugins.ablation.results.find_runs`.
        ann_file: COCO annotations to use in place of those that the runs name.
        baseline: label of the extractor to which differences are taken, within each config.

    Raises:
        ComparisonError: there is no run to compare, the runs are over different annotations, two
            are the same cell, or none is of the baseline.
        EvaluationError: the annotations cannot be read.
    """
    found = find_runs(paths, ann_file)
    problems, notes = found.problems, found.notes
    _check_comparable(found.runs, problems + notes)
    coco = load_annotations(found.runs[0].ann_file)

    metrics = []
    progress = Console(stderr=True)
    for run in track(
        found.runs, 'Evaluating', console=progress, transient=True, disable=not progress.is_terminal
    ):
        try:
            results = {
                iou_type: evaluate(coco, run.predictions[iou_type], iou_type)
                for iou_type in IOU_TYPES
                if iou_type in run.predictions
            }
        except EvaluationError as error:
            problems.append(str(error))
            continue
        metrics.append((run, results))
        notes += [
            f'{run.predictions[iou_type]}: has no predictions: its AP is 0'
            for iou_type, result in results.items()
            if result[COUNT] == 0
        ]
    if not metrics:
        raise ComparisonError('\n'.join(['there is no run to compare:', *problems]))
    if baseline is not None:
        notes += _check_baseline(baseline, [run for run, _ in metrics], problems)
    return Comparison(
        ann_file=found.runs[0].ann_file,
        num_images=len(coco.imgs),
        baseline=baseline,
        metrics=metrics,
        groups=_group(metrics, baseline),
        problems=problems,
        notes=notes,
    )


def _check_comparable(runs: Sequence[Run], messages: Sequence[str]) -> None:
    if not runs:
        raise ComparisonError('\n'.join(['there is no run to compare:', *messages]))
    first = runs[0]
    for run in runs[1:]:
        if run.ann_file != first.ann_file and not _have_equal_content(run.ann_file, first.ann_file):
            raise ComparisonError(
                'the runs are over different annotations and cannot be compared: '
                f'{first.name} over {first.ann_file}, {run.name} over {run.ann_file}'
            )
    cells: dict[tuple, Run] = {}
    for run in runs:
        cell = cells.setdefault((run.config_name, run.extractor, run.seed), run)
        if cell is not run:
            raise ComparisonError(
                f'{cell.name} and {run.name} are both config {run.config_name!r}, extractor '
                f'{run.extractor!r}, seed {run.seed}: give one of them'
            )


def _have_equal_content(first: Path, second: Path) -> bool:
    try:
        return filecmp.cmp(first, second, shallow=False)
    except OSError as error:
        raise EvaluationError(f'{error.filename}: cannot be read: {error.strerror}') from None


def _check_baseline(baseline: str, runs: Sequence[Run], problems: Sequence[str]) -> list[str]:
    """Returns notes on the configs for which there are no differences."""
    extractors = dict.fromkeys(run.extractor for run in runs)
    if baseline not in extractors:
        message = (
            f'there is no run of the baseline {baseline!r}; '
            f'the extractors are: {", ".join(extractors)}'
        )
        raise ComparisonError('\n'.join([message, *problems]))
    with_baseline = {run.config_name for run in runs if run.extractor == baseline}
    configs = dict.fromkeys(run.config_name for run in runs)
    return [
        f'config {config!r} has no run of the baseline {baseline!r}: no differences for it'
        for config in configs
        if config not in with_baseline
    ]


def _group(
    metrics: Sequence[tuple[Run, dict[str, dict[str, Any]]]], baseline: str | None
) -> list[Group]:
    members: dict[tuple[str, str, str], list[tuple[Run, dict[str, Any]]]] = {}
    for iou_type in IOU_TYPES:
        for run, results in metrics:
            if iou_type in results:
                key = iou_type, run.config_name, run.extractor
                members.setdefault(key, []).append((run, results[iou_type]))
    runs = {
        key: pd.DataFrame(
            [[result[metric] for metric in METRICS] for _, result in rows],
            index=pd.Index([run.seed for run, _ in rows], dtype=object),
            columns=METRICS,
        ).replace(-1, np.nan)
        for key, rows in members.items()
    }
    groups = []
    for (iou_type, config_name, extractor), rows in members.items():
        own = runs[iou_type, config_name, extractor]
        difference = difference_std = None
        reference = runs.get((iou_type, config_name, baseline))
        if reference is not None and extractor != baseline:
            difference = own.mean() - reference.mean()
            is_paired = set(own.index) == set(reference.index)
            difference_std = (own - reference).std() if is_paired else difference * np.nan
        groups.append(
            Group(
                iou_type=iou_type,
                config_name=config_name,
                extractor=extractor,
                runs=own,
                curves=np.array([result[CURVE] for _, result in rows]),
                difference=difference,
                difference_std=difference_std,
            )
        )
    return groups
