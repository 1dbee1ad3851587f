"""Named rows of a comparison: an extractor type with the options that decide how it reads."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import yaml

from ..names import plain_name
from . import EXTRACTORS, RoIExtractor

STOCK = 'stock'
"""The name of the row for the unchanged detector, with the framework's own extractor."""


class PresetError(ValueError):
    """A row, a type or an option does not exist; the message lists those that do."""


@dataclass(frozen=True)
class Preset:
    """A row of a comparison.

    Attributes:
        name: name of the row in every tool.
        type: a key of :data:`~roi_plugins.extractors.EXTRACTORS`; ``''`` for the unchanged detector.
        options: options of the extractor.
    """

    name: str
    type: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def build(
        self,
        output_size: int | Sequence[int],
        featmap_strides: Sequence[float],
        *,
        channels: int = 1,
        **others: Any,
    ) -> RoIExtractor:
        """Builds the extractor of this row.

        Args:
            output_size: bins ``(height, width)``, or one number for both.
            featmap_strides: input pixels per cell of each map, finest first.
            channels: number of channels of every map; only extractors with weights use it.
            others: further arguments that every extractor takes, such as ``level_rule``.
        """
        type_ = EXTRACTORS[self.type]
        if type_.needs_channels:
            others['channels'] = channels
        return type_(output_size, featmap_strides, **self.options, **others)


def load_presets() -> dict[str, Preset]:
    """Returns the rows of ``presets.yaml``, by name."""
    text = resources.files(__package__).joinpath('presets.yaml').read_text(encoding='utf-8')
    return {name: read_preset(name, options) for name, options in yaml.safe_load(text).items()}


def find_preset(name: str) -> Preset:
    """Returns the row of a name in any spelling. For the name of a type, such as ``AlignMax``, the row has no
    options.

    Args:
        name: name of a row in ``presets.yaml``, name of a type, or ``'stock'``.

    Raises:
        PresetError: no row or type has this name.
    """
    if name == STOCK:
        return Preset(STOCK, '')
    if (type_ := name.removesuffix('RoIExtractor')) in EXTRACTORS:
        return Preset(name, type_)
    presets = load_presets()
    if name in presets:
        return presets[name]
    spellings = {plain_name(known): preset for known, preset in presets.items()}
    if plain_name(name) in spellings:
        return spellings[plain_name(name)]
    raise PresetError(
        f'no extractor is named {name!r}; there are the rows {STOCK}, {", ".join(presets)}, and the types '
        f'{", ".join(EXTRACTORS)}'
    )


def parse_preset(text: str) -> Preset:
    """Returns the row of a command-line argument.

    Args:
        text: the name of a row, or the row itself as a YAML mapping in braces, such as
            ``{name: x4, type: AlignMax, sampling_ratio: 4}``.

    Raises:
        PresetError: see :func:`find_preset` and :func:`read_preset`.
    """
    if not text.lstrip().startswith('{'):
        return find_preset(text)
    try:
        row = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PresetError(f'{text!r} is not YAML: {" ".join(str(error).split())}') from None
    name = row.pop('name', None) if isinstance(row, dict) else None
    return read_preset(name or text, row)


def read_preset(name: str, row: Any) -> Preset:
    """Returns the row of a mapping such as ``{type: AlignMax, sampling_ratio: 4}``.

    Args:
        name: name of the row.
        row: its type and options, as read from YAML.

    Raises:
        PresetError: the row has no type or one that does not exist, or an option that the type does not have.
    """
    if not isinstance(row, Mapping) or not isinstance(row.get('type'), str):
        raise PresetError(f'{name} is {row!r}; expected one such as {{type: AlignMax, sampling_ratio: 2}}')
    options = dict(row)
    type_ = options.pop('type')
    if type_ not in EXTRACTORS:
        raise PresetError(f'{name}: type is {type_!r}; expected one of {", ".join(EXTRACTORS)}')
    known = extractor_options(EXTRACTORS[type_])
    for option in options:
        if option not in known:
            owners = [other for other, owner in EXTRACTORS.items() if option in extractor_options(owner)]
            has = f'; {", ".join(owners)} {"has" if len(owners) == 1 else "have"} it' if owners else ''
            raise PresetError(f'{name}: {type_} has no option {option!r}{has}; it has {", ".join(known)}')
    return Preset(name, type_, options)


def extractor_options(type_: type[RoIExtractor]) -> list[str]:
    """Returns the names of the options that a row of a type may state, without those that the detector
    determines.

    Args:
        type_: a type of :data:`~roi_plugins.extractors.EXTRACTORS`.
    """
    dictated = ('output_size', 'featmap_strides', 'level_rule', 'channels')
    return [name for name in inspect.signature(type_).parameters if name not in dictated]


def describe(extractor: RoIExtractor) -> dict[str, Any]:
    """Returns the options of a built extractor by name, as JSON can hold them: those of its method, and those
    of its own.

    Args:
        extractor: an extractor of any type.
    """
    own = {name: getattr(extractor, name, None) for name in extractor_options(type(extractor))}
    return {
        'output_size': list(extractor.output_size),
        'featmap_strides': list(extractor.featmap_strides),
        **extractor.method,
        **{name: value for name, value in own.items() if isinstance(value, (str, int))},
    }
