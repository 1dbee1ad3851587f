"""Detectron2 configs from files and options; an unknown key is an error that names the nearest ones."""

from __future__ import annotations

import os
import re
import reprlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg
from omegaconf import DictConfig, OmegaConf

from roi_plugins.settings import flatten

from ..errors import RunError, describe_error, explain_unknown
from .lazy_config import read_lazy
from .nodes import add_roi_plugins_config
from .swap import replaced_types, swap_yaml


def read_config(
    path: str | Path, options: Sequence[str] = (), notes: list[str] | None = None
) -> CfgNode | DictConfig:
    """A config with the options of a command line: ``KEY VALUE`` pairs for YAML, ``key=value`` for Python.

    Where it names a type of ours for a pooler, it is also given what that needs, see :mod:`.swap`.

    Args:
        notes: takes a line that says what a type of ours has changed besides, if it has.

    Raises:
        RunError: the file is missing or cannot be read; an option does not exist; or no pooler is of the type
            of ours that is named for it.
    """
    notes = [] if notes is None else notes
    path = str(path)
    if not os.path.isfile(path):
        raise RunError(f'--config-file: the config {path!r} does not exist')
    try:
        cfg, note = (read_lazy if path.endswith('.py') else _read_yaml)(path, options)
    except RunError:
        raise
    except Exception as error:  # configs are programs: anything can happen in them
        raise RunError(f'the config {path} cannot be read: {describe_error(error)}') from error
    if note:
        notes.append(note)
    return cfg


def as_settings(cfg: CfgNode | DictConfig) -> dict[str, Any]:
    """All that a config says by dotted keys, see :mod:`roi_plugins.settings`."""
    return flatten(yaml.safe_load(cfg.dump()) if isinstance(cfg, CfgNode) else OmegaConf.to_container(cfg))


def _read_yaml(path: str, options: Sequence[str]) -> tuple[CfgNode, str | None]:
    cfg = get_cfg()
    add_roi_plugins_config(cfg)
    with open(path, 'rb') as file:
        settings = yaml.safe_load(file)
    if not isinstance(settings, dict):
        raise RunError(f'the config {path} is {reprlib.repr(settings)}; expected settings, KEY: VALUE')
    try:
        cfg.merge_from_file(path, allow_unsafe=False)
    except KeyError:
        # Keys of a project, maybe. A config without any is saved without them, for it to be read everywhere.
        cfg = get_cfg()
        for add_keys in (add_roi_plugins_config, *_project_keys()):
            add_keys(cfg)
        _merge(cfg, path)
    if len(options) % 2:
        raise RunError(f'options: got {" ".join(options)!r}, expected pairs KEY VALUE')
    for key in options[::2]:
        node = cfg
        for part in key.split('.'):
            if not isinstance(node, CfgNode):
                raise RunError(f'options: there is no {key}; where {part} stands there are no parts')
            if part not in node:
                raise RunError(f'options: there is no {key}; for {part}, {explain_unknown(part, node)}')
            node = node[part]
    cfg.merge_from_list(list(options))
    return cfg, swap_yaml(cfg, replaced_types(path, options))


def _merge(cfg: CfgNode, path: str) -> None:
    try:
        cfg.merge_from_file(path, allow_unsafe=False)
    except KeyError as error:
        # yacs names the key, but not those that there are.
        key = str(error.args[0]).rpartition('Non-existent config key: ')[2]
        *above, last = key.split('.')
        node = cfg
        for part in above:
            node = node[part]
        raise RunError(f'the config {path} has {key}: {explain_unknown(last, node)}') from error


_PROJECT = re.compile(r'detectron2\.projects\.\w+')

_ADD_KEYS = re.compile(r'add_\w+_config')


def _project_keys() -> list[Callable[[CfgNode], None]]:
    """What adds the keys of Detectron2's projects that are imported, such as ``add_pointrend_config``."""
    projects = [sys.modules[name] for name in sorted(sys.modules) if _PROJECT.fullmatch(name)]
    return [add for project in projects for name, add in vars(project).items() if _ADD_KEYS.fullmatch(name)]
