"""Layers that replace those of torchvision and MMCV, over the shared op.

Each layer takes the arguments and defaults of its model, and can be scripted, traced by ``torch.fx`` and
pickled like it. A layer is called with an ``(N, C, H, W)`` map and with RoIs in pixels of the input image:
a ``(K, 5)`` tensor of ``(batch_index, x1, y1, x2, y2)`` rows, or a list with the ``(L, 4)`` boxes of each
image. It returns ``(K, C, height, width)``. :class:`RoIAlignRotated` takes rotated RoIs instead.

Boxes that require a gradient get one; of the models, only ``PrRoIPool`` gives one. RoIs of another shape
raise ValueError, and a batch index out of range IndexError, as in :func:`roi_plugins.ops.roi_extract`.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, List, Optional, Union  # noqa: UP035  TorchScript reads these

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
    """The (L, 4) boxes of each image as (K, 5) RoIs."""
    rows: List[Tensor] = []  # noqa: UP006
    for i in range(len(boxes)):
        if boxes[i].dim() != 2 or boxes[i].shape[1] != 4:
            raise ValueError(f'rois[{i}]: got shape {boxes[i].shape}, expected (L, 4) boxes of image {i}')
        rows.append(rows_of_image(boxes[i], i))
    return torch.cat(rows, dim=0)


def _pool(
    input: Tensor,
    rois: Union[Tensor, List[Tensor]],  # noqa: UP006, UP007
    offsets: Optional[Tensor],  # noqa: UP045
    gamma: float,
    output_size: List[int],  # noqa: UP006
    spatial_scale: float,
    region: str,
    sampling_ratio: Optional[int],  # noqa: UP045
    reduction: str,
    aligned: bool,
    position_sensitive: bool,
    roi_dim: int,
) -> Tensor:
    if not isinstance(rois, Tensor):
        rois = _as_rois(rois)
    if rois.dim() != 2 or rois.shape[1] != roi_dim:
        kind = 'rotated' if roi_dim == 6 else 'upright'
        raise ValueError(f'rois: got shape {rois.shape}, expected (K, {roi_dim}) rows of {kind} boxes')
    check_indices(rois, input.shape[0])
    if offsets is not None:
        offsets = gamma * offsets
    if sampling_ratio is not None:
        sampling_ratio = max(sampling_ratio, 0)
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
    """Converts rotated RoIs with angles in radians to those of the op: degrees, counter-clockwise."""
    check_indices(rois, num_images)  # before they are widened, which hides it
    rois = widened(rois)
    angle = torch.rad2deg(rois[:, 5:])
    return torch.cat([rois[:, :5], -angle if clockwise else angle], dim=1)


def _with_old_names(init: Callable[..., None]) -> Callable[..., None]:
    """Makes a constructor also take the names of MMCV 0.x, with a warning, as MMCV's own still do."""

    @functools.wraps(init)
    def renamed(self: nn.Module, *arguments: Any, **options: Any) -> None:
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


# A symbolic trace knows neither the type of `rois` nor how many boxes a list has, so it does not look inside.
torch.fx.wrap('_pool')
torch.fx.wrap('_in_degrees')


class _Layer(nn.Module):
    """A layer over one map. The attributes of its class state the method; an instance replaces those that are
    arguments of its constructor.
    """

    __constants__ = ['_region', '_position_sensitive', '_roi_dim', 'aligned', 'pool_mode', 'sampling_ratio']

    _region = 'none'
    _position_sensitive = False
    _roi_dim = 5
    aligned = True
    pool_mode = 'avg'
    sampling_ratio: Optional[int] = None  # noqa: UP045

    _options: tuple[str, ...] = ()  # the further arguments, in the order of `repr`

    def __init__(self, output_size: int | Sequence[int], spatial_scale: float) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = float(spatial_scale)
        self._size = as_pair(output_size)

    def _read(
        self,
        input: Tensor,
        rois: Union[Tensor, List[Tensor]],  # noqa: UP006, UP007
        offsets: Optional[Tensor] = None,  # noqa: UP045
        gamma: float = 1.0,
    ) -> Tensor:
        return _pool(
            input,
            rois,
            offsets,
            gamma,
            self._size,
            self.spatial_scale,
            self._region,
            self.sampling_ratio,
            self.pool_mode,
            self.aligned,
            self._position_sensitive,
            self._roi_dim,
        )

    def extra_repr(self) -> str:
        names = ('output_size', 'spatial_scale', *self._options)
        return ', '.join(f'{name}={getattr(self, name)}' for name in names)


class _UprightLayer(_Layer):
    def forward(self, input: Tensor, rois: Union[Tensor, List[Tensor]]) -> Tensor:  # noqa: UP006, UP007
        return self._read(input, rois)


class RoIAlign(_UprightLayer):
    """``torchvision.ops.RoIAlign`` (Mask R-CNN, arXiv:1703.06870): the average of bilinear samples.

    Args:
        output_size: bins ``(height, width)``, or one number for both.
        spatial_scale: cells per input pixel, ``1 / stride``.
        sampling_ratio: samples per bin and axis; ``0`` or less takes ``ceil(bin size)`` of them.
        aligned: shift by half a cell; torchvision's default is the legacy convention without.
    """

    _options = ('sampling_ratio', 'aligned')

    def __init__(
        self,
        output_size: int | Sequence[int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool = False,
    ) -> None:
        super().__init__(output_size, spatial_scale)
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned


class RoIPool(_UprightLayer):
    """``torchvision.ops.RoIPool`` (Fast R-CNN, arXiv:1504.08083): region and bins are rounded, and a bin
    takes the maximum of its cells.

    Args:
        output_size: bins ``(height, width)``, or one number for both.
        spatial_scale: cells per input pixel, ``1 / stride``.
    """

    _region = 'round'
    pool_mode = 'max'


class PSRoIAlign(_UprightLayer):
    """``torchvision.ops.PSRoIAlign``: the average of bilinear samples, each bin from its own group of
    channels. The map has ``C * height * width`` channels.

    Args:
        output_size: bins ``(height, width)``, or one number for both.
        spatial_scale: cells per input pixel, ``1 / stride``.
        sampling_ratio: samples per bin and axis; ``0`` or less takes ``ceil(bin size)`` of them.
    """

    _position_sensitive = True
    _options = ('sampling_ratio',)

    def __init__(self, output_size: int | Sequence[int], spatial_scale: float, sampling_ratio: int) -> None:
        super().__init__(output_size, spatial_scale)
        self.sampling_ratio = sampling_ratio


class PSRoIPool(_UprightLayer):
    """``torchvision.ops.PSRoIPool`` (R-FCN, arXiv:1605.06409): the average of the cells of rounded bins, each
    bin from its own group of channels. The map has ``C * height * width`` channels.

    The gradient is that of the forward. torchvision's differs where a box reaches the last row or column of
    the map: its backward adds to cells there that its forward does not read.

    Args:
        output_size: bins ``(height, width)``, or one number for both.
        spatial_scale: cells per input pixel, ``1 / stride``.
    """

    _region = 'round'
    _position_sensitive = True


class _MMCVLayer(_Layer):
    """MMCV's layers hold their size as a pair."""

    def __init__(self, output_size: int | Sequence[int], spatial_scale: float = 1.0) -> None:
        super().__init__(output_size, spatial_scale)
        self.output_size = tuple(self._size)


class MMCVRoIAlign(_MMCVLayer, _UprightLayer):
    """``mmcv.ops.RoIAlign``: the average or maximum of bilinear samples.

    Args:
        output_size: bins ``(height, width)``, or one number for both.
        spatial_scale: cells per input pixel, ``1 / stride``.
        sampling_ratio: samples per bin and axis; ``0`` or less takes ``ceil(bin size)`` of them.
        pool_mode: ``'avg'`` or ``'max'``.
        aligned: shift by half a cell.
        use_torchvision: chooses an implementation in MMCV; there is one here, so it changes nothing.

    Raises:
        ValueError: ``pool_mode`` is neither.
    """

    _options = ('sampling_ratio', 'pool_mode', 'aligned', 'use_torchvision')

    @_with_old_names
    def __init__(
        self,
        output_size: int | Sequence[int],
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        pool_mode: str = 'avg',
        aligned: bool = True,
        use_torchvision: bool = False,
    ) -> None:
        super().__init__(output_size, spatial_scale)
        if pool_mode not in ('avg', 'max'):
            raise ValueError(f"pool_mode: got {pool_mode!r}, expected 'avg' or 'max'")
        self.sampling_ratio = int(sampling_ratio)
        self.pool_mode = pool_mode
        self.aligned = aligned
        self.use_torchvision = use_torchvision


class MMCVRoIPool(_MMCVLayer, _UprightLayer):
    """``mmcv.ops.RoIPool``: the bins are rounded but the region is not, and a bin takes the maximum of its
    cells. This is not Fast R-CNN's layer though it carries its name.

    Args:
        output_size: bins ``(height, width)``, or one number for both.
        spatial_scale: cells per input pixel, ``1 / stride``.
    """

    _region = 'bins'
    pool_mode = 'max'


class PrRoIPool(_MMCVLayer):
    """``mmcv.ops.PrRoIPool`` (IoU-Net, arXiv:1807.11590): the exact mean of the bilinear surface over each
    bin, without a half-cell shift. The map is extended by zeros, and an empty box gives 0. Runs on the CPU
    too.

    Args:
        output_size: bins ``(height, width)``, or one number for both.
        spatial_scale: cells per input pixel, ``1 / stride``.
    """

    pool_mode = 'integral'
    aligned = False

    def forward(self, features: Tensor, rois: Union[Tensor, List[Tensor]]) -> Tensor:  # noqa: UP006, UP007
        return self._read(features, rois)


class RoIAlignRotated(_MMCVLayer):
    """``mmcv.ops.RoIAlignRotated``: the average of bilinear samples in the frame of a rotated box.

    Takes ``rois`` as a ``(K, 6)`` tensor of ``(batch_index, cx, cy, w, h, angle)`` rows, in pixels of the
    input image, with angles in radians.

    Args:
        output_size: bins ``(height, width)``, or one number for both.
        spatial_scale: cells per input pixel, ``1 / stride``.
        sampling_ratio: samples per bin and axis; ``0`` or less takes ``ceil(bin size)`` of them.
        aligned: shift by half a cell.
        clockwise: whether a positive angle turns clockwise as seen on the image.
    """

    _roi_dim = 6
    _options = ('sampling_ratio', 'aligned', 'clockwise')

    @_with_old_names
    def __init__(
        self,
        output_size: int | Sequence[int],
        spatial_scale: float,
        sampling_ratio: int = 0,
        aligned: bool = True,
        clockwise: bool = False,
    ) -> None:
        super().__init__(output_size, spatial_scale)
        self.sampling_ratio = int(sampling_ratio)
        self.aligned = aligned
        self.clockwise = clockwise

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        return self._read(input, _in_degrees(rois, self.clockwise, input.shape[0]))


class DeformRoIPool(_MMCVLayer):
    """``mmcv.ops.DeformRoIPool`` (arXiv:1703.06211): the average of bilinear samples that are moved by an
    offset for each bin. Runs on the CPU too.

    Args:
        output_size: bins ``(height, width)``, or one number for both.
        spatial_scale: cells per input pixel, ``1 / stride``.
        sampling_ratio: samples per bin and axis; ``0`` or less takes ``ceil(bin size)`` of them.
        gamma: factor of the offsets, which are then fractions of the RoI's size.
    """

    _options = ('sampling_ratio', 'gamma')

    def __init__(
        self,
        output_size: int | Sequence[int],
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        gamma: float = 0.1,
    ) -> None:
        super().__init__(output_size, spatial_scale)
        self.sampling_ratio = int(sampling_ratio)
        self.gamma = float(gamma)

    def forward(
        self,
        input: Tensor,
        rois: Union[Tensor, List[Tensor]],  # noqa: UP006, UP007
        offset: Optional[Tensor] = None,  # noqa: UP045
    ) -> Tensor:
        """Returns the pooled features, ``(K, C, height, width)``.

        Args:
            input: ``(N, C, H, W)``.
            rois: ``(K, 5)`` rows ``(batch_index, x1, y1, x2, y2)``, or the ``(L, 4)`` boxes of each image.
            offset: ``(K, 2, height, width)``, x first; None moves nothing.
        """
        return self._read(input, rois, offset, self.gamma)
