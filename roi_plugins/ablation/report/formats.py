"""Writes a comparison as Markdown, CSV, LaTeX and JSON. CSV and JSON have full precision."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from roi_plugins.ablation.compare import Comparison
from roi_plugins.ablation.report.figures import plot_ap_over_iou, save_figure
from roi_plugins.ablation.report.tables import (
    caption,
    details_caption,
    find_best,
    make_headline,
    make_tables,
)
from roi_plugins.evaluation.bootstrap import CONFIDENCE, Estimates
from roi_plugins.evaluation.coco import IOU_THRESHOLDS, METRICS, QUANTITIES
from roi_plugins.files import atomic_write, write_json

FIGURE = 'ap_over_iou'

_TEXT_COLUMNS = ('Config', 'Extractor', 'Class', 'Verdict')
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
        with atomic_write(output / f'compare.{suffix}') as aside:
            # The name of a file need not be UTF-8.
            aside.write_text(text, encoding='utf-8', errors='replace')
    write_json(output / 'compare.json', to_dict(comparison))
    figure = plot_ap_over_iou(comparison)
    for suffix in ('png', 'svg'):
        with atomic_write(output / f'{FIGURE}.{suffix}') as aside:
            save_figure(figure, aside, suffix)


def to_markdown(comparison: Comparison, digits: int = 1) -> str:
    """Makes all tables in Markdown, those of :func:`headline` first.

    Args:
        comparison: what :func:`~roi_plugins.ablation.compare.compare` found.
        digits: how many decimals the points have.
    """
    tables = [_markdown_table(title, table) for title, table in make_tables(comparison, digits).items()]
    parts = [headline(comparison, digits).rstrip('\n'), details_caption(comparison, digits), *tables]
    return '\n\n'.join(filter(None, parts)) + '\n'


def headline(comparison: Comparison, digits: int = 1) -> str:
    """Makes the tables of ``make_headline`` in Markdown, with the best means in bold.

    They are padded so that they are also readable as plain text.

    Args:
        comparison: what :func:`~roi_plugins.ablation.compare.compare` found.
        digits: how many decimals the points have.
    """
    parts = [caption(comparison, digits)]
    for title, table in make_headline(comparison, digits).items():
        parts.append(_markdown_table(title, table.mask(find_best(table), '**' + table + '**')))
    return '\n\n'.join(parts) + '\n'


def _markdown_table(title: str, table: pd.DataFrame) -> str:
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
    return '\n'.join([f'### {title}', '', header, f'|{rule}|', *body])


def to_latex(comparison: Comparison, digits: int = 1) -> str:
    """Makes all tables in LaTeX, for the package booktabs. The best means of the first ones are in bold.

    Args:
        comparison: what :func:`~roi_plugins.ablation.compare.compare` found.
        digits: how many decimals the points have.
    """
    parts = [r'% \usepackage{booktabs}']
    for title, table in make_headline(comparison, digits).items():
        parts.append(_latex_table(title, table, find_best(table)))
    for title, table in make_tables(comparison, digits).items():
        parts.append(_latex_table(title, table, pd.DataFrame(False, table.index, table.columns)))
    return '\n\n'.join(parts) + '\n'


def _latex_table(title: str, table: pd.DataFrame, is_bold: pd.DataFrame) -> str:
    is_text = [column in _TEXT_COLUMNS for column in table.columns]
    rows = [
        [
            rf'\textbf{{{cell}}}' if bold else _escape_latex(cell) if text else _latex_number(cell)
            for cell, text, bold in zip(row, is_text, bolds, strict=True)
        ]
        for row, bolds in zip(table.to_numpy().tolist(), is_bold.to_numpy(), strict=True)
    ]
    header = [_LATEX_METRICS.get(column) or _escape_latex(column) for column in table.columns]
    return '\n'.join(
        [
            r'\begin{table}',
            r'\centering',
            rf'\caption{{{_escape_latex(title)}}}',
            rf'\label{{tab:{_label(title)}}}',
            rf'\begin{{tabular}}{{{"".join("l" if text else "r" for text in is_text)}}}',
            r'\toprule',
            _latex_row(header),
            r'\midrule',
            *map(_latex_row, rows),
            r'\bottomrule',
            r'\end{tabular}',
            r'\end{table}',
        ]
    )


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
                for column in ('low', 'high', 'image_se', 'seed_se'):
                    value = np.nan if estimates is None else estimates.metrics[column][metric]
                    row[f'{metric}{suffix}_{column}'] = '' if np.isnan(value) else _full_points(value)
            p = np.nan if estimates is None else estimates.metrics['p'][metric]
            row[f'{metric}_difference_p'] = '' if np.isnan(p) else repr(float(p))
        row['primary_metric'] = comparison.primary_metric
        if verdict := group.verdict:
            row['verdict'] = verdict.word
            row['verdict_p'] = repr(verdict.p)
            row['smallest_difference'] = _full_points(verdict.smallest_difference)
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
        'primary_metric': comparison.primary_metric,
        'margin': comparison.margin,
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
                'verdict': asdict(group.verdict) if group.verdict else None,
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
        name: [{key: row.Index, **_finite(row._asdict())} for row in getattr(estimates, name).itertuples()]
        for name, key in (('metrics', 'metric'), ('over_iou', 'iou'), ('per_class', 'class'))
    }


def _finite(row: dict[str, Any]) -> dict[str, float | None]:
    return {
        column: value if np.isfinite(value) else None for column, value in row.items() if column != 'Index'
    }


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
    is_number = any(character.isdigit() for character in cell)
    return f'${cell}$'.replace('±', r'\pm') if is_number else cell


def _latex_row(cells: Iterable[str]) -> str:
    return ' & '.join(cells) + r' \\'
