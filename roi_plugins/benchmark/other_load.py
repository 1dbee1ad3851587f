"""Watches whether a measurement has the machine to itself.

The op uses all threads, and most peers use one. So a process that takes a core slows the op alone, and the
ratios to the peers are wrong.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

_IDLE = 0.1  # cores that other processes may take on an idle machine
_NAMED = 5


class OtherLoad:
    """How busy other processes, and other virtual machines of the host, keep the cores from now on."""

    def __init__(self) -> None:
        self._wall, self._others = time.perf_counter(), _seconds_of_others()

    def cores(self) -> float | None:
        """Returns how many cores they kept busy since the start; None where the system does not tell."""
        others = _seconds_of_others()
        if others is None or self._others is None:
            return None
        return (others - self._others) / (time.perf_counter() - self._wall)


def warning(record: dict[str, Any]) -> str | None:
    """Returns the warning that others took cores which the op needed, or None.

    Args:
        record: see :mod:`roi_plugins.benchmark.record`; its cases have ``'other_cores'``, what
            :class:`OtherLoad` gave. Those of an earlier version do not have it.
    """
    cores, threads = record['machine']['cores'], record['threads']
    busy = {case['name']: case.get('other_cores') or 0.0 for case in record['cases']}
    disturbed = [name for name, others in busy.items() if others + min(threads, cores) > cores + _IDLE]
    if record['device'] != 'cpu' or not disturbed:
        return None
    named = ', '.join(disturbed[:_NAMED])
    if len(disturbed) > _NAMED:
        named += f' and {len(disturbed) - _NAMED} more of {len(busy)}'
    return (
        f'**Disturbed**: other processes kept up to {max(busy.values()):.1f} of {cores} cores busy, and the '
        f'op runs on {threads}. Measure again on an idle machine: {named}'
    )


def _seconds_of_others() -> float | None:
    with contextlib.suppress(OSError), open('/proc/stat', encoding='utf-8') as file:
        user, nice, system, _idle, _waiting, interrupt, soft, stolen = map(int, file.readline().split()[1:9])
        ticks = user + nice + system + interrupt + soft + stolen
        return ticks / os.sysconf('SC_CLK_TCK') - time.process_time()
    return None
