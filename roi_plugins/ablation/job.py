"""What each trial of a plan runs, and how much of it is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from roi_plugins.ablation.checkpoints import Checkpoint, CheckpointError, find_checkpoint
from roi_plugins.ablation.confounding import find_confounded
from roi_plugins.ablation.plan import Plan, short_path
from roi_plugins.ablation.trial import Trial
from roi_plugins.integrations.base import Inputs
from roi_plugins.integrations.registry import FRAMEWORKS
from roi_plugins.needs import explain_missing
from roi_plugins.run_record import METRICS_FILE, trial_file
from roi_plugins.settings import flatten

LOG_FILE = 'trial.log'  # not log.txt: Detectron2 writes a file of that name, and every line would come twice


class AblationError(RuntimeError):
    """An ablation cannot be started as asked. The message says what to do."""


@dataclass(frozen=True)
class Job:
    """A trial with all that is needed to run it.

    Attributes:
        trial: the trial of the plan.
        run_dir: the folder of the run.
        commands: the commands to run, one after the other. Each is a list of arguments.
        digest: a hash of everything that decides the result: the config with all files that it inherits
            from, the options with the seed, and the checkpoint, if one is given, or the number of GPUs.
        record: the content of ``trial.json``; empty if the trial was never run.
        finished: whether the run directory holds the finished run.
        checkpoint: the weights to evaluate; None for a trial that trains its own.
        problem: why the trial cannot run now; empty if it can.
        settings: the values of its config, with its options, by dotted keys. The swapped extractor is not
            among them.
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
        """The file with the output of the trial's processes."""
        return self.run_dir / LOG_FILE


def prepare(plan: Plan, work_dir: Path, cfg_options: Mapping[str, Any]) -> list[Job]:
    """Works out what each trial of a plan runs, and how much of it is done.

    Args:
        plan: the plan, see :func:`roi_plugins.ablation.plan.load_plan`.
        work_dir: the folder of the run directories.
        cfg_options: config options for every trial. They win over those of the plan.

    Returns:
        A job for each trial, in the order of the plan.

    Raises:
        AblationError: a run directory holds the results of something else than its trial now says, or a
            config cannot be read.
    """
    return [prepare_trial(trial, work_dir, cfg_options, plan) for trial in plan.trials]


def recorded(plan: Plan, work_dir: Path) -> list[Job]:
    """Reads the state of the trials of a plan from their files, without reading any config.

    Args:
        plan: the plan.
        work_dir: the folder of the run directories.

    Returns:
        A job for each trial, in the order of the plan, without commands.
    """
    jobs = []
    for trial in plan.trials:
        run_dir = work_dir / trial.name
        record = read_trial_file(run_dir)
        finished = record.get('state') == 'finished' and (run_dir / METRICS_FILE).exists()
        jobs.append(Job(trial, run_dir, [], record.get('digest', ''), record, finished))
    return jobs


def warn_of_confounded(jobs: Sequence[Job], plan: Plan, console: Console) -> None:
    """Prints a warning for each extractor whose config differs from the baseline's in other settings too.

    That can happen only where rows have configs of their own.

    Args:
        jobs: all trials of the plan.
        plan: the plan.
        console: where to print.
    """
    settings = {job.trial: job.settings for job in jobs}
    for warning in find_confounded([job.trial for job in jobs], plan.baseline, settings.__getitem__):
        console.print(f'warning: {warning}', markup=False, highlight=False, soft_wrap=True)


def read_trial_file(run_dir: Path) -> dict[str, Any]:
    """Reads ``trial.json`` in a run directory; empty if the trial was never run.

    Args:
        run_dir: the folder of the run.

    Raises:
        AblationError: the file is not JSON.
    """
    try:
        return json.loads(trial_file(run_dir).read_text(encoding='utf-8'))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise AblationError(
            f'{trial_file(run_dir)} cannot be read: {error}; move {run_dir} away to run the trial again'
        ) from None


def prepare_trial(trial: Trial, work_dir: Path, cfg_options: Mapping[str, Any], plan: Plan) -> Job:
    """Does for one trial of a plan what :func:`prepare` does for all."""
    framework = FRAMEWORKS[trial.framework]
    run_dir = work_dir / trial.name
    options = {**trial.cfg_options, **cfg_options, framework.seed_option: trial.seed}
    record = read_trial_file(run_dir)
    checkpoint, problem = None, ''
    if trial.checkpoint is not None:
        if double := [name for name in framework.weights_options if name in options]:
            raise AblationError(
                f'trial {trial.name}: got the option {double[0]}, but the trial tests {trial.checkpoint} '
                'and trains nothing; leave the option out'
            )
        # The work directory need not be there yet, so `..` in the path must not lead through it.
        path = short_path(work_dir / trial.checkpoint)
        checkpoint, problem = _find_checkpoint(path, trial, record)
    try:
        resolved = framework.resolve(trial.config, options)
        weights = checkpoint.path if checkpoint else None
        commands = framework.commands(
            trial.config,
            run_dir,
            options,
            trial.inputs,
            weights,
            plan.num_gpus,
            plan.num_nodes,
            plan.tracker,
        )
    except Exception as error:  # configs are programs: anything can happen in them
        missing = explain_missing(error) if isinstance(error, ImportError) else None
        if missing:
            raise AblationError(f'trial {trial.name} needs {missing}') from error
        raise AblationError(
            f'trial {trial.name}: the config {trial.config} cannot be read with its options: '
            f'{type(error).__name__}: {" ".join(str(error).split())}'
        ) from error
    decisive: Any = resolved
    if checkpoint:
        decisive = [resolved, checkpoint.sha256]
    elif plan.num_gpus > 1:  # it decides the batches of a training; a test does not depend on it
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
                f'trials again, give another --work-dir; to run this trial again, move {run_dir} away'
            )
        record = {}
    finished = has_metrics and record.get('state') == 'finished'
    return Job(trial, run_dir, commands, digest, record, finished, checkpoint, problem, flatten(resolved))


def _find_checkpoint(path: Path, trial: Trial, record: Mapping[str, Any]) -> tuple[Checkpoint, str]:
    """The weights that a trial evaluates, and the reason why it cannot, or an empty string."""
    try:
        return find_checkpoint(path, trial), ''
    except CheckpointError as error:
        recorded = record.get('checkpoint') or {}
        if record.get('state') == 'finished' and recorded.get('given') == str(trial.checkpoint):
            # The result is still valid if the weights were deleted later to save space.
            return Checkpoint(Path(recorded['path']), recorded['sha256']), ''
        return Checkpoint(path, ''), str(error)


def now() -> str:
    """The time in the format of the records, ISO 8601 with the offset from UTC."""
    return datetime.now().astimezone().isoformat(timespec='seconds')
