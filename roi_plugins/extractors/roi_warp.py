"""RoIWarp: bilinear samples of a quantised box."""

from ..ops import assign_levels_mmdet
from .base import LevelRule, RoIExtractor


class RoIWarp(RoIExtractor):
    """The row between RoIPool and RoIAlign in Mask R-CNN's table 2c (after Multi-task Network Cascades):
    the box is rounded as in Fast R-CNN, then sampled bilinearly.

    Args:
        output_size (int or Sequence[int]): bins ``(height, width)``, or one number for both.
        featmap_strides (Sequence[float]): input pixels per cell of each map, finest first.
        reduction: ``'avg'`` or ``'max'`` over the samples of a bin.
        sampling_ratio: samples per bin and axis; ``0`` or less: from the size of the RoI.
        level_rule: see :class:`RoIExtractor`.
    """

    def __init__(
        self,
        output_size,
        featmap_strides,
        reduction: str = 'avg',
        sampling_ratio: int = 2,
        *,
        level_rule: LevelRule = assign_levels_mmdet,
    ):
        super().__init__(
            output_size,
            featmap_strides,
            region='round',
            sampling_ratio=sampling_ratio,
            reduction=reduction,
            level_rule=level_rule,
        )
