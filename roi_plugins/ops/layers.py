"""Modules that stand where the layers of torchvision and MMCV stand, over the shared op.

Same arguments, defaults and meaning as their models; scriptable, fx-traceable and picklable as those
are. Each takes an ``(N, C, H, W)`` map, and ``rois`` as a ``(K, 5)`` tensor of
``(batch_index, x1, y1, x2, y2)`` rows or as a list with the ``(L, 4)`` boxes of each image, in pixels of the
input image, and gives ``(K, C, height, width)``; but for rotated ones, see :class:`RoIAlignRotated`. Boxes
that require a gradient get one, which the models' do not, except for those of ``PrRoIPool``. RoIs of another
shape raise ValueError, a batch index out of range IndexError, as for :func:`roi_plugins.ops.roi_extract`.
"""

import functools
import warnings
from collections.abc import Callable
from typing import List, Optional, Tuple, Union  # noqa: UP035  TorchScript reads these

import torch
import torch.fx
from torch import Tensor, nn

from . import library  # noqa: F401  registers torch.ops.roi_plugins
from .arguments import as_pair, rows_of_image, widened
from .checks import check_indices

__all__ = [
    'DeformRoIPool',
    'MMCVRoIAlign',
    'MMCVRoIPool',
    'PSRoIAlign',
    'PSRoIPool',
    'PrRoIPool',
    'RoIAlign',
    'RoIAlignRotated',
    'RoIPool',
]


def _as_rois(boxes: List[Tensor]) -> Tensor:  # noqa: UP006
    """(L, 4) boxes of each image as (K, 5) RoIs."""
    rows: List[Tensor] = []  # noqa: UP006
    for i in range(len(boxes)):
        if boxes[i].dim() != 2 or boxes[i].shape[1] != 4:
            raise ValueError(f'rois[{i}]: got shape {boxes[i].shape}, expected (L, 4) boxes of image {i}')
        rows.append(rows_of_image(boxes[i], i))
    return torch.cat(rows, dim=0)


def _pool(
    input: Tensor,
    rois: Union[Tensor, List[Tensor]],  # noqa: UP006, UP007
    output_size: List[int],  # noqa: UP006
    spatial_scale: float,
    region: str,
    sampling_ratio: Optional[int],  # noqa: UP045
    reduction: str,
    aligned: bool,
    position_sensitive: bool = False,
    offsets: Optional[Tensor] = None,  # noqa: UP045
    gamma: float = 1.0,
    rotated: bool = False,
) -> Tensor:
    if not isinstance(rois, Tensor):
        rois = _as_rois(rois)
    numbers = 6 if rotated else 5
    if rois.dim() != 2 or rois.shape[1] != numbers:
        kind = 'rotated' if rotated else 'upright'
        raise ValueError(f'rois: got shape {rois.shape}, expected (K, {numbers}) rows of {kind} boxes')
    check_indices(rois, input.shape[0])
    if offsets is not None:
        offsets = gamma * offsets
    return torch.ops.roi_plugins.roi_extract(
        [input],
        rois,
        None,
        offsets,
        None,
        [spatial_scale],
        output_size,
        region,
        sampling_ratio,
        reduction,
        aligned,
        1,
        None,
        position_sensitive,
    )[0]


def _in_degrees(rois: Tensor, clockwise: bool, num_images: int) -> Tensor:
    """Rotated RoIs as the op takes them, of those with radians."""
    check_indices(rois, num_images)  # before they are widened, which hides it
    rois = widened(rois)
    angle = torch.rad2deg(rois[:, 5:])
    return torch.cat([rois[:, :5], -angle if clockwise else angle], dim=1)


def _with_old_names(init: Callable) -> Callable:
    """A constructor that also takes the names of MMCV 0.x, with a warning, as MMCV's own still do."""

    @functools.wraps(init)
    def renamed(self, *arguments, **options):
        for old, new in (('out_size', 'output_size'), ('sample_num', 'sampling_ratio')):
            if old in options:
                if new in options:
                    raise TypeError(f'{old}: got it and {new}, which is its new name; expected one of them')
                warnings.warn(
                    f'"{old}" is deprecated, please use "{new}" instead', DeprecationWarning, stacklevel=2
                )
                options[new] = options.pop(old)
        init(self, *arguments, **options)

    return renamed


# Leaves of symbolic traces, which know neither how many boxes a list has nor of which type they are.
torch.fx.wrap('_pool')
torch.fx.wrap('_in_degrees')


class _RoILayer(nn.Module):
    """A layer over one map; a subclass states its method."""

    _size: List[int]  # noqa: UP006

    def __init__(
        self,
        output_size: Union[int, Tuple[int, int]],  # noqa: UP006, UP007
        spatial_scale: float,
    ):
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = float(spatial_scale)
        self._size = as_pair(output_size)

    def extra_repr(self) -> str:
        return f'output_size={self.output_size}, spatial_scale={self.spatial_scale}'


class RoIAlign(_RoILayer):
    """``torchvision.ops.RoIAlign`` (Mask R-CNN, average of bilinear samples).

    Args:
        output_size (int or tuple[int, int]): bins ``(height, width)``, or one number for both.
        spatial_scale (float): cells per input pixel, ``1 / stride``.
        sampling_ratio: samples per bin and axis; ``<= 0``: from the size of the RoI.
        aligned: shift by half a cell; torchvision's default is the legacy convention without.
    """

    def __init__(self, output_size, spatial_scale, sampling_ratio: int, aligned: bool = False):
        super().__init__(output_size, spatial_scale)
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Union[Tensor, List[Tensor]]) -> Tensor:  # noqa: UP006, UP007
        return _pool(
            input,
            rois,
            self._size,
            self.spatial_scale,
            'none',
            max(self.sampling_ratio, 0),
            'avg',
            self.aligned,
        )

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, sampling_ratio={self.sampling_ratio}, aligned={self.aligned}'


class RoIPool(_RoILayer):
    """``torchvision.ops.RoIPool`` (Fast R-CNN: region and bins rounded, maximum of the cells).

    Args:
        output_size (int or tuple[int, int]): bins ``(height, width)``, or one number for both.
        spatial_scale: cells per input pixel, ``1 / stride``.
    """

    def forward(self, input: Tensor, rois: Union[Tensor, List[Tensor]]) -> Tensor:  # noqa: UP006, UP007
        return _pool(input, rois, self._size, self.spatial_scale, 'round', None, 'max', True)


class PSRoIAlign(_RoILayer):
    """``torchvision.ops.PSRoIAlign``: the average of bilinear samples, of each bin in its own channel group.
    Takes ``C * height * width`` channels.

    Args:
        output_size (int or tuple[int, int]): bins ``(height, width)``, or one number for both.
        spatial_scale (float): cells per input pixel, ``1 / stride``.
        sampling_ratio: samples per bin and axis; ``<= 0``: from the size of the RoI.
    """

    def __init__(self, output_size, spatial_scale, sampling_ratio: int):
        super().__init__(output_size, spatial_scale)
        self.sampling_ratio = sampling_ratio

    def forward(self, input: Tensor, rois: Union[Tensor, List[Tensor]]) -> Tensor:  # noqa: UP006, UP007
        return _pool(
            input,
            rois,
            self._size,
            self.spatial_scale,
            'none',
            max(self.sampling_ratio, 0),
            'avg',
            True,
            position_sensitive=True,
        )

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, sampling_ratio={self.sampling_ratio}'


class PSRoIPool(_RoILayer):
    """``torchvision.ops.PSRoIPool`` (R-FCN, arXiv:1605.06409): the average of the cells of rounded bins, of
    each bin in its own channel group. Takes ``C * height * width`` channels.

    The gradient is that of what is read. torchvision's differs where a box reaches the last row or column of
    the map, which its backward takes for read, unlike its forward.

    Args:
        output_size (int or tuple[int, int]): bins ``(height, width)``, or one number for both.
        spatial_scale: cells per input pixel, ``1 / stride``.
    """

    def forward(self, input: Tensor, rois: Union[Tensor, List[Tensor]]) -> Tensor:  # noqa: UP006, UP007
        return _pool(
            input, rois, self._size, self.spatial_scale, 'round', None, 'avg', True, position_sensitive=True
        )


class MMCVRoIAlign(_RoILayer):
    """``mmcv.ops.RoIAlign``: average or maximum of bilinear samples.

    Args:
        output_size (int or tuple[int, int]): bins ``(height, width)``, or one number for both.
        spatial_scale: cells per input pixel, ``1 / stride``.
        sampling_ratio: samples per bin and axis; ``0`` or less: from the size of the RoI.
        pool_mode: ``'avg'`` or ``'max'``.
        aligned: shift by half a cell.
        use_torchvision: chooses an implementation in MMCV; there is one here, so it changes nothing.
    """

    @_with_old_names
    def __init__(
        self,
        output_size,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        pool_mode: str = 'avg',
        aligned: bool = True,
        use_torchvision: bool = False,
    ):
        super().__init__(output_size, spatial_scale)
        if pool_mode not in ('avg', 'max'):
            raise ValueError(f"pool_mode: got {pool_mode!r}, expected 'avg' or 'max'")
        self.output_size = tuple(self._size)
        self.sampling_ratio = int(sampling_ratio)
        self.pool_mode = pool_mode
        self.aligned = aligned
        self.use_torchvision = use_torchvision

    def forward(self, input: Tensor, rois: Union[Tensor, List[Tensor]]) -> Tensor:  # noqa: UP006, UP007
        return _pool(
            input,
            rois,
            self._size,
            self.spatial_scale,
            'none',
            max(self.sampling_ratio, 0),
            self.pool_mode,
            self.aligned,
        )

    def extra_repr(self) -> str:
        return (
            f'{super().extra_repr()}, sampling_ratio={self.sampling_ratio}, '
            f'pool_mode={self.pool_mode}, aligned={self.aligned}, '
            f'use_torchvision={self.use_torchvision}'
        )


class MMCVRoIPool(_RoILayer):
    """``mmcv.ops.RoIPool``: maximum of the cells of rounded bins over an unrounded region, which is not
    Fast R-CNN's layer though it carries its name.

    Args:
        output_size (int or tuple[int, int]): bins ``(height, width)``, or one number for both.
        spatial_scale: cells per input pixel, ``1 / stride``.
    """

    def __init__(self, output_size, spatial_scale: float = 1.0):
        super().__init__(output_size, spatial_scale)
        self.output_size = tuple(self._size)

    def forward(self, input: Tensor, rois: Union[Tensor, List[Tensor]]) -> Tensor:  # noqa: UP006, UP007
        return _pool(input, rois, self._size, self.spatial_scale, 'bins', None, 'max', True)


class PrRoIPool(_RoILayer):
    """``mmcv.ops.PrRoIPool`` (IoU-Net, arXiv:1807.11590): the exact mean of the bilinear surface over each
    bin, without a half-cell shift; the map is extended by zeros, and an empty box gives 0. Runs on the CPU
    too.

    Args:
        output_size (int or tuple[int, int]): bins ``(height, width)``, or one number for both.
        spatial_scale: cells per input pixel, ``1 / stride``.
    """

    def __init__(self, output_size, spatial_scale: float = 1.0):
        super().__init__(output_size, spatial_scale)
        self.output_size = tuple(self._size)

    def forward(self, features: Tensor, rois: Union[Tensor, List[Tensor]]) -> Tensor:  # noqa: UP006, UP007
        return _pool(features, rois, self._size, self.spatial_scale, 'none', None, 'integral', False)


class RoIAlignRotated(_RoILayer):
    """``mmcv.ops.RoIAlignRotated``: the average of bilinear samples in the frame of a rotated box.

    Takes ``rois`` as a ``(K, 6)`` tensor of ``(batch_index, cx, cy, w, h, angle)`` rows, angles in radians.

    Args:
        output_size (int or tuple[int, int]): bins ``(height, width)``, or one number for both.
        spatial_scale: cells per input pixel, ``1 / stride``.
        sampling_ratio: samples per bin and axis; ``0`` or less: from the size of the RoI.
        aligned: shift by half a cell.
        clockwise: the direction of a positive angle, as seen on the image.
    """

    @_with_old_names
    def __init__(
        self,
        output_size,
        spatial_scale: float,
        sampling_ratio: int = 0,
        aligned: bool = True,
        clockwise: bool = False,
    ):
        super().__init__(output_size, spatial_scale)
        self.output_size = tuple(self._size)
        self.sampling_ratio = int(sampling_ratio)
        self.aligned = aligned
        self.clockwise = clockwise

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        return _pool(
            input,
            _in_degrees(rois, self.clockwise, input.shape[0]),
            self._size,
            self.spatial_scale,
            'none',
            max(self.sampling_ratio, 0),
            'avg',
            self.aligned,
            rotated=True,
        )

    def extra_repr(self) -> str:
        return (
            f'{super().extra_repr()}, sampling_ratio={self.sampling_ratio}, aligned={self.aligned}, '
            f'clockwise={self.clockwise}'
        )


class DeformRoIPool(_RoILayer):
    """``mmcv.ops.DeformRoIPool`` (arXiv:1703.06211): the average of bilinear samples that are moved by an
    offset for each bin. Runs on the CPU too.

    Args:
        output_size (int or tuple[int, int]): bins ``(height, width)``, or one number for both.
        spatial_scale: cells per input pixel, ``1 / stride``.
        sampling_ratio: samples per bin and axis; ``0`` or less: from the size of the RoI.
        gamma: what offsets are multiplied by, before they are taken as shares of the RoI's size.
    """

    def __init__(
        self,
        output_size,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        gamma: float = 0.1,
    ):
        super().__init__(output_size, spatial_scale)
        self.output_size = tuple(self._size)
        self.sampling_ratio = int(sampling_ratio)
        self.gamma = float(gamma)

    def forward(
        self,
        input: Tensor,
        rois: Union[Tensor, List[Tensor]],  # noqa: UP006, UP007
        offset: Optional[Tensor] = None,  # noqa: UP045
    ) -> Tensor:
        """
        Args:
            input: ``(N, C, H, W)``.
            rois: ``(K, 5)`` rows ``(batch_index, x1, y1, x2, y2)``, or the ``(L, 4)`` boxes of each image.
            offset: ``(K, 2, height, width)``, x first; none are zeros.

        Returns:
            ``(K, C, height, width)``.
        """
        return _pool(
            input,
            rois,
            self._size,
            self.spatial_scale,
            'none',
            max(self.sampling_ratio, 0),
            'avg',
            True,
            offsets=offset,
            gamma=self.gamma,
        )

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, sampling_ratio={self.sampling_ratio}, gamma={self.gamma}'
