"""RoIWarp: bilinear samples of a rounded box."""

from collections.abc import Sequence

from ..ops import assign_levels_mmdet
from .base import LevelRule, RoIExtractor


class RoIWarp(RoIExtractor):
    """RoIWarp: the box is rounded as in Fast R-CNN, then sampled bilinearly. It stands between RoIPool and
    RoIAlign in Mask R-CNN's table 2c (arXiv:1703.06870), after Multi-task Network Cascades
    (arXiv:1512.04412).

    Args:
        output_size: bins ``(height, width)``, or one number for both.
        featmap_strides: input pixels per cell of each map, finest first.
        reduction: ``'avg'`` or ``'max'`` over the samples of a bin.
        sampling_ratio: samples per bin and axis; ``0`` or less takes ``ceil(bin size)`` of them.
        level_rule: see :class:`RoIExtractor`.
    """

    def __init__(
        self,
        output_size: int | Sequence[int],
        featmap_strides: Sequence[float],
        reduction: str = 'avg',
        sampling_ratio: int = 2,
        *,
        level_rule: LevelRule = assign_levels_mmdet,
    ) -> None:
        super().__init__(
            output_size,
            featmap_strides,
            region='round',
            sampling_ratio=sampling_ratio,
            reduction=reduction,
            level_rule=level_rule,
        )
