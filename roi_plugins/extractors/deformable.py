"""RoIAlign whose bins move to where their features say."""

from typing import List, Optional  # noqa: UP035  TorchScript reads these

import torch
from torch import Tensor, nn
from torch.jit import Final

from ..ops import assign_levels_mmdet
from ..ops.checks import expect
from .base import LevelRule, RoIExtractor, check_channels


class Deformable(RoIExtractor):
    """Deformable RoI pooling (arXiv:1703.06211, section 2.2): the RoI is read as by :class:`AlignAvg`,
    a 1x1 convolution says of each bin by how much it moves, and it is read again from there. Offsets are in
    units of the RoI's size, times ``GAMMA``. The papers have fully connected layers over all bins at once,
    which cost many times as much as the rest.

    The convolution starts at zero, where the output is that of :class:`AlignAvg`: weights that were trained
    with it load, and lack the convolution alone.

    Args:
        output_size (int or Sequence[int]): bins ``(height, width)``, or one number for both.
        featmap_strides (Sequence[float]): input pixels per cell of each map, finest first.
        sampling_ratio, aligned, level_rule: as for :class:`AlignAvg`.
        modulated: also weigh each bin, by 0 to 2 (Deformable ConvNets v2, arXiv:1811.11168, section 3.2,
            where it is 0 to 1); at the start by 1.
        channels: of every map.
    """

    GAMMA: Final[float] = 0.1
    FARTHEST: Final[float] = 6e4

    needs_channels = True

    def __init__(
        self,
        output_size,
        featmap_strides,
        sampling_ratio: int = 2,
        aligned: bool = True,
        modulated: bool = False,
        *,
        channels: int,
        level_rule: LevelRule = assign_levels_mmdet,
    ):
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
        # No initialisation of its own, which would draw random numbers: models of one seed should start from
        # the same weights, whatever their extractor.
        numbers = 3 if modulated else 2
        self.offset = nn.utils.skip_init(nn.Conv2d, channels, numbers, 1, bias=False)
        nn.init.zeros_(self.offset.weight)
        self.bias = nn.Parameter(torch.zeros(numbers))  # added later: beyond the map there are zeros

    def extract(
        self,
        features: List[Tensor],  # noqa: UP006
        rois: Tensor,
        levels: Optional[Tensor],  # noqa: UP045
    ) -> Tensor:
        # The convolution of what is read is what is read of the convolution: an average of few channels.
        # Further than any map is wide, and yet a float16: an infinite offset would give NaN.
        convolved = [self.offset(map_).clamp(-self.FARTHEST, self.FARTHEST) for map_ in features]
        moves = self.pool(convolved, rois, levels) + self.bias[:, None, None]
        # A RoI that is no number gives NaN, by the reading below, but to the bias no gradient.
        moves = torch.where(rois.isfinite().all(dim=1)[:, None, None, None], moves, 0.0)
        pooled = self.pool(features, rois, levels, self.GAMMA * moves[:, :2])
        if self.modulated:
            pooled = pooled * (2 * torch.sigmoid(moves[:, 2:])).to(pooled.dtype)
        return pooled

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, modulated={self.modulated}'
