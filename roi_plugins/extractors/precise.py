"""Precise RoI pooling: the bilinear surface is integrated, not sampled."""

from ..ops import assign_levels_mmdet
from .base import LevelRule, RoIExtractor


class Precise(RoIExtractor):
    """PrRoIPool (IoU-Net, arXiv:1807.11590, section 3.3): the exact mean of the bilinear surface over each
    bin, so there is no number of samples to choose. The map is extended by zeros.

    Args:
        output_size (int or Sequence[int]): bins ``(height, width)``, or one number for both.
        featmap_strides (Sequence[float]): input pixels per cell of each map, finest first.
        aligned: shift by half a cell, as :class:`AlignAvg` does; ``False``, the published method, has none.
            A small box keeps its size either way.
        level_rule: see :class:`RoIExtractor`.
    """

    def __init__(
        self,
        output_size,
        featmap_strides,
        aligned: bool = False,
        *,
        level_rule: LevelRule = assign_levels_mmdet,
    ):
        super().__init__(
            output_size,
            featmap_strides,
            sampling_ratio=None,
            reduction='integral',
            aligned=aligned,
            level_rule=level_rule,
        )
