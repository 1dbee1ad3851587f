"""Finds the types that an MMDetection config names in MMEngine's registries, and explains unknown ones."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine import registry as registries
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, Registry, init_default_scope

from ..errors import RunError, ask_for_near, explain_unknown

_PARTS = ('backbone', 'neck', 'detector', 'data_preprocessor')
_EXTRACTOR = 'RoIExtractor'
_ENDS_OF_PARTS = ('_head', 'roi_extractor')
_BY_NAME = {found.name: found for found in vars(registries).values() if isinstance(found, Registry)}


def enter_scope(cfg: Config) -> None:
    """Sets the default scope of a config, in which the registries find types that are named without one."""
    scope = cfg.get('default_scope', 'mmengine')
    if scope is not None:
        init_default_scope(scope)


def class_of(registry: Registry, kind: Any) -> Any:
    """The class of a ``type`` of a config.

    Args:
        registry: where the type is registered.
        kind: a name, with a scope or without, or the class itself.

    Returns:
        The class; None if the name is not registered.
    """
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(None) as found:
        return found.get(kind)


def is_subclass(kind: Any, base: type) -> bool:
    """Whether a type, as :func:`class_of` finds it, is a class that is derived from ``base``."""
    return isinstance(kind, type) and issubclass(kind, base)


def type_name(options: Any) -> str:
    """The name of the ``type`` of a part of a config, for messages."""
    kind = options.get('type') if isinstance(options, Mapping) else type(options)
    return getattr(kind, '__name__', str(kind))


def check_registered(cfg: Config, *loaders: str) -> None:
    """Checks the types of datasets, transforms and parts of the model.

    Types inside the parts, such as losses, are left to :func:`explain_unregistered`.

    Args:
        cfg: the config.
        loaders: the settings of the data loaders to check, such as ``'train_dataloader'``.

    Raises:
        RunError: a type is not registered.
    """
    enter_scope(cfg)
    for loader in loaders:
        for setting, dataset in _datasets(f'{loader}.dataset', (cfg.get(loader) or {}).get('dataset')):
            check_type(DATASETS, setting, dataset)
            for index, transform in enumerate(dataset.get('pipeline') or ()):
                check_type(TRANSFORMS, f'{setting}.pipeline.{index}', transform)
    for setting, part in _parts_of_model('model', cfg.get('model')):
        check_type(MODELS, setting, part)


def explain_unregistered(error: Exception) -> str | None:
    """The message for an error of a registry about an unknown type; None for any other error."""
    found = re.search(r'(\S+) is not in the \S+::(.+?) registry', str(error))
    if found is None or found[2] not in _BY_NAME:
        return None
    name = found[1].strip('\'"`')
    return _explain(_BY_NAME[found[2]], name, _EXTRACTOR if name.endswith(_EXTRACTOR) else '')


def check_type(registry: Registry, setting: str, options: Any) -> None:
    """Checks the type of a part of a config.

    Args:
        registry: where the type should be registered.
        setting: the setting of the part, for the error.
        options: the part.

    Raises:
        RunError: the type is not registered.
    """
    kind = options.get('type') if isinstance(options, Mapping) else None
    if isinstance(kind, str) and class_of(registry, kind) is None:
        ending = _EXTRACTOR if setting.endswith('roi_extractor') else ''
        raise RunError(f'{setting}.type: {_explain(registry, kind, ending)}')


def _explain(registry: Registry, name: str, ending: str) -> str:
    """The message for an unknown type: names all types with this ending, or if it is empty similar ones."""
    known: set[str] = set()
    with registry.switch_scope_and_registry(None) as found:
        while found is not None:  # the registry of a scope, then those that it inherits from
            known |= found.module_dict.keys()
            found = found.parent
    last = name.rpartition('.')[2]
    if ending:
        there = f'{explain_unknown(last, (other for other in known if other.endswith(ending)))}. '
    else:
        there = ask_for_near(last, sorted(known)) or 'none has a name like that. '
    return (
        f'{name} is not registered as a {registry.name}; {there}'
        'A type of your own is registered by a module, which is named by --import MODULE or by '
        "custom_imports = dict(imports=['MODULE'])"
    )


def _datasets(setting: str, options: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Setting and config of each dataset and wrapper."""
    if not isinstance(options, Mapping):
        return
    yield setting, options
    yield from _datasets(f'{setting}.dataset', options.get('dataset'))
    for index, part in enumerate(options.get('datasets') or ()):
        yield from _datasets(f'{setting}.datasets.{index}', part)


def _parts_of_model(setting: str, options: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Setting and config of the model and each of its backbones, necks, heads and so on."""
    if isinstance(options, (list, tuple)):  # the stages of a cascade
        for index, stage in enumerate(options):
            yield from _parts_of_model(f'{setting}.{index}', stage)
    if not isinstance(options, Mapping):
        return
    yield setting, options
    for key, part in options.items():
        if key in _PARTS or key.endswith(_ENDS_OF_PARTS):
            yield from _parts_of_model(f'{setting}.{key}', part)
