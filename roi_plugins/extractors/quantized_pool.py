"""Quantised pooling: the box, or its bins, snap to whole cells."""

from ..ops import assign_levels_mmdet
from .base import LevelRule, RoIExtractor


class QuantizedPool(RoIExtractor):
    """RoIPool (Fast R-CNN, section 2.1) and the two other roundings that carry its name.

    Args:
        output_size (int or Sequence[int]): bins ``(height, width)``, or one number for both.
        featmap_strides (Sequence[float]): input pixels per cell of each map, finest first.
        region: what is rounded. ``'round'`` (Fast R-CNN, torchvision, Detectron2): the box to the
            nearest cells, then the bins outwards. ``'floor'`` (textbooks): every length down.
            ``'bins'`` (MMCV's ``RoIPool``): the bins alone.
        reduction: ``'max'``, or ``'avg'``, over the cells of a bin.
        level_rule: see :class:`RoIExtractor`.
    """

    def __init__(
        self,
        output_size,
        featmap_strides,
        region: str = 'round',
        reduction: str = 'max',
        *,
        level_rule: LevelRule = assign_levels_mmdet,
    ):
        super().__init__(
            output_size,
            featmap_strides,
            region=region,
            sampling_ratio=None,
            reduction=reduction,
            level_rule=level_rule,
        )
