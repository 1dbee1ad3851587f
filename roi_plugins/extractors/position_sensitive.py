"""Position-sensitive RoI pooling: each bin reads its own group of channels."""

from collections.abc import Sequence
from typing import List, Optional  # noqa: UP035  TorchScript reads these

from torch import Tensor, nn

from ..ops import assign_levels_mmdet
from ..ops.checks import expect
from .base import LevelRule, RoIExtractor, check_channels


class PositionSensitive(RoIExtractor):
    """PSRoIPool (R-FCN, arXiv:1605.06409, section 3) or PSRoIAlign, with the 1x1 convolution that makes the
    position-sensitive maps: ``depth`` channels for each bin. All levels share the convolution.

    With a head that averages the bins this is R-FCN; with the usual head it is Light-Head R-CNN
    (arXiv:1711.07264).

    Args:
        output_size: bins ``(height, width)``, or one number for both.
        featmap_strides: input pixels per cell of each map, finest first.
        mode: ``'align'`` takes bilinear samples of the box as it is, ``'pool'`` the cells of the rounded box.
        sampling_ratio: samples per bin and axis in mode ``'align'``; ``0`` or less takes ``ceil(bin size)``
        of
            them.
        depth: number of channels of the output; by default ``channels``, which makes many maps.
        channels: number of channels of every map.
        level_rule: see :class:`RoIExtractor`.
    """

    needs_channels = True
    changes_channels = True

    def __init__(
        self,
        output_size: int | Sequence[int],
        featmap_strides: Sequence[float],
        mode: str = 'align',
        sampling_ratio: int = 2,
        depth: int | None = None,
        *,
        channels: int,
        level_rule: LevelRule = assign_levels_mmdet,
    ) -> None:
        expect(mode in ('align', 'pool'), 'mode', repr(mode), "'align' or 'pool'")
        super().__init__(
            output_size,
            featmap_strides,
            region='none' if mode == 'align' else 'round',
            sampling_ratio=sampling_ratio if mode == 'align' else None,
            position_sensitive=True,
            level_rule=level_rule,
        )
        self.depth = channels if depth is None else depth
        check_channels(channels)
        check_channels(self.depth, 'depth')
        height, width = self.output_size
        self.score = nn.Conv2d(channels, self.depth * height * width, 1)

    def out_channels(self, channels: int, num_maps: int) -> int:
        return self.depth

    def extract(
        self,
        features: List[Tensor],  # noqa: UP006
        rois: Tensor,
        levels: Optional[Tensor],  # noqa: UP045
    ) -> Tensor:
        return self.pool([self.score(map_) for map_ in features], rois, levels)
