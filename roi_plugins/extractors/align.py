"""RoIAlign (Mask R-CNN, section 3): bilinear samples of the box as it is, nothing rounded."""

from ..ops import assign_levels_mmdet
from .base import LevelRule, RoIExtractor


class AlignAvg(RoIExtractor):
    """RoIAlign with the average of a bin's samples.

    Args:
        output_size (int or Sequence[int]): bins ``(height, width)``, or one number for both.
        featmap_strides (Sequence[float]): input pixels per cell of each map, finest first.
        sampling_ratio: samples per bin and axis; ``0`` or less: from the size of the RoI, both frameworks'
            default.
        aligned: shift by half a cell, so that a cell's value sits at its centre; ``False`` is the legacy
            convention without.
        level_rule: see :class:`RoIExtractor`.
    """

    reduction = 'avg'

    def __init__(
        self,
        output_size,
        featmap_strides,
        sampling_ratio: int = 2,
        aligned: bool = True,
        *,
        level_rule: LevelRule = assign_levels_mmdet,
    ):
        super().__init__(
            output_size,
            featmap_strides,
            sampling_ratio=sampling_ratio,
            reduction=self.reduction,
            aligned=aligned,
            level_rule=level_rule,
        )


class AlignMax(AlignAvg):
    """RoIAlign with the maximum of a bin's samples.

    Args:
        output_size (int or Sequence[int]): bins ``(height, width)``, or one number for both.
        featmap_strides (Sequence[float]): input pixels per cell of each map, finest first.
        sampling_ratio, aligned, level_rule: as for :class:`AlignAvg`.
    """

    reduction = 'max'
