"""The RoI extractors that an MMDetection config builds."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmcv.ops import PrRoIPool, RoIAlign, RoIPool
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor, SingleRoIExtractor
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from torch import nn

from ...extractors import RoIExtractor
from ...ops import assign_levels_mmdet
from ..errors import RunError
from ..inspection import InspectionError, describe_modules
from .config import read_config
from .extractors import MMDetRoIExtractor
from .registered import explain_unregistered


def find_extractors(config: Path) -> dict[str, RoIExtractor]:
    """The extractors of a config, see :func:`roi_plugins.integrations.inspection.read_extractors`."""
    try:
        cfg = read_config(config)
    except RunError as error:
        raise InspectionError(str(error)) from error
    init_default_scope(cfg.get('default_scope') or 'mmdet')  # new-style configs set it to None
    found = {}
    for name, options in _extractor_configs(cfg.get('model') or {}):
        try:
            built = MODELS.build(options)
        except (KeyError, TypeError, ValueError) as error:
            message = explain_unregistered(error) or error.args[0]
            raise InspectionError(f'{config}: {name}: {message}') from error
        if extractor := _as_ours(built):
            found[name] = extractor
    return found


def describe_extractors(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Type and options of each RoI extractor of a model.

    Args:
        model: a detector of MMDetection.

    Returns:
        A dict for each extractor, by its place in the model, such as ``roi_head.bbox_roi_extractor``.
    """
    return describe_modules(model, _type_name, _as_ours)


def _type_name(module: nn.Module) -> str | None:
    if isinstance(module, MMDetRoIExtractor):
        return type(module).__name__
    if isinstance(module, BaseRoIExtractor):
        return f'{type(module).__name__} of {type(module.roi_layers[0]).__name__}'
    return None


def _extractor_configs(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(node, Mapping):
        if _is_extractor(node.get('type')):
            yield '.'.join(path), node
        for key, value in node.items():
            yield from _extractor_configs(value, (*path, key))
    elif isinstance(node, (list, tuple)):  # the stages of a cascade
        for index, value in enumerate(node):
            yield from _extractor_configs(value, (*path, str(index)))


def _is_extractor(type_: Any) -> bool:
    """Whether the type of a config, with a scope or without or a class, is that of a RoI extractor."""
    if not isinstance(type_, str):
        return isinstance(type_, type) and issubclass(type_, (BaseRoIExtractor, MMDetRoIExtractor))
    found = MODELS.get(type_)
    # An unknown extractor is kept, so that the registry reports it.
    return type_.endswith('RoIExtractor') if found is None else _is_extractor(found)


def _as_ours(built: nn.Module) -> RoIExtractor | None:
    """The extractor of this package that computes the same; None if there is none."""
    if isinstance(built, MMDetRoIExtractor):
        return built.extractor
    if not isinstance(built, SingleRoIExtractor):
        return None  # such as GenericRoIExtractor, which adds up all levels
    layer = built.roi_layers[0]
    if isinstance(layer, RoIAlign):
        method = {
            'sampling_ratio': layer.sampling_ratio,
            'reduction': layer.pool_mode,
            'aligned': layer.aligned,
        }
    elif isinstance(layer, RoIPool):
        method = {'region': 'bins', 'sampling_ratio': None, 'reduction': 'max'}
    elif isinstance(layer, PrRoIPool):
        method = {'sampling_ratio': None, 'reduction': 'integral', 'aligned': False}
    else:
        return None
    return RoIExtractor(
        layer.output_size,
        built.featmap_strides,
        level_rule=functools.partial(assign_levels_mmdet, finest_scale=built.finest_scale),
        **method,
    )
