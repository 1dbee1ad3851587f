"""Replaces the RoI extractors of an MMDetection config by a row of a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.config import Config

from roi_plugins.extractors.presets import Preset

from ..errors import RunError
from .registered import type_name

_KEY = 'roi_extractor'


def swap_extractors(cfg: Config, preset: Preset, heads: Sequence[str] = ()) -> list[str]:
    """Gives the extractors of a config the type and the options of a row, and changes nothing else.

    Args:
        cfg: the config, which is changed.
        preset: the row; the row ``stock`` changes nothing.
        heads: the heads whose extractors are replaced, ``'bbox'``, ``'mask'`` and so on; by default all.

    Returns:
        The settings that were changed, such as ``model.roi_head.bbox_roi_extractor``.

    Raises:
        RunError: the config has no extractor, or a head has none.
    """
    found = list(_extractors('model', cfg.get('model')))
    there = list(dict.fromkeys(head for _, head, _ in found))
    if not there and (heads or preset.type):
        raise RunError(
            f'--extractor: the config {cfg.filename} has no RoI extractor: its model is '
            f'{type_name(cfg.get("model") or {})}; expected one with RoI heads, such as '
            'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
        )
    for head in heads:
        if head not in there:
            raise RunError(
                f'--heads: {head} has no extractor of its own in the config {cfg.filename}; there is '
                f'{", ".join(there)}'
            )
    if not preset.type:
        return []
    changed = []
    for setting, head, options in found:
        if not heads or head in heads:
            options.update(type=f'{preset.type}RoIExtractor', **preset.options)
            changed.append(setting)
    return changed


def _extractors(setting: str, node: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Setting, head and options of each extractor in a part of a config."""
    if isinstance(node, dict):
        for key, value in node.items():
            for where, options in _stages(f'{setting}.{key}', value):
                if key.endswith(_KEY) and 'type' in options:
                    # A tracker calls its extractor roi_extractor, without a head: its own name is the head.
                    owner = setting.rpartition('.')[2].removesuffix('_head')
                    yield where, key.removesuffix(_KEY).removesuffix('_') or owner, options
                else:
                    yield from _extractors(where, options)


def _stages(setting: str, value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """A part of a config, or each part of a list, such as the stages of a cascade."""
    if isinstance(value, dict):
        yield setting, value
    elif isinstance(value, (list, tuple)):
        for index, stage in enumerate(value):
            if isinstance(stage, dict):
                yield f'{setting}.{index}', stage
