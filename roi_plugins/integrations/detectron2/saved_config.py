"""The ``config.yaml`` that a training has left, read as data: no code of the file is run."""

from __future__ import annotations

import dataclasses
import pydoc
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from omegaconf import DictConfig, OmegaConf

from ..errors import RunError, describe_error
from .config import read_config

# The packages that a saved LazyConfig names, besides those of the user.
_PACKAGES = ('detectron2', 'fvcore', 'roi_plugins', 'torch', 'torchvision')


def read_saved_config(path: str | Path, packages: Iterable[str] = ()) -> CfgNode | DictConfig:
    """Reads the ``config.yaml`` of a training as data, for a YAML config or a LazyConfig.

    Detectron2 itself reads that of a LazyConfig with YAML's unsafe loader, which can run any code.

    Args:
        path: the file.
        packages: further packages whose classes and functions it may name.

    Returns:
        The config.

    Raises:
        RunError: the file cannot be read, or names a class or function of another package.
    """
    known = {*_PACKAGES, *packages}
    try:
        saved = _SavedConfig(Path(path).read_bytes(), known).get_single_data()
        # A LazyConfig is saved as YAML too, but has no MODEL.
        if not isinstance(saved, dict) or 'model' not in saved:
            return read_config(path)
        for target in _targets(saved):
            _check_package(target, known)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise RunError(f'the config {path} cannot be read: {describe_error(error)}') from error
    return OmegaConf.create(saved, flags={'allow_objects': True})


class _SavedConfig(yaml.SafeLoader):
    """Loads the output of ``LazyConfig.save``: plain data, tuples, dataclasses, and names of code."""

    def __init__(self, text: bytes, known: Set[str]):
        super().__init__(text)
        self.known = known

    def construct_named(self, name: str, node: yaml.Node) -> Any:
        _check_package(name, self.known)
        found = pydoc.locate(name)
        if found is None:
            raise ValueError(f'it names {name}, which does not exist here')
        return found

    def construct_dataclass(self, name: str, node: yaml.Node) -> Any:
        kind = self.construct_named(name, node)
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            raise ValueError(f'it holds an object of {name}; the only objects that are read are dataclasses')
        return kind(**self.construct_mapping(node, deep=True))

    def construct_tuple(self, node: yaml.Node) -> tuple:
        return tuple(self.construct_sequence(node, deep=True))


_SavedConfig.add_constructor('tag:yaml.org,2002:python/tuple', _SavedConfig.construct_tuple)
_SavedConfig.add_multi_constructor('tag:yaml.org,2002:python/name:', _SavedConfig.construct_named)
_SavedConfig.add_multi_constructor('tag:yaml.org,2002:python/object:', _SavedConfig.construct_dataclass)


def _targets(node: Any) -> Iterator[str]:
    """The names of all classes and functions that a config would call."""
    if isinstance(node, dict):
        if isinstance(node.get('_target_'), str):
            yield node['_target_']
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _targets(value)


def _check_package(name: str, known: Set[str]) -> None:
    if name.partition('.')[0] not in known:
        raise ValueError(
            f'it names {name}, which would be run; expected names of {", ".join(sorted(known))}, or of '
            'modules that the training imported by --import'
        )
