"""Reads what a run of an experiment tracker holds, by means of the tracker, from the files it left here."""

import importlib.util
import json
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

import pytest

TRACKERS = [
    'tensorboard',
    *(
        pytest.param(
            name,
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f'{name} is not installed'),
            ],
        )
        for name in ('wandb', 'mlflow')
    ),
]


@dataclass
class Found:
    """What the runs of a name hold, which should be one; ``scalars`` are (step, value) as logged."""

    name: str
    experiment: str
    ids: set = field(default_factory=set)
    parameters: dict = field(default_factory=dict)
    scalars: dict = field(default_factory=dict)
    tables: dict = field(default_factory=dict)

    def add(self, name, step, value):
        self.scalars.setdefault(name, []).append((step, value))


def offline(monkeypatch, home):
    """Sets the environment of someone who has no network and no login."""
    for name in list(os.environ):
        if name.startswith(('WANDB_', 'MLFLOW_')):
            monkeypatch.delenv(name)
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('MLFLOW_DISABLE_TELEMETRY', 'true')
    for variable in ('HOME', 'WANDB_CONFIG_DIR', 'WANDB_CACHE_DIR', 'WANDB_DATA_DIR'):
        monkeypatch.setenv(variable, str(home))


def read_run(tracker, run_dir):
    """The run of a folder, whichever processes wrote it."""
    return {'tensorboard': _tensorboard, 'wandb': _wandb, 'mlflow': _mlflow}[tracker](
        Path(run_dir).absolute()
    )


def _tensorboard(run_dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(run_dir)).Reload()
    found = Found(run_dir.name, run_dir.parent.name, {str(run_dir)})
    for name in events.Tags()['scalars']:
        for event in events.Scalars(name):
            found.add(name, event.step, event.value)
    for name in events.Tags()['tensors']:
        if name.endswith('/text_summary'):
            (text,) = events.Tensors(name)[-1].tensor_proto.string_val
            found.tables[name.removesuffix('/text_summary')] = text.decode()
    for content in events.summary_metadata.values():
        if content.plugin_data.plugin_name == 'hparams':
            start = HParamsPluginData.FromString(content.plugin_data.content).session_start_info
            for name, value in start.hparams.items():
                found.parameters[name] = getattr(value, value.WhichOneof('kind'))
    return found


def _mlflow(run_dir):
    from mlflow import MlflowClient

    client = MlflowClient(f'sqlite:///{run_dir.parent}/mlflow.db')
    runs = client.search_runs(
        [experiment.experiment_id for experiment in client.search_experiments()],
        f"attributes.run_name = '{run_dir.name}'",
    )
    run = runs[0]
    found = Found(run.info.run_name, client.get_experiment(run.info.experiment_id).name)
    found.ids = {run.info.run_id for run in runs}
    assert run.info.status == 'FINISHED'
    found.parameters = run.data.params
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            found.add(name, metric.step, metric.value)
    for artifact in client.list_artifacts(run.info.run_id):
        path = client.download_artifacts(run.info.run_id, artifact.path)
        found.tables[Path(artifact.path).stem] = Path(path).read_text()
    return found


def _wandb(run_dir):
    found, results = Found('', ''), {}
    for path in sorted(run_dir.glob('wandb/offline-run-*/*.wandb'), key=lambda path: path.stat().st_mtime_ns):
        for record in _wandb_records(path):
            if record.HasField('run'):
                found.ids.add(record.run.run_id)
                found.name, found.experiment = record.run.display_name, record.run.project
            for item in record.config.update:
                found.parameters[item.key] = json.loads(item.value_json)
            logged = _wandb_values(record.history.item)
            for name, value in logged.items():
                if name.endswith('.path'):
                    table = json.loads((path.parent / 'files' / value).read_text())
                    rows = [table['columns'], *table['data']]
                    found.tables[name.removesuffix('.path')] = '\n'.join(map(' | '.join, rows))
                elif name != 'step' and '.' not in name:  # the others say what is in the table
                    found.add(name, logged['step'], value)
            results |= _wandb_values(record.summary.update)
    for name in results.keys() - {'step'} - found.scalars.keys():  # W&B repeats there what was logged last
        if '.' not in name:
            found.add(name, 0, results[name])
    return found


def _wandb_values(items):
    values = {item.key or '.'.join(item.nested_key): json.loads(item.value_json) for item in items}
    return {name: value for name, value in values.items() if not name.startswith('_')}


def _wandb_records(path):
    """The file is a log as LevelDB has it, of protobuf records, after 7 bytes of W&B's own."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = path.read_bytes(), 7, b''
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack('<HB', data[at + 4 : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(record)
            record = b''
