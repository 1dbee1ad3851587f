"""The op in plain PyTorch, for any device and dtype. It runs where there is no kernel, and the tests of the
kernels compare with it. It favours being readable over being fast.

:mod:`.geometry` and :mod:`.rotated` say where a method reads. This module reads, reduces and differentiates.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .arguments import Options, as_pair, as_pyramid, as_seed
from .checks import check_gradient, check_inputs, check_options
from .geometry import Axis, Jitter, Samples, cross, resolve_axis
from .rotated import resolve_frame, rotated_grid, rotated_integral


def roi_extract(
    features: Tensor | Sequence[Tensor],
    rois: Tensor,
    output_size: int | Sequence[int],
    spatial_scale: float | Sequence[float],
    *,
    region: str = 'none',
    sampling_ratio: int | None = 2,
    reduction: str = 'avg',
    aligned: bool = True,
    min_samples: int = 1,
    max_samples: int | None = None,
    position_sensitive: bool = False,
    levels: Tensor | None = None,
    offsets: Tensor | None = None,
    seed: Tensor | int | None = None,
) -> Tensor:
    """Returns what :func:`roi_plugins.ops.roi_extract` returns, differentiable by PyTorch itself."""
    maps, scales, levels = as_pyramid(features, spatial_scale, levels)
    options = Options(
        scales,
        as_pair(output_size),
        region,
        sampling_ratio,
        reduction,
        aligned,
        min_samples,
        max_samples,
        position_sensitive,
    )
    table = (rois, levels, offsets, as_seed(seed, rois))
    _check(maps, *table, options)  # before the cast, which would accept integers
    if torch.is_grad_enabled():
        check_gradient(rois, reduction)
    # Cast once for all RoIs, so that the gradients of half maps are summed in float32, as in the kernels.
    wide = [map_.to(_accumulation(map_.dtype)) for map_ in maps]
    output, _ = extract(wide, *table, *options)
    wanted = [*wide, rois] if offsets is None else [*wide, rois, offsets]
    return _attached(output, wanted).to(maps[0].dtype)


def assign_levels(
    rois: Tensor,
    num_levels: int,
    canonical_size: float,
    canonical_level: int,
    min_level: int,
    epsilon: float,
) -> Tensor:
    """Computes the level rules of :mod:`.levels`, as csrc/op.cpp does."""
    if rois.shape[1] == 6:  # (batch_index, cx, cy, w, h, angle)
        area = rois[:, 3].float() * rois[:, 4].float()
    else:
        boxes = rois[:, -4:].float()
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    levels = torch.floor(torch.log2(torch.sqrt(area) / canonical_size + epsilon) + canonical_level)
    relative = torch.clamp(levels, min_level, min_level + num_levels - 1) - min_level
    # Devices convert NaN to different integers.
    return torch.where(torch.isnan(relative), -1.0, relative).to(torch.int64)


def argmax_dtype(sampling_ratio: int | None, max_samples: int | None) -> torch.dtype:
    """Returns the dtype of the argmax: one byte where a bin has at most 255 samples in any case."""
    side = sampling_ratio or max_samples
    small = sampling_ratio is not None and side is not None and side <= 15
    return torch.uint8 if small else torch.int32


def is_channels_last(map_: Tensor) -> bool:
    """Returns whether the output takes the ``channels_last`` layout from this map."""
    return map_.is_contiguous(memory_format=torch.channels_last) and not map_.is_contiguous()


def memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _read(map_: Tensor, samples: Samples) -> Tensor:
    """Returns the values (C, P, Q, S) of a map (C, cells) at the samples."""
    taken = map_.index_select(1, samples.cell.flatten()).unflatten(1, samples.cell.shape)
    # A weight of zero reads nothing, because 0 * inf would be NaN. A finite value stays: the gradient of the
    # weight needs it.
    unread = torch.where(taken.isfinite(), taken, 0).detach()
    return (torch.where(samples.weight == 0, unread, taken) * samples.weight).sum(-1)


def _add(values: Tensor, map_: Tensor, samples: Samples) -> None:
    """Adds (C, P, Q, S) gradients of samples to the channels (C, cells) that they were read from."""
    parts = torch.where(samples.weight == 0, 0, values[..., None] * samples.weight)
    map_.index_add_(1, samples.cell.flatten(), parts.flatten(1))


def _maximum(values: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
    """Returns the largest of (C, P, Q, S) samples in each bin, and its index among the samples on the map.
    The index is -1 where a zero from beyond the map is the largest.
    """
    if values.shape[-1] == 0:
        nothing = values.sum(-1)
        return nothing, torch.full_like(nothing, -1, dtype=torch.int64)
    valid = samples.valid
    before = valid.cumsum(-1) - 1
    total = valid.sum(-1)
    # The first zero comes where the indices of the samples on the map stop being those of all samples.
    zero_at = (valid & (samples.index == before)).sum(-1)
    outside = total < samples.count.long()

    values = values.masked_fill(~valid, -torch.inf)
    largest = valid & (values == values.amax(-1, keepdim=True))
    # Of equal values the first in scan order counts. NaN exceeds every number, and of several NaN the last
    # counts.
    number = torch.arange(values.shape[-1], device=values.device)
    nan = values.isnan()
    at = torch.where(nan.any(-1), (nan * number).argmax(-1), largest.to(torch.uint8).argmax(-1))
    best = values.gather(-1, at[..., None])[..., 0]
    argmax = before.expand(values.shape).gather(-1, at[..., None])[..., 0]
    is_zero = (best < 0) | ((best == 0) & (argmax >= zero_at))
    is_zero = (is_zero & outside) | (total == 0)
    return torch.where(is_zero, 0, best), torch.where(is_zero, -1, argmax)


def _at_argmax(argmax: Tensor, grad: Tensor, samples: Samples) -> Tensor:
    """Spreads gradients (C, P, Q) of bins over their samples (C, P, Q, S): all to the argmax."""
    is_largest = samples.valid & (samples.valid.cumsum(-1) - 1 == argmax[..., None])
    return torch.where(is_largest, grad[..., None], 0)


class _RoIs:
    """K RoIs over the maps of a pyramid: what to do with each, and where it reads."""

    def __init__(
        self,
        rois: Tensor,
        levels: Tensor | None,
        offsets: Tensor | None,
        seed: Tensor | None,
        shapes: Sequence[Sequence[int]],
        images: int,
        dtype: torch.dtype,
        options: Options,
    ) -> None:
        self.scales, self.size, region, ratio, self.reduction, aligned, least, most, grouped = options
        self.groups = math.prod(self.size) if grouped else 1  # of channels, one for each bin
        self.shapes, self.seed = shapes, seed
        self.sampling_ratio, self.bounds, self.aligned = ratio, (least, most), aligned
        self.rois = rois = rois.to(dtype)
        self.levels = rois.new_zeros(len(rois), dtype=torch.int64) if levels is None else levels
        index = rois[:, 0].detach()
        in_batch = (index >= 0) & (index < images) & (index == torch.floor(index))
        if rois.device.type == 'cpu' and not bool(in_batch.all()):
            k = int((~in_batch).nonzero()[0])
            raise IndexError(
                f'rois: RoI {k} has the batch index {float(index[k])}, expected one of the {images} '
                f'images of features (0 to {images - 1})'
            )
        self.invalid = ~(in_batch & rois[:, 1:].isfinite().all(1))
        self.batch = torch.where(in_batch, index, 0).long().tolist()
        self.level = self.levels.tolist()
        self.read = (~self.invalid & (self.levels >= 0) & (self.levels < len(shapes))).tolist()
        self.offsets: Tensor | None = None
        self.lost: Tensor | None = None  # bins whose offset is not finite
        if offsets is not None:
            offsets = offsets.to(dtype)
            self.lost = ~offsets.isfinite().all(1)
            self.offsets = torch.where(offsets.isfinite(), offsets, 0).flatten(2)
        self.axes: dict[int, tuple[Axis, Axis]] = {}
        if rois.shape[1] == 6:
            return
        how = (region, ratio, aligned, least, most, grouped)
        # One level at a time, because the RoIs of a level share the size of their map.
        for level, (height, width) in enumerate(shapes):
            chosen = ((self.levels == level) & ~self.invalid).nonzero().flatten()
            y, x = (
                resolve_axis(
                    rois[chosen, 2 - axis],
                    rois[chosen, 4 - axis],
                    self.scales[level],
                    self.size[axis],
                    extent,
                    *how,
                    self._jitter(chosen, axis),
                    *self._offsets(chosen, axis),
                )
                for axis, extent in enumerate((height, width))
            )
            for i, k in enumerate(chosen.tolist()):
                self.axes[k] = (y.row(i), x.row(i))

    def _jitter(self, chosen: Tensor, axis: int) -> Jitter | None:
        return None if self.seed is None else Jitter(self.seed, chosen, axis)

    def _offsets(self, chosen: Tensor, axis: int) -> tuple[Tensor | None, Tensor | float]:
        """Returns the bins of an axis and their offsets: all P * Q of a RoI if there are offsets."""
        if self.offsets is None:
            return None, 0.0
        bins = [torch.arange(n, device=chosen.device) for n in self.size]
        return torch.meshgrid(bins, indexing='ij')[axis].flatten(), self.offsets[chosen, 1 - axis]

    def samples(self, k: int) -> Samples:
        """Returns where RoI k reads in the channels of its map, see :meth:`channels`."""
        height, width = shape = self.shapes[self.level[k]]
        if self.axes:
            y, x = self.axes[k]
            if self.offsets is None:
                y, x = y.map(lambda of: of[:, None]), x.map(lambda of: of[None])
            else:
                y, x = (axis.map(lambda of: of.unflatten(0, self.size)) for axis in (y, x))
            samples = cross(y, x, width)
        else:
            scale = self.scales[self.level[k]]
            frame = resolve_frame(self.rois[k, 1:], scale, self.sampling_ratio, self.aligned)
            if self.sampling_ratio is None:  # rotated RoIs have the integral alone then
                samples = rotated_integral(frame, self.size, shape)
            else:
                roi = torch.tensor([k], device=self.rois.device)
                jitters = [self._jitter(roi, axis) for axis in (0, 1)]
                samples = rotated_grid(frame, self.size, shape, self.sampling_ratio, *self.bounds, jitters)
        if self.groups > 1:
            bins = torch.arange(self.groups, device=self.rois.device).reshape(*self.size, 1, 1)
            samples.cell = samples.cell + bins * (height * width)
        return samples

    def channels(self, k: int, maps: Sequence[Tensor]) -> Tensor:
        """Returns the map of RoI k as (C, cells), into which its samples index. Position-sensitive ones have
        the cells of all groups in a row.
        """
        map_ = maps[self.level[k]][self.batch[k]]
        return map_.unflatten(0, (map_.shape[0] // self.groups, self.groups)).flatten(1)


def _accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    offsets: Tensor | None,
    seed: Tensor | None,
    options: Options,
) -> None:
    check_options(options)
    check_inputs(features, rois, levels, offsets, seed, options)


def extract(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    offsets: Tensor | None,
    seed: Tensor | None,
    *arguments: Any,
) -> tuple[Tensor, Tensor]:
    """Computes the forward op from the positional arguments of its schema."""
    options = Options(*arguments)
    _check(features, rois, levels, offsets, seed, options)
    first = features[0]
    dtype = _accumulation(first.dtype)
    shapes = [map_.shape[2:] for map_ in features]
    table = _RoIs(rois, levels, offsets, seed, shapes, first.shape[0], dtype, options)
    index_dtype = argmax_dtype(options.sampling_ratio, options.max_samples)
    size = (first.shape[1] // table.groups, *options.output_size)
    rows, indices = [], []
    for k, (read, invalid) in enumerate(zip(table.read, table.invalid.tolist(), strict=True)):
        argmax = torch.full(size, -1, dtype=torch.int64, device=first.device)
        if read:
            samples = table.samples(k)
            values = _read(table.channels(k, features).to(dtype), samples)
            if options.reduction == 'max':
                row, argmax = _maximum(values, samples)
            else:
                row = values.sum(-1) / torch.clamp(samples.count, min=1)
            if table.lost is not None:
                row = torch.where(table.lost[k], torch.nan, row)
        else:
            row = first.new_full(size, torch.nan if invalid else 0, dtype=dtype)
        rows.append(row.to(first.dtype))
        indices.append(argmax.to(index_dtype))
    format_ = memory_format(is_channels_last(first))
    output = torch.stack(rows) if rows else first.new_zeros(0, *size)
    if options.reduction != 'max':
        argmax = torch.empty(0, dtype=index_dtype, device=first.device)
    else:
        argmax = torch.stack(indices) if rows else output.to(index_dtype)
        argmax = argmax.contiguous(memory_format=format_)
    return output.contiguous(memory_format=format_), argmax


@torch.no_grad()
def extract_backward(
    grad: Tensor,
    argmax: Tensor,
    rois: Tensor,
    levels: Tensor | None,
    offsets: Tensor | None,
    seed: Tensor | None,
    feature_shapes: Sequence[int],
    channels_last: bool,
    *arguments: Any,
) -> list[Tensor]:
    """Computes the backward op to the features from the positional arguments of its schema."""
    images, channels = feature_shapes[:2]
    shapes = list(zip(feature_shapes[2::2], feature_shapes[3::2], strict=True))
    dtype = _accumulation(grad.dtype)
    table = _RoIs(rois, levels, offsets, seed, shapes, images, dtype, Options(*arguments))
    sums = [grad.new_zeros(images, channels, *shape, dtype=dtype) for shape in shapes]
    for k, read in enumerate(table.read):
        if not read:
            continue
        samples, row = table.samples(k), grad[k].to(dtype)
        if table.lost is not None:
            row = torch.where(table.lost[k], 0, row)
        if table.reduction == 'max':
            index = argmax[k].to(torch.int64)
            if argmax.dtype == torch.uint8:
                index = torch.where(index == 255, -1, index)
            values = _at_argmax(index, row, samples)
        else:
            values = (row / torch.clamp(samples.count, min=1))[..., None]
            values = values.expand(-1, *samples.valid.shape)
        _add(values, table.channels(k, sums), samples)
    format_ = memory_format(channels_last)
    return [map_.to(grad.dtype).contiguous(memory_format=format_) for map_ in sums]


def extract_backward_rois(
    grad: Tensor,
    argmax: Tensor,
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    offsets: Tensor | None,
    seed: Tensor | None,
    *arguments: Any,
) -> tuple[Tensor, Tensor]:
    """Computes the backward op to ``rois`` and ``offsets`` from the positional arguments of its schema. It
    runs the forward again, which finds the same ``argmax``.
    """
    check_gradient(rois.detach().requires_grad_(), Options(*arguments).reduction)
    # PyTorch calls a kernel with recording off; the forward below has to be recorded.
    with torch.inference_mode(False), torch.enable_grad():
        places = [x.detach().requires_grad_() for x in (rois, offsets) if x is not None]
        maps = [map_.detach() for map_ in features]
        moved = None if offsets is None else places[1]
        output, _ = extract(maps, places[0], levels, moved, seed, *arguments)
        grads = torch.autograd.grad(_attached(output, places), places, grad)
    return grads[0], grads[1] if offsets is not None else rois.new_empty(0)


def _attached(output: Tensor, wanted: Sequence[Tensor]) -> Tensor:
    """Gives every tensor that requires a gradient one of zeros, even if nothing of it was read."""
    for tensor in wanted:
        if tensor.requires_grad:
            output = output + tensor[:0].sum().to(output.dtype)
    return output
