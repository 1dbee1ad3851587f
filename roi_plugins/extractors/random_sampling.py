"""RoIAlign with jittered samples in training."""

from collections.abc import Sequence
from typing import List, Optional  # noqa: UP035  TorchScript reads these

import torch
from torch import Tensor

from ..ops import assign_levels_mmdet
from .base import LevelRule, RoIExtractor


class RandomSampling(RoIExtractor):
    """RoIAlign that in training draws each sample anywhere in its own part of the bin, anew in every call. In
    evaluation it is :class:`AlignAvg` or :class:`AlignMax`.

    The positions come from a seed that is drawn from torch's generator of the RoIs' device, so
    ``torch.manual_seed`` reproduces them.

    Args:
        output_size: bins ``(height, width)``, or one number for both.
        featmap_strides: input pixels per cell of each map, finest first.
        sampling_ratio, aligned, level_rule: as for :class:`AlignAvg`.
        reduction: ``'avg'`` or ``'max'`` over the samples of a bin.
    """

    def __init__(
        self,
        output_size: int | Sequence[int],
        featmap_strides: Sequence[float],
        sampling_ratio: int = 2,
        reduction: str = 'avg',
        aligned: bool = True,
        *,
        level_rule: LevelRule = assign_levels_mmdet,
    ) -> None:
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
