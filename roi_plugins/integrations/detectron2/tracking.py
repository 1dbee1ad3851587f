"""Hands what Detectron2 logs to an experiment tracker for which Detectron2 has no writer."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from pathlib import Path

from detectron2.utils.events import EventWriter, get_event_storage

from roi_plugins.tracking import TrackedRun, open_run

_WINDOW = 20  # over which Detectron2's own writers take the median of the losses


class TrackerWriter(EventWriter):
    """Logs the scalars that Detectron2's ``TensorboardXWriter`` writes, with the same smoothing.

    Args:
        tracker: a name in ``roi_plugins.tracking.TRACKERS``.
        output_dir: the folder of the run.
    """

    def __init__(self, tracker: str, output_dir: Path) -> None:
        self._tracker = tracker
        self._output_dir = output_dir
        self._last_step = -1

    @cached_property
    def _run(self) -> TrackedRun:
        return open_run(self._tracker, self._output_dir)

    def write(self) -> None:
        new: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, step) in get_event_storage().latest_with_smoothing_hint(_WINDOW).items():
            if step > self._last_step:
                new[step][name] = float(value)
        for step in sorted(new):
            self._run.scalars(new[step], step)
            self._last_step = step

    def close(self) -> None:
        if '_run' in self.__dict__:
            self._run.close()
