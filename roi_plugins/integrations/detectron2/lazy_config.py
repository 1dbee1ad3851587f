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

# The keys that Detectron2's own tool reads in these nodes of a LazyConfig.
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
    """Reads a LazyConfig.

    Args:
        path: path of the ``.py`` file.
        options: ``key=value`` options.

    Returns:
        The config; and what a type of this package has changed besides, or None.

    Raises:
        RunError: a key does not exist, or an option cannot be read.
    """
    with registering_again():  # the file may register datasets
        cfg = LazyConfig.load(path)
    _check_nodes(cfg)
    # The types come first, since they decide which other options a pooler has.
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
    except Exception as error:  # hydra, which Detectron2 parses options with, may not be installed
        raise RunError(f'options: {" ".join(options)!r} cannot be read: {error}') from error


def _check_nodes(cfg: DictConfig) -> None:
    """Raises RunError if a key in the node ``train`` of a LazyConfig is misspelt."""
    for where, known in _READ.items():
        node = OmegaConf.select(cfg, where)
        for key in set(node) - known if isinstance(node, DictConfig) else ():
            # The user's own programs may read other keys of `train`. The nodes in it are keyword arguments.
            if where != 'train' or difflib.get_close_matches(key, known, cutoff=0.8):
                raise RunError(f'the LazyConfig has {where}.{key}: {explain_unknown(key, known)}')


def _check_lazy_key(cfg: DictConfig, key: str) -> None:
    """Raises RunError if nothing would read an option.

    A key that is not in the config may be a new argument of a callable. A ``+`` before a key says that it is
    new; it is needed if the possible keys are not known.
    """
    is_new = key.startswith('+')
    key = key.lstrip('+')
    node: Any = cfg
    above: list[str] = []
    is_argument = False  # whether the node belongs to an argument of a callable, which may take any keys
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
    """Raises RunError if ``part`` of the option ``key`` cannot be added to ``node``, which is at
    ``where``."""
    is_open = is_argument or is_new
    known = {*node, *_READ.get(where, ())}
    if '_target_' in node:
        parameters, is_open = _parameters(node['_target_'])
        known |= parameters
    # A callable that takes any argument passes it on. A name much like a known one is most likely misspelt.
    if part not in known and (not is_open or difflib.get_close_matches(part, known, cutoff=0.9)):
        raise RunError(f'options: there is no {key}; for {part}, {explain_unknown(part, known)}')


def _parameters(target: Any) -> tuple[set[str], bool]:
    """The names of a callable's parameters, and whether it takes others as well."""
    # In YAML and in an option, the callable is given by its path.
    target = pydoc.locate(target) if isinstance(target, str) else target
    # A class with **kwargs passes them on to its base class.
    functions = [target]
    if inspect.isclass(target):
        functions = [vars(type_)['__init__'] for type_ in target.__mro__ if '__init__' in vars(type_)]
    names: set[str] = set()
    for function in functions:
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # not a callable, or one written in C
            return names, True
        names |= {parameter.name for parameter in parameters}
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
            return names - {'self'}, False
    return names - {'self'}, True
