"""Shows the results of a benchmark as Markdown and as a figure. Needs matplotlib and tabulate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from roi_plugins.benchmark.cases import FORWARD, MAX_DETERMINISTIC_RATIO, MAX_FLOOR_RATIO
from roi_plugins.benchmark.measure import DETERMINISTIC, GRAPH, OURS, WRITING
from roi_plugins.benchmark.other_load import warning
from roi_plugins.benchmark.record import FIGURE, MARKDOWN
from roi_plugins.files import atomic_write

# Okabe and Ito's, as in the figures of a comparison.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')


def write_pages(record: dict[str, Any], out: str | Path) -> None:
    """Writes ``benchmark.md`` and ``benchmark.png``. Each file is replaced atomically.

    Args:
        record: see :mod:`roi_plugins.benchmark.record`.
        out: the directory to write to.
    """
    save_pages(
        Path(out, MARKDOWN), to_markdown(record),
        Path(out, FIGURE), plot_ratios(record), 'How many times faster than each peer',
    )  # fmt: skip


def save_pages(page: Path, text: str, picture: Path, figure: Figure, caption: str) -> None:
    """Saves a page that ends with a figure. Each file is replaced atomically.

    Args:
        page: the Markdown file.
        text: its text.
        picture: the PNG file, beside the page.
        figure: what it shows.
        caption: the figure in words.
    """
    with atomic_write(page) as aside:
        aside.write_text(f'{text}\n![{caption}]({picture.name})\n', encoding='utf-8')
    with atomic_write(picture) as aside:
        figure.savefig(aside, format='png')


def to_markdown(record: dict[str, Any]) -> str:
    """Makes a page of the machine, the ratios to the peers, and every measurement.

    Args:
        record: see :mod:`roi_plugins.benchmark.record`.
    """
    parts = ['\n'.join(headline(record))]
    if ratios := [row for case in record['cases'] for row in ratio_rows(case)]:
        columns = dict.fromkeys(row['ours'] for row in ratios)
        table: dict[tuple[str, str], dict[str, str]] = {}
        for row in ratios:
            cells = table.setdefault((row['case'], row['peer']), dict.fromkeys(columns, ''))
            cells[row['ours']] = _ratio_text(row)
        rows = [[case, peer, *cells.values()] for (case, peer), cells in table.items()]
        parts.append('## Times faster than the peer')
        if slower := sum(row['ratio'] < 1 for row in ratios):
            parts.append(f'The op is slower than the peer in {slower} of {len(ratios)} comparisons (bold).')
        parts.append(make_table(['case', 'peer', *columns], rows, 2))
    if aims := [row for case in record['cases'] for row in _aim_rows(case)]:
        header = ['case', 'what', 'ratio', 'aim', '']
        parts.append('## Other aims\n\n' + make_table(header, aims, 2))
    if rows := [row for case in record['cases'] for row in _measurement_rows(case)]:
        header = ['case', 'what ran', 'median, ms', 'quartiles', 'runs', 'x floor', 'peak, MiB']
        if record['device'] == 'cuda':
            header.append('host waits')
        rows = [row[: len(header)] for row in rows]
        parts.append('## Measurements\n\n' + make_table(header, rows, 2))
    left_out = [
        f'- {case["name"]}: {name}: {reason}'
        for case in record['cases']
        for name, reason in case['left_out'].items()
    ]
    if left_out:
        parts.append('## Left out\n\n' + '\n'.join(left_out))
    return '\n\n'.join(parts) + '\n'


def plot_ratios(record: dict[str, Any]) -> Figure:
    """Plots how many times faster than each peer the op is: a bar for each layout and dtype, aims as marks.

    Args:
        record: see :mod:`roi_plugins.benchmark.record`.
    """
    ratios = [row for case in record['cases'] for row in ratio_rows(case)]
    labels = list(dict.fromkeys((row['case'], row['peer']) for row in ratios))
    ours = list(dict.fromkeys(row['ours'] for row in ratios))
    height = 0.8 / max(len(ours), 1)
    figure = Figure(figsize=(9, 1.6 + 0.22 * len(labels) * max(len(ours), 2)), dpi=150, layout='constrained')
    axes = figure.subplots()
    for index, variant in enumerate(ours):
        rows = [row for row in ratios if row['ours'] == variant]
        y = np.array([labels.index((row['case'], row['peer'])) for row in rows])
        y = y + (index - (len(ours) - 1) / 2) * height
        color = COLORS[index % len(COLORS)]
        axes.barh(y, [row['ratio'] for row in rows], height, color=color, label=variant)
        for at, row in zip(y, rows, strict=True):  # beside the panel, where the texts cover no mark
            axes.text(
                1.01, at, f'{row["ratio"]:.1f}', transform=axes.get_yaxis_transform(), va='center',
                fontsize=7, color=color,
            )  # fmt: skip
        aimed = [
            (at, row['target'])
            for at, row in zip(y, rows, strict=True)
            if row['target'] and row['aimed_ratio'] == row['ratio']
        ]
        if aimed:
            at, target = np.array(aimed).T
            axes.vlines(target, at - height / 2, at + height / 2, color='black', linewidth=2)
    axes.plot([], [], '|', color='black', markeredgewidth=2, label='aim')
    axes.axvline(1, color='0.5', linewidth=0.8)
    axes.set_xscale('log')
    axes.xaxis.set_major_formatter('{x:g}')
    axes.set_xlabel('times faster than the peer (log scale)')
    names = [f'{case}\n{peer}' for case, peer in labels]
    axes.set_yticks(range(len(labels)), names, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_axisbelow(True)
    axes.grid(axis='x', color='0.9', linewidth=0.8)
    axes.spines[['top', 'right']].set_visible(False)
    figure.legend(loc='outside lower center', ncols=len(ours) + 1, frameon=False)
    return figure


def headline(record: dict[str, Any]) -> Iterator[str]:
    """Yields the machine, the versions and the commands of a record, as the items of a list.

    Args:
        record: see :mod:`roi_plugins.benchmark.record`.
    """
    machine = record['machine']
    if machine['gpu']:
        capability = machine['compute_capability']
        yield f'- GPU: {machine["gpu"]}, compute capability {capability}, CUDA {machine["cuda"]}'
    yield f'- CPU: {machine["cores"]} x {machine["cpu"]}, {machine["instructions"]}'
    yield f'- Threads: {record["threads"]}'
    if disturbed := warning(record):
        yield f'- {disturbed}'
    if record['large_pages']:
        yield '- Large pages, of torch, for the tensors of all: `THP_MEM_ALLOC_ENABLE=1`'
    yield '- Versions: ' + ', '.join(f'{name} {v}' for name, v in record['versions'].items())
    yield f'- Kernels: {record["kernels"]}'
    if record['quick']:
        yield '- Measured with `--quick`: few runs, so the medians are rough.'
    speeds = [case['copy_bytes_per_second'] for case in record['cases']]
    if speeds := [speed / 1e9 for speed in speeds if speed is not None]:
        yield f'- Copy bandwidth, which makes the floor: {min(speeds):.1f} to {max(speeds):.1f} GB/s'
    for command in dict.fromkeys(case['command'] for case in record['cases']):
        yield f'- Command: `{command}`'


def ratio_rows(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Computes how many times slower each peer is than each layout and dtype of the op.

    The peer runs in the op's dtype and in its fastest layout. A peer that does not support the dtype runs in
    its fastest one, but the op in float32 is only compared with float32. An aim is about the peer in the op's
    layout, if it supports that.

    Args:
        case: the record of a case.

    Yields:
        For each pair the names, layouts, samples and target, and the ratio of the medians.
    """
    targets = {tuple(key): ratio for *key, ratio in case['targets']}
    plain = [m for m in case['measurements'] if not m['variant']]
    ours = [m for m in plain if m['name'] == OURS]
    for name in dict.fromkeys(m['name'] for m in plain if m['name'] not in (OURS, WRITING)):
        for our in ours:
            peers = [m for m in plain if m['name'] == name]
            same_dtype = [m for m in peers if m['dtype'] == our['dtype']]
            if not same_dtype and our['dtype'] == 'float32':
                continue
            fastest = min(same_dtype or peers, key=_median)
            same_layout = [m for m in same_dtype or peers if m['layout'] == our['layout']]
            aimed = min(same_layout or [fastest], key=_median)
            other = [fastest['layout']] if same_layout and fastest['layout'] != our['layout'] else []
            if fastest['dtype'] != our['dtype']:
                other.append(fastest['dtype'])
            yield {
                'case': case['name'],
                'peer': name,
                'ours': f'{our["layout"]} {our["dtype"]}',
                'ratio': _median(fastest) / _median(our),
                'peer_runs_in': ' '.join(other),
                'target': targets.get((name, our['layout'], our['dtype'])),
                'our_seconds': our['seconds'],
                'peer_seconds': fastest['seconds'],
                'aimed_ratio': _median(aimed) / _median(our),
                'aimed_layout': aimed['layout'],
            }


def _ratio_text(row: dict[str, Any]) -> str:
    text = f'{row["ratio"]:.1f}x' if row['ratio'] >= 1 else f'**{row["ratio"]:.2f}x, slower**'
    if row['peer_runs_in']:
        text += f' (peer in {row["peer_runs_in"]})'
    if row['target']:
        if row['aimed_ratio'] != row['ratio']:
            text += f'; peer in {row["aimed_layout"]}: {row["aimed_ratio"]:.1f}x'
        met = 'met' if row['aimed_ratio'] >= row['target'] else 'not met'
        text += f', aim {row["target"]:g}x: {met}'
    return text


def _aim_rows(case: dict[str, Any]) -> Iterator[list[str]]:
    ours = {(m['layout'], m['dtype'], m['variant']): m for m in case['measurements'] if m['name'] == OURS}
    for (layout, dtype, variant), m in ours.items():
        if case['step'] == FORWARD and variant == GRAPH and layout == 'channels_last':
            ratio = _median(m) / m['floor_seconds']
            yield _aim_row(case, f'{layout} {dtype}, replayed / floor', ratio, MAX_FLOOR_RATIO)
        if variant == DETERMINISTIC:
            ratio = _median(m) / _median(ours[layout, dtype, ''])
            what = f'{layout} {dtype}, deterministic / atomic'
            yield _aim_row(case, what, ratio, MAX_DETERMINISTIC_RATIO)
    if most := case.get('max_writing_ratio'):  # results of earlier versions have none
        writing = {m['dtype']: m for m in case['measurements'] if m['name'] == WRITING}
        for (layout, dtype, variant), m in ours.items():
            if not variant:
                ratio = _median(m) / _median(writing[dtype])
                yield _aim_row(case, f'{layout} {dtype} / {WRITING}', ratio, most)


def _aim_row(case: dict[str, Any], what: str, ratio: float, most: float) -> list[str]:
    met = 'met' if ratio <= most else 'not met'
    return [case['name'], what, f'{ratio:.2f}', f'at most {most:g}', met]


def _measurement_rows(case: dict[str, Any]) -> Iterator[list[str]]:
    for m in case['measurements']:
        low, middle, high = 1e3 * np.quantile(m['seconds'], [0.25, 0.5, 0.75])
        what = ' '.join(filter(None, (m['name'], m['layout'], m['dtype'], m['variant'])))
        floor, peak = m['floor_seconds'], m['peak_bytes']
        yield [
            case['name'],
            what,
            format_number(middle),
            f'{low:.3g} to {high:.3g}' if high < 100 else f'{low:.0f} to {high:.0f}',
            str(len(m['seconds'])),
            '' if floor is None else f'{1e-3 * middle / floor:.1f}',
            '' if peak is None else f'{peak / 2**20:.0f}',
            {None: '', True: 'yes', False: 'no'}[m['synchronises']],
        ]


def _median(measurement: dict[str, Any]) -> float:
    return float(np.median(measurement['seconds']))


def format_number(value: float) -> str:
    """Formats a time in ms, or a number of MiB, with three digits or as a whole number."""
    return f'{value:.3g}' if value < 100 else f'{value:.0f}'


def make_table(header: list[str], rows: list[list[str]], text_columns: int) -> str:
    """Makes a Markdown table, of which all columns but the first ``text_columns`` hold numbers."""
    align = ['left'] * text_columns + ['right'] * (len(header) - text_columns)
    return tabulate(rows, header, tablefmt='pipe', colalign=align, disable_numparse=True)
