"""The base of all extractors: assigns a level to each RoI, then calls the op once for the whole pyramid."""

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, List, Optional, Tuple  # noqa: UP035  TorchScript reads these

import torch
from torch import Tensor, nn

from ..ops import assign_levels_mmdet
from ..ops.arguments import Options, as_pair, as_whole
from ..ops.checks import check_indices, check_options, expect

LevelRule = Callable[[Tensor, int], Tensor]


class RoIExtractor(nn.Module):
    """Extracts RoI features of one size from the maps of a pyramid.

    A subclass states its method in the constructor, and overrides :meth:`extract` if it needs more than one
    call of the op. Extractors compile in TorchScript if the level rule is a function or a module. A subclass
    declares what it needs of a detector with two attributes, which the integrations read:

    - ``needs_channels``: it has weights for each channel of the maps, and takes the number of channels as
      the keyword ``channels``.
    - ``changes_channels``: its output may have another number of channels than the maps, and it takes that
      number as the keyword ``depth``.

    Args:
        output_size: bins ``(height, width)``, or one number for both.
        featmap_strides: input pixels per cell of each map, finest first.
        level_rule: maps ``(K, 5)`` or ``(K, 6)`` RoIs and the number of maps to ``(K,)`` levels, as
            :func:`roi_plugins.ops.assign_levels_mmdet` does.
        region, reduction, aligned, min_samples, max_samples, position_sensitive: the method, see
            :func:`roi_plugins.ops.roi_extract`.
        sampling_ratio: as in :func:`roi_plugins.ops.roi_extract`, but a number below ``0`` is taken as ``0``,
            as the frameworks do.

    Raises:
        ValueError: an option has no meaning, or two have none together; the message names them.
    """

    output_size: Tuple[int, int]  # noqa: UP006
    featmap_strides: List[float]  # noqa: UP006
    spatial_scales: List[float]  # noqa: UP006
    sampling_ratio: Optional[int]  # noqa: UP045
    max_samples: Optional[int]  # noqa: UP045

    needs_channels = False
    changes_channels = False

    __jit_unused_properties__ = ['method']

    def __init__(
        self,
        output_size: int | Sequence[int],
        featmap_strides: Sequence[float],
        *,
        level_rule: LevelRule = assign_levels_mmdet,
        region: str = 'none',
        sampling_ratio: int | None = 2,
        reduction: str = 'avg',
        aligned: bool = True,
        min_samples: int = 1,
        max_samples: int | None = None,
        position_sensitive: bool = False,
    ) -> None:
        super().__init__()
        # Options are checked here, when a config is read, rather than at the first image.
        _check_types(output_size, featmap_strides, sampling_ratio, aligned, min_samples, max_samples)
        if sampling_ratio is not None:
            # Stock configs may have -1, torchvision's default. torchvision, MMCV and Detectron2 take any
            # number below 0 as 0; the op itself refuses it.
            sampling_ratio = max(sampling_ratio, 0)
        size, strides = as_pair(output_size), list(featmap_strides)
        scales = [1 / stride for stride in strides]
        check_options(
            Options(
                scales,
                size,
                region,
                sampling_ratio,
                reduction,
                aligned,
                min_samples,
                max_samples,
                position_sensitive,
            )
        )
        self.output_size = (size[0], size[1])
        self.featmap_strides = strides
        self.spatial_scales = scales
        self.level_rule = level_rule
        self.region = region
        self.sampling_ratio = sampling_ratio
        self.reduction = reduction
        self.aligned = aligned
        self.min_samples = min_samples
        self.max_samples = max_samples
        self.position_sensitive = position_sensitive

    @property
    def method(self) -> dict[str, Any]:
        """The options of :func:`roi_plugins.ops.roi_extract` that make up the method, by name."""
        names = ('region', 'sampling_ratio', 'reduction', 'aligned', 'min_samples', 'max_samples')
        method = {name: getattr(self, name) for name in names}
        return method | ({'position_sensitive': True} if self.position_sensitive else {})

    def out_channels(self, channels: int, num_maps: int) -> int:
        """Returns the number of channels of the output.

        Args:
            channels: number of channels of each map.
            num_maps: number of maps.
        """
        return channels

    def forward(
        self,
        features: List[Tensor],  # noqa: UP006
        rois: Tensor,
        levels: Optional[Tensor] = None,  # noqa: UP045
    ) -> Tensor:
        """Extracts a feature for every RoI.

        Args:
            features: one ``(N, C, H, W)`` map for each stride, finest first. If there are fewer maps than
                strides, they are the finest ones.
            rois: ``(K, 5)`` rows ``(batch_index, x1, y1, x2, y2)`` in pixels of the input image; or rotated
                ones, ``(K, 6)`` rows ``(batch_index, cx, cy, w, h, angle)``, in degrees counter-clockwise,
                if the method takes them (see :func:`roi_plugins.ops.roi_extract`).
            levels: ``(K,)`` indices into ``features``; by default those of the level rule. Ignored with one
                map.

        Returns:
            ``(K, C, height, width)`` in the order of the RoIs. Every map gets a gradient, of zeros if no RoI
            reads it.

        Raises:
            ValueError, TypeError, IndexError: see :func:`roi_plugins.ops.roi_extract`; and ValueError for
                more maps than strides.
        """
        if len(features) > len(self.spatial_scales):
            raise ValueError(
                f'features: got {len(features)} maps, expected at most one for each of '
                f'featmap_strides {self.featmap_strides}'
            )
        if len(features) > 0:
            check_indices(rois, features[0].shape[0])
        if len(features) == 1:
            # With one map there is no level to assign; the rule would zero inverted boxes. Both frameworks
            # leave it out, too.
            levels = None
        elif levels is None:
            levels = as_whole(self.level_rule(rois, len(features)))
        else:
            levels = as_whole(levels)
        return self.extract(features, rois, levels)

    def extract(
        self,
        features: List[Tensor],  # noqa: UP006
        rois: Tensor,
        levels: Optional[Tensor],  # noqa: UP045
    ) -> Tensor:
        """Extracts a feature for every RoI, whose level is known. Subclasses override this.

        Args:
            features, rois: as for :meth:`forward`.
            levels: ``(K,)`` int64 indices into ``features``; None with one map.

        Returns:
            ``(K, C, height, width)`` in the order of the RoIs.
        """
        return self.pool(features, rois, levels)

    def pool(
        self,
        features: List[Tensor],  # noqa: UP006
        rois: Tensor,
        levels: Optional[Tensor],  # noqa: UP045
        offsets: Optional[Tensor] = None,  # noqa: UP045
        seed: Optional[Tensor] = None,  # noqa: UP045
    ) -> Tensor:
        """Calls the op once, with this extractor's method.

        Args:
            features, rois, levels: as for :meth:`extract`.
            offsets, seed: see :func:`roi_plugins.ops.roi_extract`.

        Returns:
            ``(K, C, height, width)`` in the order of the RoIs.
        """
        return torch.ops.roi_plugins.roi_extract(
            features,
            rois,
            levels,
            offsets,
            seed,
            self.spatial_scales[: len(features)],
            self.output_size,
            self.region,
            self.sampling_ratio,
            self.reduction,
            self.aligned,
            self.min_samples,
            self.max_samples,
            self.position_sensitive,
        )[0]

    def extra_repr(self) -> str:
        method = ', '.join(f'{name}={value!r}' for name, value in self.method.items())
        return f'output_size={self.output_size}, featmap_strides={self.featmap_strides}, {method}'


def check_channels(channels: int, name: str = 'channels') -> None:
    """Raises ValueError unless ``channels`` is a positive whole number."""
    valid = isinstance(channels, Integral) and not isinstance(channels, bool) and channels > 0
    expect(valid, name, repr(channels), 'a positive whole number')


def _check_types(
    output_size: int | Sequence[int],
    featmap_strides: Sequence[float],
    sampling_ratio: int | None,
    aligned: bool,
    min_samples: int,
    max_samples: int | None,
) -> None:
    """Raises ValueError on a value of a wrong type, which a config may hold and :func:`check_options` does
    not expect.
    """
    sides = output_size if isinstance(output_size, Sequence) else [output_size]
    expect(
        all(isinstance(side, Integral) for side in sides),
        'output_size',
        repr(output_size),
        'a whole number of bins, or two (height, width)',
    )
    strides = featmap_strides if isinstance(featmap_strides, Sequence) else []
    expect(
        strides and all(isinstance(s, Real) and 0 < s < math.inf for s in strides),
        'featmap_strides',
        repr(featmap_strides),
        'a list of positive numbers, the input pixels per cell of each map',
    )
    number = (Integral, 'a whole number')
    number_or_none = (Integral | None, 'a whole number or None')
    for name, got, (types, expected) in (
        ('sampling_ratio', sampling_ratio, number_or_none),
        ('min_samples', min_samples, number),
        ('max_samples', max_samples, number_or_none),
        ('aligned', aligned, (bool, 'True or False')),
    ):
        expect(isinstance(got, types), name, repr(got), expected)
