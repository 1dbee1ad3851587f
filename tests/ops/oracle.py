"""What the RoI op computes, once more: float64 NumPy, plain loops, written from the contract alone.

Slow on purpose. Every bin is a list of samples in scan order and every sample a list of taps
``(cell, weight)``, so the gradient can be written down by hand from what was read.

The box geometry (scaling, rounding, sizes, grids) runs in the op's coordinate type, as the contract
asks; everything after it is float64. Two things tell a test where rounding alone may decide:
``clearance`` (how far a RoI is from reading other cells) and ``lead`` (how far a maximum is ahead).
"""

from dataclasses import dataclass
from itertools import product
from math import ceil, floor, inf, isfinite, isnan

import numpy as np

LARGEST_GRID = 4096  # samples of one bin along one axis: a guard against tests that never end


def round_half_away(value):
    """C's ``round``; Python's own rounds half to even."""
    return floor(value + 0.5) if value >= 0 else ceil(value - 0.5)


def hat_integral(x):
    """The integral of max(1 - |t|, 0) up to x."""
    x = min(max(x, -1.0), 1.0)
    return (1 + x) ** 2 / 2 if x < 0 else 1 - (1 - x) ** 2 / 2


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

    def __init__(self, low, high, scale, num_bins, extent, coord, method):
        region, sampling_ratio, reduction, aligned, min_samples, max_samples = method
        self.num_bins, self.extent, self.coord = num_bins, extent, coord
        self.clearance = inf
        a, b = coord(low) * coord(scale), coord(high) * coord(scale)
        if reduction == 'integral':
            self.integral(a - coord(0.5 if aligned else 0), b - a)
            return
        if sampling_ratio is None:
            if region == 'round':
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
        self.grid(start, size, sampling_ratio, min_samples, max_samples)

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

    def grid(self, start, size, sampling_ratio, min_samples, max_samples):
        samples = sampling_ratio
        if sampling_ratio == 0:
            per_bin = size / self.coord(self.num_bins)
            self.decide(
                distance_to_integer(float(per_bin)),
                is_dyadic(size) and is_power_of_two(self.num_bins),
            )
            samples = 0
            if size > 0:
                samples = max(ceil(float(per_bin)), min_samples)
                if max_samples is not None:
                    samples = min(samples, max_samples)
        assert samples <= LARGEST_GRID, f'{samples} samples are too many for plain loops'
        start, size = float(start), float(size)
        exact = is_dyadic(start, size) and is_power_of_two(self.num_bins, samples)
        self.bins = []
        for p in range(self.num_bins):
            samples_of_bin = []
            for i in range(samples):
                position = start + (p + (i + 0.5) / samples) * size / self.num_bins
                self.decide(min(abs(position + 1), abs(position - self.extent)), exact)
                samples_of_bin.append(self.bilinear(position))
            self.bins.append(samples_of_bin)

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
            weights = [
                (hat_integral(high - cell) - hat_integral(low - cell)) / (high - low)
                for cell in range(self.extent)
            ]
            self.bins.append([[(cell, w) for cell, w in enumerate(weights) if w]])

    def bilinear(self, position):
        if position < -1 or position > self.extent:
            return None
        position = min(max(position, 0.0), self.extent - 1.0)
        lower = floor(position)
        upper = min(lower + 1, self.extent - 1)
        weight = position - lower
        return [(lower, 1 - weight), (upper, weight)]


@dataclass
class Extracted:
    """Output of the oracle, with what it read.

    Attributes:
        output: ``(K, C, PH, PW)``.
        reads: ``{(k, p, q): (map, batch index, samples)}``; a sample is a list of
            ``(y, x, weight)``, empty where it is out of range.
        winner: ``(K, C, PH, PW)`` index of the winning sample; -1 where nothing was read.
        lead: ``(K, C, PH, PW)`` how far the maximum is ahead of the next different reading.
        clearance: ``(K,)`` see `Axis`.
    """

    maps: list
    reduction: str
    output: np.ndarray
    reads: dict
    winner: np.ndarray
    lead: np.ndarray
    clearance: np.ndarray

    def backward(self, grad_output):
        """Gradients of the maps, for ``grad_output`` of the output's shape."""
        grads = [np.zeros_like(m) for m in self.maps]
        for (k, p, q), (level, n, samples) in self.reads.items():
            for c in range(self.output.shape[1]):
                grad = grad_output[k, c, p, q]
                if self.reduction != 'max':
                    for sample in samples:
                        for y, x, weight in sample:
                            grads[level][n, c, y, x] += grad * weight / len(samples)
                elif self.winner[k, c, p, q] >= 0:
                    for y, x, weight in samples[self.winner[k, c, p, q]]:
                        grads[level][n, c, y, x] += grad * weight
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
    levels=None,
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
    shape = (num_rois, channels, bins_h, bins_w)
    result = Extracted(
        maps, reduction, np.zeros(shape), {}, np.full(shape, -1), np.full(shape, inf),
        np.full(num_rois, inf),
    )  # fmt: skip
    method = (region, sampling_ratio, reduction, aligned, min_samples, max_samples)
    for k in range(num_rois):
        batch_index, x1, y1, x2, y2 = (float(v) for v in rois[k])
        level = 0 if levels is None else int(levels[k])
        if not all(isfinite(v) for v in (x1, y1, x2, y2)):
            result.output[k] = np.nan
            continue
        if not 0 <= level < len(maps):
            continue
        n, feature, scale = int(batch_index), maps[level], scales[level]
        rows = Axis(y1, y2, scale, bins_h, feature.shape[2], coord, method)
        cols = Axis(x1, x2, scale, bins_w, feature.shape[3], coord, method)
        result.clearance[k] = min(rows.clearance, cols.clearance)
        for p, q in product(range(bins_h), range(bins_w)):
            samples = []
            for row, col in product(rows.bins[p], cols.bins[q]):
                if row is None or col is None:
                    samples.append([])
                else:
                    samples.append([(y, x, wy * wx) for y, wy in row for x, wx in col])
            result.reads[k, p, q] = (level, n, samples)
            for c in range(channels):
                values = [sum(feature[n, c, y, x] * w for y, x, w in s) for s in samples]
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
                result.winner[k, c, p, q] = best
                behind = [values[best] - v for s, v in zip(samples, values, strict=True)
                          if s != samples[best]]  # fmt: skip
                result.lead[k, c, p, q] = min(behind, default=inf)
    return result
