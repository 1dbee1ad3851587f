"""Reads how a finished run was made, from the records in its folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roi_plugins.ablation.results import Run, is_stock_detectron2
from roi_plugins.files import DataError, read_json
from roi_plugins.run_record import METRICS_FILE, trial_file
from roi_plugins.settings import read_settings


@dataclass(frozen=True)
class Record:
    """How a run was made, according to its ``metrics.json`` and ``trial.json``.

    Attributes:
        commands: the commands of the trial, or the one that evaluated the run. Each is a list of arguments.
        config: the config with all options, as the framework saved it; None if the file is gone.
        settings: see :func:`roi_plugins.settings.read_settings`; None if they were not recorded.
        extractors: type and options of each extractor of the evaluated model, by its place in the model.
        checkpoint: the evaluated weights; None if the file is gone.
        image_dir: the folder of the evaluated images; None if it was not recorded.
        versions: the versions of the packages, by name; empty if they were not recorded.
        hardware: the GPUs or the processor; empty if it was not recorded.
        time: when the run was evaluated; empty if it was not recorded.
    """

    commands: list[list[str]]
    config: Path | None
    settings: dict[str, Any] | None
    extractors: dict[str, dict[str, Any]]
    checkpoint: Path | None
    image_dir: Path | None
    versions: dict[str, str]
    hardware: str
    time: str


def read_record(run: Run) -> Record | None:
    """Reads the records of a run.

    Args:
        run: the run.

    Returns:
        The record; None for bare prediction files and runs of a framework's own tools, which have none.

    Raises:
        DataError: a record cannot be read.
    """
    run_dir = Path(run.name)
    if not (run_dir / METRICS_FILE).is_file() or is_stock_detectron2(run_dir):
        return None
    metrics = _read(run_dir / METRICS_FILE)
    trial = _read(trial_file(run_dir)) if trial_file(run_dir).is_file() else {}
    # Detectron2 saves the config as config.yaml, MMDetection under its own name.
    configs = (run_dir / 'config.yaml', run_dir / os.path.basename(str(metrics.get('config', ''))))
    return Record(
        commands=trial.get('commands') or [metrics.get('command', [])],
        config=next((path for path in configs if path.is_file()), None),
        settings=read_settings(run_dir),
        extractors=metrics.get('extractors', {}),
        checkpoint=evaluated_checkpoint(run_dir, metrics),
        image_dir=Path(folder) if (folder := metrics.get('image_dir')) else None,
        versions=metrics.get('versions', {}),
        hardware=metrics.get('hardware', ''),
        time=metrics.get('time', ''),
    )


def evaluated_checkpoint(run_dir: Path, metrics: Mapping[str, Any]) -> Path | None:
    """Finds the weights that ``metrics.json`` names, also if the run directory was moved.

    Args:
        run_dir: the run directory.
        metrics: the content of its ``metrics.json``.

    Returns:
        The file; None if it is gone.
    """
    recorded = str(metrics.get('checkpoint', ''))
    paths = (run_dir / os.path.basename(recorded), Path(recorded))
    return next((path for path in paths if path.is_file()), None)


def _read(path: Path) -> dict[str, Any]:
    record = read_json(path, 'record')
    if not isinstance(record, dict):
        raise DataError(f'{path}: not a record; expected an object')
    return record
