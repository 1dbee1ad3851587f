"""Where a method reads a rotated box, in plain PyTorch. `csrc/rotated.h` is the compiled twin."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .geometry import Jitter, Samples, bilinear, lay_grid, limit, padded_range, taps, to_cells


@dataclass
class Frame:
    """A rotated box on its map: its point (v, u) lies at (y, x) = centre + v * down + u * right, in cells."""

    centre: Tensor  # (y, x)
    down: Tensor  # unit vector (y, x)
    right: Tensor  # unit vector (y, x)
    size: Tensor  # in (v, u)


def resolve_frame(box: Tensor, scale: float, sampling_ratio: int | None, aligned: bool) -> Frame:
    """Returns the frame of a box (cx, cy, w, h, angle), in pixels of the input image and degrees
    counter-clockwise. The other arguments are those of :func:`roi_plugins.ops.roi_extract`.
    """
    centre, size = to_cells(box[[1, 0]], scale), to_cells(box[[3, 2]], scale)
    angle = box[4] * (math.pi / 180)
    cos, sin = torch.cos(angle), torch.sin(angle)
    return Frame(
        centre - 0.5 if aligned else centre,
        torch.stack([cos, sin]),
        torch.stack([-sin, cos]),
        size if aligned or sampling_ratio is None else limit(size, 1),
    )


def rotated_grid(
    frame: Frame,
    pooled: Sequence[int],
    extent: Sequence[int],
    sampling_ratio: int,
    min_samples: int,
    max_samples: int | None,
    jitters: Sequence[Jitter | None],
) -> Samples:
    """Returns the samples of a rotated box in `pooled` (rows, columns) bins, on a map of `extent` (height,
    width) cells.
    """
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
        grids.append([of[0] for of in lay_grid(begin, size, size / bins, p, reach, *how)])
    (v, has_v, row, rows), (u, has_u, column, columns) = grids
    v, u = v[:, None, :, None], u[None, :, None, :]
    y, x = ((v * frame.down[i] + u * frame.right[i] + frame.centre[i]).flatten(2) for i in (0, 1))
    valid = (has_v[:, None, :, None] & has_u[None, :, None, :]).flatten(2)
    valid = valid & (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    index = row[:, None, :, None] * columns.long()[None, :, None, None] + column[None, :, None, :]
    cell, weight = taps(bilinear(y, valid, height), bilinear(x, valid, width), width)
    return Samples(cell, weight, valid, index.flatten(2), rows[:, None] * columns)


def rotated_integral(frame: Frame, pooled: Sequence[int], extent: Sequence[int]) -> Samples:
    """Returns samples whose sum is the mean of the bilinear surface over each bin of a rotated box.

    There is one sample for each square between four cells. Over a square with local coordinates (a, b), the
    surface is a combination of 1, a, b and a * b, so its integral needs theirs over the polygon in which bin
    and square overlap. By Green's theorem each is a sum over the edges of the polygon. The polygon itself
    need
    not be found: the edges of the bin are cut where they cross the lines of the square, and clamped to the
    square. What is clamped runs along the border and encloses no area of its own.
    """
    height, width = extent
    centre, down, right, size = (x.detach().double() for x in vars(frame).values())
    bin_ = size / size.new_tensor(pooled)
    v, u = (
        -side / 2 + torch.arange(bins, device=size.device) * step
        for side, bins, step in zip(size, pooled, bin_, strict=True)
    )
    # Coordinates are relative to the corner of a bin, so that a tiny bin is not lost in rounding.
    origin = centre + v[:, None, None] * down + u[:, None] * right  # (P, Q, 2)
    axes = torch.stack([down, right])
    down, right = bin_[0] * down, bin_[1] * right
    corners = torch.stack([down * 0, down, down + right, right])
    ranges = []
    for i in (0, 1):
        ends = (origin[..., i] + end for end in (corners[:, i].amin(), corners[:, i].amax()))
        low, high = (torch.clamp(end, -1, extent[i]) for end in ends)
        ranges.append(padded_range(torch.floor(low).long(), torch.ceil(high).long()))
    (row, has_row), (column, has_column) = ranges
    row, column = torch.broadcast_tensors(row[..., :, None], column[..., None, :])
    valid = has_row[..., :, None] & has_column[..., None, :] & (bin_ > 0).all()
    square = torch.stack([row, column], dim=-1) - origin[:, :, None, None]
    # A square that is read has to overlap the bin in the frame of the box too, or rounding would give a
    # weight to squares that only touch it.
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
    # The moments are about `first` so far; move them to the corner of the square.
    y, x = (first - low)[..., 0, :].unbind(-1)
    of_yx = of_yx + y * of_x + x * of_y + y * x * area
    of_y, of_x = of_y + y * area, of_x + x * area
    weight = torch.stack([area - of_y - of_x + of_yx, of_x - of_yx, of_y - of_yx, of_yx], dim=-1)
    sides = [valid & on for on in (row >= 0, row + 1 < height, column >= 0, column + 1 < width)]
    has = torch.stack([sides[i] & sides[j] for i in (0, 1) for j in (2, 3)], dim=-1)
    weight = torch.where(has, weight / bin_.prod(), 0).to(frame.size.dtype)
    rows, columns = (
        [torch.clamp(side + i, 0, last - 1) for i in (0, 1)]
        for side, last in ((row, height), (column, width))
    )
    cell = torch.stack([i * width + j for i in rows for j in columns], dim=-1)
    count = weight.new_ones(pooled)
    return Samples(cell.flatten(2, 3), weight.flatten(2, 3), valid.flatten(2), (row * 0).flatten(2), count)
