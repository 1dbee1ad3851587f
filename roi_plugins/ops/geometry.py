"""Where a method reads on a map: the samples of the bins of an upright box, in plain PyTorch.

Whatever the method, a bin is a list of samples on the map (:class:`Samples`). An upright box is the product
of two axes: :func:`resolve_axis` says where a method reads on one of them, and :func:`cross` combines two.
`csrc/geometry.h` is the compiled twin and says more.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_INT_MAX = 2**31 - 1


@dataclass
class Axis:
    """The samples of K RoIs on one axis: B bins of at most S samples on the map. Padding has no weight."""

    low: Tensor  # (K, B, S) cells
    high: Tensor
    low_weight: Tensor  # (K, B, S)
    high_weight: Tensor
    valid: Tensor  # (K, B, S)
    index: Tensor  # (K, B, S) position in the scan order of its bin, which counts samples beyond the map too
    count: Tensor  # (K, B) divisor of an average: samples, on the map or beyond; 1 for an integral

    def row(self, k: int) -> 'Axis':
        return self.map(lambda x: x[k])

    def map(self, change: Callable[[Tensor], Tensor]) -> 'Axis':
        return Axis(*map(change, vars(self).values()))


@dataclass
class Samples:
    """The samples of the (P, Q) bins of one RoI: at most S on the map, in scan order, of 4 cells each.
    Padding has no weight.
    """

    cell: Tensor  # (P, Q, S, 4) index into a channel of the map, flattened row by row
    weight: Tensor  # (P, Q, S, 4)
    valid: Tensor  # (P, Q, S)
    index: Tensor  # (P, Q, S) position in the scan order of its bin, which counts samples beyond the map too
    count: Tensor  # (P, Q) divisor of an average: samples, on the map or beyond; 1 for an integral


def _round_half_away(x: Tensor) -> Tensor:
    whole = torch.trunc(x)
    return torch.where((x - whole).abs() >= 0.5, whole + torch.sign(x), whole)


def limit(x: Tensor, low: float, high: float = math.inf) -> Tensor:
    """Clamps like torch.clamp, but with the derivative of x at the limits; torch's depends on its release."""
    x = torch.where(x < low, low, x)
    return torch.where(x > high, high, x)


def to_cells(x: Tensor, scale: float) -> Tensor:
    """Converts pixels to cells. The product may overflow, but sizes and counts have to be finite."""
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
    """Returns the region that a method makes of K RoIs on one axis: its start, its size and the size of a
    bin, each (K,) in cells.

    Where bins consist of whole cells (any region but ``'none'``, with ``sampling_ratio`` None), cell `i`
    begins at `i`; otherwise its centre is at `i`.

    Args:
        low, high: (K,) ends of the RoIs in pixels of the input image.
        scale: cells per pixel.
        pooled: number of bins.
        region, sampling_ratio, aligned, position_sensitive: see :func:`roi_plugins.ops.roi_extract`.
    """
    a = to_cells(low, scale)
    if region == 'none':
        start = a - 0.5 if aligned else a
        size = to_cells(high, scale) - a
        # The legacy convention widens a small box for samples; an integral has no need of it.
        size = size if aligned or sampling_ratio is None else limit(size, 1)
    elif region == 'round':
        start = _round_half_away(a)
        cells = _round_half_away(to_cells(high, scale)) - start
        size = torch.clamp(cells if position_sensitive else cells + 1, min=1)
        start = start if sampling_ratio is None else start - 0.5
    elif region == 'floor':
        start = torch.floor(a)
        size = torch.clamp(torch.floor(to_cells(high, scale) - a), min=1)
    else:
        start = a
        size = to_cells(high + 1, scale) - a
    bin_ = size / pooled
    if region == 'floor':
        bin_ = torch.clamp(torch.floor(bin_), min=1)
    return start, size, bin_


@dataclass
class Jitter:
    """Draws where in its stratum a sample lies, by the SplitMix64 generator."""

    seed: Tensor  # one int64
    roi: Tensor  # (K,) indices of the RoIs
    axis: int  # 0: y, 1: x

    def __call__(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns positions in [0, 1) of samples (K, B, S), numbered through all bins of the axis."""
        roi = self.roi[:, None, None]
        counter = (roi << 32) + (self.axis << 31) + index % 2**31

        def shifted(z: Tensor, bits: int) -> Tensor:  # a logical shift; that of an int64 copies its sign
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
    """Returns where K RoIs read on one axis of a map.

    Args:
        low, high: (K,) ends of the RoIs in pixels of the input image.
        scale: cells per pixel.
        pooled: number of bins.
        extent: size of the map in cells.
        region, sampling_ratio, aligned, min_samples, max_samples, position_sensitive: see
            :func:`roi_plugins.ops.roi_extract`.
        jitter: positions of the samples within their strata; their centres if None.
        bins: (B,) indices of the bins to read; all in their order if None.
        offset: (K, B) by which the samples of a bin are moved, in units of the RoI's size.
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
    position, valid, index, count = lay_grid(start + begin + offset * size, size, bin_, p, (-1, extent), *how)
    valid = valid & (position >= -1) & (position <= extent)
    return Axis(*bilinear(position, valid, extent), valid, index, count)


def lay_grid(
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
    """Lays the samples of bins `p` (B,), which begin at `begin` (K, B), as far as they may lie within
    `reach`.

    Returns their positions, whether each is a sample rather than padding, and their indices, each (K, B, S);
    and how many samples each bin has in all, (K, B).
    """
    if sampling_ratio > 0:
        count = torch.full_like(begin, sampling_ratio)
    else:  # in floating point, because a huge box overflows integers
        count = torch.clamp(torch.ceil(bin_), min_samples, max_samples or _INT_MAX)
        count = torch.where(size > 0, count, 0).detach().expand_as(begin)
    last, some = count.double(), torch.clamp(count, min=1)
    # This only bounds the work for huge boxes; the positions decide what is read. So each end is generous: by
    # a whole step, since a jittered sample lies anywhere in its own, and by half a cell for rounding.
    step = bin_.detach().double() / some.double()
    ends = torch.stack([(end - begin.detach().double()) / step for end in reach])
    spare = 1 + 0.5 / step.abs()
    first = torch.where(step != 0, torch.floor(ends.amin(0) - spare), 0)
    behind = torch.where(step != 0, torch.ceil(ends.amax(0) + spare), last)
    first, behind = (torch.clamp(end, torch.zeros_like(last), last).long() for end in (first, behind))
    index, valid = padded_range(first, torch.maximum(first, behind))
    if jitter is None:
        r: Tensor | float = 0.5
    else:
        r = jitter(p[:, None] * count.long()[..., None] + index, begin.dtype)
    within = (index.to(begin.dtype) + r) * bin_[..., None] / some[..., None]
    return begin[..., None] + within, valid, index, count


def bilinear(position: Tensor, valid: Tensor, extent: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the two cells that each sample lies between on an axis, and their weights."""
    position = torch.where(valid, limit(position, 0), 0)
    cell = torch.clamp(position.detach().long(), max=extent - 1)
    high_weight = torch.where(cell < extent - 1, position - cell, 0)
    return (
        cell,
        torch.clamp(cell + 1, max=extent - 1),
        torch.where(valid, 1 - high_weight, 0),
        torch.where(valid, high_weight, 0),
    )


def _cells(start: Tensor, bin_: Tensor, p: Tensor, extent: int, region: str) -> Axis:
    """Returns the cells of quantised bins, of those among the first `extent`."""
    if region == 'round':
        begin = torch.floor(p * bin_) + start
        end = torch.ceil((p + 1) * bin_) + start
    elif region == 'floor':
        begin = start + p * bin_
        end = begin + bin_
    else:
        begin = torch.floor(p * bin_ + start)
        end = torch.where(bin_ > 0, torch.ceil((p + 1) * bin_ + start), begin)
    # Clamped again as integers: beyond 2**24 cells float32 may round the extent itself up.
    begin, end = (torch.clamp(x, 0, extent).long().clamp(max=extent) for x in (begin, end))
    end = torch.maximum(begin, end)
    cell, valid = padded_range(begin, end)
    index = cell - begin[..., None]
    cell = torch.where(valid, cell, 0)
    weight = valid.to(bin_.dtype)
    return Axis(cell, cell, weight, weight * 0, valid, index, (end - begin).to(bin_.dtype))


def _integrate(low: Tensor, high: Tensor, extent: int) -> Axis:
    """Returns samples whose sum is the mean of the bilinear surface between (K, B) positions.

    The surface falls to 0 within a cell beyond the map. Between two cells it is linear, so its integral over
    the stretch that a bin covers there is the value in the middle of the stretch times its length: one
    sample.
    """
    size = torch.where(high > low, high - low, 1)[..., None]
    begin = torch.floor(torch.clamp(low.detach(), -1, extent)).long()
    end = torch.ceil(torch.clamp(high.detach(), -1, extent)).long().clamp(max=extent)  # as in _cells
    cell, valid = padded_range(begin, torch.where(high > low, end, begin))
    ends = [limit(side[..., None] - cell, 0, 1) for side in (low, high)]
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


def padded_range(begin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (K, B, S) integers that count up from (K, B) `begin`, and which of them are below `end`."""
    longest = int((end - begin).max()) if begin.numel() else 0
    index = begin[..., None] + torch.arange(longest, device=begin.device)
    return index, index < end[..., None]


def taps(y: Sequence[Tensor], x: Sequence[Tensor], width: int) -> tuple[Tensor, Tensor]:
    """Returns the four cells of each sample and their weights, from the two on each axis."""
    cell = torch.stack([row * width + column for row in y[:2] for column in x[:2]], dim=-1)
    weight = torch.stack([row * column for row in y[2:] for column in x[2:]], dim=-1)
    return cell, weight


def cross(y: Axis, x: Axis, width: int) -> Samples:
    """Combines every sample of a bin on y with every one on x. Both have shape (P, Q, S), where P or Q may be
    1: it broadcasts.
    """
    rows = [side[..., :, None] for side in (y.low, y.high, y.low_weight, y.high_weight)]
    columns = [side[..., None, :] for side in (x.low, x.high, x.low_weight, x.high_weight)]
    cell, weight = taps(rows, columns, width)
    valid = y.valid[..., :, None] & x.valid[..., None, :]
    index = y.index[..., :, None] * x.count.long()[..., None, None] + x.index[..., None, :]
    return Samples(
        cell.flatten(2, 3), weight.flatten(2, 3), valid.flatten(2), index.flatten(2), y.count * x.count
    )
