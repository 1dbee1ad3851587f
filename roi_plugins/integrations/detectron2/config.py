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
    """Reads a config.

    If it names a type of this package for a pooler, the other settings that the type needs are set too, see
    :mod:`.swap`.

    Args:
        path: path of a YAML config, or of a LazyConfig (``.py``).
        options: the options of a command line: ``KEY VALUE`` pairs for YAML, ``key=value`` for a LazyConfig.
        notes: a line about other settings that a type has changed is appended to it.

    Returns:
        The config.

    Raises:
        RunError: the file does not exist or cannot be read; an option does not exist; or a type is named
            where the model has no pooler.
    """
    notes = [] if notes is None else notes
    path = str(path)
    if not os.path.isfile(path):
        raise RunError(f'--config-file: the config {path!r} does not exist')
    try:
        cfg, note = (read_lazy if path.endswith('.py') else _read_yaml)(path, options)
    except RunError:
        raise
    except Exception as error:  # configs are programs, which may raise anything
        raise RunError(f'the config {path} cannot be read: {describe_error(error)}') from error
    if note:
        notes.append(note)
    return cfg


def as_settings(cfg: CfgNode | DictConfig) -> dict[str, Any]:
    """All settings of a config by dotted keys, see :mod:`roi_plugins.settings`."""
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
        # The unknown key may be of a Detectron2 project. The keys of projects are only added if they are
        # needed, since the saved config has to be readable without the projects.
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
        # yacs names the unknown key, but not the keys that exist.
        key = str(error.args[0]).rpartition('Non-existent config key: ')[2]
        *above, last = key.split('.')
        node = cfg
        for part in above:
            node = node[part]
        raise RunError(f'the config {path} has {key}: {explain_unknown(last, node)}') from error


_PROJECT = re.compile(r'detectron2\.projects\.\w+')

_ADD_KEYS = re.compile(r'add_\w+_config')


def _project_keys() -> list[Callable[[CfgNode], None]]:
    """The functions of imported Detectron2 projects that add their keys, such as ``add_pointrend_config``."""
    projects = [sys.modules[name] for name in sorted(sys.modules) if _PROJECT.fullmatch(name)]
    return [add for project in projects for name, add in vars(project).items() if _ADD_KEYS.fullmatch(name)]
