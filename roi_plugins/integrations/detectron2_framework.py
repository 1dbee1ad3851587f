"""The description of Detectron2 as a framework: commands, options, progress."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .base import WORK_DIR, Framework, Inputs, as_seconds, pkg_resources_allowed, torchrun

MODULE = 'roi_plugins.integrations.detectron2.command_line'


def _resolve(config: Path, options: Mapping[str, Any]) -> dict:
    from roi_plugins.integrations.detectron2.config import as_settings, read_config

    with pkg_resources_allowed():
        return as_settings(read_config(config, _arguments(config, options)))


def _commands(
    config: Path,
    run_dir: Path,
    options: Mapping[str, Any],
    inputs: Inputs,
    checkpoint: Path | None,
    num_gpus: int,
    num_nodes: int,
    tracker: str | None = None,
) -> list[list[str]]:
    runs = torchrun(num_gpus, num_nodes) if num_nodes > 1 else [sys.executable]
    runs += ['-m', MODULE]
    options = {**options, 'OUTPUT_DIR': str(run_dir)}
    if checkpoint:
        options['MODEL.WEIGHTS'] = str(checkpoint)
    flags = ['--eval-only' if checkpoint else '--resume']
    if num_gpus > 1 and num_nodes == 1:
        flags += ['--num-gpus', str(num_gpus)]
    if tracker and not checkpoint:
        flags += ['--track', tracker]
    flags += inputs.arguments
    return [[*runs, '--config-file', str(config), *flags, *_arguments(config, options)]]


_LAZY_NAMES = {
    'SEED': 'train.seed',
    'OUTPUT_DIR': 'train.output_dir',
    'MODEL.WEIGHTS': 'train.init_checkpoint',
}


def _arguments(config: Path, options: Mapping[str, Any]) -> list[str]:
    if config.suffix != '.py':
        return [part for key, value in options.items() for part in (key, str(value))]
    return [f'{_LAZY_NAMES.get(key, key)}={json.dumps(value)}' for key, value in options.items()]


_LOG_LINE = re.compile(
    r'(?:eta: (?:(\d+) days?, )?(\d+):(\d\d):(\d\d)  (iter): (\d+)'
    r'|Inference done (\d+/\d+)\..*? ETA=(?:(\d+) days?, )?(\d+):(\d\d):(\d\d))'
)


def _progress(log: str) -> tuple[str, float] | None:
    matches = _LOG_LINE.findall(log)
    if not matches:
        return None
    *train_eta, iter_, step, images, days, hours, minutes, seconds = matches[-1]
    what = f'train {step}' if iter_ else f'test {images}'
    eta = train_eta if iter_ else (days, hours, minutes, seconds)
    return what, as_seconds(*eta)


def _tool_arguments(phase: str, config: str | None, others: list[str]) -> list[str]:
    named = ['--config-file', config] if config else []
    return [*named, *(['--eval-only'] if phase == 'test' else []), *others]


FRAMEWORK = Framework(
    resolve=_resolve,
    commands=_commands,
    seed_option='SEED',  # train.seed of a LazyConfig
    weights_options=('MODEL.WEIGHTS', 'train.init_checkpoint'),
    progress=_progress,
    module=MODULE,
    tool_arguments=_tool_arguments,
    inspection='roi_plugins.integrations.detectron2.inspect',
    train_step='roi_plugins.integrations.detectron2.train_step',
    plan_options={
        'train.seed': "the plan's seeds",
        'OUTPUT_DIR': WORK_DIR,
        'train.output_dir': WORK_DIR,
    },
)
