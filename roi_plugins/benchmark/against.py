"""Compares a benchmark with an earlier one: did the op become slower, beside its peers, by more than noise?

The peers are the clock. They took turns with the op, so a machine that is slower for a while slows both, and
the ratio stays. Needs matplotlib and tabulate, as ``report`` does.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from roi_plugins.benchmark.other_load import warning
from roi_plugins.benchmark.report import ratio_rows
from roi_plugins.files import DataError

TOLERANCE = 0.1
"""A smaller change of a ratio is never called slower or faster: two runs of one build may differ as much."""

SLOWER, FASTER, ALIKE, OPEN, NOT_MEASURED = 'slower', 'faster', 'alike', 'open', 'not measured'
_STRETCHES = 20
_RESAMPLES = 2000


def check_comparable(record: dict[str, Any], earlier: dict[str, Any], out: str) -> None:
    """Checks that the ratios of two records can be compared.

    Args:
        record: a record of this machine, see :mod:`roi_plugins.benchmark.record`; its cases do not matter.
        earlier: the earlier record.
        out: the directory of the earlier record, for errors.

    Raises:
        DataError: they are of two processors, or of two settings.
    """
    processor, now = _processor(earlier), _processor(record)
    if processor != now:
        raise DataError(
            f'{out}: was measured on {processor}, and this is {now}; the ratios of two processors cannot be '
            'compared. Build the earlier kernels here, measure them with --out NEW, and give --against NEW'
        )
    for key, advice in (
        ('device', f'give --device {earlier["device"]}'),
        ('threads', f'give --threads {earlier["threads"]}'),
        ('large_pages', f'set THP_MEM_ALLOC_ENABLE={int(earlier["large_pages"])}'),
    ):
        if record[key] != earlier[key]:
            raise DataError(f'{out}: was measured with {key} {earlier[key]}, now {record[key]}; {advice}')


def choose_cases(earlier: dict[str, Any], patterns: Sequence[str], out: str) -> list[str]:
    """Returns the names of the earlier record's cases that match one of the patterns.

    Args:
        earlier: the earlier record.
        patterns: patterns of names, e.g. ``'pyramid-*'``.
        out: the directory of the earlier record, for errors.

    Raises:
        DataError: there are none.
    """
    names = [case['name'] for case in earlier['cases']]
    if chosen := [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]:
        return chosen
    raise DataError(f'{out}: has no results of {" or ".join(patterns)}; it has {", ".join(names) or "none"}')


def compare(record: dict[str, Any], earlier: dict[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """Compares every ratio of the earlier record with that of the new one.

    Args:
        record: the new record.
        earlier: the earlier record.
        names: the cases to compare.

    Returns:
        For each ratio the ``'case'``, ``'peer'`` and ``'ours'``, the ratio ``'before'`` and ``'now'``, the
        95% interval ``'change'`` of now / before, and the ``'verdict'``. Where the new record has no such
        ratio, the verdict is ``NOT_MEASURED``, and ``'now'`` and ``'change'`` are None.

    Raises:
        DataError: the new record has none of the ratios.
    """
    found = {_key(row): row for case in record['cases'] for row in ratio_rows(case)}
    rows = []
    for before in (row for case in earlier['cases'] if case['name'] in names for row in ratio_rows(case)):
        now = found.get(_key(before))
        change, verdict = None, NOT_MEASURED
        if now:
            change = low, high = _change(before, now)
            verdict = _verdict(low, high)
        rows.append(
            {
                **{key: before[key] for key in ('case', 'peer', 'ours')},
                'before': before['ratio'],
                'now': now and now['ratio'],
                'change': change,
                'verdict': verdict,
            }
        )
    if all(row['verdict'] == NOT_MEASURED for row in rows):
        raise DataError(f'{", ".join(names)}: there is no ratio to compare; the peers may not be installed')
    return rows


def to_markdown(record: dict[str, Any], earlier: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Makes a table of what changed.

    Args:
        record: the new record.
        earlier: the earlier record.
        rows: what :func:`compare` gives.
    """
    header = ['case', 'peer', 'ours', 'before', 'now', 'now / before', 'verdict']
    cells = [
        [
            *(row[key] for key in ('case', 'peer', 'ours')),
            f'{row["before"]:.3g}x',
            f'{row["now"]:.3g}x' if row['now'] else '',
            '{:.2f} to {:.2f}'.format(*row['change']) if row['change'] else '',
            row['verdict'],
        ]
        for row in rows
    ]
    align = ['left'] * 3 + ['right'] * 3 + ['left']
    lines = [f'- Kernels: {earlier["kernels"]} before, {record["kernels"]} now']
    for name in dict.fromkeys([*earlier['versions'], *record['versions']]):
        before, now = earlier['versions'].get(name), record['versions'].get(name)
        if before != now:
            lines.append(f'- {name} is {now}, and was {before}: a peer that changed changes the ratio too')
    least, most = 1 - TOLERANCE, 1 + TOLERANCE
    lines += [
        '- A ratio is how many times faster than the peer the op is. now / before has a 95% interval.',
        f'- {SLOWER}: the interval ends below {least:g}. {FASTER}: it begins above {most:g}. '
        f'{ALIKE}: it lies between {least:g} and {most:g}. {OPEN}: the runs cannot tell.',
    ]
    lines += [f'- Before: {text}' for text in [warning(earlier)] if text]
    lines += [f'- Now: {text}' for text in [warning(record)] if text]
    table = tabulate(cells, header, tablefmt='pipe', colalign=align, disable_numparse=True)
    return '\n'.join(lines) + f'\n\n{table}\n'


def _processor(record: dict[str, Any]) -> str:
    machine = record['machine']
    return ' and '.join(filter(None, (machine['gpu'], f'{machine["cpu"]} with {machine["instructions"]}')))


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row['case'], row['peer'], row['ours']


def _verdict(low: float, high: float) -> str:
    least, most = 1 - TOLERANCE, 1 + TOLERANCE
    if high < least:
        return SLOWER
    if low > most:
        return FASTER
    return ALIKE if low >= least and high <= most else OPEN


def _change(before: dict[str, Any], now: dict[str, Any]) -> tuple[float, float]:
    """Computes the 95% interval of now / before."""
    generator = np.random.default_rng(0)
    changes = _resampled_ratios(now, generator) / _resampled_ratios(before, generator)
    low, high = np.quantile(changes, [0.025, 0.975])
    return float(low), float(high)


def _resampled_ratios(row: dict[str, Any], generator: np.random.Generator) -> np.ndarray:
    """Draws the ratio of a run again and again, from stretches of the run.

    Single calls are not independent: those of one turn are alike, and a neighbour on the machine disturbs
    many in a row. Drawing them would give too narrow an interval. The contenders took turns, so a stretch
    holds the calls of both from the same time.
    """
    ours, peer = row['our_seconds'], row['peer_seconds']
    number = min(len(ours), len(peer), _STRETCHES)

    def medians(seconds: list[float]) -> np.ndarray:
        return np.array([np.median(stretch) for stretch in np.array_split(seconds, number)])

    ratios = medians(peer) / medians(ours)
    return np.median(ratios[generator.integers(number, size=(_RESAMPLES, number))], axis=1)
