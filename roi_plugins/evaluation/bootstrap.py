"""How sure an AP is, and a difference of two: intervals, p-values and where the spread comes from.

Two things vary. The images are a sample: other images would give another AP. And a training is a
sample: another seed would give another network. The first is seen by resampling the images, the
second by training with several seeds. ``docs/statistics.md`` has the formulas and their sources.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from roi_plugins.evaluation.coco import CURVE, IOU_THRESHOLDS, METRICS, PER_CLASS, QUANTITIES
from roi_plugins.evaluation.matching import AREAS, Matches, resampled_ap

CONFIDENCE = 0.95

_BLOCK = 1000  # resamples at a time, for the memory they take


@dataclass(frozen=True)
class RunSample:
    """Every AP of one run: the METRICS, those at the IOU_THRESHOLDS, those of the classes.

    Attributes:
        values: as fractions, NaN where there is no ground truth; (Q,).
        resampled: the same over each resample of the images; (Q, R).
    """

    values: np.ndarray
    resampled: np.ndarray


@dataclass(frozen=True)
class Estimates:
    """AP as fractions, or differences of AP, each a row of one of three tables; their columns:

    ``value``: the mean over the seeds. ``low``, ``high``: its 95% interval. ``p``: of a difference,
    two-sided, for the hypothesis that there is none; NaN in tables of AP. ``image_error``,
    ``seed_error``: the standard errors of ``value`` for either source of variation. What is
    unknown is NaN: ``seed_error`` with one seed; then interval and ``p`` are those of the images
    alone, for the very networks that were trained.

    Attributes:
        metrics: index METRICS.
        over_iou: index IOU_THRESHOLDS; the AP at each.
        per_class: index names of the classes; their AP.
    """

    metrics: pd.DataFrame
    over_iou: pd.DataFrame
    per_class: pd.DataFrame


def resample_images(images: int, resamples: int, seed: int) -> np.ndarray:
    """How often each resample has each image, (images, resamples).

    Args:
        images: how many there are.
        resamples: how many to draw.
        seed: the same seed gives the same resamples.
    """
    rng = np.random.default_rng(seed)
    return np.ascontiguousarray(
        rng.multinomial(images, np.full(images, 1 / images), size=resamples).T, dtype=np.int32
    )


def sample_run(result: Mapping[str, Any], matches: Matches, counts: np.ndarray) -> RunSample:
    """Every AP of a run and of its resamples.

    Args:
        result: what :func:`~roi_plugins.evaluation.coco.summarize` made of ``matches``.
        matches: of this run, by :func:`~roi_plugins.evaluation.coco.match_predictions`.
        counts: what :func:`resample_images` gave; the same for all runs that are compared.
    """
    values = np.array([*(result[m] for m in METRICS), *result[CURVE], *result[PER_CLASS]], float)
    values[values == -1] = np.nan
    blocks = []
    for start in range(0, counts.shape[1], _BLOCK):
        ap = resampled_ap(matches, counts[:, start : start + _BLOCK])
        measures = {'precision': ap.curves, 'recall': ap.recall}
        metrics = [quantity.select(measures).mean(axis=0) for quantity in QUANTITIES]
        blocks.append(np.concatenate([metrics, ap.curves[AREAS.index('all')], ap.per_class]))
    return RunSample(values, np.concatenate([np.empty((len(values), 0)), *blocks], axis=1))


def estimate(
    runs: Mapping[Any, RunSample],
    baseline: Mapping[Any, RunSample] | None,
    classes: Sequence[str],
) -> Estimates:
    """The mean over runs that differ in their seeds, or its difference to that of a baseline.

    Args:
        runs: by seed.
        baseline: by seed, over the same resamples. The differences of equal seeds are taken where
            both have the same ones.
        classes: their names, in the order of the samples.
    """
    value, resampled = _mean(runs)
    if baseline is None:
        seed_variance, freedom = _seed_variance(_stack(runs))
    else:
        baseline_value, baseline_resampled = _mean(baseline)
        value, resampled = value - baseline_value, resampled - baseline_resampled
        if runs.keys() == baseline.keys():
            seed_variance, freedom = _seed_variance(
                np.array([runs[seed].values - baseline[seed].values for seed in runs])
            )
        else:
            seed_variance, freedom = _sum_of_variances(
                _seed_variance(_stack(runs)), _seed_variance(_stack(baseline))
            )
    table = _table(value, resampled, seed_variance, freedom)
    # No AP is below 0 or above 1; the t interval of few seeds does not know that.
    table[['low', 'high']] = table[['low', 'high']].clip(0 if baseline is None else -1, 1)
    if baseline is None:
        table['p'] = np.nan
    first, second = len(METRICS), len(METRICS) + len(IOU_THRESHOLDS)
    return Estimates(
        metrics=table[:first].set_axis(METRICS),
        over_iou=table[first:second].set_axis(IOU_THRESHOLDS),
        per_class=table[second:].set_axis(classes),
    )


def contrast(terms: Sequence[tuple[float, Mapping[Any, RunSample], str]]) -> pd.Series:
    """A weighted sum of AP over several extractors, configs or metrics, and how sure it is.

    Such as a difference of two differences: by how much more one extractor is better in AP75 than in
    AP50, or at one stride than at another.

    Args:
        terms: a weight, the runs by seed and one of METRICS each; all over the same resamples. The sum
            is taken seed by seed: what the terms of one seed have in common does not count twice.

    Returns:
        A row as those of :class:`Estimates`, ``p`` for the hypothesis that the sum is zero.

    Raises:
        ValueError: the terms do not have the same seeds.
    """
    _, first, _ = terms[0]
    for _, runs, metric in terms:
        if runs.keys() != first.keys():
            raise ValueError(
                f'terms: {metric} has the seeds {sorted(runs)}, the first term {sorted(first)}; '
                'expected the same seeds: leave out those that are not everywhere'
            )
    sums = {
        seed: _weighted([(w, runs[seed], METRICS.index(metric)) for w, runs, metric in terms])
        for seed in first
    }
    value, resampled = _mean(sums)
    return _table(value, resampled, *_seed_variance(_stack(sums))).iloc[0]


def _weighted(terms: Sequence[tuple[float, RunSample, int]]) -> RunSample:
    return RunSample(
        values=sum(weight * run.values[[row]] for weight, run, row in terms),
        resampled=sum(weight * run.resampled[[row]] for weight, run, row in terms),
    )


def _table(
    value: np.ndarray, resampled: np.ndarray, seed_variance: np.ndarray, freedom: np.ndarray
) -> pd.DataFrame:
    """The columns of :class:`Estimates`, for values (Q,) and their resamples (Q, R)."""
    # A resample has fewer different images, which shifts its AP; the shift is not an error of
    # the value. Without it, the interval is around the value.
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)  # no resample has a value
        shifted = resampled - np.nanmean(resampled, axis=1, keepdims=True) + value[:, None]
        image_error = np.nanstd(shifted, axis=1, ddof=1)
        if np.isnan(seed_variance).all():
            tails = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
            low, high = np.nanquantile(shifted, tails, axis=1)
            p = _bootstrap_p(shifted)
        else:
            low, high, p = _t_interval(value, image_error**2, seed_variance, freedom)
    return pd.DataFrame(
        {
            'value': value,
            'low': low,
            'high': high,
            'p': p,
            'image_error': image_error,
            'seed_error': np.sqrt(seed_variance),
        }
    )


def _stack(runs: Mapping[Any, RunSample]) -> np.ndarray:
    return np.array([run.values for run in runs.values()])


def _mean(runs: Mapping[Any, RunSample]) -> tuple[np.ndarray, np.ndarray]:
    value = _stack(runs).mean(axis=0)
    resampled = sum(run.resampled for run in runs.values()) / len(runs)
    if not resampled.size:  # no resamples: like one without a value
        resampled = np.full((len(value), 1), np.nan)
    return value, resampled


def _seed_variance(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variance of the mean over S seeds of ``values``, (S, Q), and its degrees of freedom."""
    seeds = len(values)
    if seeds == 1:
        return np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    return values.var(axis=0, ddof=1) / seeds, np.full(values.shape[1], seeds - 1.0)


def _sum_of_variances(
    *terms: tuple[np.ndarray, np.ndarray | float],
) -> tuple[np.ndarray, np.ndarray]:
    """The sum of independent variances; its degrees of freedom by Welch and Satterthwaite."""
    total = sum(variance for variance, _ in terms)
    with np.errstate(divide='ignore', invalid='ignore'):
        freedom = total**2 / sum(variance**2 / freedom for variance, freedom in terms)
    return total, np.where(total == 0, np.inf, freedom)


def _t_interval(
    value: np.ndarray, image_variance: np.ndarray, seed_variance: np.ndarray, freedom: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    variance, freedom = _sum_of_variances((image_variance, np.inf), (seed_variance, freedom))
    error = np.sqrt(variance)
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * error
    with np.errstate(divide='ignore', invalid='ignore'):
        p = 2 * stats.t.sf(np.abs(value) / error, freedom)
    return value - reach, value + reach, np.where((value == 0) & (error == 0), 1, p)


def _bootstrap_p(resampled: np.ndarray) -> np.ndarray:
    """Twice the share of the resamples on the other side of zero, (Q,); at least 2 / (R + 1)."""
    known = np.count_nonzero(~np.isnan(resampled), axis=1)
    # NaN is on neither side. What should be zero may differ by rounding.
    below = np.count_nonzero(resampled <= 1e-12, axis=1)
    above = np.count_nonzero(resampled >= -1e-12, axis=1)
    p = np.minimum(1, 2 * (1 + np.minimum(below, above)) / (1 + known))
    return np.where(known == 0, np.nan, p)
