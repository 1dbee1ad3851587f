"""A comparison as text: Markdown, CSV, LaTeX and JSON.

The tables are in points (AP x 100), rounded once from full precision. The JSON is not rounded.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from roi_plugins.ablation.compare import Comparison, Group
from roi_plugins.ablation.figures import plot_ap_over_iou, save_figure
from roi_plugins.evaluation import (
    IOU_THRESHOLDS,
    IOU_TYPES,
    METRICS,
    write_json,
    written_aside,
)

TITLES = {'bbox': 'Box AP', 'segm': 'Mask AP'}
FIGURE = 'ap_over_iou'

_TEXT_COLUMNS = ('Config', 'Extractor')
_LATEX_METRICS = {
    'AP50': 'AP$_{50}$',
    'AP75': 'AP$_{75}$',
    'APs': 'AP$_S$',
    'APm': 'AP$_M$',
    'APl': 'AP$_L$',
}
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
        output: a directory, made if need be. Each file is replaced as a whole.
        digits: decimals of the points in the tables.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    picture = f'\n![AP against the IoU threshold]({FIGURE}.png)\n'
    for suffix, text in (
        ('md', to_markdown(comparison, digits) + picture),
        ('csv', to_csv(comparison, digits)),
        ('tex', to_latex(comparison, digits)),
    ):
        with written_aside(output / f'compare.{suffix}') as aside:
            aside.write_text(text, encoding='utf-8')
    write_json(output / 'compare.json', to_dict(comparison))
    figure = plot_ap_over_iou(comparison)
    for suffix in ('png', 'svg'):
        with written_aside(output / f'{FIGURE}.{suffix}') as aside:
            save_figure(figure, aside, suffix)


def format_points(fraction: float, digits: int, sign: bool = False) -> str:
    """An AP in points: 100 times the fraction, rounded half to even, once and exactly.

    With one digit these are the digits that pycocotools prints: 31.2 where it has 0.312.
    """
    scaled = round(Fraction(fraction) * 100 * 10**digits)
    return f'{Decimal(scaled).scaleb(-digits):{"+" if sign else ""}.{digits}f}'


def make_tables(comparison: Comparison, digits: int = 1) -> dict[str, pd.DataFrame]:
    """The tables by their titles: for boxes and for masks, and for each the differences.

    Every cell is text, such as ``31.2 ± 0.3``, ``+1.4`` or, where there is no ground truth, ``-``.
    """
    tables = {}
    for iou_type in IOU_TYPES:
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
        if differences:
            title = f'{TITLES[iou_type]}, difference to {comparison.baseline}'
            tables[title] = pd.DataFrame(differences)
    if not any(group.config_name for group in comparison.groups):
        tables = {title: table.drop(columns='Config') for title, table in tables.items()}
    return tables


def to_markdown(comparison: Comparison, digits: int = 1) -> str:
    """The tables in Markdown, padded so that they can be read as they are."""
    parts = [_caption(comparison)]
    for title, table in make_tables(comparison, digits).items():
        rows = [list(table.columns), *table.to_numpy().tolist()]
        rows = [[cell.replace('\\', '\\\\').replace('|', '\\|') for cell in row] for row in rows]
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
    """The tables in LaTeX, with the rules of the package booktabs."""
    parts = [r'% \usepackage{booktabs}']
    for title, table in make_tables(comparison, digits).items():
        names = [column for column in table.columns if column in _TEXT_COLUMNS]
        rows = [
            [
                _escape_latex(cell) if column in names else _latex_number(cell)
                for column, cell in row.items()
            ]
            for row in table.to_dict('records')
        ]
        header = [_LATEX_METRICS.get(column, column) for column in table.columns]
        parts.append(
            '\n'.join(
                [
                    r'\begin{table}',
                    r'\centering',
                    rf'\caption{{{_escape_latex(title)}}}',
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


def to_csv(comparison: Comparison, digits: int = 1) -> str:
    """One row for each IoU type, config and extractor; columns in points, empty for no value."""
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
                is_known = values is not None and not np.isnan(values[metric])
                row[metric + suffix] = format_points(values[metric], digits) if is_known else ''
        rows.append(row)
    return pd.DataFrame(rows).to_csv(index=False, lineterminator='\n')


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """The comparison for JSON, in full precision: fractions, -1 where there is no ground truth."""
    return {
        'format': 1,
        'ann_file': str(comparison.ann_file),
        'images': comparison.num_images,
        'iou_thresholds': list(IOU_THRESHOLDS),
        'baseline': comparison.baseline,
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
            }
            for group in comparison.groups
        ],
        'problems': comparison.problems,
    }


def _caption(comparison: Comparison) -> str:
    lines = [
        f'{comparison.ann_file.name}, {comparison.num_images} images; AP x 100.',
    ]
    if any(len(group.runs) > 1 for group in comparison.groups):
        lines.append('Mean ± sample standard deviation over n seeds.')
        if comparison.baseline is not None:
            lines.append('± of a difference is that of the differences of equal seeds.')
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


def _escape_latex(text: str) -> str:
    return text.translate(_LATEX_ESCAPES)


def _latex_number(cell: str) -> str:
    return cell if cell == '-' else f'${cell}$'.replace('±', r'\pm')


def _latex_row(cells: Iterable[str]) -> str:
    return ' & '.join(cells) + r' \\'
