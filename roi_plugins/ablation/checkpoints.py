"""The weights of a trial that only evaluates: finds the file and hashes it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from roi_plugins.ablation.records import evaluated_checkpoint
from roi_plugins.ablation.trial import Trial
from roi_plugins.files import DataError, read_json
from roi_plugins.run_record import METRICS_FILE, trial_file


class CheckpointError(ValueError):
    """Weights cannot be evaluated. The message names them and the cause."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights on this machine.

    Attributes:
        path: the file.
        sha256: the hash of its content. Another file at the same path is another checkpoint.
    """

    path: Path
    sha256: str


def find_checkpoint(path: Path, trial: Trial) -> Checkpoint:
    """Finds the weights that a trial evaluates.

    Args:
        path: a file of weights, or a run directory. Of a run directory, the weights that it evaluated last.
        trial: the trial that evaluates them.

    Raises:
        CheckpointError: there are no weights, or the run is not finished, or it is another run than the plan
            says.
    """
    if path.is_dir():
        path = _of_run(path, trial)
    try:
        return Checkpoint(path, _sha256(path))
    except FileNotFoundError:
        raise CheckpointError(f'there is no checkpoint or finished run {path}') from None


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
    """Checks that a run is of the extractor and seed that the plan names.

    A wrong path in a plan would otherwise become a wrong label in a table.
    """
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
