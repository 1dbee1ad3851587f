"""The weights that a trial evaluates without training any: where they lie, and which they are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from roi_plugins.ablation.plan import Trial, short_path
from roi_plugins.ablation.records import evaluated_checkpoint
from roi_plugins.files import DataError, read_json
from roi_plugins.run_record import METRICS_FILE, trial_file


class CheckpointError(ValueError):
    """Weights that cannot be evaluated; the message names them and the cause."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights on this machine.

    Attributes:
        path: of the file.
        sha256: of its content: another file at the same path is another checkpoint.
    """

    path: Path
    sha256: str


def find_checkpoint(trial: Trial, work_dir: Path) -> Checkpoint:
    """The weights that a trial names, itself or by the run directory that evaluated them last.

    Raises:
        CheckpointError: they are not there, or the run is not finished or not the one that the plan
            says.
    """
    path = checkpoint_path(trial, work_dir)
    if path.is_dir():
        path = _of_run(path, trial)
    try:
        return Checkpoint(path, _sha256(path))
    except FileNotFoundError:
        raise CheckpointError(f'there is no checkpoint or finished run {path}') from None


def checkpoint_path(trial: Trial, work_dir: Path) -> Path:
    """What a trial names; without ``..``, which needs a work directory that is there."""
    return short_path(work_dir / trial.checkpoint)


def _of_run(run_dir: Path, trial: Trial) -> Path:
    if not (run_dir / METRICS_FILE).is_file():
        raise CheckpointError(f'{run_dir} is not a finished run: it has no {METRICS_FILE}')
    try:
        _check_trial(run_dir, trial)
        metrics = read_json(run_dir / METRICS_FILE, 'record')
    except DataError as error:
        raise CheckpointError(str(error)) from None
    if metrics.get('framework') != trial.framework:
        raise CheckpointError(
            f'{run_dir} is a run of {metrics.get("framework")}; expected one of {trial.framework}'
        )
    path = evaluated_checkpoint(run_dir, metrics)
    if path is None:
        raise CheckpointError(
            f'{metrics.get("checkpoint")}, the checkpoint of {run_dir}, is not there any more'
        )
    return path


def _check_trial(run_dir: Path, trial: Trial) -> None:
    """A trial of a plan says what it is: a slip in a path must not become a wrong label in a table."""
    if not trial_file(run_dir).is_file():
        return
    record = read_json(trial_file(run_dir), 'record')
    for key, expected in (('extractor', trial.trained_with), ('seed', trial.seed)):
        if record.get(key) != expected:
            raise CheckpointError(
                f'{run_dir} was trained with the {key} {record.get(key)!r}, but the plan says {expected!r}'
            )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
