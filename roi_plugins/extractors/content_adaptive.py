"""RoIAlign with a learned weight for each sample."""

from collections.abc import Sequence
from typing import List, Optional  # noqa: UP035  TorchScript reads these

import torch
from torch import Tensor, nn
from torch.jit import Final

from ..ops import assign_levels_mmdet
from .base import LevelRule, RoIExtractor, check_channels


class ContentAdaptive(RoIExtractor):
    """RoIAlign with an average that is weighted by a learned importance, as Local Importance-based Pooling
    (LIP, arXiv:1908.04156, section 3) weighs the cells of a pooling window. A bin is ``sum(w f) / sum(w)``
    over its samples, with ``w = exp(a)`` and ``a`` a 1x1 convolution of the map, shared by all maps.

    ``a`` starts at zero, where the output equals that of :class:`AlignAvg` bit for bit. So weights that were
    trained with :class:`AlignAvg` load; only those of the convolution are missing. ``a`` is kept within
    ``LIMIT`` of zero.

    Args:
        output_size: bins ``(height, width)``, or one number for both.
        featmap_strides: input pixels per cell of each map, finest first.
        sampling_ratio, aligned, level_rule: as for :class:`AlignAvg`.
        channels: number of channels of every map.
    """

    # exp(4) is 55: two cells may differ 3000-fold.
    LIMIT: Final[float] = 4.0

    needs_channels = True

    def __init__(
        self,
        output_size: int | Sequence[int],
        featmap_strides: Sequence[float],
        sampling_ratio: int = 2,
        aligned: bool = True,
        *,
        channels: int,
        level_rule: LevelRule = assign_levels_mmdet,
    ) -> None:
        super().__init__(
            output_size,
            featmap_strides,
            sampling_ratio=sampling_ratio,
            aligned=aligned,
            level_rule=level_rule,
        )
        # No bias, which would cancel out. No random initialisation either: models of one seed should start
        # from the same weights, whatever their extractor.
        check_channels(channels)
        self.importance = nn.utils.skip_init(nn.Conv2d, channels, 1, 1, bias=False)
        nn.init.zeros_(self.importance.weight)

    def extract(
        self,
        features: List[Tensor],  # noqa: UP006
        rois: Tensor,
        levels: Optional[Tensor],  # noqa: UP045
    ) -> Tensor:
        weighted: List[Tensor] = []  # noqa: UP006
        weights: List[Tensor] = []  # noqa: UP006
        for map_ in features:
            weight = self.weigh(map_)
            # In the type of the weights: 55 times 1300 overflows float16, in forward and backward.
            weighted.append(weight * map_)
            weights.append(torch.cat([weight, torch.ones_like(weight)], dim=1))
        # Samples beyond the map have no weight but count as zeros in the average. `share` is the part of the
        # bin that is on the map.
        weight, share = self.pool(weights, rois, levels).split(1, dim=1)
        scale = share / torch.where(weight > 0, weight, 1.0)  # 0 for an empty bin
        pooled = self.pool(weighted, rois, levels)
        return (pooled * scale).to(features[0].dtype)

    def weigh(self, map_: Tensor) -> Tensor:
        """Returns the positive weights ``(N, 1, H, W)`` of the cells of a map, in float32 or float64.

        Args:
            map_: ``(N, C, H, W)``.
        """
        importance = self.importance(map_)
        if importance.dtype != torch.float64:
            importance = importance.float()
        return torch.exp(self.LIMIT * torch.tanh(importance / self.LIMIT))
