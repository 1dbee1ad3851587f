"""The types that an MMDetection config names, and those that its registries know."""

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
    """Lets registries find what the config names without a scope, as the runner will."""
    scope = cfg.get('default_scope', 'mmengine')
    if scope is not None:
        init_default_scope(scope)


def class_of(registry: Registry, kind: Any) -> Any:
    """The class of a type in any of MMEngine's spellings: a name, with a scope or without, or the class."""
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(None) as found:
        return found.get(kind)


def is_subclass(kind: Any, base: type) -> bool:
    """Whether a type, as :func:`class_of` finds it, is a class that is derived from ``base``."""
    return isinstance(kind, type) and issubclass(kind, base)


def type_name(options: Any) -> str:
    kind = options.get('type') if isinstance(options, Mapping) else type(options)
    return getattr(kind, '__name__', str(kind))


def check_registered(cfg: Config, *loaders: str) -> None:
    """Raises RunError on an unknown type of the loaders' datasets and transforms, or of a part of the model.

    What is inside of the parts, such as losses, is left to :func:`explain_unregistered`.
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
    """What to say where a registry does not have a type; None for an error that is about something else."""
    found = re.search(r'(\S+) is not in the \S+::(.+?) registry', str(error))
    if found is None or found[2] not in _BY_NAME:
        return None
    name = found[1].strip('\'"`')
    return _explain(_BY_NAME[found[2]], name, _EXTRACTOR if name.endswith(_EXTRACTOR) else '')


def check_type(registry: Registry, setting: str, options: Any) -> None:
    """Raises RunError on a ``type`` that the registry does not have."""
    kind = options.get('type') if isinstance(options, Mapping) else None
    if isinstance(kind, str) and class_of(registry, kind) is None:
        ending = _EXTRACTOR if setting.endswith('roi_extractor') else ''
        raise RunError(f'{setting}.type: {_explain(registry, kind, ending)}')


def _explain(registry: Registry, name: str, ending: str) -> str:
    """Names all that end in ``ending``; without one, what is near."""
    known: set[str] = set()
    with registry.switch_scope_and_registry(None) as found:
        while found is not None:  # a scope's own, then those that it inherits
            known |= found.module_dict.keys()
            found = found.parent
    last = name.rpartition('.')[2]
    if ending:
        there = f'{explain_unknown(last, (other for other in known if other.endswith(ending)))}. '
    else:
        there = ask_for_near(last, sorted(known)) or 'none has a name like that. '
    return (
        f'{name} is not registered as a {registry.name}; {there}'
        'One of your own is registered by a module, which is named by --import MODULE or by '
        "custom_imports = dict(imports=['MODULE'])"
    )


def _datasets(setting: str, options: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Datasets and their wrappers, with the settings that they are."""
    if not isinstance(options, Mapping):
        return
    yield setting, options
    yield from _datasets(f'{setting}.dataset', options.get('dataset'))
    for index, part in enumerate(options.get('datasets') or ()):
        yield from _datasets(f'{setting}.datasets.{index}', part)


def _parts_of_model(setting: str, options: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(options, (list, tuple)):  # the stages of a cascade
        for index, stage in enumerate(options):
            yield from _parts_of_model(f'{setting}.{index}', stage)
    if not isinstance(options, Mapping):
        return
    yield setting, options
    for key, part in options.items():
        if key in _PARTS or key.endswith(_ENDS_OF_PARTS):
            yield from _parts_of_model(f'{setting}.{key}', part)
