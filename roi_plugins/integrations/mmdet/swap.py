"""A row of a comparison in the place of the extractors of an MMDetection config."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.config import Config

from roi_plugins.extractors.presets import Preset

from ..errors import RunError
from .registered import type_name

_KEY = 'roi_extractor'


def swap_extractors(cfg: Config, preset: Preset, heads: Sequence[str] = ()) -> list[str]:
    """Gives extractors of a config the type and the options of a row; all else stays.

    Args:
        cfg: it is changed.
        preset: the row; that of the detector as it is changes nothing.
        heads: ``'bbox'``, ``'mask'`` and so on, whose extractors are swapped; by default all that there are.

    Returns:
        The settings that were changed, such as ``model.roi_head.bbox_roi_extractor``.

    Raises:
        RunError: the config has no extractor, or none of a head.
    """
    found = list(_extractors('model', cfg.get('model')))
    there = list(dict.fromkeys(head for _, head, _ in found))
    if not there and (heads or preset.type):
        raise RunError(
            f'--extractor: the config {cfg.filename} has no RoI extractor, for its model is '
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
    """Setting, head and options of each extractor below a part of a config."""
    if isinstance(node, dict):
        for key, value in node.items():
            for where, options in _stages(f'{setting}.{key}', value):
                if key.endswith(_KEY) and 'type' in options:
                    # In the head of a tracker the key has no name; the head gives it.
                    owner = setting.rpartition('.')[2].removesuffix('_head')
                    yield where, key.removesuffix(_KEY).removesuffix('_') or owner, options
                else:
                    yield from _extractors(where, options)


def _stages(setting: str, value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """A part of a config, or the parts of a list of them, such as the stages of a cascade."""
    if isinstance(value, dict):
        yield setting, value
    elif isinstance(value, (list, tuple)):
        for index, stage in enumerate(value):
            if isinstance(stage, dict):
                yield f'{setting}.{index}', stage
