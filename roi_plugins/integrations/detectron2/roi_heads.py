"""Detectron2's RoI heads with poolers of any type, of this package or of Detectron2."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    CascadeROIHeads,
    Res5ROIHeads,
    ROIHeads,
    RROIHeads,
    StandardROIHeads,
)
from torch import nn
from torch.jit import Final

from .nodes import HEADS, is_on
from .poolers import POOLER_TYPES, RoIPluginsPooler, check_options, check_pooler_type, needs_channels


class _AnyPooler(ROIHeads):
    """Lets Detectron2 build the heads, and then replaces the poolers whose types are of this package."""

    # The arguments of the heads that are poolers, and the config node of each.
    _poolers = {
        'box_pooler': 'ROI_BOX_HEAD',
        'mask_pooler': 'ROI_MASK_HEAD',
        'keypoint_pooler': 'ROI_KEYPOINT_HEAD',
    }
    # The type of the poolers that Detectron2 builds first.
    _stand_in = 'ROIAlignV2'

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        stock = _with_stock_poolers(cfg, cls._stand_in)
        arguments = super().from_config(stock, input_shape)
        channels = input_shape[cfg.MODEL.ROI_HEADS.IN_FEATURES[0]].channels
        for name, head in cls._poolers.items():
            # There is no pooler without masks or keypoints, or if a head reads the maps itself.
            if arguments.get(name) is None:
                if is_on(cfg, head) and cfg.MODEL[head].POOLER_TYPE in POOLER_TYPES:
                    raise ValueError(
                        f'MODEL.{head}.POOLER_TYPE: got {cfg.MODEL[head].POOLER_TYPE!r}, but {cls.__name__} '
                        'builds no pooler there: the head reads the maps itself'
                    )
                continue
            pooler = _replaced(arguments[name], cfg.MODEL[head], channels, f'MODEL.{head}')
            given = _out_channels(pooler, channels)
            if given != channels:
                arguments.update(cls._rebuilt(name, stock, input_shape, given))
            arguments[name] = pooler
        return arguments

    @classmethod
    def _rebuilt(cls, pooler: str, cfg: CfgNode, input_shape: dict[str, ShapeSpec], channels: int) -> dict:
        """The arguments for a pooler and its head, with the head built for a number of channels."""
        build = getattr(cls, f'_init_{pooler.removesuffix("_pooler")}_head', None)
        if build is None:
            raise ValueError(
                f'MODEL.ROI_BOX_HEAD.POOLER_TYPE: would give {channels} channels, but the head of '
                f'{cls.__name__} needs those of the maps; expected a type that keeps them'
            )
        shapes = {
            name: ShapeSpec(channels=channels, stride=spec.stride) for name, spec in input_shape.items()
        }
        return build(cfg, shapes)


@ROI_HEADS_REGISTRY.register()
class RoIPluginsStandardROIHeads(_AnyPooler, StandardROIHeads):
    """``StandardROIHeads`` with a pooler of any type in each head."""

    # A subclass does not inherit TorchScript's constants. With these two, TorchScript leaves the branches for
    # masks and keypoints out of a model that has none. Not by __constants__: freeze_training_mode, which
    # Detectron2 scripts models with, skips classes that have it. Detectron2's __init__ sets the values.
    mask_on: Final[bool]  # type: ignore[misc]
    keypoint_on: Final[bool]  # type: ignore[misc]


@ROI_HEADS_REGISTRY.register()
class RoIPluginsCascadeROIHeads(_AnyPooler, CascadeROIHeads):
    """``CascadeROIHeads`` with a pooler of any type in each head."""


@ROI_HEADS_REGISTRY.register()
class RoIPluginsRes5ROIHeads(_AnyPooler, Res5ROIHeads):
    """``Res5ROIHeads`` with a pooler of any type, which boxes and masks share."""

    _poolers = {'pooler': 'ROI_BOX_HEAD'}


@ROI_HEADS_REGISTRY.register()
class RoIPluginsRROIHeads(_AnyPooler, RROIHeads):
    """``RROIHeads``, for rotated boxes, with a pooler of any type that takes them."""

    _stand_in = 'ROIAlignRotated'


_OURS = {
    StandardROIHeads: RoIPluginsStandardROIHeads,
    CascadeROIHeads: RoIPluginsCascadeROIHeads,
    Res5ROIHeads: RoIPluginsRes5ROIHeads,
    RROIHeads: RoIPluginsRROIHeads,
}

STOCK_HEADS = tuple(heads.__name__ for heads in _OURS)
"""The RoI heads of Detectron2 that have a counterpart here."""

_PREFIX = 'RoIPlugins'


def register_counterpart(name: str) -> str | None:
    """The RoI heads that are the same as others, but take every type of poolers.

    For heads of a project, such as PointRend's ``PointRendROIHeads``, the counterpart is made here and
    registered as ``RoIPlugins`` followed by their name, which a saved config then has.

    Args:
        name: the registered name of RoI heads.

    Returns:
        The registered name of the counterpart, ``name`` itself if it is one; None if ``name`` is not
        registered or its heads are not derived from Detectron2's.
    """
    if name in ROI_HEADS_REGISTRY and issubclass(ROI_HEADS_REGISTRY.get(name), _AnyPooler):
        return name
    stock = name.removeprefix(_PREFIX)
    ours = _PREFIX + stock
    if ours in ROI_HEADS_REGISTRY:
        return ours
    heads = ROI_HEADS_REGISTRY.get(stock) if stock in ROI_HEADS_REGISTRY else object
    counterpart = next((_OURS[base] for base in heads.__mro__ if base in _OURS), None)
    if counterpart is None:
        return None
    # In this order, methods of the project override those of Detectron2's class.
    ROI_HEADS_REGISTRY.register(type(ours, (counterpart, heads), {}))
    return ours


# The keys of the arguments that are not in POOLER_OPTIONS.
_KEYS = {'sampling_ratio': 'POOLER_SAMPLING_RATIO', 'output_size': 'POOLER_RESOLUTION'}


def pooler_nodes(heads: type) -> list[str]:
    """The config nodes whose ``POOLER_OPTIONS`` RoI heads read.

    Args:
        heads: the class of the heads; one that does not come from this package reads none.
    """
    return list(heads._poolers.values()) if issubclass(heads, _AnyPooler) else []


def _with_stock_poolers(cfg: CfgNode, stand_in: str) -> CfgNode:
    """A copy of a config that has ``stand_in`` for each ``POOLER_TYPE`` of this package."""
    cfg = cfg.clone()
    cfg.defrost()
    for head in HEADS:
        node = cfg.MODEL[head]
        if node.POOLER_TYPE:  # with '', a head reads the maps itself
            check_pooler_type(node.POOLER_TYPE, f'MODEL.{head}.POOLER_TYPE')
        if node.POOLER_TYPE in POOLER_TYPES:
            node.POOLER_TYPE = stand_in
    return cfg


def _replaced(pooler: ROIPooler, node: CfgNode, channels: int, name: str) -> nn.Module:
    """The pooler that ``node`` names, with the scales and levels that Detectron2 gave to ``pooler``."""
    # Without add_roi_plugins_config there is no such node, and no option.
    given = {k: v for k, v in node.get('POOLER_OPTIONS', {}).items() if v is not None}
    options = {key.lower(): value for key, value in given.items()}
    if needs_channels(node.POOLER_TYPE):
        options.setdefault('channels', channels)
    try:
        check_options(node.POOLER_TYPE, options)
        if node.POOLER_TYPE not in POOLER_TYPES:
            return pooler
        scales = [level.spatial_scale for level in pooler.level_poolers]
        return RoIPluginsPooler(
            pooler.output_size,
            scales,
            node.POOLER_SAMPLING_RATIO,
            node.POOLER_TYPE,
            pooler.canonical_box_size,
            pooler.canonical_level,
            **options,
        )
    except (TypeError, ValueError) as error:
        argument, _, reason = str(error).partition(': ')
        key = _KEYS.get(argument, 'POOLER_OPTIONS')
        raise type(error)(f'{name}.{key}: {reason if argument in _KEYS else error}') from None


def _out_channels(pooler: nn.Module, channels: int) -> int:
    """The channels of a pooler's output, for those of the maps."""
    if not isinstance(pooler, RoIPluginsPooler):
        return channels
    return pooler.extractor.out_channels(channels, len(pooler.extractor.featmap_strides))
