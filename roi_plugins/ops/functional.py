"""Functional API of the RoI extraction op."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import library  # noqa: F401  registers torch.ops.roi_plugins
from .arguments import as_pair, as_pyramid, as_seed
from .checks import check_indices


def roi_extract(
    features: Tensor | Sequence[Tensor],
    rois: Tensor,
    output_size: int | tuple[int, int],
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
    """Extracts a feature of fixed size for every RoI.

    Three independent choices make a method: how the box is rounded to the grid (``region``), which positions
    a bin reads (``sampling_ratio``) and how their values become one (``reduction``).

    ========================  ====================  =================================================
    ``region``                ``sampling_ratio``    known as
    ========================  ====================  =================================================
    ``'round'``               ``None``              RoIPool (Fast R-CNN), with ``reduction='max'``
    ``'floor'``               ``None``              the textbook's RoIPool: every side rounded down
    ``'bins'``                ``None``              MMCV's ``RoIPool``: only the bins are rounded
    ``'round'``               a number              RoIWarp (Mask R-CNN, table 2c)
    ``'none'``                a number              RoIAlign (Mask R-CNN)
    ``'none'``                ``0``                 RoIAlign with a grid from the size of the RoI
    ``'none'``                ``None``              PrRoIPool (IoU-Net), with ``reduction='integral'``
    ========================  ====================  =================================================

    A grid of samples can be jittered (``seed``), moved by an offset for each bin (``offsets``:
    DeformRoIPool), read from a group of channels for each bin (``position_sensitive``: PSRoIAlign) and laid
    in rotated RoIs (RoIAlignRotated). ``position_sensitive`` with region ``'round'`` and no grid is R-FCN's
    PSRoIPool.

    Args:
        features: ``(N, C, H, W)``, or a pyramid: a list of maps of the same N, C, dtype and device.
            float32, float64, float16 or bfloat16; NCHW or ``channels_last``.
        rois: ``(K, 5)`` rows ``(batch_index, x1, y1, x2, y2)``, continuous coordinates in pixels of
            the input image: pixel i covers ``[i, i + 1)``. Or rotated ones, ``(K, 6)`` rows
            ``(batch_index, cx, cy, w, h, angle)``, the angle in degrees, counter-clockwise as seen on the
            image; these need region ``'none'``. Any floating type; never cast to half.
        output_size: bins ``(height, width)``, or one number for both.
        spatial_scale: cells per input pixel, ``1 / stride``; one for each map.
        region: ``'none'`` takes the box as it is; ``'round'``, ``'floor'`` and ``'bins'`` quantise it.
        sampling_ratio: samples per bin and axis; ``0`` takes ``ceil(bin size)`` of them. ``None`` reads the
            whole bin: every cell of a quantised bin, or the integral.
        reduction: ``'avg'`` or ``'max'`` over the samples of a bin; or ``'integral'``, the exact mean of the
            bilinear surface over the bin, where the map is extended by zeros.
        aligned: whether half a cell is subtracted, so that a cell's value sits at its centre. ``False`` is
            the legacy convention: no shift, and RoI sides of at least one cell. With ``'integral'`` it does
            not widen RoIs, as in MMCV's ``PrRoIPool``. Only region ``'none'`` uses it.
        min_samples, max_samples: bounds of the grid, per axis, where ``sampling_ratio`` is ``0``; None is no
            bound.
        position_sensitive: whether bin ``(p, q)`` of channel ``c`` reads channel
            ``(c * height + p) * width + q`` of maps with ``C * height * width`` channels. Needs ``'avg'`` or
            ``'integral'``, and upright RoIs.
        levels: ``(K,)`` integers, the index of the map that each RoI is read from; needed with a list of
            maps. A level outside the pyramid gives zeros.
        offsets: ``(K, 2, height, width)``, x first, by which the samples of each bin are moved, in units of
            the RoI's size. Needs region ``'none'``, a grid, ``'avg'`` and upright RoIs.
        seed: jitters the samples of a grid, each within its own stratum of the bin: an int64 tensor of one
            element, on the device of ``rois``, or a number. The same seed gives the same positions.

    Returns:
        ``(K, C, height, width)`` in the order of the RoIs, in the dtype and layout of ``features``.
        A RoI with a coordinate that is NaN or infinite gives NaN and no gradient. The gradient goes to
        the features, to ``rois`` (zeros where the region is quantised) and to ``offsets``; rotated RoIs get
        none with ``'integral'``. There is no second derivative. Forward mode, ``torch.func.grad`` and the
        like raise an error; ``torch.func.vmap`` runs as a loop.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or value; the message names it.
        IndexError: a batch index out of range (on the CPU; on other devices that RoI's output is NaN,
            unless the environment has ``ROI_PLUGINS_CHECK=1``).
    """
    maps, scales, levels = as_pyramid(features, spatial_scale, levels)
    output, _ = torch.ops.roi_plugins.roi_extract(
        maps,
        rois,
        levels,
        offsets,
        as_seed(seed, rois),
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
    check_indices(rois, maps[0].shape[0])  # after the op, which has checked that these are tensors
    return output
