"""Precise RoI pooling: the bilinear surface is integrated, not sampled."""

from collections.abc import Sequence

from ..ops import assign_levels_mmdet
from .base import LevelRule, RoIExtractor


class Precise(RoIExtractor):
    """PrRoIPool (IoU-Net, arXiv:1807.11590, section 3.3): the exact mean of the bilinear surface over each
    bin, so there is no number of samples to choose. The map is extended by zeros.

    Args:
        output_size: bins ``(height, width)``, or one number for both.
        featmap_strides: input pixels per cell of each map, finest first.
        aligned: shift by half a cell, as in :class:`AlignAvg`; ``False`` is the published method without the
            shift. A small box keeps its size either way.
        level_rule: see :class:`RoIExtractor`.
    """

    def __init__(
        self,
        output_size: int | Sequence[int],
        featmap_strides: Sequence[float],
        aligned: bool = False,
        *,
        level_rule: LevelRule = assign_levels_mmdet,
    ) -> None:
        super().__init__(
            output_size,
            featmap_strides,
            sampling_ratio=None,
            reduction='integral',
            aligned=aligned,
            level_rule=level_rule,
        )
