"""The cases that are measured on each device, their inputs, and the ratios that the op aims for."""

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
    """Work that the op and its peers do on the same inputs.

    Attributes:
        name: the name of the case.
        output_size: bins per side of the output.
        step: ``FORWARD`` with gradients off, ``BACKWARD`` alone as autograd runs it, or ``BOTH``.
        method: options of :func:`roi_plugins.ops.roi_extract`.
        strides: input pixels per cell of each map. Several strides make a pyramid.
        peers: keys of :data:`roi_plugins.benchmark.peers.PEERS`.
        targets: how many times faster than a peer the op aims to be, by (peer, layout, dtype of the op).
        num_rois: the number of boxes, over all images.
        channels: the channels of the maps.
        images: the number of images.
        image_size: (height, width) of the input images, pixels.
        dtypes: the dtypes of the op's features. Peers run in every dtype that they support, but only in
            float32 where the op does.
        between_allocations: whether other tensors are allocated, written and freed before each call, see
            :func:`roi_plugins.benchmark.measure.allocate_as_training`.
        max_writing_ratio: the aim for the time beside that of writing the result alone, if there is one.
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
    between_allocations: bool = False
    max_writing_ratio: float | None = None

    @property
    def scales(self) -> list[float]:
        """The spatial scale of each map: cells per input pixel."""
        return [1 / stride for stride in self.strides]

    @property
    def map_shapes(self) -> list[tuple[int, int, int, int]]:
        """(N, C, H, W) of each map."""
        height, width = self.image_size
        return [
            (self.images, self.channels, -(-height // stride), -(-width // stride)) for stride in self.strides
        ]

    @property
    def result_shapes(self) -> list[tuple[int, int, int, int]]:
        """The shapes of the tensors that a call writes: the output, the gradients of the maps, or both."""
        output = [(self.num_rois, self.channels, self.output_size, self.output_size)]
        shapes = {FORWARD: output, BACKWARD: self.map_shapes, BOTH: output + self.map_shapes}
        return shapes[self.step]

    def make_rois(self) -> Tensor:
        """Makes ``(K, 5)`` boxes inside the images, sorted by image, as detectors give them.

        The side sqrt(area) is distributed evenly over the octaves from 16 px to 0.64 of the shorter image
        side (512 px of 800). The ratio of height to width is from 1/2 to 2. The boxes are always the same.
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
        """Makes maps of standard normal numbers, the same numbers in every layout and dtype.

        Args:
            layout: one of ``LAYOUTS``.
            dtype: the name of a torch dtype, e.g. ``'float32'``.
            device: the device of the maps.
        """
        generator = torch.Generator().manual_seed(1)
        return [
            torch.randn(shape, generator=generator)
            .to(device, getattr(torch, dtype))
            .contiguous(memory_format=memory_format(layout == 'channels_last'))
            for shape in self.map_shapes
        ]

    def extract(self, features: list[Tensor], rois: Tensor, levels: Tensor | None = None) -> Tensor:
        """Runs the op on this case.

        Args:
            features: the maps.
            rois: ``(K, 5)`` boxes.
            levels: ``(K,)`` the map of each box. If None, finding them is part of the work.
        """
        if len(features) == 1:
            return roi_extract(features[0], rois, self.output_size, self.scales, **self.method)
        if levels is None:
            levels = assign_levels_mmdet(rois, len(features))
        return roi_extract(features, rois, self.output_size, self.scales, levels=levels, **self.method)

    def count_touched_cells(self, rois: Tensor) -> int:
        """Counts the cells that some sample reads, over all images and maps.

        These are the cells that the gradient of an average reaches.

        Args:
            rois: ``(K, 5)`` boxes.
        """
        maps = [torch.zeros(shape[0], 1, *shape[2:], requires_grad=True) for shape in self.map_shapes]
        average = replace(self, method={**self.method, 'reduction': 'avg'})
        output = average.extract(maps, rois.cpu())
        grads = torch.autograd.grad(output, maps, torch.ones_like(output), allow_unused=True)
        return sum(int(grad.count_nonzero()) for grad in grads if grad is not None)

    def floor_bytes(self, rois: Tensor, itemsize: int) -> int:
        """Counts the bytes that any implementation has to read and write.

        A forward pass reads the touched features once and writes the output once. A backward pass reads the
        gradient of the output once and writes the gradient of every map once, zeros included.

        Args:
            rois: ``(K, 5)`` boxes.
            itemsize: bytes of a feature.
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
INTEL = 'intel_extension_for_pytorch ROIAlign'
ONNXRUNTIME, OPENVINO = 'onnxruntime RoiAlign', 'openvino ROIAlign'
ALIGN_PEERS = (ROI_ALIGN, MMCV_ROI_ALIGN, INTEL, ONNXRUNTIME, OPENVINO)
PYRAMID_PEERS = (
    'torchvision.ops.MultiScaleRoIAlign',
    'mmdet SingleRoIExtractor',
    'detectron2 ROIPooler',
)
CPU_DTYPES = ('float32', 'bfloat16')


def _cpu_targets(
    channels_last: float, nchw: float, *peers: str, dtypes: tuple[str, ...] = ('float32',)
) -> dict[tuple[str, str, str], float]:
    return {
        (peer, layout, dtype): ratio
        for peer in peers
        for layout, ratio in zip(LAYOUTS, (channels_last, nchw), strict=True)
        for dtype in dtypes
    }


_INTEL_TARGETS = _cpu_targets(1.3, 3, INTEL, dtypes=CPU_DTYPES)
_RUNTIME_TARGETS = _cpu_targets(4, 4, ONNXRUNTIME, OPENVINO)


def _cuda_case(name: str, output_size: int, step: str) -> Case:
    return Case(
        name,
        output_size,
        step,
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
        Case('align-avg-7x7-forward', 7, FORWARD, ALIGN_AVG, C4, ALIGN_PEERS,
             _cpu_targets(20, 10, ROI_ALIGN) | _INTEL_TARGETS | _RUNTIME_TARGETS, dtypes=CPU_DTYPES),
        Case('align-avg-14x14-forward', 14, FORWARD, ALIGN_AVG, C4, ALIGN_PEERS,
             _cpu_targets(7, 3.5, ROI_ALIGN) | _INTEL_TARGETS, dtypes=CPU_DTYPES, max_writing_ratio=1.15),
        Case('align-avg-7x7-backward', 7, BACKWARD, ALIGN_AVG, C4, ALIGN_PEERS,
             _cpu_targets(60, 40, ROI_ALIGN) | _INTEL_TARGETS, dtypes=CPU_DTYPES),
        Case('align-avg-14x14-backward', 14, BACKWARD, ALIGN_AVG, C4, ALIGN_PEERS,
             _cpu_targets(60, 22, ROI_ALIGN) | _INTEL_TARGETS, dtypes=CPU_DTYPES),
        # An output of 14x14 bins is so large that malloc never keeps its memory anyway.
        Case('align-avg-7x7-forward-between-allocations', 7, FORWARD, ALIGN_AVG, C4, ALIGN_PEERS,
             between_allocations=True),
        Case('align-avg-7x7-forward-backward-between-allocations', 7, BOTH, ALIGN_AVG, C4, ALIGN_PEERS,
             between_allocations=True),
        Case('quantized-pool-7x7-forward', 7, FORWARD, QUANTIZED_POOL, C4, (ROI_POOL,),
             _cpu_targets(8, 4, ROI_POOL)),
        Case('align-max-7x7-forward', 7, FORWARD, ALIGN_MAX, C4, (MMCV_ROI_ALIGN,),
             _cpu_targets(20, 10, MMCV_ROI_ALIGN)),
        Case('align-max-7x7-backward', 7, BACKWARD, ALIGN_MAX, C4, (MMCV_ROI_ALIGN,),
             _cpu_targets(10, 5, MMCV_ROI_ALIGN)),
        Case('pyramid-7x7-forward-backward', 7, BOTH, ALIGN_AVG, FPN, PYRAMID_PEERS,
             _cpu_targets(14, 8, 'mmdet SingleRoIExtractor')
             | _cpu_targets(11, 6, 'detectron2 ROIPooler')),
        # So little work that only what every call costs is left.
        Case('one-roi-forward-backward', 2, BOTH, ALIGN_AVG, (1,), (ROI_ALIGN,),
             _cpu_targets(0.77, 0.77, ROI_ALIGN), num_rois=1, channels=4, images=1, image_size=(32, 32)),
    ),
    'cuda': (
        _cuda_case('pyramid-7x7-forward', 7, FORWARD),
        _cuda_case('pyramid-7x7-backward', 7, BACKWARD),
        _cuda_case('pyramid-14x14-forward', 14, FORWARD),
        _cuda_case('pyramid-14x14-backward', 14, BACKWARD),
    ),
}  # fmt: skip
"""The cases by the type of device, in the order in which they run."""

MAX_FLOOR_RATIO = 1.6
"""Aim: a forward pass replayed from a CUDA graph, channels_last, takes at most this many times the floor."""

MAX_DETERMINISTIC_RATIO = 4.0
"""Aim: the deterministic CUDA backward takes at most this many times as long as the atomic one."""
