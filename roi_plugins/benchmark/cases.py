"""What is measured: the cases of each device, their inputs, and the ratios that are aimed at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from roi_plugins.ops import assign_levels_mmdet, roi_extract
from roi_plugins.ops.reference import memory_format

FORWARD, BACKWARD, BOTH = 'forward', 'backward', 'forward + backward'
LAYOUTS = ('channels_last', 'NCHW')


@dataclass(frozen=True)
class Case:
    """One row of work that the op and its peers do on the same numbers.

    Attributes:
        step: ``FORWARD`` with gradients off, ``BACKWARD`` alone as autograd runs it, or ``BOTH``.
        method: options of :func:`roi_plugins.ops.roi_extract`.
        strides: input pixels per cell of each map; several make a pyramid.
        peers: keys of :data:`roi_plugins.benchmark.peers.PEERS`.
        targets: how many times faster than a peer is aimed at, by (peer, layout, dtype of the op).
        image_size: (height, width) of the input images, pixels.
        dtypes: of the op's features. Peers run in every dtype that they take.
    """

    name: str
    output_size: int
    step: str
    method: Mapping[str, Any]
    strides: tuple[int, ...]
    peers: tuple[str, ...]
    targets: Mapping[tuple[str, str, str], float] = field(default_factory=dict)
    num_rois: int = 512
    channels: int = 256
    images: int = 2
    image_size: tuple[int, int] = (800, 1344)
    dtypes: tuple[str, ...] = ('float32',)

    @property
    def scales(self) -> list[float]:
        return [1 / stride for stride in self.strides]

    @property
    def map_shapes(self) -> list[tuple[int, int, int, int]]:
        """(N, C, H, W) of each map."""
        return [
            (self.images, self.channels, *(-(-side // stride) for side in self.image_size))
            for stride in self.strides
        ]

    def make_rois(self) -> Tensor:
        """``(K, 5)`` boxes inside the images, those of an image together, as detectors give them.

        The side sqrt(area) is spread evenly over the octaves from 16 px to 0.64 of the shorter image
        side (512 px of 800), height to width from 1/2 to 2. Always the same.
        """
        generator = torch.Generator().manual_seed(0)
        octave, ratio, left, top = torch.rand(4, self.num_rois, generator=generator)
        height, width = self.image_size
        side = 16 * (0.64 * min(self.image_size) / 16) ** octave
        half_ratio = 2 ** (ratio - 0.5)  # sqrt of height / width
        w, h = side / half_ratio, side * half_ratio
        x, y = left * (width - w).clamp(min=0), top * (height - h).clamp(min=0)
        image = torch.arange(self.num_rois) * self.images // self.num_rois
        return torch.stack([image.float(), x, y, x + w, y + h], dim=1)

    def make_features(self, layout: str, dtype: str, device: torch.device) -> list[Tensor]:
        """Maps of standard normal numbers, the same in every layout and dtype."""
        generator = torch.Generator().manual_seed(1)
        return [
            torch.randn(shape, generator=generator)
            .to(device, getattr(torch, dtype))
            .contiguous(memory_format=memory_format(layout == 'channels_last'))
            for shape in self.map_shapes
        ]

    def extract(self, features: list[Tensor], rois: Tensor, levels: Tensor | None = None) -> Tensor:
        """The op on this case. Finding the levels of a pyramid is part of the work, unless given."""
        if len(features) == 1:
            return roi_extract(features[0], rois, self.output_size, self.scales, **self.method)
        if levels is None:
            levels = assign_levels_mmdet(rois, len(features))
        return roi_extract(features, rois, self.output_size, self.scales, levels=levels, **self.method)

    def count_touched_cells(self, rois: Tensor) -> int:
        """Cells that some sample reads, over all images and maps: those that an average depends on."""
        maps = [torch.zeros(shape[0], 1, *shape[2:], requires_grad=True) for shape in self.map_shapes]
        average = replace(self, method={**self.method, 'reduction': 'avg'})
        output = average.extract(maps, rois.cpu())
        grads = torch.autograd.grad(output, maps, torch.ones_like(output), allow_unused=True)
        return sum(int(grad.count_nonzero()) for grad in grads if grad is not None)

    def floor_bytes(self, rois: Tensor, itemsize: int) -> int:
        """Bytes that cannot be avoided.

        Forward: the touched features read once, the output written once. Backward: the gradient of the
        output read once, that of every map written once, zeros included.
        """
        elements = self.num_rois * self.channels * self.output_size**2
        forward = self.count_touched_cells(rois) * self.channels + elements
        backward = elements + sum(n * c * h * w for n, c, h, w in self.map_shapes)
        return itemsize * {FORWARD: forward, BACKWARD: backward, BOTH: forward + backward}[self.step]


ALIGN_AVG = {'region': 'none', 'sampling_ratio': 2, 'reduction': 'avg', 'aligned': True}
ALIGN_MAX = {**ALIGN_AVG, 'reduction': 'max'}
QUANTIZED_POOL = {'region': 'round', 'sampling_ratio': None, 'reduction': 'max'}

C4 = (16,)
FPN = (4, 8, 16, 32)

ROI_ALIGN, ROI_POOL = 'torchvision.ops.roi_align', 'torchvision.ops.roi_pool'
MMCV_ROI_ALIGN = 'mmcv.ops.RoIAlign'
PYRAMID_PEERS = (
    'torchvision.ops.MultiScaleRoIAlign',
    'mmdet SingleRoIExtractor',
    'detectron2 ROIPooler',
)


def _cpu_targets(channels_last: float, nchw: float, *peers: str) -> dict[tuple[str, str, str], float]:
    return {
        (peer, layout, 'float32'): ratio
        for peer in peers
        for layout, ratio in zip(LAYOUTS, (channels_last, nchw), strict=True)
    }


_CUDA = dict(
    method=ALIGN_AVG,
    strides=FPN,
    peers=PYRAMID_PEERS,
    targets={
        (peer, layout, dtype): ratio
        for peer in PYRAMID_PEERS
        for layout, dtype, ratio in (('NCHW', 'float32', 3), ('channels_last', 'bfloat16', 6))
    },
    num_rois=1024,
    dtypes=('float32', 'bfloat16'),
)

CASES = {
    'cpu': (
        Case('align-avg-7x7-forward', 7, FORWARD, ALIGN_AVG, C4, (ROI_ALIGN, MMCV_ROI_ALIGN),
             _cpu_targets(20, 10, ROI_ALIGN)),
        Case('align-avg-14x14-forward', 14, FORWARD, ALIGN_AVG, C4, (ROI_ALIGN, MMCV_ROI_ALIGN),
             _cpu_targets(7, 3.5, ROI_ALIGN)),
        Case('align-avg-7x7-backward', 7, BACKWARD, ALIGN_AVG, C4, (ROI_ALIGN, MMCV_ROI_ALIGN),
             _cpu_targets(60, 40, ROI_ALIGN)),
        Case('align-avg-14x14-backward', 14, BACKWARD, ALIGN_AVG, C4, (ROI_ALIGN, MMCV_ROI_ALIGN),
             _cpu_targets(60, 22, ROI_ALIGN)),
        Case('quantized-pool-7x7-forward', 7, FORWARD, QUANTIZED_POOL, C4, (ROI_POOL,),
             _cpu_targets(8, 4, ROI_POOL)),
        Case('align-max-7x7-forward', 7, FORWARD, ALIGN_MAX, C4, (MMCV_ROI_ALIGN,),
             _cpu_targets(20, 10, MMCV_ROI_ALIGN)),
        Case('align-max-7x7-backward', 7, BACKWARD, ALIGN_MAX, C4, (MMCV_ROI_ALIGN,),
             _cpu_targets(10, 5, MMCV_ROI_ALIGN)),
        Case('pyramid-7x7-forward-backward', 7, BOTH, ALIGN_AVG, FPN, PYRAMID_PEERS,
             _cpu_targets(14, 8, 'mmdet SingleRoIExtractor')
             | _cpu_targets(11, 6, 'detectron2 ROIPooler')),
    ),
    'cuda': (
        Case('pyramid-7x7-forward', 7, FORWARD, **_CUDA),
        Case('pyramid-7x7-backward', 7, BACKWARD, **_CUDA),
        Case('pyramid-14x14-forward', 14, FORWARD, **_CUDA),
        Case('pyramid-14x14-backward', 14, BACKWARD, **_CUDA),
    ),
}  # fmt: skip
"""The cases of each device type, in the order in which they run."""

MAX_FLOOR_RATIO = 1.6
"""Aim of the forward replayed from a CUDA graph, channels_last: at most this many times the floor."""

MAX_DETERMINISTIC_RATIO = 4.0
"""Aim of the deterministic CUDA backward: at most this many times the atomic one."""
