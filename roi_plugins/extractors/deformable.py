"""RoIAlign with a learned offset for each bin."""

from collections.abc import Sequence
from typing import List, Optional  # noqa: UP035  TorchScript reads these

import torch
from torch import Tensor, nn
from torch.jit import Final

from ..ops import assign_levels_mmdet
from ..ops.checks import expect
from .base import LevelRule, RoIExtractor, check_channels


class Deformable(RoIExtractor):
    """Deformable RoI pooling (arXiv:1703.06211, section 2.2). The RoI is read as in :class:`AlignAvg`, a 1x1
    convolution of the result gives an offset for each bin, and the RoI is read again with these offsets.
    Offsets are in units of the RoI's size, times ``GAMMA``. The papers use fully connected layers over all
    bins instead of the convolution, which cost many times as much as the rest.

    The convolution starts at zero, where the output equals that of :class:`AlignAvg`. So weights that were
    trained with :class:`AlignAvg` load; only those of the convolution are missing.

    Args:
        output_size: bins ``(height, width)``, or one number for both.
        featmap_strides: input pixels per cell of each map, finest first.
        sampling_ratio, aligned, level_rule: as for :class:`AlignAvg`.
        modulated: whether each bin also has a learned weight from 0 to 2, which starts at 1 (Deformable
            ConvNets v2, arXiv:1811.11168, section 3.2, where it is 0 to 1).
        channels: number of channels of every map.
    """

    GAMMA: Final[float] = 0.1
    FARTHEST: Final[float] = 6e4

    needs_channels = True

    def __init__(
        self,
        output_size: int | Sequence[int],
        featmap_strides: Sequence[float],
        sampling_ratio: int = 2,
        aligned: bool = True,
        modulated: bool = False,
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
        expect(isinstance(modulated, bool), 'modulated', repr(modulated), 'True or False')
        check_channels(channels)
        self.modulated = modulated
        # No random initialisation: models of one seed should start from the same weights, whatever their
        # extractor.
        outputs = 3 if modulated else 2
        self.offset = nn.utils.skip_init(nn.Conv2d, channels, outputs, 1, bias=False)
        nn.init.zeros_(self.offset.weight)
        # Added after the pooling, because what a bin reads beyond the map is zero and not the bias.
        self.bias = nn.Parameter(torch.zeros(outputs))

    def extract(
        self,
        features: List[Tensor],  # noqa: UP006
        rois: Tensor,
        levels: Optional[Tensor],  # noqa: UP045
    ) -> Tensor:
        # Pooling and a 1x1 convolution commute, so convolve first and pool 2 or 3 channels instead of C.
        # Clamp, because an infinite offset would give NaN: FARTHEST exceeds any map and fits into float16.
        convolved = [self.offset(map_).clamp(-self.FARTHEST, self.FARTHEST) for map_ in features]
        moves = self.pool(convolved, rois, levels) + self.bias[:, None, None]
        # A RoI that is not finite gives NaN in the second reading, but no gradient to the bias.
        moves = torch.where(rois.isfinite().all(dim=1)[:, None, None, None], moves, 0.0)
        pooled = self.pool(features, rois, levels, self.GAMMA * moves[:, :2])
        if self.modulated:
            pooled = pooled * (2 * torch.sigmoid(moves[:, 2:])).to(pooled.dtype)
        return pooled

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, modulated={self.modulated}'
