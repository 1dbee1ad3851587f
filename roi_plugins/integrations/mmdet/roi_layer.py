"""The options that an extractor takes from the ``roi_layer`` of the stock extractor that it replaces.

A config that sets the type alone, ``bbox_roi_extractor=dict(type='AlignMaxRoIExtractor')``, inherits the
other options of the stock extractor, ``roi_layer`` among them.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from mmcv import ops

# They choose an implementation, are set by the owner of the layer, or are checked by the extractor itself.
_NOT_INHERITED = ('type', 'spatial_scale', 'use_torchvision', 'output_channels', 'pool_mode')
# An extractor whose method has no such choice ignores these.
_IGNORED = ('sampling_ratio', 'aligned')
# MMCV accepts these names with a warning.
_OLD_NAMES = {'out_size': 'output_size', 'sample_num': 'sampling_ratio'}
# The point sampling of PointRend takes one sample per bin, and has no option for it.
_SAMPLES = {'SimpleRoIAlign': 1}


def inherited_options(roi_layer: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The options of a layer that an extractor has too, with the defaults of the layer.

    Args:
        roi_layer: the config of a layer of ``mmcv.ops``, such as ``dict(type='RoIAlign', output_size=7)``.
        known: the names of the extractor's options.

    Returns:
        The options by name.

    Raises:
        TypeError: the config has an option that the extractor does not have.
        ValueError: there is no such layer.
    """
    stated = {_OLD_NAMES.get(name, name): value for name, value in roi_layer.items()}
    kind = stated.get('type')
    layer = getattr(ops, kind, None) if isinstance(kind, str) else kind
    if not isinstance(layer, type):
        raise ValueError(f'roi_layer.type: got {kind!r}, expected a layer of mmcv.ops such as RoIAlign')
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(layer).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    if layer.__name__ in _SAMPLES:
        defaults['sampling_ratio'] = _SAMPLES[layer.__name__]
    for name in stated:
        if name not in (*known, *_NOT_INHERITED, *_IGNORED):
            raise TypeError(
                f'roi_layer.{name}: an option of {layer.__name__} that the extractor does not have; replace '
                "the whole roi_layer, roi_layer=dict(_delete_=True, type='RoIAlign', output_size=7)"
            )
    return {
        name: value
        for name, value in {**defaults, **stated}.items()
        if name in known and name not in _NOT_INHERITED
    }
