"""What is to be run for each trial of a plan, and what of it has been run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from roi_plugins.ablation.checkpoints import (
    Checkpoint,
    CheckpointError,
    checkpoint_path,
    find_checkpoint,
)
from roi_plugins.ablation.confounding import find_confounded
from roi_plugins.ablation.plan import Plan, Trial
from roi_plugins.integrations.base import Inputs
from roi_plugins.integrations.registry import FRAMEWORKS
from roi_plugins.needs import explain_missing
from roi_plugins.run_record import METRICS_FILE, trial_file
from roi_plugins.settings import flatten

LOG_FILE = 'trial.log'  # not log.txt, which Detectron2 writes itself: every line came twice


class AblationError(RuntimeError):
    """An ablation that cannot be started as asked; the message says what to do."""


@dataclass(frozen=True)
class Job:
    """A trial with all that is needed to run it.

    Attributes:
        trial: as the plan has it.
        run_dir: where it is run.
        commands: what is run, one after the other, each a list of arguments.
        digest: of everything that decides the result: the config with all that it inherits, the
            options with the seed, and the checkpoint, if one is given, or the number of GPUs.
        record: the content of ``trial.json`` where the trial was run before, else empty.
        finished: its run directory holds the finished run.
        checkpoint: what a trial that trains nothing evaluates; else None.
        problem: why the trial cannot be run now; empty if it can.
        settings: what its config says, with its options, by dotted keys; not what swaps the extractor.
    """

    trial: Trial
    run_dir: Path
    commands: list[list[str]]
    digest: str
    record: Mapping[str, Any]
    finished: bool
    checkpoint: Checkpoint | None = None
    problem: str = ''
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """What its processes have printed."""
        return self.run_dir / LOG_FILE


def prepare(plan: Plan, work_dir: Path, cfg_options: Mapping[str, Any]) -> list[Job]:
    """Works out what is to be run for each trial of a plan, and what of it has been run.

    Args:
        plan: see :func:`roi_plugins.ablation.plan.load_plan`.
        work_dir: where the run directories are.
        cfg_options: config options for every trial; they win over those of the plan.

    Returns:
        A job for each trial, in the order of the plan.

    Raises:
        AblationError: a run directory holds results of something else than its trial now says, or a
            config cannot be read.
    """
    return [prepare_trial(trial, work_dir, cfg_options, plan) for trial in plan.trials]


def recorded(plan: Plan, work_dir: Path) -> list[Job]:
    """The trials of a plan as their files tell of them: without commands, and without reading configs."""
    jobs = []
    for trial in plan.trials:
        run_dir = work_dir / trial.name
        record = read_record(run_dir)
        finished = record.get('state') == 'finished' and (run_dir / METRICS_FILE).exists()
        jobs.append(Job(trial, run_dir, [], record.get('digest', ''), record, finished))
    return jobs


def warn_of_confounded(jobs: Sequence[Job], plan: Plan, console: Console) -> None:
    """Prints which extractors of a plan have configs that differ in more than the extractor.

    Rows over one config cannot; the configs of a path with ``{extractor}`` can.
    """
    settings = {job.trial: job.settings for job in jobs}
    for warning in find_confounded([job.trial for job in jobs], plan.baseline, settings.__getitem__):
        console.print(f'warning: {warning}', markup=False, highlight=False, soft_wrap=True)


def read_record(run_dir: Path) -> dict[str, Any]:
    """The content of ``trial.json``; empty where a trial was never run."""
    try:
        return json.loads(trial_file(run_dir).read_text(encoding='utf-8'))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise AblationError(
            f'{trial_file(run_dir)} cannot be read: {error}; move {run_dir} away to run anew'
        ) from None


def prepare_trial(trial: Trial, work_dir: Path, cfg_options: Mapping[str, Any], plan: Plan) -> Job:
    framework = FRAMEWORKS[trial.framework]
    run_dir = work_dir / trial.name
    options = {**trial.cfg_options, **cfg_options, framework.seed_option: trial.seed}
    record = read_record(run_dir)
    checkpoint, problem = None, ''
    if trial.checkpoint is not None:
        if double := [name for name in framework.weights_options if name in options]:
            raise AblationError(
                f'trial {trial.name}: got the option {double[0]}, but the trial tests {trial.checkpoint} '
                'and trains nothing; leave the option out'
            )
        checkpoint, problem = _find_checkpoint(trial, work_dir, record)
    try:
        resolved = framework.resolve(trial.config, options)
        weights = checkpoint.path if checkpoint else None
        commands = framework.commands(
            trial.config, run_dir, options, trial.inputs, weights, plan.num_gpus, plan.num_nodes
        )
    except Exception as error:  # configs are programs: anything can happen in them
        missing = explain_missing(error) if isinstance(error, ImportError) else None
        if missing:
            raise AblationError(f'trial {trial.name} needs {missing}') from error
        raise AblationError(
            f'trial {trial.name}: the config {trial.config} cannot be read with its options: '
            f'{type(error).__name__}: {" ".join(str(error).split())}'
        ) from error
    decisive = resolved
    if checkpoint:
        decisive = [resolved, checkpoint.sha256]
    elif plan.num_gpus > 1:  # it decides the batches; a test is the same on any number
        decisive = [resolved, plan.num_gpus]
    if trial.inputs != Inputs():
        decisive = [decisive, asdict(trial.inputs)]
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()
    has_metrics = (run_dir / METRICS_FILE).exists()
    if record.get('digest') != digest:
        if has_metrics or (run_dir / 'last_checkpoint').exists():
            raise AblationError(
                f'trial {trial.name}: {run_dir} holds the results of another config, other options, '
                'another checkpoint or number of GPUs than the plan has now. To keep them and run all '
                f'trials anew, give another --work-dir; to run this trial anew, move {run_dir} away'
            )
        record = {}
    finished = has_metrics and record.get('state') == 'finished'
    return Job(trial, run_dir, commands, digest, record, finished, checkpoint, problem, flatten(resolved))


def _find_checkpoint(trial: Trial, work_dir: Path, record: Mapping[str, Any]) -> tuple[Checkpoint, str]:
    """What the trial evaluates, and why it cannot, if it cannot."""
    try:
        return find_checkpoint(trial, work_dir), ''
    except CheckpointError as error:
        recorded = record.get('checkpoint') or {}
        if record.get('state') == 'finished' and recorded.get('given') == str(trial.checkpoint):
            # Its result stands, even if the weights were removed since to save space.
            return Checkpoint(Path(recorded['path']), recorded['sha256']), ''
        return Checkpoint(checkpoint_path(trial, work_dir), ''), str(error)


def now() -> str:
    """The time, as records have it."""
    return datetime.now().astimezone().isoformat(timespec='seconds')
