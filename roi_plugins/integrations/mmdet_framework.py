"""The description of MMDetection as a framework: commands, options, progress."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .base import WORK_DIR, Framework, Inputs, as_seconds, pkg_resources_allowed, torchrun

MODULE = 'roi_plugins.integrations.mmdet.command_line'


def _resolve(config: Path, options: Mapping[str, Any]) -> dict:
    with pkg_resources_allowed():
        from mmengine.config import Config

        # The modules of custom_imports register things, but do not change the config.
        cfg = Config.fromfile(config, import_custom_modules=False)
    cfg.merge_from_dict(dict(options))
    return cfg.to_dict()


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
    runs = [sys.executable]
    common = ['--work-dir', str(run_dir)]
    if num_gpus > 1:
        runs = torchrun(num_gpus, num_nodes)
        common += ['--launcher', 'pytorch']
    runs += ['-m', MODULE]
    common += [*inputs.arguments, '--cfg-options', *_arguments(options)]
    track = ['--track', tracker] if tracker else []
    train = [*runs, 'train', str(config), '--resume', 'auto', *track, *common]
    test = [*runs, 'test', str(config), str(checkpoint or run_dir), *common]
    return [test] if checkpoint else [train, test]


def _arguments(options: Mapping[str, Any]) -> list[str]:
    """Options as ``key=value`` arguments of MMEngine, whose syntax cannot express every value."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    arguments = []
    for key, value in options.items():
        argument = f'{key}={_value(value)}'
        read = parser.parse_args(['--cfg-options', argument]).cfg_options[key]
        # YAML reads 1e-3 as a string. MMEngine reads it as a number, as was meant.
        if read != value and not (isinstance(value, str) and isinstance(read, float)):
            raise ValueError(
                f'the option {key}={value!r} cannot be passed to MMDetection, which would read '
                f'{read!r}; write it into the config'
            )
        arguments.append(argument)
    return arguments


def _value(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f'[{",".join(map(_value, value))}]'
    return str(value)


_LOG_LINE = re.compile(
    r'(?:Iter|Epoch)\((train|test)\)\s.*?\[ *(\d+)/(\d+)\].*?'
    r'eta: (?:(\d+) days?, )?(\d+):(\d\d):(\d\d)'
)


def _progress(log: str) -> tuple[str, float] | None:
    matches = _LOG_LINE.findall(log)
    if not matches:
        return None
    phase, done, total, *eta = matches[-1]
    return f'{phase} {done}/{total}', as_seconds(*eta)


def _tool_arguments(phase: str, config: str | None, others: list[str]) -> list[str]:
    return [phase, *([config] if config else []), *others]


FRAMEWORK = Framework(
    resolve=_resolve,
    commands=_commands,
    seed_option='randomness.seed',
    weights_options=('load_from', 'resume'),
    progress=_progress,
    module=MODULE,
    tool_arguments=_tool_arguments,
    inspection='roi_plugins.integrations.mmdet.inspect',
    train_step='roi_plugins.integrations.mmdet.train_step',
    plan_options={
        'work_dir': WORK_DIR,
        'resume': 'the same command again, which resumes what was interrupted',
        'launcher': '--gpus-per-trial, or num_gpus of the plan',
    },
)
