"""RoIAlign whose samples are jittered in training."""

from typing import List, Optional  # noqa: UP035  TorchScript reads these

import torch
from torch import Tensor

from ..ops import assign_levels_mmdet
from .base import LevelRule, RoIExtractor


class RandomSampling(RoIExtractor):
    """RoIAlign that in training takes each sample anywhere in its own part of the bin, at other positions in
    every call; in evaluation it is :class:`AlignAvg`, or :class:`AlignMax`.

    The positions come from a seed that is drawn from torch's generator of the RoIs' device:
    ``torch.manual_seed`` repeats them.

    Args:
        output_size (int or Sequence[int]): bins ``(height, width)``, or one number for both.
        featmap_strides (Sequence[float]): input pixels per cell of each map, finest first.
        sampling_ratio, aligned, level_rule: as for :class:`AlignAvg`.
        reduction: ``'avg'`` or ``'max'`` over the samples of a bin.
    """

    def __init__(
        self,
        output_size,
        featmap_strides,
        sampling_ratio: int = 2,
        reduction: str = 'avg',
        aligned: bool = True,
        *,
        level_rule: LevelRule = assign_levels_mmdet,
    ):
        super().__init__(
            output_size,
            featmap_strides,
            sampling_ratio=sampling_ratio,
            reduction=reduction,
            aligned=aligned,
            level_rule=level_rule,
        )

    def extract(
        self,
        features: List[Tensor],  # noqa: UP006
        rois: Tensor,
        levels: Optional[Tensor],  # noqa: UP045
    ) -> Tensor:
        if not self.training:
            return self.pool(features, rois, levels)
        seed = torch.randint(1 << 62, (1,), dtype=torch.int64, device=rois.device)
        return self.pool(features, rois, levels, None, seed)
