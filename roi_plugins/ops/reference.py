"""The op in plain PyTorch: any device, any dtype. The oracle of the kernels' tests, and what runs where
there is no kernel. It favours being readable over being fast.

An upright box is the product of two axes, so a method is told by what it does on one of them
(:func:`resolve_axis`); `csrc/geometry.h` is its compiled twin and says more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_inputs, check_options

_INT_MAX = 2**31 - 1


def roi_extract(
    features,
    rois,
    output_size,
    spatial_scale,
    *,
    region='none',
    sampling_ratio=2,
    reduction='avg',
    aligned=True,
    min_samples=1,
    max_samples=None,
    levels=None,
):
    """:func:`roi_plugins.ops.roi_extract` in plain PyTorch, differentiable by PyTorch itself."""
    from .functional import as_pair, as_pyramid

    maps, scales, levels = as_pyramid(features, spatial_scale, levels)
    check_inputs(maps, rois, levels, len(scales))  # before the cast, which integers would survive
    # One cast for all RoIs: PyTorch adds up the gradients of half maps in float32, as the kernels do.
    wide = [map_.to(_accumulation(map_.dtype)) for map_ in maps]
    output, _ = extract(
        wide,
        rois,
        levels,
        scales,
        as_pair(output_size),
        region,
        sampling_ratio,
        reduction,
        aligned,
        min_samples,
        max_samples,
    )
    # Nothing of each map, so that one that no RoI reads has a gradient, of zeros.
    return (output + sum(map_[:0].sum() for map_ in wide)).to(maps[0].dtype)


def winner_dtype(sampling_ratio: int | None, max_samples: int | None) -> torch.dtype:
    """One byte names the winner of a maximum where the arguments bound a bin to 255 samples."""
    side = sampling_ratio or max_samples
    small = sampling_ratio is not None and side is not None and side <= 15
    return torch.uint8 if small else torch.int32


def is_channels_last(map_: Tensor) -> bool:
    """Whether the output takes the ``channels_last`` layout from this map."""
    return map_.is_contiguous(memory_format=torch.channels_last) and not map_.is_contiguous()


def memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


@dataclass
class Axis:
    """One axis of K RoIs in P bins of at most S samples on the map; a padded sample has no weight."""

    low: Tensor  # (K, P, S) cells
    high: Tensor
    low_weight: Tensor  # (K, P, S)
    high_weight: Tensor
    valid: Tensor  # (K, P, S)
    length: Tensor  # (K, P) samples on the map
    count: Tensor  # (K, P) what an average divides by
    before: Tensor  # (K, P) zeros from beyond the map precede the window in scan order
    after: Tensor  # (K, P) ... or follow it

    def row(self, k: int) -> 'Axis':
        return Axis(*[getattr(self, name)[k] for name in self.__dataclass_fields__])


def _round_half_away(x: Tensor) -> Tensor:
    whole = torch.trunc(x)
    return torch.where((x - whole).abs() >= 0.5, whole + torch.sign(x), whole)


def resolve_region(
    low: Tensor,
    high: Tensor,
    scale: float,
    pooled: int,
    region: str,
    sampling_ratio: int | None,
    aligned: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """What a method makes of K RoIs from `low` to `high` (K,), in pixels, on one axis: the start, the size
    and the size of a bin, each (K,) in cells. Index coordinates: cell `i` begins at `i` where bins are of
    whole cells (a region but `none` with `sampling_ratio` None), and is centred there otherwise.
    """
    scale = torch.tensor(scale, dtype=low.dtype, device=low.device)

    def to_cells(x):
        return torch.clamp(x * scale, -1e17, 1e17)

    a = to_cells(low)
    if region == 'none':
        start = a - 0.5 if aligned else a
        size = to_cells(high) - a
        # Only samples need a cell to lie in.
        size = size if aligned or sampling_ratio is None else torch.clamp(size, min=1)
    elif region == 'round':
        start = _round_half_away(a)
        size = torch.clamp(_round_half_away(to_cells(high)) - start + 1, min=1)
        start = start if sampling_ratio is None else start - 0.5
    elif region == 'floor':
        start = torch.floor(a)
        size = torch.clamp(torch.floor(to_cells(high) - a), min=1)
    else:
        start = a
        size = to_cells(high + 1) - a
    bin_ = size / pooled
    if region == 'floor':
        bin_ = torch.clamp(torch.floor(bin_), min=1)
    return start, size, bin_


def resolve_axis(
    low: Tensor,
    high: Tensor,
    scale: float,
    pooled: int,
    extent: int,
    region: str,
    sampling_ratio: int | None,
    aligned: bool,
    min_samples: int,
    max_samples: int | None,
) -> Axis:
    """Where K RoIs from `low` to `high` (K,), in pixels, read an axis of `extent` cells."""
    dtype, device = low.dtype, low.device
    start, size, bin_ = resolve_region(low, high, scale, pooled, region, sampling_ratio, aligned)
    bin_ = bin_[:, None]
    start = start[:, None]
    p = torch.arange(pooled, dtype=dtype, device=device)[None]

    if region == 'none' and sampling_ratio is None:
        return _integrate(start + p * bin_, start + (p + 1) * bin_, extent)
    if sampling_ratio is None:
        if region == 'round':
            begin = torch.floor(p * bin_) + start
            end = torch.ceil((p + 1) * bin_) + start
        elif region == 'floor':
            begin = start + p * bin_
            end = begin + bin_
        else:
            begin = torch.floor(p * bin_ + start)
            end = torch.where(bin_ > 0, torch.ceil((p + 1) * bin_ + start), begin)
        begin = torch.clamp(begin, 0, extent).long()
        end = torch.maximum(torch.clamp(end, 0, extent).long(), begin)
        index, valid = _padded_range(begin, end)
        cell = torch.where(valid, index, 0)
        weight = valid.to(dtype)
        nothing = torch.zeros_like(begin, dtype=torch.bool)
        length = end - begin
        return Axis(
            cell, cell, weight, weight * 0, valid, length, length.to(dtype), nothing, nothing
        )

    if sampling_ratio > 0:
        grid = torch.full_like(bin_, sampling_ratio)
    else:
        grid = torch.clamp(torch.ceil(bin_), min_samples, max_samples or _INT_MAX)
        grid = torch.where(size[:, None] > 0, grid, 0)
    # Positions are monotone in the sample's index: those on the map are contiguous. An estimate bounds
    # the work for wild boxes; the comparison that defines them decides.
    step = bin_.double() / grid.double()
    origin = start.double() + (p * bin_).double()
    sides = torch.stack([(-1 - origin) / step - 0.5, (extent - origin) / step - 0.5])
    last_index = grid.double()
    some = (grid > 0) & (step != 0)
    begin = torch.ceil(sides.amin(0)) - 1
    end = torch.floor(sides.amax(0)) + 2
    begin = torch.where(some, torch.clamp(begin, torch.zeros_like(last_index), last_index), 0)
    end = torch.where(some, torch.clamp(end, torch.zeros_like(last_index), last_index), last_index)
    begin, end = begin.long(), torch.maximum(begin, end).long()
    index, valid = _padded_range(begin, end)
    position = (
        start[..., None]
        + p[..., None] * bin_[..., None]
        + (index.to(dtype) + 0.5) * bin_[..., None] / grid[..., None]
    )
    valid = valid & (position >= -1) & (position <= extent)
    # The window proper: from the first to behind the last sample on the map.
    length = valid.sum(-1)
    first = torch.where(valid, index, _INT_MAX * 2).amin(-1) if valid.shape[-1] else begin
    begin = torch.where(length > 0, first, begin)
    before = (begin > 0) | (length == 0)
    after = begin + length < grid.long()
    order = torch.argsort((~valid).to(torch.uint8), dim=-1, stable=True)
    position, valid = position.gather(-1, order), valid.gather(-1, order)
    longest = int(length.max()) if length.numel() else 0
    position, valid = position[..., :longest], valid[..., :longest]

    position = torch.where(valid, torch.clamp(position, min=0), 0)
    cell = torch.clamp(position.long(), max=extent - 1)
    inside = valid & (cell < extent - 1)
    high_weight = torch.where(inside, position - cell, 0)
    low_weight = torch.where(valid, 1 - high_weight, 0)
    return Axis(
        cell,
        torch.clamp(cell + 1, max=extent - 1),
        low_weight,
        high_weight,
        valid,
        length,
        grid.expand_as(length),
        before,
        after,
    )


def _integrate(low: Tensor, high: Tensor, extent: int) -> Axis:
    """The mean of the bilinear surface, which is 0 from a cell beyond the map on, between (K, P) positions.

    Between two cells it is linear, and its integral the value in the middle of what a bin covers times the
    length of that: each such stretch is one sample.
    """
    size = torch.where(high > low, high - low, 0)[..., None]
    begin = torch.floor(torch.clamp(low, -1, extent)).long()
    end = torch.ceil(torch.clamp(high, -1, extent)).long()
    end = torch.where(high > low, end, begin)
    cell, valid = _padded_range(begin, end)
    ends = [torch.clamp(side[..., None] - cell, 0, 1) for side in (low, high)]
    weight = torch.where(valid, (ends[1] - ends[0]) / size, 0)
    middle = (ends[0] + ends[1]) / 2
    one, nothing = torch.ones_like(low), torch.zeros_like(begin, dtype=torch.bool)
    return Axis(
        torch.clamp(cell, 0, extent - 1),
        torch.clamp(cell + 1, 0, extent - 1),
        torch.where(cell >= 0, weight * (1 - middle), 0),
        torch.where(cell + 1 < extent, weight * middle, 0),
        valid,
        end - begin,
        one,
        nothing,
        nothing,
    )


def _padded_range(begin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """(K, P) bounds as (K, P, S) integers from `begin` on, and which of them lie before `end`."""
    longest = int((end - begin).max()) if begin.numel() else 0
    index = begin[..., None] + torch.arange(longest, device=begin.device)
    return index, index < end[..., None]


def _take(map_: Tensor, dim: int, cells: Tensor, weights: Tensor) -> Tensor:
    """Weighted cells along `dim`. A weight of zero reads nothing: 0 * inf would be NaN."""
    shape = [1] * map_.dim()
    shape[dim] = -1
    weights = weights.reshape(shape)
    return torch.where(weights == 0, 0, map_.index_select(dim, cells) * weights)


def _interpolate(map_: Tensor, y: Axis, x: Axis) -> Tensor:
    """(C, H, W) at every sample of one RoI: (C, P, Sy, Q, Sx)."""
    rows = _take(map_, 1, y.low.flatten(), y.low_weight.flatten())
    rows = rows + _take(map_, 1, y.high.flatten(), y.high_weight.flatten())
    values = _take(rows, 2, x.low.flatten(), x.low_weight.flatten())
    values = values + _take(rows, 2, x.high.flatten(), x.high_weight.flatten())
    return values.reshape(map_.shape[0], *y.low.shape, *x.low.shape)


def _interpolate_adjoint(values: Tensor, map_: Tensor, y: Axis, x: Axis) -> None:
    """Adds (C, P, Sy, Q, Sx) gradients of samples to the map (C, H, W) that they were read from."""
    values = values.reshape(map_.shape[0], y.low.numel(), x.low.numel())
    rows = map_.new_zeros(map_.shape[0], y.low.numel(), map_.shape[2])
    rows.index_add_(2, x.low.flatten(), values * x.low_weight.flatten())
    rows.index_add_(2, x.high.flatten(), values * x.high_weight.flatten())
    map_.index_add_(1, y.low.flatten(), rows * y.low_weight.flatten()[:, None])
    map_.index_add_(1, y.high.flatten(), rows * y.high_weight.flatten()[:, None])


def _divisor(y: Axis, x: Axis) -> Tensor:
    return torch.clamp(y.count[:, None] * x.count[None], min=1)


def _maximum(values: Tensor, y: Axis, x: Axis) -> tuple[Tensor, Tensor]:
    """The largest of (C, P, Sy, Q, Sx) samples in each bin, and its index in the bin's window; -1 for a
    zero from beyond the map.
    """
    c, p, _, q, _ = values.shape
    if values.numel() == 0:
        return values.new_zeros(c, p, q), values.new_full((c, p, q), -1, dtype=torch.int64)
    valid = y.valid[:, None, :, None] & x.valid[None, :, None, :]
    columns = x.valid.shape[1]
    values = values.permute(0, 1, 3, 2, 4).masked_fill(~valid, -torch.inf).flatten(3)
    best, index = values.max(-1)
    row, column = index // columns, index % columns
    width = x.length[None, :]
    winner = row * width + column

    size = y.length[:, None] * width
    zero_after = torch.where(y.after[:, None], size, -1).expand(p, q)
    zero_after = torch.where(x.after[None, :], width, zero_after)
    zero_after = torch.where(y.before[:, None] | x.before[None, :], 0, zero_after)
    # On a tie the first in scan order wins; NaN wins over everything.
    zero_wins = (best < 0) | ((best == 0) & (winner >= zero_after))
    zero_wins = (zero_wins & (zero_after >= 0)) | (size == 0)
    return torch.where(zero_wins, 0, best), torch.where(zero_wins, -1, winner)


def _at_winner(winner: Tensor, grad: Tensor, y: Axis, x: Axis) -> Tensor:
    """(C, P, Q) gradients at their winners: (C, P, Sy, Q, Sx)."""
    columns = x.valid.shape[1]
    width = torch.clamp(x.length[None, :], min=1)
    index = winner // width * columns + winner % width
    values = grad.new_zeros(*grad.shape, y.valid.shape[1] * columns)
    if values.numel():
        values.scatter_(-1, index.clamp(min=0)[..., None], grad.where(winner >= 0, 0)[..., None])
    values = values.unflatten(-1, (y.valid.shape[1], columns))
    return values.permute(0, 1, 3, 2, 4)


class _RoIs:
    """K RoIs over the maps of a pyramid: what to do with each, and where it reads."""

    def __init__(self, rois, levels, shapes, images, dtype, options):
        (scales, (height, width), region, sampling_ratio, _, aligned, least, most) = options
        self.rois = rois.detach().to(dtype)
        self.levels = rois.new_zeros(len(rois), dtype=torch.int64) if levels is None else levels
        index = self.rois[:, 0]
        in_batch = (index >= 0) & (index < images) & (index == torch.floor(index))
        if rois.device.type == 'cpu' and not bool(in_batch.all()):
            k = int((~in_batch).nonzero()[0])
            raise IndexError(
                f'rois: RoI {k} has the batch index {float(index[k])}, expected one of the {images} '
                f'images of features (0 to {images - 1})'
            )
        self.invalid = ~(in_batch & self.rois[:, 1:].isfinite().all(1))
        how = (region, sampling_ratio, aligned, least, most)
        # A level at a time: what the RoIs of one share is the size of their map.
        self.axes: dict[int, tuple[Axis, Axis]] = {}
        for level, (h, w) in enumerate(shapes):
            here = (self.levels == level) & ~self.invalid
            chosen = here.nonzero().flatten()
            boxes = self.rois[chosen]
            y = resolve_axis(boxes[:, 2], boxes[:, 4], scales[level], height, h, *how)
            x = resolve_axis(boxes[:, 1], boxes[:, 3], scales[level], width, w, *how)
            for i, k in enumerate(chosen.tolist()):
                self.axes[k] = (y.row(i), x.row(i))
        self.batch = torch.where(in_batch, index, 0).long().tolist()
        self.level = self.levels.tolist()


def _accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def extract(
    features: Sequence[Tensor], rois: Tensor, levels: Tensor | None, *options
) -> tuple[Tensor, Tensor]:
    """The forward op by the schema's positional arguments."""
    (scales, output_size, region, sampling_ratio, reduction, _, least, most) = options
    check_options(scales, output_size, region, sampling_ratio, reduction, least, most)
    check_inputs(features, rois, levels, len(scales))
    first = features[0]
    dtype = _accumulation(first.dtype)
    shapes = [map_.shape[2:] for map_ in features]
    table = _RoIs(rois, levels, shapes, first.shape[0], dtype, options)
    index_dtype = winner_dtype(sampling_ratio, most)
    size = (first.shape[1], *output_size)
    rows, winners = [], []
    for k, invalid in enumerate(table.invalid.tolist()):
        winner = torch.full(size, -1, dtype=torch.int64, device=first.device)
        if k in table.axes:
            y, x = table.axes[k]
            map_ = features[table.level[k]][table.batch[k]].to(dtype)
            values = _interpolate(map_, y, x)
            if reduction == 'max':
                row, winner = _maximum(values, y, x)
            else:
                row = values.sum((2, 4)) / _divisor(y, x)
        else:
            row = first.new_full(size, torch.nan if invalid else 0, dtype=dtype)
        rows.append(row.to(first.dtype))
        winners.append(winner.to(index_dtype))
    format_ = memory_format(is_channels_last(first))
    output = torch.stack(rows) if rows else first.new_zeros(0, *size)
    if reduction != 'max':
        winner = torch.empty(0, dtype=index_dtype, device=first.device)
    else:
        winner = torch.stack(winners) if rows else output.to(index_dtype)
        winner = winner.contiguous(memory_format=format_)
    return output.contiguous(memory_format=format_), winner


def extract_backward(
    grad: Tensor,
    winner: Tensor,
    rois: Tensor,
    levels: Tensor | None,
    feature_shapes: Sequence[int],
    channels_last: bool,
    *options,
) -> list[Tensor]:
    """The backward op by the schema's positional arguments."""
    reduction = options[4]
    images, channels = feature_shapes[:2]
    shapes = list(zip(feature_shapes[2::2], feature_shapes[3::2], strict=True))
    dtype = _accumulation(grad.dtype)
    table = _RoIs(rois, levels, shapes, images, dtype, options)
    sums = [grad.new_zeros(images, channels, *shape, dtype=dtype) for shape in shapes]
    for k, (y, x) in table.axes.items():
        row = grad[k].to(dtype)
        if reduction == 'max':
            index = winner[k].to(torch.int64)
            if winner.dtype == torch.uint8:
                index = torch.where(index == 255, -1, index)
            values = _at_winner(index, row, y, x)
        else:
            values = (row / _divisor(y, x))[:, :, None, :, None]
            values = values.expand(-1, -1, y.low.shape[1], -1, x.low.shape[1])
        _interpolate_adjoint(values, sums[table.level[k]][table.batch[k]], y, x)
    format_ = memory_format(channels_last)
    return [map_.to(grad.dtype).contiguous(memory_format=format_) for map_ in sums]
