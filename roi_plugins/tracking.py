"""Experiment trackers: TensorBoard, Weights & Biases and MLflow, behind one interface.

A run of a tracker belongs to the folder of a run and has its name. ``tracking.json`` in that folder holds its
id, so each process that works on the folder continues the same run. Nothing here needs a network or a login,
unless the tracker is set up to use a server:

- TensorBoard: event files in the folder.
- Weights & Biases: ``wandb/`` in the folder. ``WANDB_MODE=offline`` keeps everything there. ``WANDB_PROJECT``
  and ``WANDB_DIR`` have their usual meaning.
- MLflow: ``mlflow.db`` and ``mlartifacts/`` beside the folder, or the store that ``MLFLOW_TRACKING_URI``
  names. ``MLFLOW_EXPERIMENT_NAME`` has its usual meaning.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from roi_plugins.files import read_json, write_json
from roi_plugins.needs import explain_missing

if TYPE_CHECKING:  # the benchmark imports this module where there is no pandas
    import pandas

TRACKING_FILE = 'tracking.json'


class TrackedRun(Protocol):
    """A run of a tracker.

    Attributes:
        id: the name by which the tracker finds the run again.
    """

    id: str

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Logs what the run was given. A parameter that is logged again keeps its value.

        Args:
            values: the parameters by name.
        """

    def scalars(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Logs numbers.

        Args:
            values: the numbers by name.
            step: the step or epoch that they are of; None for the result of the run.
        """

    def table(self, title: str, table: pandas.DataFrame, step: int) -> None:
        """Logs a table.

        Args:
            title: the title of the table.
            table: its cells.
            step: as for :meth:`scalars`.
        """

    def close(self) -> None:
        """Writes what is left to write, and marks the run as finished. It can be opened again."""


def find_problem(tracker: str) -> str:
    """Tells what a tracker lacks here.

    Args:
        tracker: a name in ``TRACKERS``.

    Returns:
        What is missing and what to do, to follow "needs"; empty if nothing is.
    """
    missing = explain_missing(ImportError(name=tracker))
    if missing or tracker != 'wandb':
        return missing or ''
    import wandb

    if wandb.setup().settings.mode in ('offline', 'dryrun', 'disabled'):
        return ''
    if wandb.login(prompt=False, verify=False):
        return ''
    return 'an API key: call `wandb login` once, or set WANDB_MODE=offline to keep the runs on this machine'


def open_run(tracker: str, run_dir: str | Path, experiment: str = '') -> TrackedRun:
    """Opens the tracker's run of a folder: the one of ``tracking.json``, or a new one.

    Args:
        tracker: a name in ``TRACKERS``.
        run_dir: the folder of the run; made if need be. Its name is the name of the run.
        experiment: what a new run is a part of, which W&B calls its project; by default the name of the
            folder above.

    Returns:
        The run. Only one process may have it open.
    """
    run_dir = Path(run_dir).absolute()
    run_dir.mkdir(parents=True, exist_ok=True)
    records = _read(run_dir)
    recorded = records.get(tracker, {})
    experiment = recorded.get('experiment') or experiment or run_dir.parent.name
    run = TRACKERS[tracker](run_dir, experiment, recorded.get('id'))
    if run.id != recorded.get('id'):
        records[tracker] = {'id': run.id, 'experiment': experiment, 'logged': {}}
        write_json(run_dir / TRACKING_FILE, records)
    return run


def log_once(
    tracker: str,
    run_dir: Path,
    experiment: str,
    what: str,
    content: bytes,
    log: Callable[[TrackedRun], None],
) -> None:
    """Logs something to the run of a folder, unless it has been logged already.

    Args:
        tracker, run_dir, experiment: see :func:`open_run`.
        what: a name for it.
        content: all that is to be logged. It is logged again only after it has changed.
        log: logs it.
    """
    digest = hashlib.sha256(content).hexdigest()
    if _read(run_dir).get(tracker, {}).get('logged', {}).get(what) == digest:
        return
    run = open_run(tracker, run_dir, experiment)
    try:
        log(run)
    finally:
        run.close()
    records = _read(run_dir)
    records[tracker]['logged'][what] = digest
    write_json(run_dir / TRACKING_FILE, records)


def _read(run_dir: Path) -> dict[str, dict[str, Any]]:
    path = run_dir / TRACKING_FILE
    return read_json(path, 'record of trackers') if path.exists() else {}


class _TensorBoard:
    def __init__(self, run_dir: Path, experiment: str, id: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.id = '.'  # the folder itself
        self._name = run_dir.name
        self._writer: Any = SummaryWriter(str(run_dir))  # whose types lack its file_writer

    def parameters(self, values: Mapping[str, Any]) -> None:
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        # SummaryWriter.add_hparams would also fix which metrics are shown, before there are any.
        plain = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in values.items()}
        self._writer.file_writer.add_summary(hparams_pb(plain, trial_id=self._name))

    def scalars(self, values: Mapping[str, float], step: int | None = None) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def table(self, title: str, table: pandas.DataFrame, step: int) -> None:
        self._writer.add_text(title, table.to_markdown(index=False), step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, run_dir: Path, experiment: str, id: str | None) -> None:
        import wandb

        self.id = id or uuid.uuid4().hex
        self._run = wandb.init(
            project=os.environ.get('WANDB_PROJECT') or re.sub(r'[/\\#?%:]', '-', experiment),
            dir=os.environ.get('WANDB_DIR') or str(run_dir),
            name=run_dir.name,
            id=self.id,
            resume='allow',
            settings=wandb.Settings(console='off', silent=True),
        )
        # W&B's own step never goes back. Ours does: a training is resumed, and epochs are fewer than steps.
        self._run.define_metric('step')
        self._run.define_metric('*', step_metric='step')

    def parameters(self, values: Mapping[str, Any]) -> None:
        self._run.config.update(dict(values), allow_val_change=True)

    def scalars(self, values: Mapping[str, float], step: int | None = None) -> None:
        if step is None:
            self._run.summary.update(dict(values))
        else:
            self._run.log({**values, 'step': step})

    def table(self, title: str, table: pandas.DataFrame, step: int) -> None:
        import wandb

        self._run.log({title: wandb.Table(columns=list(table), data=table.to_numpy().tolist()), 'step': step})

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, run_dir: Path, experiment: str, id: str | None) -> None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        uri, artifacts = os.environ.get('MLFLOW_TRACKING_URI'), None
        if not uri:
            uri = f'sqlite:///{run_dir.parent}/mlflow.db'
            artifacts = (run_dir.parent / 'mlartifacts').as_uri()
        self._client = MlflowClient(uri)
        try:
            known = bool(id) and self._client.get_run(id).info.lifecycle_stage == 'active'
        except MlflowException:  # the id is of another store
            known = False
        if not known:
            name = os.environ.get('MLFLOW_EXPERIMENT_NAME') or experiment
            found = self._client.get_experiment_by_name(name)
            of = found.experiment_id if found else self._client.create_experiment(name, artifacts)
            id = self._client.create_run(of, run_name=run_dir.name).info.run_id
        assert id is not None
        self.id = id
        self._client.update_run(self.id, 'RUNNING')

    def parameters(self, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        known = self._client.get_run(self.id).data.params  # MLflow refuses to change them
        new = {_mlflow_name(name): str(value)[:6000] for name, value in values.items()}  # its longest value
        params = [Param(name, value) for name, value in new.items() if name not in known]
        for start in range(0, len(params), 100):  # as many as it takes at a time
            self._client.log_batch(self.id, params=params[start : start + 100])

    def scalars(self, values: Mapping[str, float], step: int | None = None) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(_mlflow_name(name), value, now, step or 0) for name, value in values.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def table(self, title: str, table: pandas.DataFrame, step: int) -> None:
        self._client.log_text(self.id, table.to_markdown(index=False), f'{title}.md')

    def close(self) -> None:
        self._client.set_terminated(self.id)


def _mlflow_name(name: str) -> str:
    return re.sub(r'[^\w. :/-]', '_', name)


TRACKERS: dict[str, Callable[[Path, str, str | None], TrackedRun]] = {
    'tensorboard': _TensorBoard,
    'wandb': _Wandb,
    'mlflow': _MLflow,
}
"""The trackers by name, which is also the name of their package."""
