"""Uncertainty of an AP and of a difference of two: intervals, p-values and their sources of variation.

Two things vary. The images are a sample: other images would give another AP. The network is a sample too:
training with another seed would give another one. Resampling the images shows the first, training with
several seeds the second. ``docs/statistics.md`` has the formulas and their sources.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from roi_plugins.evaluation.coco import CURVE, IOU_THRESHOLDS, METRICS, PER_CLASS, QUANTITIES
from roi_plugins.evaluation.matching import AREAS, Matches, resampled_ap

CONFIDENCE = 0.95

_BLOCK = 1000  # resamples at a time, to bound the memory


@dataclass(frozen=True)
class RunSample:
    """The Q values of AP of one run: the METRICS, one for each of IOU_THRESHOLDS, one for each class.

    Attributes:
        values: (Q,) fractions; NaN where there is no ground truth.
        resampled: (Q, R) the same over each of R resamples of the images.
    """

    values: np.ndarray
    resampled: np.ndarray


@dataclass(frozen=True)
class Estimates:
    """AP, or differences of AP, as fractions. Each is a row of one of three tables with these columns:

    - ``value``: the mean over the seeds.
    - ``low``, ``high``: its 95% interval.
    - ``p``: the two-sided p-value of a difference, for the hypothesis that it is zero; NaN in tables of AP.
    - ``image_se``, ``seed_se``: the standard errors of ``value`` from the images and from the seeds.
    - ``dof``: the degrees of freedom of the two together, infinite if seeds make no difference.

    With one seed, ``p``, ``seed_se`` and ``dof`` are NaN. The interval then comes from the images alone, and
    holds for the networks that were trained, not for the method.

    Attributes:
        metrics: the METRICS, which are the index.
        over_iou: the AP at each of IOU_THRESHOLDS, which are the index.
        per_class: the AP of each class; the names of the classes are the index.
    """

    metrics: pd.DataFrame
    over_iou: pd.DataFrame
    per_class: pd.DataFrame


def resample_images(images: int, resamples: int, seed: int) -> np.ndarray:
    """Draws resamples of the images, with replacement.

    Args:
        images: number of images.
        resamples: number of resamples to draw.
        seed: the same seed gives the same resamples.

    Returns:
        How often each resample has each image, int32 of shape (images, resamples).
    """
    rng = np.random.default_rng(seed)
    return np.ascontiguousarray(
        rng.multinomial(images, np.full(images, 1 / images), size=resamples).T, dtype=np.int32
    )


def sample_run(result: Mapping[str, Any], matches: Matches, counts: np.ndarray) -> RunSample:
    """Returns every AP of a run, over its images and over each resample of them.

    Args:
        result: what :func:`~roi_plugins.evaluation.coco.summarize` returned for ``matches``.
        matches: what :func:`~roi_plugins.evaluation.coco.match_predictions` returned for the run.
        counts: what :func:`resample_images` returned; the same for all runs that are compared.
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
    """Returns the mean over runs that differ in their seeds, or its difference to that of a baseline.

    Args:
        runs: the runs by seed.
        baseline: the runs of the baseline by seed, over the same resamples; None for the AP itself. If both
            have the same seeds, the difference is taken seed by seed.
        classes: names of the classes, in the order of the samples.
    """
    value, resampled = _mean(runs)
    if baseline is None:
        seed_variance, dof = _seed_variance(_stack(runs))
    else:
        baseline_value, baseline_resampled = _mean(baseline)
        value, resampled = value - baseline_value, resampled - baseline_resampled
        if runs.keys() == baseline.keys():
            seed_variance, dof = _seed_variance(
                np.array([runs[seed].values - baseline[seed].values for seed in runs])
            )
        else:
            seed_variance, dof = _sum_of_variances(
                _seed_variance(_stack(runs)), _seed_variance(_stack(baseline))
            )
    table = _table(value, resampled, seed_variance, dof)
    # An AP is between 0 and 1, but a t interval of few seeds may be wider.
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
    """Returns a weighted sum of AP over several extractors, configs or metrics, with its uncertainty.

    An example is a difference of two differences: how much larger the gain of one extractor is in AP75 than
    in AP50, or at one stride than at another.

    Args:
        terms: a weight, the runs by seed and one of METRICS for each term, all over the same resamples. The
            sum is taken seed by seed, so that variation which the terms of a seed share cancels out.

    Returns:
        A row like those of :class:`Estimates`; ``p`` is for the hypothesis that the sum is zero.

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
        values=_sum(weight * run.values[[row]] for weight, run, row in terms),
        resampled=_sum(weight * run.resampled[[row]] for weight, run, row in terms),
    )


def _sum(arrays: Iterable[np.ndarray]) -> np.ndarray:
    return reduce(np.add, arrays)


def _table(
    value: np.ndarray, resampled: np.ndarray, seed_variance: np.ndarray, dof: np.ndarray
) -> pd.DataFrame:
    """Returns the columns of :class:`Estimates`, for values (Q,) and their resamples (Q, R)."""
    # A resample has fewer different images, which shifts its AP. The shift is not an error of the value, so
    # it is taken out, and the interval lies around the value.
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)  # where no resample has a value
        shifted = resampled - np.nanmean(resampled, axis=1, keepdims=True) + value[:, None]
        image_se = np.nanstd(shifted, axis=1, ddof=1)
        if np.isnan(seed_variance).all():
            tails = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
            low, high = np.nanquantile(shifted, tails, axis=1)
            p = np.full(len(value), np.nan)
        else:
            variance, dof = _sum_of_variances((image_se**2, np.inf), (seed_variance, dof))
            low, high, p = _t_interval(value, variance, dof)
    return pd.DataFrame(
        {
            'value': value,
            'low': low,
            'high': high,
            'p': p,
            'image_se': image_se,
            'seed_se': np.sqrt(seed_variance),
            'dof': dof,
        }
    )


def _stack(runs: Mapping[Any, RunSample]) -> np.ndarray:
    return np.array([run.values for run in runs.values()])


def _mean(runs: Mapping[Any, RunSample]) -> tuple[np.ndarray, np.ndarray]:
    value = _stack(runs).mean(axis=0)
    resampled = _sum(run.resampled for run in runs.values()) / len(runs)
    if not resampled.size:  # no resamples are treated like one without a value
        resampled = np.full((len(value), 1), np.nan)
    return value, resampled


def _seed_variance(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the variance of the mean over S seeds of ``values``, (S, Q), and its degrees of freedom."""
    seeds = len(values)
    if seeds == 1:
        return np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    return values.var(axis=0, ddof=1) / seeds, np.full(values.shape[1], seeds - 1.0)


def _sum_of_variances(
    *terms: tuple[np.ndarray, np.ndarray | float],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sum of independent variances, and its degrees of freedom by Welch and Satterthwaite."""
    total = _sum(variance for variance, _ in terms)
    with np.errstate(divide='ignore', invalid='ignore'):
        dof = total**2 / sum(variance**2 / dof for variance, dof in terms)
    return total, np.where(total == 0, np.inf, dof)


def _t_interval(
    value: np.ndarray, variance: np.ndarray, dof: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    error = np.sqrt(variance)
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, dof) * error
    with np.errstate(divide='ignore', invalid='ignore'):
        p = 2 * stats.t.sf(np.abs(value) / error, dof)
    return value - reach, value + reach, np.where((value == 0) & (error == 0), 1, p)
