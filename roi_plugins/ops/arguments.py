"""Converts arguments to what the op takes: options as one value, one map as a pyramid, one number as two."""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import NamedTuple

import torch
from torch import Tensor


class Options(NamedTuple):
    """The options of :func:`roi_plugins.ops.roi_extract`, in the order of the op's schema."""

    spatial_scale: Sequence[float]
    output_size: Sequence[int]
    region: str
    sampling_ratio: int | None
    reduction: str
    aligned: bool
    min_samples: int
    max_samples: int | None
    position_sensitive: bool


def as_pyramid(
    features: Tensor | Sequence[Tensor],
    spatial_scale: float | Sequence[float],
    levels: Tensor | None,
) -> tuple[list[Tensor], list[float], Tensor | None]:
    """Returns maps, scales and levels of a pyramid; one map with its scale becomes a pyramid of one.

    Args:
        features, spatial_scale, levels: see :func:`roi_plugins.ops.roi_extract`.

    Raises:
        TypeError, ValueError: an argument of another type, or ``levels`` missing for a list of maps.
    """
    if isinstance(features, Tensor):
        features = [features]
    elif not isinstance(features, Sequence):
        raise TypeError(f'features: got {type(features).__name__}, expected a tensor or a list of them')
    elif levels is None:
        raise ValueError(
            f"levels: got None for a list of {len(features)} maps, expected the (K,) index of each RoI's map"
        )
    if isinstance(spatial_scale, float):  # almost always with one map, and the general way is slower
        scales = [spatial_scale]
    else:
        scales = list(spatial_scale) if isinstance(spatial_scale, Sequence) else [spatial_scale]
        for scale in scales:
            if not isinstance(scale, Real):
                raise TypeError(f'spatial_scale: got {scale!r}, expected a number, or a list with one a map')
    if levels is not None:
        levels = as_whole(levels)
    return list(features), [float(scale) for scale in scales], levels


def rows_of_image(boxes: Tensor, image: int) -> Tensor:
    """Returns the boxes of one image as rows of RoIs, (L, 1 + D).

    Half boxes become float32, because the index of the image stands in the same row: bfloat16 has no 257, and
    float16 no 2049.

    Args:
        boxes: (L, D) boxes, upright or rotated.
        image: index of the image in the batch.
    """
    boxes = widened(boxes)
    return torch.cat([torch.full_like(boxes[:, :1], image), boxes], dim=1)


def widened(rois: Tensor) -> Tensor:
    """Returns half boxes or RoIs as float32 and others unchanged; the op computes with RoIs in this type."""
    if rois.is_floating_point() and rois.element_size() < 4:
        return rois.to(torch.float32)
    return rois


def as_whole(levels: Tensor) -> Tensor:
    """Returns levels as integers; a level rule may give them in floating point."""
    if levels.is_floating_point():
        # A fraction or NaN is no level; -1 is outside every pyramid.
        whole = torch.where(levels == torch.floor(levels), levels, -1.0)
        levels = torch.clamp(whole, -1, 2**15).to(torch.int64)
    return levels


def as_pair(output_size: int | Sequence[int]) -> list[int]:
    """Returns [height, width] of a size that is given as one number or two."""
    if type(output_size) is int:  # almost always; the general way takes a tenth of a small call
        return [output_size, output_size]
    pair = output_size if isinstance(output_size, Sequence) else [output_size] * 2
    for size in pair:
        if not isinstance(size, Integral):
            raise TypeError(f'output_size: got {output_size!r}, expected a whole number or two of them')
    return [int(size) for size in pair]


def as_seed(seed: Tensor | int | None, rois: Tensor) -> Tensor | None:
    """Returns a seed as the tensor that the op takes, on the device of the RoIs."""
    if isinstance(seed, (int, Integral)):
        return torch.full((1,), int(seed), dtype=torch.int64, device=rois.device)
    return seed
