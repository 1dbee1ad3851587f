"""Writes a comparison as text: Markdown, CSV, LaTeX and JSON.

The tables are in points (AP x 100), and each number is rounded once, from full precision. CSV and JSON are
not rounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from roi_plugins.ablation.compare import MIN_IMAGES, Comparison, Group
from roi_plugins.ablation.report.figures import plot_ap_over_iou, save_figure
from roi_plugins.evaluation.bootstrap import CONFIDENCE, Estimates
from roi_plugins.evaluation.coco import IOU_THRESHOLDS, METRICS, QUANTITIES, format_points
from roi_plugins.evaluation.matching import EVALUATIONS, MAX_DETS
from roi_plugins.files import write_json, written_aside

TITLES = {'bbox': 'Box AP', 'segm': 'Mask AP', 'boundary': 'Boundary AP'}
FIGURE = 'ap_over_iou'

_TEXT_COLUMNS = ('Config', 'Extractor', 'Class')
_LATEX_METRICS = {quantity.name: quantity.latex for quantity in QUANTITIES}
_LATEX_ESCAPES = str.maketrans(
    {
        '\\': r'\textbackslash{}',
        '~': r'\textasciitilde{}',
        '^': r'\textasciicircum{}',
        **{character: f'\\{character}' for character in '&%$#_{}'},
    }
)


def write_comparison(comparison: Comparison, output: str | Path, digits: int = 1) -> None:
    """Writes ``compare.md``, ``.csv``, ``.tex`` and ``.json``, ``ap_over_iou.png`` and ``.svg``.

    Args:
        comparison: what :func:`~roi_plugins.ablation.compare.compare` found.
        output: the folder to write to; made if need be. Each file is replaced atomically.
        digits: how many decimals the points have in the tables.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    picture = f'\n![AP against the IoU threshold]({FIGURE}.png)\n'
    notes = ''.join(f'\n- Note: {_escape_markdown(note)}' for note in comparison.notes)
    end = picture + (f'{notes}\n' if notes else '')
    for suffix, text in (
        ('md', to_markdown(comparison, digits) + end),
        ('csv', to_csv(comparison)),
        ('tex', to_latex(comparison, digits)),
    ):
        with written_aside(output / f'compare.{suffix}') as aside:
            # The name of a file need not be UTF-8.
            aside.write_text(text, encoding='utf-8', errors='replace')
    write_json(output / 'compare.json', to_dict(comparison))
    figure = plot_ap_over_iou(comparison)
    for suffix in ('png', 'svg'):
        with written_aside(output / f'{FIGURE}.{suffix}') as aside:
            save_figure(figure, aside, suffix)


def make_tables(comparison: Comparison, digits: int = 1) -> dict[str, pd.DataFrame]:
    """Makes the tables of a comparison.

    There is a table of AP for boxes and one for masks, and for each of these a table of the differences to
    the baseline. Tables of intervals, p-values and standard errors follow each of them.

    Args:
        comparison: what :func:`~roi_plugins.ablation.compare.compare` found.
        digits: how many decimals the points have.

    Returns:
        The tables by their titles. Every cell is text, such as ``31.2 ± 0.3``, ``+1.4``, or ``-`` where there
        is no ground truth.
    """
    tables = {}
    for iou_type in EVALUATIONS:
        groups = [group for group in comparison.groups if group.iou_type == iou_type]
        if not groups:
            continue
        tables[TITLES[iou_type]] = pd.DataFrame(
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
    if not any(group.config_name for group in comparison.groups):
        tables = {title: table.drop(columns='Config') for title, table in tables.items()}
    return tables


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
        if np.isnan(estimate['seed_error']):
            return '-'
        parts = (estimate['image_error'], estimate['seed_error'])
        return ' / '.join('-' if np.isnan(part) else format_points(part, digits) for part in parts)

    tables = {}
    for suffix, cell in (
        (f'{CONFIDENCE:.0%} interval', interval),
        ('p-value', p_value),
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


def to_markdown(comparison: Comparison, digits: int = 1) -> str:
    """Makes the tables in Markdown, padded so that they are also readable as plain text.

    Args:
        comparison: what :func:`~roi_plugins.ablation.compare.compare` found.
        digits: how many decimals the points have.
    """
    parts = [caption(comparison, digits)]
    for title, table in make_tables(comparison, digits).items():
        rows = [list(table.columns), *table.to_numpy().tolist()]
        rows = [[_escape_markdown(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        is_text = [column in _TEXT_COLUMNS for column in table.columns]
        lines = [
            ' | '.join(
                cell.ljust(width) if left else cell.rjust(width)
                for cell, width, left in zip(row, widths, is_text, strict=True)
            )
            for row in rows
        ]
        rule = '|'.join(
            ':' + '-' * (width + 1) if left else '-' * (width + 1) + ':'
            for width, left in zip(widths, is_text, strict=True)
        )
        header, *body = (f'| {line} |' for line in lines)
        parts.append('\n'.join([f'### {title}', '', header, f'|{rule}|', *body]))
    return '\n\n'.join(parts) + '\n'


def to_latex(comparison: Comparison, digits: int = 1) -> str:
    """Makes the tables in LaTeX, for the package booktabs.

    Args:
        comparison: what :func:`~roi_plugins.ablation.compare.compare` found.
        digits: how many decimals the points have.
    """
    parts = [r'% \usepackage{booktabs}']
    for title, table in make_tables(comparison, digits).items():
        names = [column for column in table.columns if column in _TEXT_COLUMNS]
        rows = [
            [_escape_latex(cell) if column in names else _latex_number(cell) for column, cell in row.items()]
            for row in table.to_dict('records')
        ]
        header = [_LATEX_METRICS.get(column) or _escape_latex(column) for column in table.columns]
        parts.append(
            '\n'.join(
                [
                    r'\begin{table}',
                    r'\centering',
                    rf'\caption{{{_escape_latex(title)}}}',
                    rf'\label{{tab:{_label(title)}}}',
                    rf'\begin{{tabular}}{{{"l" * len(names)}{"r" * (len(header) - len(names))}}}',
                    r'\toprule',
                    _latex_row(header),
                    r'\midrule',
                    *map(_latex_row, rows),
                    r'\bottomrule',
                    r'\end{tabular}',
                    r'\end{table}',
                ]
            )
        )
    return '\n\n'.join(parts) + '\n'


def to_csv(comparison: Comparison) -> str:
    """Makes CSV with a row for each IoU type, config and extractor.

    Points have full precision. A value that is not known is empty.

    Args:
        comparison: what :func:`~roi_plugins.ablation.compare.compare` found.
    """
    rows = []
    for group in comparison.groups:
        row = {
            'iou_type': group.iou_type,
            'config': group.config_name,
            'extractor': group.extractor,
            'n': len(group.runs),
        }
        for metric in METRICS:
            for suffix, values in (
                ('', group.mean),
                ('_std', group.std),
                ('_difference', group.difference),
                ('_difference_std', group.difference_std),
            ):
                value = np.nan if values is None else values[metric]
                row[metric + suffix] = '' if np.isnan(value) else _full_points(value)
            for suffix, estimates in (
                ('', group.estimates),
                ('_difference', group.difference_estimates),
            ):
                for column in ('low', 'high', 'image_error', 'seed_error'):
                    value = np.nan if estimates is None else estimates.metrics[column][metric]
                    row[f'{metric}{suffix}_{column}'] = '' if np.isnan(value) else _full_points(value)
            p = np.nan if estimates is None else estimates.metrics['p'][metric]
            row[f'{metric}_difference_p'] = '' if np.isnan(p) else repr(float(p))
        rows.append(row)
    return pd.DataFrame(rows).to_csv(index=False, lineterminator='\n')


def _full_points(fraction: float) -> str:
    """Converts a fraction to points in full precision: 31.2 and not 31.200000000000003."""
    return repr(float(Fraction(fraction) * 100))


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """Converts a comparison for JSON.

    Numbers are fractions in full precision, and -1 where there is no ground truth.

    Args:
        comparison: what :func:`~roi_plugins.ablation.compare.compare` found.
    """
    return {
        'format': 1,
        'ann_file': str(comparison.ann_file),
        'images': comparison.num_images,
        'max_dets': comparison.max_dets,
        'iou_thresholds': list(IOU_THRESHOLDS),
        'categories': comparison.categories.reset_index().to_dict('records'),
        'baseline': comparison.baseline,
        'resamples': comparison.resamples,
        'resampling_seed': comparison.seed,
        'confidence': CONFIDENCE,
        'runs': [
            {
                'name': run.name,
                'framework': run.framework,
                'config_name': run.config_name,
                'extractor': run.extractor,
                'seed': run.seed,
                'predictions': {t: str(path) for t, path in run.predictions.items()},
                'metrics': metrics,
            }
            for run, metrics in comparison.metrics
        ],
        'groups': [
            {
                'iou_type': group.iou_type,
                'config_name': group.config_name,
                'extractor': group.extractor,
                'seeds': group.runs.index.tolist(),
                'mean': group.mean.fillna(-1).to_dict(),
                'std': _nullable(group.std),
                'difference': _nullable(group.difference),
                'difference_std': _nullable(group.difference_std),
                'estimates': _estimates(group.estimates),
                'difference_estimates': _estimates(group.difference_estimates),
                'errors': [errors.to_dict('index') for errors in group.errors],
            }
            for group in comparison.groups
        ],
        'problems': comparison.problems,
        'notes': comparison.notes,
    }


def _estimates(estimates: Estimates | None) -> dict[str, list[dict[str, Any]]] | None:
    """Converts each table of the estimates to a list of its rows, with the metric, threshold or class."""
    if estimates is None:
        return None
    return {
        name: [
            {key: row.Index, **_without_nan(row._asdict())} for row in getattr(estimates, name).itertuples()
        ]
        for name, key in (('metrics', 'metric'), ('over_iou', 'iou'), ('per_class', 'class'))
    }


def _without_nan(row: dict[str, Any]) -> dict[str, float | None]:
    return {column: None if np.isnan(value) else value for column, value in row.items() if column != 'Index'}


def caption(comparison: Comparison, digits: int = 1) -> str:
    """Explains in a few sentences what the tables show, and what their ± and intervals mean.

    Args:
        comparison: what :func:`~roi_plugins.ablation.compare.compare` found.
        digits: how many decimals the points have.
    """
    lines = [
        f'{comparison.ann_file.name}, {comparison.num_images} images; AP x 100.',
    ]
    if comparison.max_dets != MAX_DETS:
        lines.append(
            f'max_dets {comparison.max_dets}: the best {comparison.max_dets} detections of each class in an '
            f"image count, in place of COCO's {MAX_DETS}."
        )
    has_seeds = any(len(group.runs) > 1 for group in comparison.groups)
    if comparison.resamples:
        lines.append(
            f'{CONFIDENCE:.0%} intervals and p-values from {comparison.resamples} resamples of the '
            f'images (seed {comparison.seed})'
            + (
                ' and from the spread over seeds; with n = 1 for these trained networks alone.'
                if has_seeds
                else ': for these trained networks; how much other seeds would change is unknown.'
            )
        )
    if has_seeds:
        lines.append('Mean ± sample standard deviation over n seeds.')
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


def _nullable(values: pd.Series | None) -> dict[str, float | None] | None:
    if values is None or values.isna().all():
        return None
    return {metric: None if np.isnan(value) else value for metric, value in values.items()}


def _escape_markdown(text: str) -> str:
    """Escapes text so that it stays in one cell of a table, and is not read as HTML."""
    for special in '\\|<':
        text = text.replace(special, f'\\{special}')
    return _one_line(text)


def _escape_latex(text: str) -> str:
    return _one_line(text.translate(_LATEX_ESCAPES))


def _one_line(text: str) -> str:
    return ' '.join(text.splitlines())


def _label(title: str) -> str:
    """Makes a LaTeX label of the title of a table, such as ``mask-ap-difference-to-stock``."""
    return re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')


def _latex_number(cell: str) -> str:
    return cell if cell == '-' else f'${cell}$'.replace('±', r'\pm')


def _latex_row(cells: Iterable[str]) -> str:
    return ' & '.join(cells) + r' \\'
