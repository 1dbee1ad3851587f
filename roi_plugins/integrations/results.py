"""The result of a test in its folder: never overwritten by that of another test, and replaced as a whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from roi_plugins.run_record import METRICS_FILE, PREDICTION_FILES

from .errors import RunError


def check_same_run(run_dir: Path, is_same: Callable[[Mapping[str, Any]], bool], advice: str) -> None:
    """Checks that a folder holds no result, or that of the run which is about to write to it.

    Args:
        run_dir: the folder of the run; it need not exist.
        is_same: takes the content of ``metrics.json``; whether it is the record of the same run.
        advice: the end of the error message: what the user can do.

    Raises:
        RunError: the folder holds the result of another run.
    """
    try:
        found = json.loads((run_dir / METRICS_FILE).read_text(encoding='utf-8'))
    except FileNotFoundError:
        return
    if not is_same(found):
        raise RunError(
            f'{run_dir} holds the result of another run, of the checkpoint {found["checkpoint"]} with the '
            f'config {found["config"]} ({" ".join(found["command"])}). {advice}'
        )


def partial_predictions(run_dir: Path) -> Path:
    """The folder for predictions that are not complete yet; what an interrupted test left in it is removed.

    With it, a test that is interrupted leaves an earlier result as it was.

    Args:
        run_dir: the folder of the run.
    """
    partial = run_dir / 'predictions.partial'
    shutil.rmtree(partial, ignore_errors=True)
    return partial


def replace_predictions(run_dir: Path, partial: Path, iou_types: Collection[str]) -> None:
    """Moves complete predictions to the folder of a run, and removes the result that was there.

    Args:
        run_dir: the folder of the run.
        partial: the folder that :func:`partial_predictions` gave; it is removed.
        iou_types: which predictions are evaluated, of ``PREDICTION_FILES``; others are removed.
    """
    (run_dir / METRICS_FILE).unlink(missing_ok=True)
    for iou_type, name in PREDICTION_FILES.items():
        if iou_type in iou_types:
            os.replace(partial / name, run_dir / name)
        else:
            (run_dir / name).unlink(missing_ok=True)
    shutil.rmtree(partial)
