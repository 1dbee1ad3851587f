"""RoIAlign whose grid grows with the RoI."""

from collections.abc import Sequence

from ..ops import assign_levels_mmdet
from .base import LevelRule, RoIExtractor


class AdaptiveSampling(RoIExtractor):
    """RoIAlign with ``ceil(bin size)`` samples per bin and axis, within bounds: about one for each cell, so
    that a large RoI skips none.

    Args:
        output_size: bins ``(height, width)``, or one number for both.
        featmap_strides: input pixels per cell of each map, finest first.
        reduction: ``'avg'`` or ``'max'`` over the samples of a bin.
        min_samples, max_samples: bounds of the number of samples per bin and axis; None is no bound.
        aligned: as for :class:`AlignAvg`.
        level_rule: see :class:`RoIExtractor`.
    """

    def __init__(
        self,
        output_size: int | Sequence[int],
        featmap_strides: Sequence[float],
        reduction: str = 'avg',
        min_samples: int = 1,
        max_samples: int | None = None,
        aligned: bool = True,
        *,
        level_rule: LevelRule = assign_levels_mmdet,
    ) -> None:
        super().__init__(
            output_size,
            featmap_strides,
            sampling_ratio=0,
            reduction=reduction,
            min_samples=min_samples,
            max_samples=max_samples,
            aligned=aligned,
            level_rule=level_rule,
        )
