"""The tables of a comparison: AP, differences, intervals and errors, as text in points (AP x 100).

Each number is rounded once, from full precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
import pandas as pd

from roi_plugins.ablation.compare import MIN_IMAGES, Comparison, Group
from roi_plugins.evaluation.bootstrap import CONFIDENCE, Estimates
from roi_plugins.evaluation.coco import METRICS, format_points
from roi_plugins.evaluation.matching import EVALUATIONS, MAX_DETS
from roi_plugins.evaluation.verdict import POWER

TITLES = {'bbox': 'Box AP', 'segm': 'Mask AP', 'keypoints': 'Keypoint AP', 'boundary': 'Boundary AP'}


def make_headline(comparison: Comparison, digits: int = 1) -> dict[str, pd.DataFrame]:
    """Makes the tables that answer which extractor is better: one for each IoU type.

    A row has the mean of each metric over the seeds. If there is a baseline, it also has the difference to it
    in the primary metric, with its interval. In the IoU type of the primary metric it has the verdict and the
    smallest difference that could have shown.

    Args:
        comparison: what :func:`~roi_plugins.ablation.compare.compare` found.
        digits: how many decimals the points have.

    Returns:
        The tables by their titles. Every cell is text, such as ``31.2``, ``+1.4 [-0.3, +3.1]`` or ``better``;
        ``-`` where there is no value.
    """
    tables = {}
    metric = comparison.metric
    for iou_type, groups in _by_iou_type(comparison):
        rows = []
        for group in groups:
            row = _labels(group) | {
                name: '-' if np.isnan(mean) else format_points(mean, digits)
                for name, mean in group.mean.items()
            }
            if comparison.baseline is not None:
                row[f'{metric} difference'] = _difference(group, comparison, digits)
            if comparison.baseline is not None and iou_type == comparison.primary_iou_type:
                row['Verdict'] = _verdict(group)
                row['Smallest difference'] = (
                    format_points(group.verdict.smallest_difference, digits) if group.verdict else '-'
                )
            rows.append(row)
        tables[TITLES[iou_type]] = pd.DataFrame(rows)
    return _without_empty_config(comparison, tables)


def _difference(group: Group, comparison: Comparison, digits: int) -> str:
    if group.extractor == comparison.baseline:
        return 'baseline'
    if group.difference_estimates is None:
        return '-'
    difference = group.difference_estimates.metrics.loc[comparison.metric]
    if np.isnan(difference['value']):
        return '-'
    cell = format_points(difference['value'], digits, sign=True)
    return cell if np.isnan(difference['low']) else f'{cell} {_interval(difference, digits, sign=True)}'


def _verdict(group: Group) -> str:
    if group.verdict:
        return group.verdict.word
    estimates = group.difference_estimates
    return 'one seed' if estimates is not None and estimates.metrics['seed_se'].isna().all() else '-'


def find_best(table: pd.DataFrame) -> pd.DataFrame:
    """Returns which cells have the best mean of a metric, as shown, among the extractors of a config.

    Args:
        table: one that :func:`make_headline` made.

    Returns:
        Booleans of the shape of the table. Nothing is best in a column whose values are all the same.
    """
    best = pd.DataFrame(False, index=table.index, columns=table.columns)
    configs = table['Config'] if 'Config' in table else pd.Series('', index=table.index)
    for metric in METRICS:
        points = pd.to_numeric(table[metric].replace('-', np.nan))
        of_config = points.groupby(configs)
        highest = of_config.transform('max')
        best[metric] = (points == highest) & (of_config.transform('min') < highest)
    return best


def make_tables(comparison: Comparison, digits: int = 1) -> dict[str, pd.DataFrame]:
    """Makes the tables with the details of a comparison, beside those of :func:`make_headline`.

    For each IoU type there is a table of all metrics with their spread over the seeds, and one of the
    differences to the baseline. Tables of intervals, p-values and standard errors follow each of them.

    Args:
        comparison: what :func:`~roi_plugins.ablation.compare.compare` found.
        digits: how many decimals the points have.

    Returns:
        The tables by their titles. Every cell is text, such as ``31.2 ± 0.3``, ``+1.4``, or ``-`` where there
        is no ground truth.
    """
    tables = {}
    for iou_type, groups in _by_iou_type(comparison):
        if any(len(group.runs) > 1 for group in groups):
            tables[f'{TITLES[iou_type]}, mean ± standard deviation'] = pd.DataFrame(
                [_labels(group) | _cells(group.mean, group.std, digits) for group in groups]
            )
        differences = [
            _labels(group) | _cells(group.difference, group.difference_std, digits, sign=True)
            for group in groups
            if group.difference is not None
        ]
        tables |= _certainty(TITLES[iou_type], groups, 'estimates', digits)
        if differences:
            title = f'{TITLES[iou_type]}, difference to {comparison.baseline}'
            tables[title] = pd.DataFrame(differences)
            tables |= _certainty(title, groups, 'difference_estimates', digits)
        if any(group.errors for group in groups):
            title = f'{TITLES[iou_type]}50 lost to each kind of error'
            tables[title] = pd.DataFrame([_labels(g) | _errors(g, digits) for g in groups])
        if comparison.details and differences:
            title = f'{TITLES[iou_type]}, difference to {comparison.baseline}'
            tables[f'{title}, at each IoU'] = pd.DataFrame(
                _labels(group) | _over_iou(group.difference_estimates, digits)
                for group in groups
                if group.difference_estimates is not None
            )
            tables[f'{title}, by class'] = pd.DataFrame(_by_class(comparison, groups, digits))
    return _without_empty_config(comparison, tables)


def _by_iou_type(comparison: Comparison) -> Iterator[tuple[str, list[Group]]]:
    for iou_type in EVALUATIONS:
        if groups := [group for group in comparison.groups if group.iou_type == iou_type]:
            yield iou_type, groups


def _without_empty_config(comparison: Comparison, tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    if any(group.config_name for group in comparison.groups):
        return tables
    return {title: table.drop(columns='Config') for title, table in tables.items()}


def _labels(group: Group) -> dict[str, str]:
    return {
        'Config': group.config_name,
        'Extractor': group.extractor,
        'n': str(len(group.runs)),
    }


def _cells(mean: pd.Series, std: pd.Series, digits: int, sign: bool = False) -> dict[str, str]:
    cells = {}
    for metric in METRICS:
        if np.isnan(mean[metric]):
            cells[metric] = '-'
            continue
        cells[metric] = format_points(mean[metric], digits, sign)
        if not np.isnan(std[metric]):
            cells[metric] += f' ± {format_points(std[metric], digits)}'
    return cells


def _errors(group: Group, digits: int) -> dict[str, str]:
    """Makes the cells of the errors by kind, as means over the runs."""
    lost = sum(errors['ap50_lost'] for errors in group.errors) / len(group.errors)
    return {error.capitalize(): format_points(points, digits) for error, points in lost.items()}


def _over_iou(estimates: Estimates, digits: int) -> dict[str, str]:
    return {
        f'{iou:.2f}': '-' if np.isnan(value) else format_points(value, digits, sign=True)
        for iou, value in estimates.over_iou['value'].items()
    }


def _by_class(comparison: Comparison, groups: Sequence[Group], digits: int) -> Iterator[dict]:
    """Makes a row for each class, and for each config if there are several."""
    for index, (name, size) in enumerate(comparison.categories.iterrows()):
        rows: dict[str, dict[str, str]] = {}
        for group in groups:
            if group.difference_estimates is None:
                continue
            row = rows.setdefault(
                group.config_name,
                {
                    'Config': group.config_name,
                    'Class': name,
                    'Objects': str(size['objects']),
                    'Images': str(size['images']),
                },
            )
            estimate = group.difference_estimates.per_class.iloc[index]
            row[group.extractor] = '-'
            if not np.isnan(estimate['value']):
                row[group.extractor] = format_points(estimate['value'], digits, sign=True)
            if not np.isnan(estimate['low']):
                row[group.extractor] += ' ' + _interval(estimate, digits, sign=True)
                row[group.extractor] += '*' * bool(size['images'] < MIN_IMAGES)
        yield from rows.values()


def _interval(estimate: pd.Series, digits: int, sign: bool) -> str:
    low, high = (format_points(estimate[bound], digits, sign) for bound in ('low', 'high'))
    return f'[{low}, {high}]'


def _is_no_finding(estimate: pd.Series, digits: int) -> bool:
    """Tells whether a difference has a small p-value, although it is zero to the digits shown."""
    is_zero = not round(Fraction(estimate['value']) * 100 * 10**digits)
    return is_zero and estimate['p'] < 1 - CONFIDENCE


def _certainty(title: str, groups: Sequence[Group], attribute: str, digits: int) -> dict[str, pd.DataFrame]:
    """Makes the tables of intervals, p-values and standard errors for the table ``title``.

    A table without any known value is left out.
    """

    def interval(estimate: pd.Series) -> str:
        if np.isnan(estimate['low']):
            return '-'
        return _interval(estimate, digits, sign=attribute == 'difference_estimates')

    def p_value(estimate: pd.Series) -> str:
        if np.isnan(estimate['p']) or _is_no_finding(estimate, digits):
            return '-'
        return f'{estimate["p"]:.3f}'

    def errors(estimate: pd.Series) -> str:
        if np.isnan(estimate['seed_se']):
            return '-'
        parts = (estimate['image_se'], estimate['seed_se'])
        return ' / '.join('-' if np.isnan(part) else format_points(part, digits) for part in parts)

    tables = {}
    for suffix, cell in (
        (f'{CONFIDENCE:.0%} interval', interval),
        ('p-value (not corrected)', p_value),
        ('standard error by images / by seeds', errors),
    ):
        rows = [
            _labels(group) | {metric: cell(estimates.metrics.loc[metric]) for metric in METRICS}
            for group in groups
            if (estimates := getattr(group, attribute)) is not None
        ]
        if any(row[metric] != '-' for row in rows for metric in METRICS):
            tables[f'{title}, {suffix}'] = pd.DataFrame(rows)
    return tables


def caption(comparison: Comparison, digits: int = 1) -> str:
    """Explains in a few sentences what the tables of :func:`make_headline` show.

    Args:
        comparison: what :func:`~roi_plugins.ablation.compare.compare` found.
        digits: how many decimals the points have.
    """
    lines = [f'{comparison.ann_file.name}, {comparison.num_images} images; AP x 100, mean over n seeds.']
    if comparison.max_dets != MAX_DETS:
        lines.append(
            f'max_dets {comparison.max_dets}: the best {comparison.max_dets} detections of each class in an '
            f"image count, in place of COCO's {MAX_DETS}."
        )
    seeds = [len(group.runs) for group in comparison.groups]
    if 1 in seeds:
        which = 'One seed' if max(seeds) == 1 else 'n = 1 is one seed'
        lines.append(f'{which}: these networks only; ask for three.')
    if comparison.resamples and comparison.baseline is not None:
        lines.append(
            f'Differences are to {comparison.baseline}, with {CONFIDENCE:.0%} intervals from '
            f'{comparison.resamples} resamples of the images (seed {comparison.seed})'
            f'{" and the spread over seeds" if max(seeds) > 1 else ""}.'
        )
    if verdicts := [group.verdict for group in comparison.groups if group.verdict]:
        title = metric_title(comparison.primary_iou_type, comparison.metric)
        margin = format_points(comparison.margin, digits)
        alike = f'alike if the interval is within ±{margin}, ' if comparison.margin else ''
        lines.append(
            f'Verdict on {title}: {alike}better or worse if '
            f"p < {1 - CONFIDENCE:.2f} after Holm's correction for {len(verdicts)} "
            f'comparison{"s" if len(verdicts) > 1 else ""}, open otherwise. '
            f'Smallest difference: this plan finds one of that size in {POWER:.0%} of cases.'
        )
    return ' '.join(lines)


def metric_title(iou_type: str, metric: str) -> str:
    """Returns a metric in words, such as ``Box AP75``.

    Args:
        iou_type: one of :data:`~roi_plugins.evaluation.matching.EVALUATIONS`.
        metric: one of :data:`~roi_plugins.evaluation.coco.METRICS`.
    """
    return TITLES[iou_type].removesuffix('AP') + metric


def details_caption(comparison: Comparison, digits: int = 1) -> str:
    """Explains what the tables of :func:`make_tables` show; empty if they need no explanation.

    Args:
        comparison: what :func:`~roi_plugins.ablation.compare.compare` found.
        digits: how many decimals the points have.
    """
    lines = []
    if any(len(group.runs) > 1 for group in comparison.groups):
        lines.append('± is the sample standard deviation over the seeds.')
        if comparison.baseline is not None:
            lines.append('± of a difference is that of the differences of equal seeds.')
    if any(
        _is_no_finding(estimate, digits)
        for group in comparison.groups
        if group.difference_estimates is not None
        for _, estimate in group.difference_estimates.metrics.iterrows()
        if not np.isnan(estimate['value'])
    ):
        lines.append('A difference that is zero to the digits shown has no p-value.')
    few = comparison.categories['images'].between(1, MIN_IMAGES - 1).any()
    if few and comparison.details and comparison.resamples and comparison.baseline is not None:
        lines.append(f'Intervals of classes with a * are from fewer than {MIN_IMAGES} images: too narrow.')
    return ' '.join(lines)
