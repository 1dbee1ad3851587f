"""Measures how time and memory grow: one case, of which one dimension at a time is changed.

The base is align-avg 7x7 on one image of 1024x1024 px, stride 16, 256 channels, 512 RoIs. A point is the base
with one other value, forward or backward.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from roi_plugins.benchmark.cases import (
    ALIGN_AVG,
    ALIGN_PEERS,
    BACKWARD,
    C4,
    FORWARD,
    Case,
)
from roi_plugins.benchmark.measure import Effort, measure_case

ROUNDS = 3
LIMIT = 1.0
"""Seconds. A peer that took longer is not measured at larger points of the dimension."""
_STRIDE = C4[0]
_ROIS_CHANNELS = 16  # with 256, the output of 100,000 RoIs would take 5 GB


@dataclass(frozen=True)
class Dimension:
    """What is changed.

    Attributes:
        label: the name of the axis, with everything else that differs from the base.
        values: the values that are measured, in ascending order.
        change: makes a case with another value.
    """

    label: str
    values: tuple[int, ...]
    change: Callable[[Case, int], Case]


def _thread_numbers() -> tuple[int, ...]:
    cores = os.cpu_count() or 1
    powers = (2**power for power in range(cores.bit_length()))
    return tuple(sorted({*powers, cores, 2 * cores}))


DIMENSIONS = {
    'rois': Dimension(
        f'RoIs ({_ROIS_CHANNELS} channels)',
        (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000),
        lambda case, value: replace(case, num_rois=value, channels=_ROIS_CHANNELS),
    ),
    'channels': Dimension(
        'channels',
        (16, 32, 64, 128, 256, 512, 1024, 2048),
        lambda case, value: replace(case, channels=value),
    ),
    'map': Dimension(
        'cells per side of the map',
        (16, 32, 64, 128, 256, 512),
        lambda case, value: replace(case, image_size=(_STRIDE * value, _STRIDE * value)),
    ),
    'output': Dimension(
        'bins per side of the output',
        (1, 2, 4, 7, 14, 28),
        lambda case, value: replace(case, output_size=value),
    ),
    'threads': Dimension('threads', _thread_numbers(), lambda case, value: case),
}
"""What is changed, by name, in the order of the panels."""

GROWTH_PEERS = ALIGN_PEERS


def growth_measures(
    device: torch.device, done: list[dict[str, Any]]
) -> dict[str, Callable[[], dict[str, Any]]]:
    """Makes the calls that measure the points, by the name of the point.

    Args:
        device: where to measure.
        done: the records of the points that are measured already. A call looks at it when it runs.
    """
    return {
        f'{dimension}-{value}-{step}': partial(measure_point, dimension, value, step, device, done)
        for dimension in DIMENSIONS
        if dimension != 'threads' or device.type == 'cpu'
        for step in (FORWARD, BACKWARD)
        for value in DIMENSIONS[dimension].values
    }


def make_case(dimension: str, value: int, step: str) -> Case:
    """Makes the case of a point.

    Args:
        dimension: a key of ``DIMENSIONS``.
        value: the value of the dimension.
        step: ``FORWARD`` or ``BACKWARD``.
    """
    side = 64 * _STRIDE
    name = f'{dimension}-{value}-{step}'
    base = Case(name, 7, step, ALIGN_AVG, C4, GROWTH_PEERS, images=1, image_size=(side, side))
    return DIMENSIONS[dimension].change(base, value)


def measure_point(
    dimension: str, value: int, step: str, device: torch.device, done: list[dict[str, Any]]
) -> dict[str, Any]:
    """Measures a point.

    Args:
        dimension: a key of ``DIMENSIONS``.
        value: the value of the dimension.
        step: ``FORWARD`` or ``BACKWARD``.
        device: where to measure.
        done: the records of the points that are measured already.

    Returns:
        A record as :func:`~roi_plugins.benchmark.measure.measure_case` gives, with ``'dimension'`` and
        ``'value'``.
    """
    case = make_case(dimension, value, step)
    smaller = [
        point
        for point in done
        if (point['dimension'], point['step']) == (dimension, step) and point['value'] < value
    ]
    slow = _slow_peers(smaller)
    case = replace(case, peers=tuple(peer for peer in case.peers if peer not in slow))
    with _threads(value if dimension == 'threads' else torch.get_num_threads()):
        record = measure_case(case, device, Effort(seconds=0, min_rounds=ROUNDS))
    return {
        **record,
        'copy_bytes_per_second': None,  # the pages show no floor
        'dimension': dimension,
        'value': value,
        'left_out': {**slow, **record['left_out']},
    }


def _slow_peers(points: list[dict[str, Any]]) -> dict[str, str]:
    slow: dict[str, str] = {}
    for point in points:
        for peer in GROWTH_PEERS:
            # It may run in several layouts and dtypes; the fastest one counts.
            medians = [statistics.median(m['seconds']) for m in point['measurements'] if m['name'] == peer]
            if medians and min(medians) > LIMIT:
                reason = f'took {min(medians):.1f} s at {point["name"]}, over the limit of {LIMIT:g} s'
                slow.setdefault(peer, reason)
    return slow


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
