"""The extractors with the interface of Detectron2's ``ROIPooler``."""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, List, Tuple  # noqa: UP035  TorchScript reads these

import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor, nn

from ...extractors import EXTRACTORS, RoIExtractor, RoIWarp
from ...ops import assign_levels_detectron2
from ...ops.arguments import rows_of_image
from ..errors import ask_for_near

POOLER_TYPES: dict[str, Callable[..., RoIExtractor]] = {
    **{name: type_ for name, type_ in EXTRACTORS.items() if type_ is not RoIWarp},
    'RoIWarpMax': functools.partial(RoIWarp, reduction='max'),
    'RoIWarpAvg': functools.partial(RoIWarp, reduction='avg'),
}
"""The types of this package for ``POOLER_TYPE``, which are called as ``(output_size, strides,
**options)``."""

STOCK_POOLER_TYPES = ('ROIAlign', 'ROIAlignV2', 'ROIPool', 'ROIAlignRotated')


class Detectron2LevelRule(nn.Module):
    """:func:`roi_plugins.ops.assign_levels_detectron2` as the level rule of an extractor.

    Args:
        min_level: log2 of the finest stride.
        canonical_box_size, canonical_level: as for :class:`RoIPluginsPooler`.
    """

    def __init__(self, min_level: int, canonical_box_size: float, canonical_level: int):
        super().__init__()
        self.min_level = min_level
        self.canonical_box_size = float(canonical_box_size)
        self.canonical_level = canonical_level

    def forward(self, rois: Tensor, num_levels: int) -> Tensor:
        """The index of the map that each RoI reads, ``(K,)``.

        Args:
            rois: ``(K, 5)``, or ``(K, 6)`` rotated ones.
            num_levels: how many maps there are.
        """
        return assign_levels_detectron2(
            rois, num_levels, self.canonical_box_size, self.canonical_level, self.min_level
        )


class RoIPluginsPooler(nn.Module):
    """A drop-in replacement of ``ROIPooler`` with an extractor of this package.

    Level assignment and error conditions match ``ROIPooler``. The whole pyramid is pooled by one call of the
    op, without synchronising with the GPU, and the output need not be square.

    Args:
        output_size: bins ``(height, width)``, or one number for both.
        scales: cells per input pixel of each map, ``1 / stride``, finest first: powers of two, each half
            of the one before.
        sampling_ratio: samples per bin and axis; 0 or less to choose them by the size of the RoI.
            ``QuantizedPool``, ``AdaptiveSampling`` and ``Precise`` ignore it, as ``ROIPool`` does.
        pooler_type: one of ``POOLER_TYPES``.
        canonical_box_size: sqrt(area), in pixels, of a box that reads ``canonical_level``.
        canonical_level: log2 of the stride that such a box reads.
        options: the options of the extractor, see :mod:`roi_plugins.extractors`.

    Raises:
        TypeError: the type does not have an option; the message lists its options.
        ValueError: the type does not exist, or the value of an argument is invalid.
    """

    output_size: Tuple[int, int]  # noqa: UP006

    def __init__(
        self,
        output_size: int | Sequence[int],
        scales: Sequence[float],
        sampling_ratio: int | float,
        pooler_type: str,
        canonical_box_size: float = 224,
        canonical_level: int = 4,
        **options: Any,
    ):
        super().__init__()
        check_pooler_type(pooler_type)
        check_options(pooler_type, options)
        if 'sampling_ratio' in _parameters(pooler_type):
            # ROIPooler accepts a whole number as a float, and so does this pooler.
            whole = isinstance(sampling_ratio, float) and sampling_ratio.is_integer()
            options['sampling_ratio'] = int(sampling_ratio) if whole else sampling_ratio
        # The extractors do not accept a list of omegaconf.
        size = output_size if isinstance(output_size, int) else list(output_size)
        self.min_level, self.max_level = _pyramid_levels(scales)
        if not canonical_box_size > 0:
            raise ValueError(
                f'canonical_box_size: got {canonical_box_size!r}, expected a positive number of pixels'
            )
        self.extractor = POOLER_TYPES[pooler_type](
            size,
            [1 / scale for scale in scales],
            level_rule=Detectron2LevelRule(self.min_level, canonical_box_size, canonical_level),
            **options,
        )
        self.pooler_type = pooler_type
        self.output_size = self.extractor.output_size
        self.canonical_box_size = float(canonical_box_size)
        self.canonical_level = canonical_level

    def forward(self, x: List[Tensor], box_lists: List[Boxes]) -> Tensor:  # noqa: UP006
        """Pools the features of boxes.

        Args:
            x: ``(N, C, H, W)`` maps, one for each scale.
            box_lists: the boxes ``(x1, y1, x2, y2)`` of each of the N images, in pixels of the input images;
                or ``RotatedBoxes``, which all types take except those that quantise or learn offsets.

        Returns:
            ``(M, C, height, width)`` for the M boxes of all images, in their order.

        Raises:
            ValueError: the number of maps or images is wrong, or boxes have neither 4 nor 5 coordinates.
        """
        num_maps = len(self.extractor.spatial_scales)
        if len(x) != num_maps:
            raise ValueError(f'x: got {len(x)} maps, expected {num_maps}, one for each scale')
        if len(box_lists) != x[0].shape[0]:
            raise ValueError(
                f'box_lists: got {len(box_lists)} lists of boxes, expected {x[0].shape[0]}, '
                'one for each image'
            )
        # A batch without images still has to give a gradient to each map.
        rows = [x[0].new_zeros([0, 5])]
        if len(box_lists) > 0:
            rows = []
            for i, boxes in enumerate(box_lists):
                box_dim = boxes.tensor.shape[1]
                if box_dim not in (4, 5) or box_dim != box_lists[0].tensor.shape[1]:
                    raise ValueError(
                        f'box_lists[{i}]: got boxes of {box_dim} coordinates, expected 4, or 5 if they are '
                        'rotated, and the same in all images'
                    )
                rows.append(rows_of_image(boxes.tensor, i))
        rois = torch.cat(rows, dim=0)
        # As with ROIPooler, boxes get no gradient, except with Precise, whose method defines one.
        if self.extractor.reduction != 'integral':
            rois = rois.detach()
        return self.extractor(x, rois)

    def extra_repr(self) -> str:
        return f'pooler_type={self.pooler_type}'


def build_pooler(
    output_size: int | Sequence[int],
    scales: Sequence[float],
    sampling_ratio: int | float,
    pooler_type: str,
    canonical_box_size: float = 224,
    canonical_level: int = 4,
    **options: Any,
) -> nn.Module:
    """Builds a pooler of any type, of this package or Detectron2's own: ``L(build_pooler)(...)`` in a
    LazyConfig.

    Args:
        output_size, scales, sampling_ratio, canonical_box_size, canonical_level, options: see
            :class:`RoIPluginsPooler`.
        pooler_type: one of ``POOLER_TYPES``, or one of Detectron2's own types.

    Raises:
        TypeError, ValueError: see :class:`RoIPluginsPooler`.
    """
    check_pooler_type(pooler_type)
    check_options(pooler_type, options)
    pooler = RoIPluginsPooler if pooler_type in POOLER_TYPES else ROIPooler
    return pooler(
        output_size,
        scales,
        sampling_ratio,
        pooler_type,
        canonical_box_size,
        canonical_level,
        **options,
    )


def check_pooler_type(pooler_type: str, name: str = 'pooler_type') -> None:
    """Checks that a type of poolers exists.

    Args:
        pooler_type: the type.
        name: the setting that names it, for the error.

    Raises:
        ValueError: it does not exist.
    """
    if pooler_type not in POOLER_TYPES and pooler_type not in STOCK_POOLER_TYPES:
        near = ask_for_near(str(pooler_type), [*POOLER_TYPES, *STOCK_POOLER_TYPES])
        raise ValueError(
            f'{name}: got {pooler_type!r}, expected one of {", ".join(POOLER_TYPES)}, or of '
            f"Detectron2's own {', '.join(STOCK_POOLER_TYPES)}{near and '; ' + near.strip()}"
        )


def check_options(pooler_type: str, options: Iterable[str], name: str = '') -> None:
    """Checks that a type has all options that are given for it.

    Args:
        pooler_type: the type.
        options: the names of the options.
        name: what stands before them in the error.

    Raises:
        TypeError: the type does not have an option.
    """
    known = pooler_options(pooler_type)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(
            f'{", ".join(name + option for option in unknown)}: no option of {pooler_type}; '
            f'its options are {", ".join(known) or "none"}'
        )


def pooler_options(pooler_type: str) -> list[str]:
    """Names of the options that a type has beyond those of every pooler.

    Args:
        pooler_type: the type; one of Detectron2's has none.
    """
    taken = {'output_size', 'featmap_strides', 'sampling_ratio', 'level_rule'}
    return [name for name in _parameters(pooler_type) if name not in taken]


def needs_channels(pooler_type: str) -> bool:
    """Whether a type has weights for each channel of the maps, and needs their number as ``channels``.

    Args:
        pooler_type: the type.
    """
    make = POOLER_TYPES.get(pooler_type, ROIPooler)
    type_ = make.func if isinstance(make, functools.partial) else make
    return isinstance(type_, type) and issubclass(type_, RoIExtractor) and type_.needs_channels


def _parameters(pooler_type: str) -> list[str]:
    """The parameters of a type of this package, without those that ``POOLER_TYPES`` fixes."""
    if pooler_type not in POOLER_TYPES:
        return []
    make = POOLER_TYPES[pooler_type]
    fixed = make.keywords if isinstance(make, functools.partial) else {}
    parameters = inspect.signature(make).parameters.values()
    return [p.name for p in parameters if p.kind != p.VAR_KEYWORD and p.name not in fixed]


def _pyramid_levels(scales: Sequence[float]) -> tuple[int, int]:
    """log2 of the finest and of the coarsest stride."""
    levels = [-math.log2(scale) for scale in scales]
    first = round(levels[0])
    if first < 0 or levels != list(range(first, first + len(levels))):
        raise ValueError(
            f'scales: got {list(scales)}, expected powers of two from 1 down, each half of the one '
            'before, as the level rule requires'
        )
    return first, first + len(levels) - 1
