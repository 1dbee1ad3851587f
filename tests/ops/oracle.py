"""What the RoI op computes, once more: float64 NumPy, plain loops, written from the contract alone.

Slow on purpose. Every bin is a list of samples in scan order and every sample a list of taps
``(cell, weight)``, so the gradient can be written down by hand from what was read.

The box geometry (scaling, rounding, sizes, grids) runs in the op's coordinate type, as the contract
asks; everything after it is float64. Nothing is shared with the reference; the integral over a rotated bin
cuts its polygon at every cell, where the reference goes along its edges. Two things tell a test where
rounding alone may decide: ``clearance`` (how far a RoI is from reading other cells) and ``lead`` (how far
a maximum is ahead).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from math import ceil, cos, floor, inf, isfinite, isnan, radians, sin

import numpy as np

LARGEST_GRID = 4096  # samples of one bin along one axis: a guard against tests that never end


def round_half_away(value):
    """C's ``round``; Python's own rounds half to even."""
    return floor(value + 0.5) if value >= 0 else ceil(value - 0.5)


def hat_integral(x):
    """The integral of max(1 - |t|, 0) up to x."""
    x = min(max(x, -1.0), 1.0)
    return (1 + x) ** 2 / 2 if x < 0 else 1 - (1 - x) ** 2 / 2


def jitter(seed, k, axis, number):
    """SplitMix64's number in [0, 1) for a sample of RoI k, counted through the bins of an axis."""
    mask = 2**64 - 1
    counter = (k * 2**32 + axis * 2**31 + number % 2**31) & mask
    z = (seed + (counter + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return ((z ^ (z >> 31)) >> 40) / 2**24


def is_dyadic(*values):
    """Whether these are short binary fractions, so that sums, differences and halves are exact."""
    return all(abs(v) < 2**16 and float(v) * 2**10 == floor(float(v) * 2**10) for v in values)


def is_power_of_two(*values):
    return all(v > 0 and v & (v - 1) == 0 for v in values)


def distance_to_integer(value):
    return abs(value - round_half_away(value))


class Axis:
    """Where the bins of one RoI read along one axis.

    Attributes:
        bins: for each bin its samples in scan order; a sample is ``None`` (out of range: it reads
            0) or a list of ``(cell, weight)``.
        clearance: smallest distance, in cells, from any decision (a floor, a ceil, a comparison
            with the border) to where it falls the other way; infinite where all are exact.
    """

    def __init__(self, low, high, scale, num_bins, extent, coord, method, jitter=None, offset=0.0):
        region, sampling_ratio, reduction, aligned, min_samples, max_samples, position_sensitive = method
        self.num_bins, self.extent, self.coord = num_bins, extent, coord
        self.clearance = inf
        a, b = coord(low) * coord(scale), coord(high) * coord(scale)
        if reduction == 'integral':
            self.integral(a - coord(0.5 if aligned else 0), b - a)
            return
        if sampling_ratio is None:
            if region == 'round' and position_sensitive:
                self.rfcn_cells(a, b)
            elif region == 'round':
                self.round_cells(a, b)
            elif region == 'floor':
                self.floor_cells(a, b)
            elif region == 'bins':
                self.quantised_bins(a, (coord(high) + coord(1)) * coord(scale))
            else:
                raise AssertionError('region none has no cells')
            return
        if region == 'none':
            start = a - coord(0.5 if aligned else 0)
            size = b - a
            if not aligned:
                size = max(size, coord(1))
        elif region == 'round':
            first, size = self.rounded(a, b)
            start, size = coord(first) - coord(0.5), coord(size)
        else:
            raise AssertionError('floor and bins have no bilinear grid')
        samples, self.clearance = num_samples(
            size, num_bins, coord, self.clearance, sampling_ratio, min_samples, max_samples
        )
        start, size = float(start), float(size)
        exact = is_dyadic(start, size) and is_power_of_two(num_bins, samples)
        exact = exact and jitter is None and not offset
        self.bins = []
        for p in range(num_bins):
            samples_of_bin = []
            for i in range(samples):
                r = 0.5 if jitter is None else jitter(p * samples + i)
                position = start + (p + (i + r) / samples) * size / num_bins + offset * size
                self.decide(min(abs(position + 1), abs(position - extent)), exact)
                samples_of_bin.append(bilinear(position, extent))
            self.bins.append(samples_of_bin)

    def decide(self, distance, exact):
        if not exact:
            self.clearance = min(self.clearance, float(distance))

    def rounded(self, a, b):
        """First cell and number of cells of a box snapped to the map (the end is inclusive)."""
        for value in (a, b):
            self.decide(abs(float(value) % 1 - 0.5), is_dyadic(value))
        first, last = round_half_away(float(a)), round_half_away(float(b))
        return first, max(last - first + 1, 1)

    def cells(self, begin, end):
        """The cells from begin to end, exclusive, that lie on the map."""
        return [[(cell, 1.0)] for cell in range(max(begin, 0), min(end, self.extent))]

    def round_cells(self, a, b):
        first, size = self.rounded(a, b)
        side = self.coord(size) / self.coord(self.num_bins)
        # No doubt here: the contract fixes how `side` and its multiples are rounded.
        self.bins = [
            self.cells(
                floor(float(self.coord(p) * side)) + first,
                ceil(float(self.coord(p + 1) * side)) + first,
            )
            for p in range(self.num_bins)
        ]

    def rfcn_cells(self, a, b):
        """R-FCN's own: no cell more than the rounded end, and the map's last one is never read."""
        first, _ = self.rounded(a, b)
        size = max(round_half_away(float(b)) - first, 1)
        side = self.coord(size) / self.coord(self.num_bins)
        self.bins = []
        for p in range(self.num_bins):
            ends = (floor(float(self.coord(p) * side)), ceil(float(self.coord(p + 1) * side)))
            begin, end = (min(max(cell + first, 0), self.extent - 1) for cell in ends)
            self.bins.append([[(cell, 1.0)] for cell in range(begin, end)])

    def floor_cells(self, a, b):
        self.decide(distance_to_integer(float(a)), is_dyadic(a))
        self.decide(distance_to_integer(float(b - a)), is_dyadic(a, b))
        first = floor(float(a))
        size = max(floor(float(b - a)), 1)
        side = max(size // self.num_bins, 1)
        self.bins = [self.cells(first + p * side, first + (p + 1) * side) for p in range(self.num_bins)]

    def quantised_bins(self, begin, end):
        # MMCV's kernel reads nothing where the region has no size, though a bin could hold a cell.
        self.decide(abs(float(end - begin)), is_dyadic(begin, end))
        if end <= begin:
            self.bins = [[] for _ in range(self.num_bins)]
            return
        side = (end - begin) / self.coord(self.num_bins)
        exact = is_dyadic(begin, end) and is_power_of_two(self.num_bins)
        self.bins = []
        for p in range(self.num_bins):
            lower = float(begin + self.coord(p) * side)
            upper = float(begin + self.coord(p + 1) * side)
            self.decide(min(distance_to_integer(lower), distance_to_integer(upper)), exact)
            self.bins.append(self.cells(floor(lower), ceil(upper)))

    def integral(self, start, size):
        """One reading of a bin: each cell by the integral of its hat, 1 at the cell and 0 at the next."""
        exact = is_dyadic(start, size) and is_power_of_two(self.num_bins)
        start, size = float(start), float(size)
        if size <= 0:
            self.bins = [[] for _ in range(self.num_bins)]
            return
        # Where the edges of a bin round to one number it has no size.
        self.decide(size / self.num_bins, exact)
        self.bins = []
        for p in range(self.num_bins):
            low, high = (start + size * edge / self.num_bins for edge in (p, p + 1))
            if low == high:  # a bin so small that its edges round to one number
                self.bins.append([])
                continue
            weights = [
                (hat_integral(high - cell) - hat_integral(low - cell)) / (high - low)
                for cell in range(self.extent)
            ]
            self.bins.append([[(cell, w) for cell, w in enumerate(weights) if w]])


def num_samples(size, num_bins, coord, clearance, sampling_ratio, min_samples, max_samples):
    """Samples a bin on an axis, and what is left of a clearance."""
    samples = sampling_ratio
    if sampling_ratio == 0:
        per_bin = float(size / coord(num_bins))
        if not (is_dyadic(size) and is_power_of_two(num_bins)):
            clearance = min(clearance, distance_to_integer(per_bin))
        samples = 0
        if size > 0:
            samples = max(ceil(per_bin), min_samples)
            if max_samples is not None:
                samples = min(samples, max_samples)
    assert samples <= LARGEST_GRID, f'{samples} samples are too many for plain loops'
    return samples, clearance


def bilinear(position, extent):
    """The two cells of a position and their weights; None if it is beyond the map."""
    if position < -1 or position > extent:
        return None
    position = min(max(position, 0.0), extent - 1.0)
    lower = floor(position)
    upper = min(lower + 1, extent - 1)
    weight = position - lower
    return [(lower, 1 - weight), (upper, weight)]


class Rotated:
    """Where the bins of one rotated RoI read: `bins[p, q]` are samples in scan order, lists of
    ``(y, x, weight)``; `clearance` is that of `Axis`.
    """

    def __init__(self, box, scale, num_bins, extent, coord, method, jitters):
        _, sampling_ratio, reduction, aligned, min_samples, max_samples, _ = method
        cx, cy, width, height = (coord(value) * coord(scale) for value in box[:4])
        shift = coord(0.5 if aligned else 0)
        self.centre = float(cy - shift), float(cx - shift)
        self.cos, self.sin = cos(radians(box[4])), sin(radians(box[4]))
        sizes = [height, width]
        if reduction != 'integral' and not aligned:
            sizes = [max(size, coord(1)) for size in sizes]
        self.clearance = inf
        self.bins = {}
        sides = [float(size) / bins for size, bins in zip(sizes, num_bins, strict=True)]
        if reduction == 'integral':
            self.integrate(sides, num_bins, extent)
            return
        samples = []
        for size, bins in zip(sizes, num_bins, strict=True):
            count, self.clearance = num_samples(
                size, bins, coord, self.clearance, sampling_ratio, min_samples, max_samples
            )
            samples.append(count)
        for bin_ in product(*map(range, num_bins)):
            self.bins[bin_] = []
            for index in product(*map(range, samples)):
                at = []
                for axis in (0, 1):
                    r = jitters[axis](bin_[axis] * samples[axis] + index[axis]) if jitters else 0.5
                    share = bin_[axis] + (index[axis] + r) / samples[axis] - num_bins[axis] / 2
                    at.append(share * sides[axis])
                sample = [bilinear(*of) for of in zip(self.on_map(*at), extent, strict=True)]
                for position, cells in zip(self.on_map(*at), extent, strict=True):
                    self.clearance = min(self.clearance, abs(position + 1), abs(position - cells))
                self.bins[bin_].append(
                    [] if None in sample else [(y, x, wy * wx) for (y, wy), (x, wx) in product(*sample)]
                )

    def on_map(self, v, u):
        return (
            v * self.cos - u * self.sin + self.centre[0],
            v * self.sin + u * self.cos + self.centre[1],
        )

    def integrate(self, sides, num_bins, extent):
        """One reading of a bin: over each square between four cells the part of it that the bin covers."""
        for p, q in product(*map(range, num_bins)):
            self.bins[p, q] = []
            if min(sides) <= 0:
                continue
            v = [(edge - num_bins[0] / 2) * sides[0] for edge in (p, p + 1)]
            u = [(edge - num_bins[1] / 2) * sides[1] for edge in (q, q + 1)]
            corners = [self.on_map(v[i], u[j]) for i, j in ((0, 0), (1, 0), (1, 1), (0, 1))]
            reading = []
            spans = [
                range(
                    max(floor(min(c[axis] for c in corners)), -1),
                    min(ceil(max(c[axis] for c in corners)), extent[axis]),
                )
                for axis in (0, 1)
            ]
            for i, j in product(*spans):
                part = corners
                for axis, first in ((0, i), (1, j)):
                    part = cut(cut(part, axis, first, 1), axis, first + 1, -1)
                for y, x in product((i, i + 1), (j, j + 1)):
                    if 0 <= y < extent[0] and 0 <= x < extent[1]:
                        weight = volume(part, lambda a, b, y=y, x=x: (1 - abs(a - y)) * (1 - abs(b - x)))
                        reading.append((y, x, weight / (sides[0] * sides[1])))
            self.bins[p, q] = [reading]


def cut(polygon, axis, at, side):
    """What of a convex polygon lies beyond a line across an axis: above it if `side` is 1, else below."""
    kept = []
    for here, there in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        inside, next_inside = ((point[axis] - at) * side >= 0 for point in (here, there))
        if inside:
            kept.append(here)
        if inside != next_inside:
            share = (at - here[axis]) / (there[axis] - here[axis])
            kept.append(tuple(a + share * (b - a) for a, b in zip(here, there, strict=True)))
    return kept


def volume(polygon, height):
    """Of a polynomial of second degree over a convex polygon: over a triangle it is the mean of those in the
    middles of its sides."""
    total = 0.0
    for b, c in pairwise(polygon):
        a = polygon[0]
        area = abs((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])) / 2
        middles = [((s[0] + t[0]) / 2, (s[1] + t[1]) / 2) for s, t in ((a, b), (b, c), (c, a))]
        total += area * sum(height(*middle) for middle in middles) / 3
    return total


@dataclass
class Extracted:
    """Output of the oracle, with what it read.

    Attributes:
        output: ``(K, C, PH, PW)``.
        reads: ``{(k, p, q): (map, batch index, samples)}``; a sample is a list of
            ``(y, x, weight)``, empty where it is out of range.
        channel: the channel of the maps that ``(c, p, q)`` is read from.
        argmax: ``(K, C, PH, PW)`` index of the largest sample; -1 where nothing was read.
        lead: ``(K, C, PH, PW)`` how far the maximum is ahead of the next different reading.
        clearance: ``(K,)`` see `Axis`.
    """

    maps: list
    reduction: str
    channel: Callable
    output: np.ndarray
    reads: dict
    argmax: np.ndarray
    lead: np.ndarray
    clearance: np.ndarray

    def backward(self, grad_output):
        """Gradients of the maps, for ``grad_output`` of the output's shape."""
        grads = [np.zeros_like(m) for m in self.maps]
        for (k, p, q), (level, n, samples) in self.reads.items():
            for c in range(self.output.shape[1]):
                grad = grad_output[k, c, p, q]
                of_map = grads[level][n, self.channel(c, p, q)]
                if self.reduction != 'max':
                    for sample in samples:
                        for y, x, weight in sample:
                            of_map[y, x] += grad * weight / len(samples)
                elif self.argmax[k, c, p, q] >= 0:
                    for y, x, weight in samples[self.argmax[k, c, p, q]]:
                        of_map[y, x] += grad * weight
        return grads


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
    coord=np.float64,
):
    """The op of the contract on NumPy arrays; arguments as `roi_plugins.ops.roi_extract`.

    `coord` is the op's coordinate type: float64 for float64 features, float32 for all others.
    """
    single = isinstance(features, np.ndarray)
    maps = [np.asarray(m, np.float64) for m in ([features] if single else features)]
    scales = [spatial_scale] if single else list(spatial_scale)
    bins_h, bins_w = output_size
    num_rois, channels = len(rois), maps[0].shape[1]

    def channel(c, p, q):
        return (c * bins_h + p) * bins_w + q if position_sensitive else c

    shape = (num_rois, channels // (bins_h * bins_w if position_sensitive else 1), bins_h, bins_w)
    result = Extracted(
        maps, reduction, channel, np.zeros(shape), {}, np.full(shape, -1), np.full(shape, inf),
        np.full(num_rois, inf),
    )  # fmt: skip
    method = (region, sampling_ratio, reduction, aligned, min_samples, max_samples, position_sensitive)
    for k in range(num_rois):
        batch_index, *box = (float(v) for v in rois[k])
        level = 0 if levels is None else int(levels[k])
        if not all(isfinite(v) for v in box):
            result.output[k] = np.nan
            continue
        if not 0 <= level < len(maps):
            continue
        n, feature, scale = int(batch_index), maps[level], scales[level]
        jitters = [partial(jitter, seed, k, axis) for axis in (0, 1)] if seed is not None else None
        bins, result.clearance[k] = read_bins(
            box, scale, output_size, feature.shape[2:], coord, method, jitters,
            None if offsets is None else offsets[k],
        )  # fmt: skip
        for (p, q), samples in bins.items():
            if samples is None:
                result.output[k, :, p, q] = np.nan
                continue
            result.reads[k, p, q] = (level, n, samples)
            for c in range(shape[1]):
                of_map = feature[n, channel(c, p, q)]
                values = [sum(of_map[y, x] * w for y, x, w in s) for s in samples]
                if not values:
                    continue
                if reduction != 'max':
                    result.output[k, c, p, q] = sum(values) / len(values)
                    continue
                best = 0
                for i, value in enumerate(values):
                    if isnan(value) or (value > values[best] and not isnan(values[best])):
                        best = i
                result.output[k, c, p, q] = values[best]
                result.argmax[k, c, p, q] = best
                behind = [values[best] - v for s, v in zip(samples, values, strict=True)
                          if s != samples[best]]  # fmt: skip
                result.lead[k, c, p, q] = min(behind, default=inf)
    return result


def read_bins(box, scale, num_bins, extent, coord, method, jitters, offsets):
    """The samples of each bin (p, q), lists of ``(y, x, weight)``, and the clearance; None for a bin whose
    offset is no number.
    """
    if len(box) == 5:
        rotated = Rotated(box, scale, num_bins, extent, coord, method, jitters)
        return rotated.bins, rotated.clearance
    bins, clearance = {}, inf
    for p, q in product(*map(range, num_bins)):
        moves = (0.0, 0.0) if offsets is None else offsets[::-1, p, q]
        if not all(isfinite(move) for move in moves):
            bins[p, q] = None
            continue
        if offsets is not None or not bins:
            axes = [
                Axis(
                    box[1 - axis], box[3 - axis], scale, num_bins[axis], extent[axis], coord, method,
                    jitters and jitters[axis], float(moves[axis]),
                )
                for axis in (0, 1)
            ]  # fmt: skip
            clearance = min(clearance, *(axis.clearance for axis in axes))
        bins[p, q] = [
            [] if None in (row, column) else [(y, x, wy * wx) for y, wy in row for x, wx in column]
            for row, column in product(axes[0].bins[p], axes[1].bins[q])
        ]
    return bins, clearance
