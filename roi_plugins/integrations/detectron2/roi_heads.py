"""Detectron2's RoI heads, whose poolers may be ours."""

from detectron2.config import CfgNode
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    CascadeROIHeads,
    Res5ROIHeads,
    RROIHeads,
    StandardROIHeads,
)
from torch import nn
from torch.jit import Final

from .config import HEADS
from .poolers import (
    POOLER_TYPES,
    RoIPluginsPooler,
    check_options,
    check_pooler_type,
    pooler_options,
)


class _AnyPooler:
    """Lets Detectron2 build everything, then puts our poolers where they are asked for."""

    # The arguments of the heads that are poolers, and the config node that each is built from.
    _poolers = {
        'box_pooler': 'ROI_BOX_HEAD',
        'mask_pooler': 'ROI_MASK_HEAD',
        'keypoint_pooler': 'ROI_KEYPOINT_HEAD',
    }
    # What Detectron2 is to build where one of ours comes.
    _stand_in = 'ROIAlignV2'

    @classmethod
    def from_config(cls, cfg, input_shape):
        arguments = super().from_config(_with_stock_poolers(cfg, cls._stand_in), input_shape)
        channels = input_shape[cfg.MODEL.ROI_HEADS.IN_FEATURES[0]].channels
        for name, head in cls._poolers.items():
            # There is none without masks or keypoints, or where a head reads the maps itself.
            if arguments.get(name) is not None:
                arguments[name] = _replaced(
                    arguments[name], cfg.MODEL[head], channels, f'MODEL.{head}.'
                )
        return arguments


@ROI_HEADS_REGISTRY.register()
class RoIPluginsStandardROIHeads(_AnyPooler, StandardROIHeads):
    """``StandardROIHeads`` with a pooler of any type in each of its heads."""

    # Constants of TorchScript, as Detectron2 makes them of its own class: a subclass inherits none. By
    # them a model without masks or keypoints is scripted without those branches.
    mask_on: Final[bool]
    keypoint_on: Final[bool]


@ROI_HEADS_REGISTRY.register()
class RoIPluginsCascadeROIHeads(_AnyPooler, CascadeROIHeads):
    """``CascadeROIHeads`` with a pooler of any type in each of its heads."""


@ROI_HEADS_REGISTRY.register()
class RoIPluginsRes5ROIHeads(_AnyPooler, Res5ROIHeads):
    """``Res5ROIHeads`` with a pooler of any type, which boxes and masks share."""

    _poolers = {'pooler': 'ROI_BOX_HEAD'}


@ROI_HEADS_REGISTRY.register()
class RoIPluginsRROIHeads(_AnyPooler, RROIHeads):
    """``RROIHeads``, of rotated boxes, with a pooler of any type that takes those."""

    _stand_in = 'ROIAlignRotated'


def _with_stock_poolers(cfg: CfgNode, stand_in: str) -> CfgNode:
    """A copy in which Detectron2 knows every ``POOLER_TYPE``."""
    cfg = cfg.clone()
    cfg.defrost()
    for head in HEADS:
        node = cfg.MODEL[head]
        if node.POOLER_TYPE:  # without one, a head reads the maps itself
            check_pooler_type(node.POOLER_TYPE, f'MODEL.{head}.POOLER_TYPE')
        if node.POOLER_TYPE in POOLER_TYPES:
            node.POOLER_TYPE = stand_in
    return cfg


def _replaced(pooler: ROIPooler, node: CfgNode, channels: int, name: str) -> nn.Module:
    """The pooler that ``node`` asks for, of the geometry that Detectron2 gave to ``pooler``."""
    # A config that add_roi_plugins_config has not seen has no such node, and needs none.
    given = {k: v for k, v in node.get('POOLER_OPTIONS', {}).items() if v is not None}
    options = {key.lower(): value for key, value in given.items()}
    if 'channels' in pooler_options(node.POOLER_TYPE):
        options.setdefault('channels', channels)
    try:
        check_options(node.POOLER_TYPE, options)
        if node.POOLER_TYPE not in POOLER_TYPES:
            return pooler
        scales = [level.spatial_scale for level in pooler.level_poolers]
        ours = RoIPluginsPooler(
            pooler.output_size,
            scales,
            node.POOLER_SAMPLING_RATIO,
            node.POOLER_TYPE,
            pooler.canonical_box_size,
            pooler.canonical_level,
            **options,
        )
        given = ours.extractor.out_channels(channels, len(scales))
        if given != channels:
            raise ValueError(
                f'{node.POOLER_TYPE} would give {given} channels, expected {channels}, for which Detectron2 '
                'builds the head; in a LazyConfig the head can be told'
            )
        return ours
    except (TypeError, ValueError) as error:
        raise type(error)(f'{name}POOLER_OPTIONS: {error}') from None
