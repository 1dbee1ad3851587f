"""Shows how cost grows as Markdown and as a figure. Needs matplotlib and tabulate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from roi_plugins.benchmark.cases import BACKWARD, FORWARD
from roi_plugins.benchmark.growth import DIMENSIONS, ROUNDS
from roi_plugins.benchmark.measure import OURS
from roi_plugins.benchmark.report import COLORS, format_number, headline, make_table, save_pages

MARKDOWN, FIGURE = 'growth.md', 'growth.png'
_PALETTE = (*COLORS, 'black', '0.6')
_MARKERS = 'os^Dvx'
_NAMED = 5  # points of one reason


def _milliseconds(measurement: dict[str, Any]) -> float:
    return 1e3 * float(np.median(measurement['seconds']))


def _mebibytes(measurement: dict[str, Any]) -> float | None:
    return None if measurement['peak_bytes'] is None else measurement['peak_bytes'] / 2**20


_ROWS: tuple[tuple[str, str, Callable[[dict[str, Any]], float | None]], ...] = (
    ('forward time, ms', FORWARD, _milliseconds),
    ('backward time, ms', BACKWARD, _milliseconds),
    ('forward memory, MiB', FORWARD, _mebibytes),
    ('backward memory, MiB', BACKWARD, _mebibytes),
)


def write_pages(record: dict[str, Any], out: str | Path) -> None:
    """Writes ``growth.md`` and ``growth.png``. Each file is replaced atomically.

    Args:
        record: see :mod:`roi_plugins.benchmark.record`; its cases are points of
            :mod:`roi_plugins.benchmark.growth`.
        out: the directory to write to.
    """
    save_pages(
        Path(out, MARKDOWN), to_markdown(record),
        Path(out, FIGURE), plot_growth(record), 'Time and memory over each dimension',
    )  # fmt: skip


def to_markdown(record: dict[str, Any]) -> str:
    """Makes a page of the machine and of a table for each dimension.

    Args:
        record: see :func:`write_pages`.
    """
    parts = [
        '\n'.join(headline(record)),
        'Base: align-avg 7x7 on one image of 1024x1024 px, stride 16 (a map of 64x64 cells), 256 channels, '
        '512 RoIs,\nin float32. One dimension is changed at a time. Times are medians of '
        f'{ROUNDS} short rounds. Memory is\nthe peak of one call beyond its inputs.',
    ]
    for dimension, points in _dimensions(record):
        values = sorted({point['value'] for point in points})
        rows = [
            [what, name, *(_number(series.get(value)) for value in values)]
            for what, series_of in _panels(points)
            for name, series in series_of.items()
        ]
        header = ['', 'what ran', *(f'{value:,}' for value in values)]
        parts.append(f'## By {DIMENSIONS[dimension].label}\n\n{make_table(header, rows, 2)}')
    if left_out := list(_left_out(record)):
        parts.append('## Left out\n\n' + '\n'.join(left_out))
    return '\n\n'.join(parts) + '\n'


def plot_growth(record: dict[str, Any]) -> Figure:
    """Plots time and memory over each dimension: a panel for each, and a line for each contender.

    Args:
        record: see :func:`write_pages`.
    """
    columns = list(_dimensions(record))
    names = list(dict.fromkeys(name for _, name, _ in _measurements(record['cases'])))
    figure = Figure(figsize=(1 + 3 * len(columns), 10), dpi=130, layout='constrained')
    grid = figure.subplots(len(_ROWS), len(columns), sharex='col', sharey='row', squeeze=False)
    for column, (dimension, points) in zip(grid.T, columns, strict=False):
        for axes, (_, series_of) in zip(column, _panels(points), strict=True):
            for name, series in series_of.items():
                index = names.index(name)
                axes.plot(
                    list(series), list(series.values()), '-' if name.startswith(OURS) else '--',
                    color=_PALETTE[index % len(_PALETTE)], marker=_MARKERS[index % len(_MARKERS)],
                    markersize=5, markerfacecolor='none', label=name,
                )  # fmt: skip
            axes.grid(color='0.9', linewidth=0.8)
            axes.spines[['top', 'right']].set_visible(False)
        values = sorted({point['value'] for point in points})
        column[-1].set_xscale('log')
        column[-1].set_xticks(values, [_short(value) for value in values], fontsize=8)
        column[-1].minorticks_off()
        column[-1].set_xlabel(DIMENSIONS[dimension].label)
    for axes, (what, _, measure) in zip(grid[:, 0], _ROWS, strict=True):
        if measure is _milliseconds:
            axes.set_yscale('log')
        else:
            axes.set_yscale('symlog', linthresh=1)  # a small call may need no new memory: 0
            axes.set_ylim(0, 1.5 * axes.get_ylim()[1])
        axes.yaxis.set_major_formatter('{x:g}')
        axes.set_ylabel(what)
    lines = {line.get_label(): line for axes in grid.flat for line in axes.get_lines()}
    machine = record['machine']
    figure.legend(
        lines.values(), lines, loc='outside upper center', ncols=4, frameon=False,
        title=machine['gpu'] or f'{machine["cores"]} x {machine["cpu"]}, {record["threads"]} threads',
    )  # fmt: skip
    return figure


def _dimensions(record: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for dimension in DIMENSIONS:
        if points := [point for point in record['cases'] if point['dimension'] == dimension]:
            yield dimension, points


def _measurements(
    points: list[dict[str, Any]],
) -> Iterator[tuple[dict[str, Any], str, dict[str, Any]]]:
    """Yields each point, contender and measurement as a user calls the op in float32."""
    for point in points:
        for m in point['measurements']:
            if m['dtype'] == 'float32' and not m['variant']:
                yield point, f'{m["name"]} {m["layout"]}'.strip(), m


def _panels(points: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, dict[int, float]]]]:
    """Yields the name of each row and its series: value of the dimension -> time or memory."""
    for what, step, measure in _ROWS:
        series_of: dict[str, dict[int, float]] = {}
        for point, name, m in sorted(_measurements(points), key=lambda found: found[0]['value']):
            number = measure(m)
            if point['step'] == step and number is not None:
                series_of.setdefault(name, {})[point['value']] = number
        yield what, series_of


def _left_out(record: dict[str, Any]) -> Iterator[str]:
    reasons: dict[tuple[str, str], list[str]] = {}
    for point in record['cases']:
        for name, reason in point['left_out'].items():
            reasons.setdefault((name, reason), []).append(point['name'])
    for (name, reason), points in reasons.items():
        where = ', '.join(points)
        if len(points) == len(record['cases']):
            where = 'all points'
        elif len(points) > _NAMED:
            where = f'{len(points)} points, from {points[0]} to {points[-1]}'
        yield f'- {name}: {reason} (left out: {where})'


def _number(value: float | None) -> str:
    return '' if value is None else format_number(value)


def _short(value: int) -> str:
    return str(value) if value % 1000 else f'{value // 1000}k'
