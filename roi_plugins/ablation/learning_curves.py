"""Reads the losses of finished trainings from the logs that the frameworks write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from roi_plugins.ablation.results import is_stock_detectron2
from roi_plugins.run_record import METRICS_FILE

_DETECTRON2_LOG = 'training.json'
_KEYS = (('step', 'loss'), ('iteration', 'total_loss'))
"""The names of the iteration and of the total loss, in MMDetection and in Detectron2."""


def read_learning_curve(run_dir: Path) -> tuple[pd.Series, list[str]]:
    """Reads the total loss over the iterations of a training.

    A training that was resumed goes on at its checkpoint. What was logged after that checkpoint before the
    interruption is left out, because it is not part of the training that led to the result.

    Args:
        run_dir: the folder of the run.

    Returns:
        The loss by iteration, empty if there is no log, and a note for each log that is damaged.
    """
    points: list[tuple[int, float]] = []
    notes = []
    for log in _logs(run_dir):
        damaged = 0
        try:
            lines = log.read_text(encoding='utf-8', errors='replace').splitlines()
        except OSError as error:
            notes.append(f'{log}: cannot be read: {error.strerror}; its losses are left out')
            continue
        for line in filter(str.strip, lines):
            try:
                point = _point(json.loads(line))
            except (ValueError, TypeError, RecursionError):
                damaged += 1
                continue
            if point:
                while points and points[-1][0] >= point[0]:
                    points.pop()
                points.append(point)
        if damaged:
            notes.append(f'{log}: {damaged} of {len(lines)} lines are damaged and left out of the losses')
    losses = pd.Series(dict(points), dtype=float)
    return losses, notes


def _logs(run_dir: Path) -> Iterator[Path]:
    """Yields the logs in the order in which they were written. MMDetection begins one at each start."""
    yield from sorted(run_dir.glob('*/vis_data/scalars.json'))
    detectron2 = run_dir / (METRICS_FILE if is_stock_detectron2(run_dir) else _DETECTRON2_LOG)
    if detectron2.is_file():
        yield detectron2


def _point(entry: dict) -> tuple[int, float] | None:
    """Returns the iteration and its loss; None for another entry, such as that of an evaluation."""
    if not isinstance(entry, dict):
        raise TypeError(entry)
    for iteration, loss in _KEYS:
        if iteration in entry and loss in entry:
            return int(entry[iteration]), float(entry[loss])
    return None
