"""Turns a row of a comparison into options of a Detectron2 config, YAML or LazyConfig."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY
from omegaconf import DictConfig

from roi_plugins.extractors.presets import Preset

from ..errors import RunError
from .nodes import HEADS, is_on
from .poolers import POOLER_TYPES
from .roi_heads import pooler_nodes, register_counterpart
from .swap import lazy_pooler_types

_NODES = dict(zip(('bbox', 'mask', 'keypoint'), HEADS, strict=True))
# Res5 heads have one pooler for boxes and masks, called pooler.
_LAZY_NAMES = {'box_pooler': 'bbox', 'pooler': 'bbox', 'mask_pooler': 'mask', 'keypoint_pooler': 'keypoint'}


def row_options(cfg: CfgNode | DictConfig, preset: Preset, heads: Sequence[str] = ()) -> list[str]:
    """The options that give the poolers of a config the type and the options of a row.

    Args:
        cfg: the config without the row.
        preset: the row; the row ``stock`` needs no options.
        heads: the heads whose poolers are replaced, ``'bbox'``, ``'mask'`` or ``'keypoint'``; by default all.

    Returns:
        ``KEY VALUE`` pairs for YAML, ``key=value`` for a LazyConfig.

    Raises:
        RunError: the model has no pooler, or a head has none.
    """
    is_yaml = isinstance(cfg, CfgNode)
    poolers = _yaml_poolers(cfg) if is_yaml else _lazy_poolers(cfg)
    if not poolers and (heads or preset.type):
        name = cfg.MODEL.META_ARCHITECTURE if is_yaml else cfg.model.get('_target_')
        raise RunError(
            f'--extractor: the model {getattr(name, "__name__", name)} has no pooler that can be swapped; '
            'expected one with RoI heads, such as COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml'
        )
    for head in heads:
        if head not in poolers:
            raise RunError(f'--heads: {head} has no pooler of its own; there is {", ".join(poolers)}')
    if not preset.type:
        return []
    write = _yaml_options if is_yaml else _lazy_options
    return [
        option
        for head, wheres in poolers.items()
        if not heads or head in heads
        for where in wheres
        for option in write(where, *_pooler_type(preset))
    ]


def _pooler_type(preset: Preset) -> tuple[str, dict[str, Any]]:
    """The ``POOLER_TYPE`` of a row, and its other options."""
    options = dict(preset.options)
    if preset.type in POOLER_TYPES:
        return preset.type, options
    return f'{preset.type}{options.pop("reduction", "avg").capitalize()}', options


def _yaml_poolers(cfg: CfgNode) -> dict[str, list[str]]:
    ours = register_counterpart(cfg.MODEL.ROI_HEADS.NAME)
    read = pooler_nodes(ROI_HEADS_REGISTRY.get(ours)) if ours else []
    return {
        head: [f'MODEL.{node}']
        for head, node in _NODES.items()
        if node in read and is_on(cfg, node) and cfg.MODEL[node].POOLER_TYPE
    }


def _yaml_options(where: str, type_: str, options: Mapping[str, Any]) -> list[str]:
    given = [f'{where}.POOLER_TYPE', type_]
    for name, value in options.items():
        key = 'POOLER_SAMPLING_RATIO' if name == 'sampling_ratio' else f'POOLER_OPTIONS.{name.upper()}'
        given += [f'{where}.{key}', str(value)]
    return given


def _lazy_poolers(cfg: DictConfig) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for where in lazy_pooler_types(cfg):
        found.setdefault(_LAZY_NAMES.get(where.rpartition('.')[2], where), []).append(where)
    return found


def _lazy_options(where: str, type_: str, options: Mapping[str, Any]) -> list[str]:
    given = {'pooler_type': type_, **options}
    return [f'{where}.{name}={json.dumps(value)}' for name, value in given.items()]
