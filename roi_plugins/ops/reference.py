"""The op in plain PyTorch: any device, any dtype. The oracle of the kernels' tests, and what runs where
there is no kernel. It favours being readable over being fast.

Whatever the method, a bin is a list of samples on the map (:class:`Samples`). An upright box is the product
of two axes, so a method is told by what it does on one of them (:func:`resolve_axis`); a rotated one is not
(:func:`_rotate_grid`). `csrc/geometry.h` is the compiled twin and says more.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .arguments import Options, as_pair, as_pyramid, as_seed
from .checks import check_gradient, check_inputs, check_options

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
    position_sensitive=False,
    levels=None,
    offsets=None,
    seed=None,
):
    """:func:`roi_plugins.ops.roi_extract` in plain PyTorch, differentiable by PyTorch itself."""
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
    _check(maps, *table, options)  # before the cast, which integers would survive
    if torch.is_grad_enabled():
        check_gradient(rois, reduction)
    # One cast for all RoIs: PyTorch adds up the gradients of half maps in float32, as the kernels do.
    wide = [map_.to(_accumulation(map_.dtype)) for map_ in maps]
    output, _ = extract(wide, *table, *options)
    return _attached(output, (*wide, rois, offsets)).to(maps[0].dtype)


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
    """One axis of K RoIs in B bins of at most S samples on the map; a padded sample has no weight."""

    low: Tensor  # (K, B, S) cells
    high: Tensor
    low_weight: Tensor  # (K, B, S)
    high_weight: Tensor
    valid: Tensor  # (K, B, S)
    index: Tensor  # (K, B, S) of a sample among all of its bin's, on the map and beyond
    count: Tensor  # (K, B) what an average divides by: the number of those

    def row(self, k: int) -> 'Axis':
        return self.map(lambda x: x[k])

    def map(self, change: Callable[[Tensor], Tensor]) -> 'Axis':
        return Axis(*map(change, vars(self).values()))


@dataclass
class Samples:
    """What the (P, Q) bins of one RoI read: at most S samples on the map, in scan order, of 4 cells each. A
    padded sample has no weight.
    """

    cell: Tensor  # (P, Q, S, 4) in a channel of the map, rows one after the other
    weight: Tensor  # (P, Q, S, 4)
    valid: Tensor  # (P, Q, S)
    index: Tensor  # (P, Q, S) of a sample among all of its bin's, on the map and beyond
    count: Tensor  # (P, Q) the number of those


def _round_half_away(x: Tensor) -> Tensor:
    whole = torch.trunc(x)
    return torch.where((x - whole).abs() >= 0.5, whole + torch.sign(x), whole)


def _limit(x: Tensor, low: float, high: float = math.inf) -> Tensor:
    """torch.clamp, whose derivative at the limits depends on the release of torch: here it is that of x."""
    x = torch.where(x < low, low, x)
    return torch.where(x > high, high, x)


def _to_cells(x: Tensor, scale: float) -> Tensor:
    """Products of finite coordinates may overflow; sizes and counts have to stay finite."""
    return torch.clamp(x * torch.tensor(scale, dtype=x.dtype, device=x.device), -1e17, 1e17)


def resolve_region(
    low: Tensor,
    high: Tensor,
    scale: float,
    pooled: int,
    region: str,
    sampling_ratio: int | None,
    aligned: bool,
    position_sensitive: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """What a method makes of K RoIs from `low` to `high` (K,), in pixels, on one axis: the start, the size
    and the size of a bin, each (K,) in cells. Index coordinates: cell `i` begins at `i` where bins are of
    whole cells (a region but `none` with `sampling_ratio` None), and is centred there otherwise.
    """
    a = _to_cells(low, scale)
    if region == 'none':
        start = a - 0.5 if aligned else a
        size = _to_cells(high, scale) - a
        # Only samples need a cell to lie in.
        size = size if aligned or sampling_ratio is None else _limit(size, 1)
    elif region == 'round':
        start = _round_half_away(a)
        cells = _round_half_away(_to_cells(high, scale)) - start
        size = torch.clamp(cells if position_sensitive else cells + 1, min=1)
        start = start if sampling_ratio is None else start - 0.5
    elif region == 'floor':
        start = torch.floor(a)
        size = torch.clamp(torch.floor(_to_cells(high, scale) - a), min=1)
    else:
        start = a
        size = _to_cells(high + 1, scale) - a
    bin_ = size / pooled
    if region == 'floor':
        bin_ = torch.clamp(torch.floor(bin_), min=1)
    return start, size, bin_


@dataclass
class Jitter:
    """Where in its stratum a sample lies, by the SplitMix64 generator."""

    seed: Tensor  # one int64
    roi: Tensor  # (K,) indices of the RoIs
    axis: int  # 0: y, 1: x

    def __call__(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """For samples (K, B, S), counted through all bins of the axis."""
        roi = self.roi[:, None, None]
        counter = (roi << 32) + (self.axis << 31) + index % 2**31

        def shifted(z, bits):  # without the sign's copies that an int64 shifts in
            return (z >> bits) & (2 ** (64 - bits) - 1)

        z = self.seed.reshape(()) + (counter + 1) * (0x9E3779B97F4A7C15 - 2**64)
        z = (z ^ shifted(z, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
        z = (z ^ shifted(z, 27)) * (0x94D049BB133111EB - 2**64)
        return shifted(z ^ shifted(z, 31), 40).to(dtype) / 2**24


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
    position_sensitive: bool = False,
    jitter: Jitter | None = None,
    bins: Tensor | None = None,
    offset: Tensor | float = 0.0,
) -> Axis:
    """Where K RoIs from `low` to `high` (K,), in pixels, read an axis of `extent` cells.

    `bins` (B,) are the bins asked for, all `pooled` ones in their order if None; their samples are moved by
    `offset` (K, B), in units of the RoI's size.
    """
    dtype, device = low.dtype, low.device
    start, size, bin_ = (
        x[:, None]
        for x in resolve_region(low, high, scale, pooled, region, sampling_ratio, aligned, position_sensitive)
    )
    p = torch.arange(pooled, device=device) if bins is None else bins
    begin = p.to(dtype) * bin_

    if region == 'none' and sampling_ratio is None:
        return _integrate(start + begin, start + (p + 1).to(dtype) * bin_, extent)
    if sampling_ratio is None:
        return _cells(start, bin_, p.to(dtype), extent - 1 if position_sensitive else extent, region)

    how = (sampling_ratio, min_samples, max_samples, jitter)
    position, valid, index, count = _lay_grid(
        start + begin + offset * size, size, bin_, p, (-1, extent), *how
    )
    valid = valid & (position >= -1) & (position <= extent)
    return Axis(*_bilinear(position, valid, extent), valid, index, count)


def _lay_grid(
    begin: Tensor,
    size: Tensor,
    bin_: Tensor,
    p: Tensor,
    reach: Sequence[float | Tensor],
    sampling_ratio: int,
    min_samples: int,
    max_samples: int | None,
    jitter: Jitter | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The samples of bins `p` (B,) from `begin` (K, B) on, as far as they may lie within `reach`.

    Returns (K, B, S): positions, which are no padding, indices; and (K, B): how many the bins have.
    """
    if sampling_ratio > 0:
        count = torch.full_like(begin, sampling_ratio)
    else:  # in floating point: a wild box overflows integers
        count = torch.clamp(torch.ceil(bin_), min_samples, max_samples or _INT_MAX)
        count = torch.where(size > 0, count, 0).detach().expand_as(begin)
    last, some = count.double(), torch.clamp(count, min=1)
    # This bounds the work for wild boxes; what is read is decided by the positions. So a sample counts from
    # its index to the next, and half a cell is to spare for rounding.
    step = bin_.detach().double() / some.double()
    ends = torch.stack([(end - begin.detach().double()) / step for end in reach])
    spare = 1 + 0.5 / step.abs()
    first = torch.where(step != 0, torch.floor(ends.amin(0) - spare), 0)
    behind = torch.where(step != 0, torch.ceil(ends.amax(0) + spare), last)
    first, behind = (torch.clamp(end, torch.zeros_like(last), last).long() for end in (first, behind))
    index, valid = _padded_range(first, torch.maximum(first, behind))
    r = 0.5
    if jitter is not None:
        r = jitter(p[:, None] * count.long()[..., None] + index, begin.dtype)
    within = (index.to(begin.dtype) + r) * bin_[..., None] / some[..., None]
    return begin[..., None] + within, valid, index, count


def _bilinear(position: Tensor, valid: Tensor, extent: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two cells that each sample lies between on an axis, and their weights."""
    position = torch.where(valid, _limit(position, 0), 0)
    cell = torch.clamp(position.detach().long(), max=extent - 1)
    high_weight = torch.where(cell < extent - 1, position - cell, 0)
    return (
        cell,
        torch.clamp(cell + 1, max=extent - 1),
        torch.where(valid, 1 - high_weight, 0),
        torch.where(valid, high_weight, 0),
    )


def _cells(start: Tensor, bin_: Tensor, p: Tensor, extent: int, region: str) -> Axis:
    """The cells of quantised bins that are among the first `extent` ones."""
    if region == 'round':
        begin = torch.floor(p * bin_) + start
        end = torch.ceil((p + 1) * bin_) + start
    elif region == 'floor':
        begin = start + p * bin_
        end = begin + bin_
    else:
        begin = torch.floor(p * bin_ + start)
        end = torch.where(bin_ > 0, torch.ceil((p + 1) * bin_ + start), begin)
    # Twice, as beyond 2**24 cells float32 rounds the extent itself, perhaps up.
    begin, end = (torch.clamp(x, 0, extent).long().clamp(max=extent) for x in (begin, end))
    end = torch.maximum(begin, end)
    cell, valid = _padded_range(begin, end)
    index = cell - begin[..., None]
    cell = torch.where(valid, cell, 0)
    weight = valid.to(bin_.dtype)
    return Axis(cell, cell, weight, weight * 0, valid, index, (end - begin).to(bin_.dtype))


def _integrate(low: Tensor, high: Tensor, extent: int) -> Axis:
    """The mean of the bilinear surface, which is 0 from a cell beyond the map on, between (K, B) positions.

    Between two cells it is linear, and its integral the value in the middle of what a bin covers times the
    length of that: each such stretch is one sample.
    """
    size = torch.where(high > low, high - low, 1)[..., None]
    begin = torch.floor(torch.clamp(low.detach(), -1, extent)).long()
    end = torch.ceil(torch.clamp(high.detach(), -1, extent)).long().clamp(max=extent)  # as in _cells
    cell, valid = _padded_range(begin, torch.where(high > low, end, begin))
    ends = [_limit(side[..., None] - cell, 0, 1) for side in (low, high)]
    weight = torch.where(valid, (ends[1] - ends[0]) / size, 0)
    middle = (ends[0] + ends[1]) / 2
    return Axis(
        torch.clamp(cell, 0, extent - 1),
        torch.clamp(cell + 1, 0, extent - 1),
        torch.where(cell >= 0, weight * (1 - middle), 0),
        torch.where(cell + 1 < extent, weight * middle, 0),
        valid,
        cell,
        torch.ones_like(low),
    )


def _padded_range(begin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """(K, B) bounds as (K, B, S) integers from `begin` on, and which of them lie before `end`."""
    longest = int((end - begin).max()) if begin.numel() else 0
    index = begin[..., None] + torch.arange(longest, device=begin.device)
    return index, index < end[..., None]


def _taps(y: Sequence[Tensor], x: Sequence[Tensor], width: int) -> tuple[Tensor, Tensor]:
    """The four cells of samples and their weights, from the two of each on either axis."""
    cell = torch.stack([row * width + column for row in y[:2] for column in x[:2]], dim=-1)
    weight = torch.stack([row * column for row in y[2:] for column in x[2:]], dim=-1)
    return cell, weight


def _cross(y: Axis, x: Axis, width: int) -> Samples:
    """Every sample of a bin on y with every one on x; of both (P, Q, S), or of one instead of P or Q."""
    rows = [side[..., :, None] for side in (y.low, y.high, y.low_weight, y.high_weight)]
    columns = [side[..., None, :] for side in (x.low, x.high, x.low_weight, x.high_weight)]
    cell, weight = _taps(rows, columns, width)
    valid = y.valid[..., :, None] & x.valid[..., None, :]
    index = y.index[..., :, None] * x.count.long()[..., None, None] + x.index[..., None, :]
    return Samples(
        cell.flatten(2, 3), weight.flatten(2, 3), valid.flatten(2), index.flatten(2), y.count * x.count
    )


@dataclass
class Frame:
    """A rotated box on its map, in cells: (y, x) = centre + v * down + u * right, of `size` in (v, u)."""

    centre: Tensor
    down: Tensor
    right: Tensor
    size: Tensor


def resolve_frame(box: Tensor, scale: float, sampling_ratio: int | None, aligned: bool) -> Frame:
    """What the map sees of a box (cx, cy, w, h, angle)."""
    centre, size = _to_cells(box[[1, 0]], scale), _to_cells(box[[3, 2]], scale)
    angle = box[4] * (math.pi / 180)
    cos, sin = torch.cos(angle), torch.sin(angle)
    return Frame(
        centre - 0.5 if aligned else centre,
        torch.stack([cos, sin]),
        torch.stack([-sin, cos]),
        size if aligned or sampling_ratio is None else _limit(size, 1),
    )


def _rotated_grid(
    frame: Frame,
    pooled: Sequence[int],
    extent: Sequence[int],
    sampling_ratio: int,
    min_samples: int,
    max_samples: int | None,
    jitters: Sequence[Jitter | None],
) -> Samples:
    """The samples of a rotated box on a map of `extent` (height, width) cells."""
    height, width = extent
    corners = frame.centre.new_tensor([(y, x) for y in (-1, height) for x in (-1, width)])
    corners = (corners - frame.centre).detach().double()
    grids = []
    for side, axis, bins, jitter in zip(frame.size, (frame.down, frame.right), pooled, jitters, strict=True):
        size = side.reshape(1, 1)
        p = torch.arange(bins, device=size.device)
        begin = -size / 2 + p.to(size.dtype) * (size / bins)
        seen = corners @ axis.detach().double()  # of the map, in the frame
        reach = (seen.amin(), seen.amax())
        how = (sampling_ratio, min_samples, max_samples, jitter)
        grids.append([of[0] for of in _lay_grid(begin, size, size / bins, p, reach, *how)])
    (v, has_v, row, rows), (u, has_u, column, columns) = grids
    v, u = v[:, None, :, None], u[None, :, None, :]
    y, x = ((v * frame.down[i] + u * frame.right[i] + frame.centre[i]).flatten(2) for i in (0, 1))
    valid = (has_v[:, None, :, None] & has_u[None, :, None, :]).flatten(2)
    valid = valid & (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    index = row[:, None, :, None] * columns.long()[None, :, None, None] + column[None, :, None, :]
    taps = _taps(_bilinear(y, valid, height), _bilinear(x, valid, width), width)
    return Samples(*taps, valid, index.flatten(2), rows[:, None] * columns)


def _rotated_integral(frame: Frame, pooled: Sequence[int], extent: Sequence[int]) -> Samples:
    """The mean of the bilinear surface over each bin of a rotated box, cell square by cell square.

    Over a square between four cells the surface is a sum of four products of hats, so its integral over what
    a bin has of the square is one of 1, a, b and a * b over a polygon. Those are sums over the edges of the
    polygon (Green's theorem), for which it need not be found: the bin's edges do, cut where they cross the
    square's lines and pressed into the square, for what is pressed onto its border encloses nothing.
    """
    height, width = extent
    centre, down, right, size = (x.detach().double() for x in vars(frame).values())
    bin_ = size / size.new_tensor(pooled)
    v, u = (
        -side / 2 + torch.arange(bins, device=size.device) * step
        for side, bins, step in zip(size, pooled, bin_, strict=True)
    )
    # Everything is told from where a bin begins, so that a tiny one is not lost in rounding.
    origin = centre + v[:, None, None] * down + u[:, None] * right  # (P, Q, 2)
    axes = torch.stack([down, right])
    down, right = bin_[0] * down, bin_[1] * right
    corners = torch.stack([down * 0, down, down + right, right])
    ranges = []
    for i in (0, 1):
        ends = (origin[..., i] + end for end in (corners[:, i].amin(), corners[:, i].amax()))
        low, high = (torch.clamp(end, -1, extent[i]) for end in ends)
        ranges.append(_padded_range(torch.floor(low).long(), torch.ceil(high).long()))
    (row, has_row), (column, has_column) = ranges
    row, column = torch.broadcast_tensors(row[..., :, None], column[..., None, :])
    valid = has_row[..., :, None] & has_column[..., None, :] & (bin_ > 0).all()
    square = torch.stack([row, column], dim=-1) - origin[:, :, None, None]
    # In the box's frame too, a square that is read has to overlap the bin: no weight is left to rounding.
    seen, reach = square @ axes.T, (torch.clamp(axes, max=0).sum(1), torch.clamp(axes, min=0).sum(1))
    valid = valid & ((seen + reach[0] < bin_) & (seen + reach[1] > 0)).all(-1)
    low, high = square[..., None, :], square[..., None, :] + 1

    edges = corners.roll(-1, 0) - corners
    cuts = torch.cat([(line - corners) / edges for line in (low, high)], dim=-1)
    cuts = torch.clamp(torch.nan_to_num(cuts), 0, 1).sort(-1).values  # along each of the 4 edges
    cuts = torch.nn.functional.pad(cuts, (1, 0))[..., None]
    points = (corners[:, None] + cuts * edges[:, None]).flatten(-3, -2)
    points = torch.minimum(torch.maximum(points, low), high)

    first = points[..., :1, :]
    y, x = (points - first).unbind(-1)
    y2, x2 = y.roll(-1, -1), x.roll(-1, -1)
    cross = y * x2 - y2 * x
    area = cross.sum(-1) / 2
    of_y, of_x = (((z + z2) * cross).sum(-1) / 6 for z, z2 in ((y, y2), (x, x2)))
    of_yx = (cross * (2 * y * x + y * x2 + y2 * x + 2 * y2 * x2)).sum(-1) / 24
    # From there to the square's own corner.
    y, x = (first - low)[..., 0, :].unbind(-1)
    of_yx = of_yx + y * of_x + x * of_y + y * x * area
    of_y, of_x = of_y + y * area, of_x + x * area
    weight = torch.stack([area - of_y - of_x + of_yx, of_x - of_yx, of_y - of_yx, of_yx], dim=-1)
    has = [valid & on for on in (row >= 0, row + 1 < height, column >= 0, column + 1 < width)]
    has = torch.stack([has[i] & has[j] for i in (0, 1) for j in (2, 3)], dim=-1)
    weight = torch.where(has, weight / bin_.prod(), 0).to(frame.size.dtype)
    rows, columns = (
        [torch.clamp(side + i, 0, last - 1) for i in (0, 1)]
        for side, last in ((row, height), (column, width))
    )
    cell = torch.stack([i * width + j for i in rows for j in columns], dim=-1)
    count = weight.new_ones(pooled)
    return Samples(cell.flatten(2, 3), weight.flatten(2, 3), valid.flatten(2), (row * 0).flatten(2), count)


def _read(map_: Tensor, samples: Samples) -> Tensor:
    """Channels (C, cells) at the samples: (C, P, Q, S)."""
    taken = map_.index_select(1, samples.cell.flatten()).unflatten(1, samples.cell.shape)
    # A weight of zero reads nothing, for 0 * inf would be NaN; but a sample on a cell has a slope.
    unread = torch.where(taken.isfinite(), taken, 0).detach()
    return (torch.where(samples.weight == 0, unread, taken) * samples.weight).sum(-1)


def _add(values: Tensor, map_: Tensor, samples: Samples) -> None:
    """Adds (C, P, Q, S) gradients of samples to the channels (C, cells) that they were read from."""
    parts = torch.where(samples.weight == 0, 0, values[..., None] * samples.weight)
    map_.index_add_(1, samples.cell.flatten(), parts.flatten(1))


def _maximum(values: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
    """The largest of (C, P, Q, S) samples in each bin, and how many samples on the map precede it; -1 for a
    zero from beyond the map.
    """
    if values.shape[-1] == 0:
        nothing = values.sum(-1)
        return nothing, torch.full_like(nothing, -1, dtype=torch.int64)
    valid = samples.valid
    before = valid.cumsum(-1) - 1
    total = valid.sum(-1)
    # A zero precedes where a sample on the map is not the next one of all.
    zero_at = (valid & (samples.index == before)).sum(-1)
    outside = total < samples.count.long()

    values = values.masked_fill(~valid, -torch.inf)
    largest = valid & (values == values.amax(-1, keepdim=True))
    # On a tie the first in scan order wins. NaN wins over everything, and the last one over the others.
    number = torch.arange(values.shape[-1], device=values.device)
    nan = values.isnan()
    at = torch.where(nan.any(-1), (nan * number).argmax(-1), largest.to(torch.uint8).argmax(-1))
    best = values.gather(-1, at[..., None])[..., 0]
    winner = before.expand(values.shape).gather(-1, at[..., None])[..., 0]
    zero_wins = (best < 0) | ((best == 0) & (winner >= zero_at))
    zero_wins = (zero_wins & outside) | (total == 0)
    return torch.where(zero_wins, 0, best), torch.where(zero_wins, -1, winner)


def _at_winner(winner: Tensor, grad: Tensor, samples: Samples) -> Tensor:
    """(C, P, Q) gradients at their winners: (C, P, Q, S)."""
    wins = samples.valid & (samples.valid.cumsum(-1) - 1 == winner[..., None])
    return torch.where(wins, grad[..., None], 0)


class _RoIs:
    """K RoIs over the maps of a pyramid: what to do with each, and where it reads."""

    def __init__(self, rois, levels, offsets, seed, shapes, images, dtype, options):
        self.scales, self.size, region, ratio, self.reduction, aligned, least, most, grouped = options
        self.groups = math.prod(self.size) if grouped else 1  # of channels, one for each bin
        self.shapes, self.seed = shapes, seed
        self.grid, self.aligned = (ratio, least, most), aligned
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
        self.offsets = self.lost = None  # lost: bins whose offset is no number
        if offsets is not None:
            offsets = offsets.to(dtype)
            self.lost = ~offsets.isfinite().all(1)
            self.offsets = torch.where(offsets.isfinite(), offsets, 0).flatten(2)
        self.axes: dict[int, tuple[Axis, Axis]] = {}
        if rois.shape[1] == 6:
            return
        how = (region, ratio, aligned, least, most, grouped)
        # A level at a time: what the RoIs of one share is the size of their map.
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
        """The bins of an axis and their offsets: all (P, Q) of a RoI, where each has its own."""
        if self.offsets is None:
            return None, 0.0
        bins = [torch.arange(n, device=chosen.device) for n in self.size]
        return torch.meshgrid(bins, indexing='ij')[axis].flatten(), self.offsets[chosen, 1 - axis]

    def samples(self, k: int) -> Samples:
        """What RoI k reads of its map, where channels lie one after the other."""
        height, width = shape = self.shapes[self.level[k]]
        if self.axes:
            y, x = self.axes[k]
            if self.offsets is None:
                y, x = y.map(lambda of: of[:, None]), x.map(lambda of: of[None])
            else:
                y, x = (axis.map(lambda of: of.unflatten(0, self.size)) for axis in (y, x))
            samples = _cross(y, x, width)
        else:
            scale = self.scales[self.level[k]]
            frame = resolve_frame(self.rois[k, 1:], scale, self.grid[0], self.aligned)
            if self.reduction == 'integral':
                samples = _rotated_integral(frame, self.size, shape)
            else:
                roi = torch.tensor([k], device=self.rois.device)
                jitters = [self._jitter(roi, axis) for axis in (0, 1)]
                samples = _rotated_grid(frame, self.size, shape, *self.grid, jitters)
        if self.groups > 1:
            bins = torch.arange(self.groups, device=self.rois.device).reshape(*self.size, 1, 1)
            samples.cell = samples.cell + bins * (height * width)
        return samples

    def channels(self, k: int, maps: Sequence[Tensor]) -> Tensor:
        """The map of RoI k as the (C, cells) that its samples number."""
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
    *arguments,
) -> tuple[Tensor, Tensor]:
    """The forward op by the schema's positional arguments."""
    options = Options(*arguments)
    _check(features, rois, levels, offsets, seed, options)
    first = features[0]
    dtype = _accumulation(first.dtype)
    shapes = [map_.shape[2:] for map_ in features]
    table = _RoIs(rois, levels, offsets, seed, shapes, first.shape[0], dtype, options)
    index_dtype = winner_dtype(options.sampling_ratio, options.max_samples)
    size = (first.shape[1] // table.groups, *options.output_size)
    rows, winners = [], []
    for k, (read, invalid) in enumerate(zip(table.read, table.invalid.tolist(), strict=True)):
        winner = torch.full(size, -1, dtype=torch.int64, device=first.device)
        if read:
            samples = table.samples(k)
            values = _read(table.channels(k, features).to(dtype), samples)
            if options.reduction == 'max':
                row, winner = _maximum(values, samples)
            else:
                row = values.sum(-1) / torch.clamp(samples.count, min=1)
            if offsets is not None:
                row = torch.where(table.lost[k], torch.nan, row)
        else:
            row = first.new_full(size, torch.nan if invalid else 0, dtype=dtype)
        rows.append(row.to(first.dtype))
        winners.append(winner.to(index_dtype))
    format_ = memory_format(is_channels_last(first))
    output = torch.stack(rows) if rows else first.new_zeros(0, *size)
    if options.reduction != 'max':
        winner = torch.empty(0, dtype=index_dtype, device=first.device)
    else:
        winner = torch.stack(winners) if rows else output.to(index_dtype)
        winner = winner.contiguous(memory_format=format_)
    return output.contiguous(memory_format=format_), winner


@torch.no_grad()
def extract_backward(
    grad: Tensor,
    winner: Tensor,
    rois: Tensor,
    levels: Tensor | None,
    offsets: Tensor | None,
    seed: Tensor | None,
    feature_shapes: Sequence[int],
    channels_last: bool,
    *arguments,
) -> list[Tensor]:
    """The backward op to the features by the schema's positional arguments."""
    images, channels = feature_shapes[:2]
    shapes = list(zip(feature_shapes[2::2], feature_shapes[3::2], strict=True))
    dtype = _accumulation(grad.dtype)
    table = _RoIs(rois, levels, offsets, seed, shapes, images, dtype, Options(*arguments))
    sums = [grad.new_zeros(images, channels, *shape, dtype=dtype) for shape in shapes]
    for k, read in enumerate(table.read):
        if not read:
            continue
        samples, row = table.samples(k), grad[k].to(dtype)
        if offsets is not None:
            row = torch.where(table.lost[k], 0, row)
        if table.reduction == 'max':
            index = winner[k].to(torch.int64)
            if winner.dtype == torch.uint8:
                index = torch.where(index == 255, -1, index)
            values = _at_winner(index, row, samples)
        else:
            values = (row / torch.clamp(samples.count, min=1))[..., None]
            values = values.expand(-1, *samples.valid.shape)
        _add(values, table.channels(k, sums), samples)
    format_ = memory_format(channels_last)
    return [map_.to(grad.dtype).contiguous(memory_format=format_) for map_ in sums]


def extract_backward_rois(
    grad: Tensor,
    winner: Tensor,
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    offsets: Tensor | None,
    seed: Tensor | None,
    *arguments,
) -> tuple[Tensor, Tensor]:
    """The backward op to what places the samples, by the schema's positional arguments. The winners are those
    of the features, which are at hand, so they are found again.
    """
    check_gradient(rois.detach().requires_grad_(), Options(*arguments).reduction)
    # A kernel runs where PyTorch records nothing; this makes it record again.
    with torch.inference_mode(False), torch.enable_grad():
        places = [x.detach().requires_grad_() for x in (rois, offsets) if x is not None]
        maps = [map_.detach() for map_ in features]
        output, _ = extract(maps, places[0], levels, *(places[1:] or [None]), seed, *arguments)
        grads = torch.autograd.grad(_attached(output, places), places, grad)
    return grads[0], grads[1] if offsets is not None else rois.new_empty(0)


def _attached(output: Tensor, places: Sequence[Tensor | None]) -> Tensor:
    """An output with a gradient, if only of zeros, to all tensors that want one, read or not."""
    for place in places:
        if place is not None and place.requires_grad:
            output = output + place[:0].sum().to(output.dtype)
    return output
