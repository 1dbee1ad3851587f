"""Detectron2 LazyConfigs from files and options, whose unknown keys are errors."""

from __future__ import annotations

import difflib
import inspect
import pydoc
from collections.abc import Sequence
from typing import Any

from detectron2.config import LazyConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch.nn.parallel import DistributedDataParallel

from ..errors import RunError, explain_unknown
from .datasets import registering_again
from .poolers import POOLER_TYPES
from .swap import check_lazy_pooler, lazy_pooler_types, swap_lazy, take_lazy_types

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


def read_lazy(path: str, options: Sequence[str]) -> tuple[DictConfig, str | None]:
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
