"""Configs of Detectron2 from files and options, YAML or LazyConfig, with a word for each key that is none."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import os
import pydoc
import re
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, LazyConfig, get_cfg
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch.nn.parallel import DistributedDataParallel

from roi_plugins.settings import flatten

from ..errors import RunError, describe_error, explain_unknown
from .config import add_roi_plugins_config
from .datasets import registering_again
from .poolers import POOLER_TYPES
from .swap import check_lazy_pooler, lazy_pooler_types, replaced_types, swap_lazy, swap_yaml, take_lazy_types

# What a saved LazyConfig is made of, besides the user's own.
_PACKAGES = ('detectron2', 'fvcore', 'roi_plugins', 'torch', 'torchvision')

_PROJECT = re.compile(r'detectron2\.projects\.\w+')
_ADD_KEYS = re.compile(r'add_\w+_config')

# What Detectron2's own tool reads of these nodes of a LazyConfig.
_READ = {
    'train': {
        *('output_dir', 'init_checkpoint', 'max_iter', 'amp', 'ddp', 'checkpointer', 'eval_period'),
        *('log_period', 'device', 'seed', 'cudnn_benchmark'),
    },
    'train.amp': {'enabled'},
    'train.ddp': {'fp16_compression', *inspect.signature(DistributedDataParallel).parameters} - {'module'},
    'train.checkpointer': {'period', 'max_to_keep', 'file_prefix'},
}


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
        cfg, note = (_read_lazy if path.endswith('.py') else _read_yaml)(path, options)
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


def read_saved_config(path: str | Path, packages: Iterable[str] = ()) -> CfgNode | DictConfig:
    """The ``config.yaml`` that a training has left, of either language, read as data.

    Detectron2 itself reads that of a LazyConfig with YAML's unsafe loader, which runs any code.

    Args:
        packages: whose classes and functions it may name besides those of the libraries that it is built of.

    Raises:
        RunError: the file cannot be read, or names what is of another package.
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
    """What ``LazyConfig.save`` writes: plain data, tuples, dataclasses, names of classes and functions."""

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
            raise ValueError(f'it holds an object of {name}; of objects, dataclasses alone are read')
        return kind(**self.construct_mapping(node, deep=True))

    def construct_tuple(self, node: yaml.Node) -> tuple:
        return tuple(self.construct_sequence(node, deep=True))


_SavedConfig.add_constructor('tag:yaml.org,2002:python/tuple', _SavedConfig.construct_tuple)
_SavedConfig.add_multi_constructor('tag:yaml.org,2002:python/name:', _SavedConfig.construct_named)
_SavedConfig.add_multi_constructor('tag:yaml.org,2002:python/object:', _SavedConfig.construct_dataclass)


def _targets(node: Any) -> Iterator[str]:
    """The names of all that a config has built."""
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


def _project_keys() -> list[Callable[[CfgNode], None]]:
    """What adds the keys of Detectron2's projects that are imported, such as ``add_pointrend_config``."""
    projects = [sys.modules[name] for name in sorted(sys.modules) if _PROJECT.fullmatch(name)]
    return [add for project in projects for name, add in vars(project).items() if _ADD_KEYS.fullmatch(name)]


def _read_lazy(path: str, options: Sequence[str]) -> tuple[DictConfig, str | None]:
    with registering_again():  # its own data, which each process reads more than once
        cfg = LazyConfig.load(path)
    _check_nodes(cfg)
    # Types come first: they decide which other options a pooler has.
    types = [option for option in options if option.partition('=')[0].endswith('.pooler_type')]
    before = lazy_pooler_types(cfg)
    for option in types:
        if option.partition('=')[2].strip('\'"') in POOLER_TYPES:
            check_lazy_pooler(option, cfg)
    cfg = _override(cfg, types)
    taken = take_lazy_types(cfg)
    cfg = _override(cfg, [option for option in options if option not in types])
    return cfg, swap_lazy(cfg, taken, before)


def _override(cfg: DictConfig, options: Sequence[str]) -> DictConfig:
    for option in options:
        key, equals, _ = option.partition('=')
        if not equals:
            raise RunError(f'options: got {option!r}, expected key=value for a LazyConfig')
        _check_lazy_key(cfg, key)
    try:
        return LazyConfig.apply_overrides(cfg, list(options))
    except Exception as error:  # of a grammar that is in a package that need not be there
        raise RunError(f'options: {" ".join(options)!r} cannot be read: {error}') from error


def _check_nodes(cfg: DictConfig) -> None:
    """Raises RunError on keys of a LazyConfig's node ``train`` that are misspelt ones of Detectron2's."""
    for where, known in _READ.items():
        node = OmegaConf.select(cfg, where)
        for key in set(node) - known if isinstance(node, DictConfig) else ():
            # `train` may hold what programs of the user's own read; the nodes in it are arguments.
            if where != 'train' or difflib.get_close_matches(key, known, cutoff=0.8):
                raise RunError(f'the LazyConfig has {where}.{key}: {explain_unknown(key, known)}')


def _check_lazy_key(cfg: DictConfig, key: str) -> None:
    """Raises RunError on an option that nothing would read.

    A leaf that is not in the config may be new: it is how a callable is given an argument. A ``+`` before
    a key says that it is meant to be new, and helps where nothing tells what there may be.
    """
    is_new = key.startswith('+')
    key = key.lstrip('+')
    node: Any = cfg
    above: list[str] = []
    is_argument = False  # of a callable above: what keys it may have is for that to say
    for part in key.split('.'):
        where = '.'.join(above)
        if isinstance(node, ListConfig):
            if not part.isdecimal() or int(part) >= len(node):
                raise RunError(f'options: there is no {key}; {where} is a list of {len(node)}')
            node = node[int(part)]
        elif not isinstance(node, DictConfig):
            raise RunError(f'options: there is no {key}; {where} is {node!r} and has no parts')
        elif part in node:
            is_argument |= '_target_' in node
            node = node[part]
        else:
            _check_new_key(node, part, key, where, is_argument, is_new)
            return
        above.append(part)


def _check_new_key(
    node: DictConfig, part: str, key: str, where: str, is_argument: bool, is_new: bool
) -> None:
    """Of :func:`_check_lazy_key`: ``part``, of ``key``, is not in ``node``, which is under ``where``."""
    is_open = is_argument or is_new
    known = {*node, *_READ.get(where, ())}
    if '_target_' in node:
        parameters, is_open = _parameters(node['_target_'])
        known |= parameters
    # What takes any argument hands it on, to one that most likely has no other of nearly the same name.
    if part not in known and (not is_open or difflib.get_close_matches(part, known, cutoff=0.9)):
        raise RunError(f'options: there is no {key}; for {part}, {explain_unknown(part, known)}')


def _parameters(target: Any) -> tuple[set[str], bool]:
    """The parameters of a callable, and whether it takes others as well."""
    # A path, where it was read from YAML or given as an option.
    target = pydoc.locate(target) if isinstance(target, str) else target
    # A class with **kwargs hands them on to the one that it is made of.
    functions = [target]
    if inspect.isclass(target):
        functions = [vars(type_)['__init__'] for type_ in target.__mro__ if '__init__' in vars(type_)]
    names: set[str] = set()
    for function in functions:
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # not a callable, or one of C
            return names, True
        names |= {parameter.name for parameter in parameters}
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
            return names - {'self'}, False
    return names - {'self'}, True
