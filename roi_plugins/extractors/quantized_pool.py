"""Quantised pooling: the box, or its bins, snap to whole cells."""

from collections.abc import Sequence

from ..ops import assign_levels_mmdet
from .base import LevelRule, RoIExtractor


class QuantizedPool(RoIExtractor):
    """RoIPool (Fast R-CNN, arXiv:1504.08083, section 2.1) and two other roundings that carry its name.

    Args:
        output_size: bins ``(height, width)``, or one number for both.
        featmap_strides: input pixels per cell of each map, finest first.
        region: what is rounded. ``'round'`` (Fast R-CNN, torchvision, Detectron2) rounds the box to the
            nearest cells, then the bins outwards. ``'floor'`` (textbooks) rounds every length down.
            ``'bins'`` (MMCV's ``RoIPool``) rounds only the bins.
        reduction: ``'max'`` or ``'avg'`` over the cells of a bin.
        level_rule: see :class:`RoIExtractor`.
    """

    def __init__(
        self,
        output_size: int | Sequence[int],
        featmap_strides: Sequence[float],
        region: str = 'round',
        reduction: str = 'max',
        *,
        level_rule: LevelRule = assign_levels_mmdet,
    ) -> None:
        super().__init__(
            output_size,
            featmap_strides,
            region=region,
            sampling_ratio=None,
            reduction=reduction,
            level_rule=level_rule,
        )
