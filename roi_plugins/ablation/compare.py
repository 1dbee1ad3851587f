"""Compares the average precision of extractors, over seeds and with a baseline.

All numbers are computed from the predictions, as :func:`roi_plugins.evaluation.coco.evaluate` does. They have
full precision here; ``report/tables.py`` rounds them.
"""

from __future__ import annotations

import filecmp
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console
from rich.progress import track

from roi_plugins.ablation.confounding import find_confounded
from roi_plugins.ablation.evaluate_runs import evaluate_runs
from roi_plugins.ablation.results import Run, find_runs
from roi_plugins.evaluation.bootstrap import Estimates, RunSample, estimate, resample_images
from roi_plugins.evaluation.coco import COUNT, CURVE, METRICS, PRIMARY_METRICS, QUANTITIES
from roi_plugins.evaluation.coco_files import load_annotations
from roi_plugins.evaluation.matching import AREAS, BOUNDARY, EVALUATIONS, IOU_TYPES, boundary_of_masks
from roi_plugins.evaluation.verdict import Verdict, judge
from roi_plugins.files import DataError
from roi_plugins.names import plain_name
from roi_plugins.settings import read_settings

MIN_IMAGES = 20
"""Intervals from fewer images are too narrow, because the resamples differ too little. A note says so."""


class ComparisonError(ValueError):
    """Runs cannot be compared with each other. The message says which and why."""


@dataclass(frozen=True)
class Group:
    """The runs of one extractor with one config. They differ only in their seeds.

    Attributes:
        config_name: the config of the runs.
        extractor: the extractor of the runs.
        iou_type: one of :data:`~roi_plugins.evaluation.matching.EVALUATIONS`.
        runs: the metrics of each run, as fractions; NaN where there is no ground truth. The index is the
            seeds, or the names of runs whose seeds are not known; the columns are ``METRICS``.
        curves: AP at each IoU threshold, of shape (runs, IoU thresholds).
        difference: the mean metrics minus those of the baseline; None for the baseline itself, and if there
            is no baseline.
        difference_std: the sample standard deviation of the differences between runs of the same seed; NaN
            for one seed, and if the two extractors have different seeds.
        estimates: the means, also at each IoU threshold and of each class, with intervals and standard
            errors.
        difference_estimates: the same for the difference to the baseline; None where ``difference`` is.
        errors: what :func:`~roi_plugins.evaluation.tide.break_down_errors` gives for each run; empty if it
            was not asked for, for keypoints and for Boundary AP.
        verdict: what the difference says of the extractor in the primary metric; None for the baseline, in
            other IoU types, and where the difference has no p-value, such as with one seed.
    """

    iou_type: str
    config_name: str
    extractor: str
    runs: pd.DataFrame
    curves: np.ndarray
    difference: pd.Series | None
    difference_std: pd.Series | None
    estimates: Estimates
    difference_estimates: Estimates | None
    errors: list[pd.DataFrame]
    verdict: Verdict | None = None

    @property
    def mean(self) -> pd.Series:
        """The mean of each metric over the runs."""
        return self.runs.mean()

    @property
    def std(self) -> pd.Series:
        """The sample standard deviation of each metric; NaN for one run."""
        return self.runs.std()


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found.

    Attributes:
        ann_file: the annotations of all runs.
        num_images: how many images they have.
        max_dets: how many detections of each class count in an image.
        categories: the classes by ascending id. The index is ``name``. The columns are ``objects``, the
            number of objects without crowds, and ``images``, the number of images with such an object.
        baseline: the extractor that the others are compared with; None without one.
        resamples: how many resamples of the images the intervals come from; 0 for no intervals.
        seed: the seed of the resampling.
        details: whether Boundary AP and the errors by kind were asked for.
        primary_metric: the one that the verdicts are about, of ``PRIMARY_METRICS``.
        margin: differences up to this fraction do not matter for the verdicts; 0 if all do.
        metrics: each run with what :func:`~roi_plugins.evaluation.coco.evaluate` gives, by IoU type.
        groups: the groups, sorted by IoU type, then in the order of the runs.
        problems: a message for each run that was asked for and is not in the comparison.
        notes: other messages for the user.
    """

    ann_file: Path
    num_images: int
    max_dets: int
    categories: pd.DataFrame
    baseline: str | None
    resamples: int
    seed: int
    details: bool
    primary_metric: str
    margin: float
    metrics: list[tuple[Run, dict[str, dict[str, Any]]]]
    groups: list[Group]
    problems: list[str]
    notes: list[str]

    @property
    def metric(self) -> str:
        """The quantity of the primary metric, such as ``'AP75'`` of ``'bbox/AP75'``."""
        return self.primary_metric.partition('/')[2]

    @property
    def primary_iou_type(self) -> str:
        """The IoU type that the verdicts are about, such as ``'bbox'`` of ``'bbox/AP75'``."""
        return self.primary_metric.partition('/')[0]

    @property
    def config_names(self) -> list[str]:
        """The configs in the order of the runs."""
        return list(dict.fromkeys(run.config_name for run, _ in self.metrics))


def compare(
    paths: Sequence[str | Path],
    ann_file: str | Path | None = None,
    baseline: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
    details: bool = False,
    max_dets: int | None = None,
    primary_metric: str | None = None,
    margin: float = 0,
) -> Comparison:
    """Evaluates runs on their common annotations and groups them by config and extractor.

    A run that cannot be read or evaluated is left out and reported in ``problems``.

    Args:
        paths: the runs, see :func:`~roi_plugins.ablation.results.find_runs`.
        ann_file: COCO annotations to use instead of those that the runs name.
        baseline: the label of the extractor that the others are compared with, within each config.
        resamples: how many resamples of the images to draw for intervals and verdicts. All runs use the same
            resamples. With 0 there are no intervals and no verdicts.
        seed: the seed of the resampling. The same seed gives the same intervals.
        details: whether to compute Boundary AP of masks and the errors by kind as well.
        max_dets: how many detections of each class count in an image, instead of what the runs name.
        primary_metric: the one that the verdicts are about, of
            :data:`~roi_plugins.evaluation.coco.PRIMARY_METRICS`; by default the AP of boxes, or of masks if
            the runs have no boxes.
        margin: differences up to this fraction do not matter for the verdicts.

    Returns:
        The AP of every run and of every group of seeds, with the differences to the baseline.

    Raises:
        ComparisonError: there is no run to compare, two runs are the same trial, or no run is of the
            baseline or has the primary metric.
        DataError: the annotations cannot be read.
    """
    found = find_runs(paths, ann_file)
    problems, notes = found.problems, found.notes
    if max_dets is not None:
        found.runs = [replace(run, max_dets=max_dets) for run in found.runs]
    runs = _comparable(found.runs, problems, notes)
    coco = load_annotations(runs[0].ann_file)
    if not coco.imgs:
        raise DataError(f'{runs[0].ann_file}: has no images')
    if not coco.cats:
        raise DataError(f'{runs[0].ann_file}: has no categories')
    if resamples and len(coco.imgs) == 1:
        resamples = 0  # every resample would be that image, and every difference would look certain
        notes.append('one image cannot be resampled: no intervals and no verdicts')
    counts = resample_images(len(coco.imgs), resamples, seed)
    evaluations: Sequence[str] = IOU_TYPES
    if details and any('segm' in run.predictions for run in runs):
        try:
            boundary_of_masks()
            evaluations = EVALUATIONS
        except ImportError as error:
            problems.append(str(error))

    metrics, samples = [], []
    progress = Console(stderr=True)
    outcomes = track(
        evaluate_runs(runs, coco, counts, evaluations, details),
        'Evaluating',
        total=len(runs),
        console=progress,
        transient=True,
        disable=not progress.is_terminal,
        auto_refresh=False,  # it would take a thread, and this process is forked
    )
    for run, outcome in zip(runs, outcomes, strict=True):
        if isinstance(outcome, DataError):
            problems.append(str(outcome))
            continue
        metrics.append((run, outcome.metrics))
        samples.append(outcome.samples)
        notes += [
            f'{run.predictions[iou_type]}: has no predictions: its AP is 0'
            for iou_type, result in outcome.metrics.items()
            if result[COUNT] == 0 and iou_type != BOUNDARY
        ]
    if not metrics:
        raise ComparisonError('\n'.join(['there is no run to compare:', *problems]))
    evaluated = [run for run, _ in metrics]
    if baseline is not None:
        baseline = _as_labelled(baseline, [run.extractor for run in evaluated])
        notes += _check_baseline(baseline, evaluated, problems)
    primary_metric = _primary_metric(primary_metric, evaluated)
    settings = {run.name: read_settings(run.name) for run in evaluated}
    notes += find_confounded(evaluated, baseline, lambda run: settings[run.name])
    if resamples:
        notes += _doubts(coco, evaluated)
    categories = _categories(coco)
    return Comparison(
        ann_file=runs[0].ann_file,
        num_images=len(coco.imgs),
        max_dets=runs[0].max_dets,
        categories=categories,
        baseline=baseline,
        resamples=resamples,
        seed=seed,
        details=details,
        primary_metric=primary_metric,
        margin=margin,
        metrics=metrics,
        groups=_judge(_group(metrics, samples, baseline, list(categories.index)), primary_metric, margin),
        problems=problems,
        notes=notes,
    )


def _comparable(runs: Sequence[Run], problems: list[str], notes: Sequence[str]) -> list[Run]:
    """Picks the runs with the annotations, ``max_dets`` and OKS sigmas of the first run. The others become
    problems.
    """
    sigmas = next((run.sigmas for run in runs if 'keypoints' in run.predictions), None)
    comparable = []
    for run in runs:
        first = runs[0]
        if run.ann_file != first.ann_file and not _have_equal_content(run.ann_file, first.ann_file):
            problems.append(
                f'{run.name}: was evaluated on {run.ann_file}, {first.name} on {first.ann_file}, '
                'which differ: they cannot be compared; see --ann-file, or compare them separately'
            )
        elif run.max_dets != first.max_dets:
            problems.append(
                f'{run.name}: was evaluated with max_dets {run.max_dets}, {first.name} with '
                f'{first.max_dets}: give --max-dets for all, or compare them separately'
            )
        elif 'keypoints' in run.predictions and run.sigmas != sigmas:
            problems.append(
                f'{run.name}: was evaluated with other OKS sigmas than the runs before it, so their keypoint '
                'AP differ: compare them separately'
            )
        else:
            comparable.append(run)
    if not comparable:
        raise ComparisonError('\n'.join(['there is no run to compare:', *problems, *notes]))
    trials: dict[tuple, Run] = {}
    for run in comparable:
        trial = trials.setdefault((run.config_name, run.extractor, run.replicate), run)
        if trial is not run:
            raise ComparisonError(
                f'{trial.name} and {run.name} are both config {run.config_name!r}, extractor '
                f'{run.extractor!r}, seed {run.seed}: give one of them'
            )
    return comparable


def _doubts(coco: COCO, runs: Sequence[Run]) -> list[str]:
    """Writes notes about intervals that come from few images or few seeds."""
    notes = []
    areas = dict(zip(AREAS, COCOeval(iouType='bbox').params.areaRng, strict=True))
    ranges = {quantity.name: areas[quantity.area] for quantity in QUANTITIES if quantity.iou is None}
    images: dict[str, set[int]] = {metric: set() for metric in ranges}
    for annotation in coco.anns.values():
        if annotation['iscrowd']:
            continue
        for metric, (low, high) in ranges.items():
            if low <= annotation['area'] <= high:
                images[metric].add(annotation['image_id'])
    few = [f'{metric} ({len(ids)})' for metric, ids in images.items() if 0 < len(ids) < MIN_IMAGES]
    if few:
        notes.append(
            f'few images have objects of {", ".join(few)}: intervals and verdicts from fewer than '
            f'{MIN_IMAGES} images are too narrow, do not rely on them'
        )
    seeds = Counter((run.config_name, run.extractor) for run in runs)
    if 2 in seeds.values():
        notes.append('two seeds hardly tell how much seeds differ; their intervals and verdicts are rough')
    return notes


def _categories(coco: COCO) -> pd.DataFrame:
    ids = sorted(coco.cats)
    images: dict[int, list[int]] = {category_id: [] for category_id in ids}
    for annotation in coco.anns.values():
        if not annotation['iscrowd']:
            images[annotation['category_id']].append(annotation['image_id'])
    return pd.DataFrame(
        {
            'objects': [len(images[category_id]) for category_id in ids],
            'images': [len(set(images[category_id])) for category_id in ids],
        },
        index=pd.Index([coco.cats[c].get('name', str(c)) for c in ids], name='name'),
    )


def _have_equal_content(first: Path, second: Path) -> bool:
    try:
        return filecmp.cmp(first, second, shallow=False)
    except OSError as error:
        raise DataError(f'{error.filename}: cannot be read: {error.strerror}') from None


def _as_labelled(name: str, labels: Sequence[str]) -> str:
    """Finds the label that a name is another spelling of, such as ``AlignAvg`` for ``align-avg``."""
    found = {label for label in labels if plain_name(label) == plain_name(name)}
    return found.pop() if name not in labels and len(found) == 1 else name


def _check_baseline(baseline: str, runs: Sequence[Run], problems: Sequence[str]) -> list[str]:
    """Checks that there are runs of the baseline. Returns notes on the configs for which there are none."""
    extractors = dict.fromkeys(run.extractor for run in runs)
    if baseline not in extractors:
        message = f'there is no run of the baseline {baseline!r}; the extractors are: {", ".join(extractors)}'
        raise ComparisonError('\n'.join([message, *problems]))
    with_baseline = {run.config_name for run in runs if run.extractor == baseline}
    configs = dict.fromkeys(run.config_name for run in runs)
    return [
        f'config {config!r} has no run of the baseline {baseline!r}: no differences for it'
        for config in configs
        if config not in with_baseline
    ]


def _group(
    metrics: Sequence[tuple[Run, dict[str, dict[str, Any]]]],
    samples: Sequence[dict[str, tuple[RunSample, pd.DataFrame | None]]],
    baseline: str | None,
    classes: Sequence[str],
) -> list[Group]:
    members: dict[tuple[str, str, str], dict[Any, tuple]] = {}
    for iou_type in EVALUATIONS:
        for (run, results), run_samples in zip(metrics, samples, strict=True):
            if iou_type in results:
                key = iou_type, run.config_name, run.extractor
                by_seed = members.setdefault(key, {})
                by_seed[run.replicate] = results[iou_type], *run_samples[iou_type]
    runs = {
        key: pd.DataFrame(
            [[result[metric] for metric in METRICS] for result, *_ in by_seed.values()],
            index=pd.Index(list(by_seed), dtype=object),
            columns=METRICS,
        ).replace(-1, np.nan)
        for key, by_seed in members.items()
    }
    samples_of = {
        key: {seed: sample for seed, (_, sample, _) in by_seed.items()} for key, by_seed in members.items()
    }
    groups = []
    for key, by_seed in members.items():
        iou_type, config_name, extractor = key
        own = runs[key]
        difference = difference_std = difference_estimates = None
        reference_key = iou_type, config_name, baseline
        if reference_key in runs and extractor != baseline:
            reference = runs[reference_key]
            difference = own.mean() - reference.mean()
            is_paired = set(own.index) == set(reference.index)
            difference_std = (own - reference).std() if is_paired else difference * np.nan
            difference_estimates = estimate(samples_of[key], samples_of[reference_key], classes)
        groups.append(
            Group(
                iou_type=iou_type,
                config_name=config_name,
                extractor=extractor,
                runs=own,
                curves=np.array([result[CURVE] for result, *_ in by_seed.values()]),
                difference=difference,
                difference_std=difference_std,
                estimates=estimate(samples_of[key], None, classes),
                difference_estimates=difference_estimates,
                errors=[errors for *_, errors in by_seed.values() if errors is not None],
            )
        )
    return groups


def _primary_metric(wanted: str | None, runs: Sequence[Run]) -> str:
    """Returns the primary metric that was asked for, or the first that a run has."""
    iou_types = [t for t in IOU_TYPES if any(t in run.predictions for run in runs)]
    known = [metric for metric in PRIMARY_METRICS if metric.partition('/')[0] in iou_types]
    if wanted is None:
        return known[0]
    if wanted not in known:
        raise ComparisonError(
            f'the primary metric is {wanted!r}; expected one that the runs have: {", ".join(known)}'
        )
    return wanted


def _judge(groups: Sequence[Group], primary_metric: str, margin: float) -> list[Group]:
    """Adds the verdicts. All extractors of all configs count as one plan, for Holm's correction."""
    iou_type, _, metric = primary_metric.partition('/')
    differences = {
        index: difference
        for index, group in enumerate(groups)
        if group.iou_type == iou_type and group.difference_estimates is not None
        for difference in [group.difference_estimates.metrics.loc[metric]]
        if not np.isnan(difference['p'])
    }
    verdicts = dict(zip(differences, judge(list(differences.values()), margin), strict=True))
    return [replace(group, verdict=verdicts.get(index)) for index, group in enumerate(groups)]
