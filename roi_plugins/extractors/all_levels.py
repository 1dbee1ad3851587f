"""Reads every RoI from every map."""

from collections.abc import Sequence
from typing import List, Optional  # noqa: UP035  TorchScript reads these

import torch
from torch import Tensor, nn

from ..ops import assign_levels_mmdet
from ..ops.checks import expect
from .base import LevelRule, RoIExtractor


class AllLevels(RoIExtractor):
    """Reads every RoI from every map, and sums or concatenates the results (GRoIE, arXiv:2004.13665,
    section III; MMDetection's ``GenericRoIExtractor``) or takes their maximum (adaptive feature pooling of
    PANet, arXiv:1803.01534, section 3.2). With a single map the modules are not used.

    Args:
        output_size: bins ``(height, width)``, or one number for both.
        featmap_strides: input pixels per cell of each map, finest first.
        aggregation: ``'sum'`` or ``'max'`` over the maps, or ``'concat'`` of their channels.
        region, sampling_ratio, reduction, aligned, min_samples, max_samples: how each map is read, see
            :func:`roi_plugins.ops.roi_extract`; by default as :class:`AlignAvg` does.
        pre_module: applied to the ``(K, C, height, width)`` features of each map before the aggregation. It
            is shared by all maps and has to keep the shape.
        post_module: applied to the aggregated features.
        level_rule: has no effect; every extractor takes one.
    """

    def __init__(
        self,
        output_size: int | Sequence[int],
        featmap_strides: Sequence[float],
        aggregation: str = 'sum',
        region: str = 'none',
        sampling_ratio: int | None = 2,
        reduction: str = 'avg',
        aligned: bool = True,
        min_samples: int = 1,
        max_samples: int | None = None,
        pre_module: nn.Module | None = None,
        post_module: nn.Module | None = None,
        *,
        level_rule: LevelRule = assign_levels_mmdet,
    ) -> None:
        super().__init__(
            output_size,
            featmap_strides,
            region=region,
            sampling_ratio=sampling_ratio,
            reduction=reduction,
            aligned=aligned,
            min_samples=min_samples,
            max_samples=max_samples,
            level_rule=level_rule,
        )
        expect(
            aggregation in ('sum', 'max', 'concat'),
            'aggregation',
            repr(aggregation),
            "'sum', 'max' or 'concat'",
        )
        self.aggregation = aggregation
        self.pre_module = pre_module
        self.post_module = post_module

    def out_channels(self, channels: int, num_maps: int) -> int:
        """Returns the number of channels before ``post_module``, see :meth:`RoIExtractor.out_channels`."""
        return channels * num_maps if self.aggregation == 'concat' else channels

    def extract(
        self,
        features: List[Tensor],  # noqa: UP006
        rois: Tensor,
        levels: Optional[Tensor],  # noqa: UP045
    ) -> Tensor:
        if len(features) == 1:
            return self.pool(features, rois, None)
        num_maps, num_rois = len(features), rois.shape[0]
        every = torch.arange(num_maps, device=rois.device)[:, None].expand(num_maps, num_rois)
        pooled = self.pool(features, rois.repeat(num_maps, 1), every.reshape(-1))
        parts = pooled.unflatten(0, [num_maps, num_rois])
        if self.pre_module is not None:
            # Map by map, because a module may depend on the whole batch, as BatchNorm does.
            parts = torch.stack([self.pre_module(part) for part in parts.unbind(0)])
        if self.aggregation == 'sum':
            pooled = parts.sum(0)
        elif self.aggregation == 'max':
            pooled = parts.amax(0)
        else:
            pooled = torch.cat(parts.unbind(0), dim=1)
        if self.post_module is not None:
            pooled = self.post_module(pooled)
        return pooled

    def extra_repr(self) -> str:
        return f'aggregation={self.aggregation!r}, {super().extra_repr()}'
