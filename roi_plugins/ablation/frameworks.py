"""What an ablation needs to know of a detection framework, one entry of ``FRAMEWORKS`` each.

Nothing here imports a framework's models: an ablation runs them in processes of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

from roi_plugins.integrations.arguments import as_arguments


@dataclass(frozen=True)
class Inputs:
    """What a trial is given beside its config, by options that the tools of all frameworks have.

    Attributes:
        imports: modules to be imported first, by their names, or ``.py`` files.
        train_data, test_data: annotations and images, in place of the config's data.
        max_dets: how many detections of each class count in an image.
        extractor: a row in the place of the config's extractors, as ``--extractor`` takes it.
        heads: those whose extractors are swapped; empty for all.
    """

    imports: tuple[str, ...] = ()
    train_data: tuple[str, str] | None = None
    test_data: tuple[str, str] | None = None
    max_dets: int | None = None
    extractor: str | None = None
    heads: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """The command line of it."""
        return as_arguments(**{field.name: getattr(self, field.name) for field in fields(self)})


@dataclass(frozen=True)
class Framework:
    """How trials of one framework are described, run and watched.

    Attributes:
        resolve: ``(config, options) -> dict``: all that the config says, with the files it inherits
            from and the options. What a trial was run with is compared by this.
        commands: ``(config, run_dir, options, inputs, checkpoint, num_gpus, num_nodes) -> list of commands``,
            to be run one after the other, of all GPUs together. Each may be run again after an interruption
            and then goes on where it was; after the last, ``run_dir`` holds a finished run: of these
            weights, or, where ``checkpoint`` is None, of those that the commands train.
        seed_option: the config option that seeds the initial weights and the order of the data.
        weights_options: the config options that name the weights to start from.
        progress: ``(end of the log) -> (what is done, seconds left of this command)``, or None.
        module: which the commands run as ``python -m``; with ``check`` for its only argument it says what
            keeps commands from running, as ``roi_plugins.integrations.dry_run`` has it. None: it cannot.
        plan_options: further config options that the commands set, and what a user gives in their place.
    """

    resolve: Callable[[Path, Mapping[str, Any]], dict]
    commands: Callable[[Path, Path, Mapping[str, Any], Inputs, Path | None, int, int], list[list[str]]]
    seed_option: str
    weights_options: tuple[str, ...]
    progress: Callable[[str], tuple[str, float] | None]
    module: str | None = None
    plan_options: Mapping[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def _pkg_resources_allowed() -> Iterator[None]:
    """Both frameworks find configs by it; that it is deprecated is of no use to who runs a plan."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
        yield


def _mmdet_resolve(config: Path, options: Mapping[str, Any]) -> dict:
    with _pkg_resources_allowed():
        from mmengine.config import Config

        # The modules of custom_imports register things; they do not change what the config says.
        cfg = Config.fromfile(config, import_custom_modules=False)
    cfg.merge_from_dict(dict(options))
    return cfg.to_dict()


def torchrun(num_gpus: int, num_nodes: int) -> list[str]:
    """The start of a command line, of one process for each of the GPUs.

    On several machines it is one agent on each, which Slurm starts in the allocation that it is called in;
    they find each other by the environment variable ``PET_RDZV_ENDPOINT``, torchrun's own.
    """
    start, nodes = [], ['--standalone']
    if num_nodes > 1:
        count = str(num_nodes)
        # In a step of its own beside the one that watches it, which holds the same CPUs and GPUs.
        start = ['srun', '--overlap', '--kill-on-bad-exit', '--nodes', count, '--ntasks', count]
        start += ['--ntasks-per-node', '1']
        nodes = ['--nnodes', count, '--rdzv_backend', 'c10d']
    processes = ['--nproc_per_node', str(num_gpus // num_nodes)]
    return [*start, sys.executable, '-m', 'torch.distributed.run', *nodes, *processes]


_MMDET_RUNS = 'roi_plugins.integrations.mmdet.runs'
_DETECTRON2_RUNS = 'roi_plugins.integrations.detectron2.runs'


def _mmdet_commands(
    config: Path,
    run_dir: Path,
    options: Mapping[str, Any],
    inputs: Inputs,
    checkpoint: Path | None,
    num_gpus: int,
    num_nodes: int,
) -> list[list[str]]:
    runs = [sys.executable]
    common = ['--work-dir', str(run_dir)]
    if num_gpus > 1:
        runs = torchrun(num_gpus, num_nodes)
        common += ['--launcher', 'pytorch']
    runs += ['-m', _MMDET_RUNS]
    common += [*inputs.arguments, '--cfg-options', *_mmdet_arguments(options)]
    train = [*runs, 'train', str(config), '--resume', 'auto', *common]
    test = [*runs, 'test', str(config), str(checkpoint or run_dir), *common]
    return [test] if checkpoint else [train, test]


def _mmdet_arguments(options: Mapping[str, Any]) -> list[str]:
    """Options in the ``key=value`` language of MMEngine, which cannot express every value."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    arguments = []
    for key, value in options.items():
        argument = f'{key}={_mmdet_value(value)}'
        read = parser.parse_args(['--cfg-options', argument]).cfg_options[key]
        # YAML reads 1e-3 as a string; MMEngine reads it as the number that was meant.
        if read != value and not (isinstance(value, str) and isinstance(read, float)):
            raise ValueError(
                f'the option {key}={value!r} cannot be passed to MMDetection, which would read '
                f'{read!r}; write it into the config'
            )
        arguments.append(argument)
    return arguments


def _mmdet_value(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f'[{",".join(map(_mmdet_value, value))}]'
    return str(value)


_MMENGINE_LINE = re.compile(
    r'(?:Iter|Epoch)\((train|test)\)\s.*?\[ *(\d+)/(\d+)\].*?'
    r'eta: (?:(\d+) days?, )?(\d+):(\d\d):(\d\d)'
)


def _mmdet_progress(log: str) -> tuple[str, float] | None:
    matches = _MMENGINE_LINE.findall(log)
    if not matches:
        return None
    phase, done, total, *eta = matches[-1]
    return f'{phase} {done}/{total}', _seconds(*eta)


def _detectron2_resolve(config: Path, options: Mapping[str, Any]) -> dict:
    from roi_plugins.integrations.detectron2.reading import as_settings, read_config

    with _pkg_resources_allowed():
        return as_settings(read_config(config, _detectron2_arguments(config, options)))


def _detectron2_commands(
    config: Path,
    run_dir: Path,
    options: Mapping[str, Any],
    inputs: Inputs,
    checkpoint: Path | None,
    num_gpus: int,
    num_nodes: int,
) -> list[list[str]]:
    runs = torchrun(num_gpus, num_nodes) if num_nodes > 1 else [sys.executable]
    runs += ['-m', _DETECTRON2_RUNS]
    options = {**options, 'OUTPUT_DIR': str(run_dir)}
    if checkpoint:
        options['MODEL.WEIGHTS'] = str(checkpoint)
    flags = ['--eval-only' if checkpoint else '--resume']
    if num_gpus > 1 and num_nodes == 1:
        flags += ['--num-gpus', str(num_gpus)]
    flags += inputs.arguments
    return [[*runs, '--config-file', str(config), *flags, *_detectron2_arguments(config, options)]]


_LAZY_NAMES = {
    'SEED': 'train.seed',
    'OUTPUT_DIR': 'train.output_dir',
    'MODEL.WEIGHTS': 'train.init_checkpoint',
}


def _detectron2_arguments(config: Path, options: Mapping[str, Any]) -> list[str]:
    if config.suffix != '.py':
        return [part for key, value in options.items() for part in (key, str(value))]
    return [f'{_LAZY_NAMES.get(key, key)}={json.dumps(value)}' for key, value in options.items()]


_DETECTRON2_LINE = re.compile(
    r'(?:eta: (?:(\d+) days?, )?(\d+):(\d\d):(\d\d)  (iter): (\d+)'
    r'|Inference done (\d+/\d+)\..*? ETA=(?:(\d+) days?, )?(\d+):(\d\d):(\d\d))'
)


def _detectron2_progress(log: str) -> tuple[str, float] | None:
    matches = _DETECTRON2_LINE.findall(log)
    if not matches:
        return None
    *train_eta, iter_, step, images, days, hours, minutes, seconds = matches[-1]
    what = f'train {step}' if iter_ else f'test {images}'
    eta = train_eta if iter_ else (days, hours, minutes, seconds)
    return what, _seconds(*eta)


def _seconds(*parts: str) -> float:
    days, hours, minutes, seconds = (int(part or 0) for part in parts)
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()


_WORK_DIR = '--work-dir, or work_dir of the plan'

FRAMEWORKS = {
    'mmdet': Framework(
        resolve=_mmdet_resolve,
        commands=_mmdet_commands,
        seed_option='randomness.seed',
        weights_options=('load_from', 'resume'),
        progress=_mmdet_progress,
        module=_MMDET_RUNS,
        plan_options={
            'work_dir': _WORK_DIR,
            'resume': 'the same command again, which resumes what was interrupted',
            'launcher': '--gpus-per-trial, or num_gpus of the plan',
        },
    ),
    'detectron2': Framework(
        resolve=_detectron2_resolve,
        commands=_detectron2_commands,
        seed_option='SEED',  # train.seed of a LazyConfig
        weights_options=('MODEL.WEIGHTS', 'train.init_checkpoint'),
        progress=_detectron2_progress,
        module=_DETECTRON2_RUNS,
        plan_options={
            'train.seed': "the plan's seeds",
            'OUTPUT_DIR': _WORK_DIR,
            'train.output_dir': _WORK_DIR,
        },
    ),
}
