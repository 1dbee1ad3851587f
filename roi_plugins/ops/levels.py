"""The level rules of MMDetection and Detectron2: from which map of a pyramid a box is read.

Both are called as ``rule(rois, num_levels)``, as the extractors call their ``level_rule``. Both compute in
float32 and in their framework's order of operations, so that a box on a threshold gets the same level as
there. A box that is inverted on one axis has no size and gets level -1, for which
:func:`roi_plugins.ops.roi_extract` returns zeros, as both frameworks do.
"""

import torch
from torch import Tensor

from . import library  # noqa: F401  registers torch.ops.roi_plugins


def assign_levels_mmdet(rois: Tensor, num_levels: int, finest_scale: float = 56) -> Tensor:
    """Assigns levels by MMDetection's rule: ``floor(log2(sqrt(area) / finest_scale + 1e-6))``, clamped.

    Args:
        rois: ``(K, 5)`` rows ``(batch_index, x1, y1, x2, y2)``, ``(K, 4)`` boxes or rotated RoIs
            ``(K, 6)``, in input pixels.
        num_levels: number of maps.
        finest_scale: in pixels; a box reads level 0 where sqrt(area) is below twice this.

    Returns:
        ``(K,)`` int64 levels, of which 0 is the finest; -1 where the area is negative or NaN.
    """
    return torch.ops.roi_plugins.assign_levels(rois, num_levels, float(finest_scale), 0, 0, 1e-6)


def assign_levels_detectron2(
    rois: Tensor,
    num_levels: int,
    canonical_box_size: float = 224.0,
    canonical_level: int = 4,
    min_level: int = 2,
) -> Tensor:
    """Assigns levels by Detectron2's rule (FPN, arXiv:1612.03144, equation 1), clamped:
    ``floor(canonical_level + log2(sqrt(area) / canonical_box_size + 1e-8))``.

    Args:
        rois: ``(K, 5)`` rows ``(batch_index, x1, y1, x2, y2)``, ``(K, 4)`` boxes or rotated RoIs
            ``(K, 6)``, in input pixels.
        num_levels: number of maps.
        canonical_box_size: sqrt(area), in pixels, of a box that reads ``canonical_level``.
        canonical_level: log2 of the stride of the map that such a box reads.
        min_level: log2 of the finest stride.

    Returns:
        ``(K,)`` int64 levels, of which 0 is the finest; -1 where the area is negative or NaN.
    """
    return torch.ops.roi_plugins.assign_levels(
        rois, num_levels, float(canonical_box_size), canonical_level, min_level, 1e-8
    )
