"""RoIAlign (Mask R-CNN, arXiv:1703.06870, section 3): bilinear samples of the box, without rounding."""

from collections.abc import Sequence

from ..ops import assign_levels_mmdet
from .base import LevelRule, RoIExtractor


class AlignAvg(RoIExtractor):
    """RoIAlign with the average of a bin's samples.

    Args:
        output_size: bins ``(height, width)``, or one number for both.
        featmap_strides: input pixels per cell of each map, finest first.
        sampling_ratio: samples per bin and axis; ``0`` or less takes ``ceil(bin size)`` of them, which is the
            default of both frameworks.
        aligned: shift by half a cell, so that a cell's value sits at its centre; ``False`` is the legacy
            convention without the shift.
        level_rule: see :class:`RoIExtractor`.
    """

    reduction = 'avg'

    def __init__(
        self,
        output_size: int | Sequence[int],
        featmap_strides: Sequence[float],
        sampling_ratio: int = 2,
        aligned: bool = True,
        *,
        level_rule: LevelRule = assign_levels_mmdet,
    ) -> None:
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
        output_size: bins ``(height, width)``, or one number for both.
        featmap_strides: input pixels per cell of each map, finest first.
        sampling_ratio, aligned, level_rule: as for :class:`AlignAvg`.
    """

    reduction = 'max'
