"""The extractors behind the call of Detectron2's ``ROIPooler``."""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, List, Tuple  # noqa: UP035  TorchScript reads these

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor, nn
from torchvision.ops import RoIPool

from ...extractors import EXTRACTORS, RoIExtractor, RoIWarp
from ...extractors.presets import describe
from ...ops import assign_levels_detectron2
from ...ops.arguments import rows_of_image
from ..errors import ask_for_near

POOLER_TYPES: dict[str, Callable[..., RoIExtractor]] = {
    **{name: type_ for name, type_ in EXTRACTORS.items() if type_ is not RoIWarp},
    'RoIWarpMax': functools.partial(RoIWarp, reduction='max'),
    'RoIWarpAvg': functools.partial(RoIWarp, reduction='avg'),
}
"""What ``POOLER_TYPE`` may name besides Detectron2's own; called as ``(output_size, strides, **options)``."""

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
        return assign_levels_detectron2(
            rois, num_levels, self.canonical_box_size, self.canonical_level, self.min_level
        )


class RoIPluginsPooler(nn.Module):
    """Stands where ``ROIPooler`` stands, with one of our extractors inside.

    The level rule and the errors' occasions are ``ROIPooler``'s. The whole pyramid is one call of the op,
    which does not wait for the GPU, and the output need not be square.

    Args:
        output_size: bins ``(height, width)``, or one number for both.
        scales: cells per input pixel of each map, ``1 / stride``, finest first: powers of two, each half
            of the one before.
        sampling_ratio: samples per bin and axis; ``0`` or less: from the size of the RoI. ``QuantizedPool``,
            ``AdaptiveSampling`` and ``Precise`` have no use for it, as ``ROIPool`` has none.
        pooler_type: one of ``POOLER_TYPES``.
        canonical_box_size: sqrt(area), in pixels, of a box that reads ``canonical_level``.
        canonical_level: log2 of the stride that such a box reads.
        options: those of the extractor, see :mod:`roi_plugins.extractors`.

    Raises:
        TypeError: an option that the type does not have; those it has are listed.
        ValueError: a type that does not exist, or an argument of a value without meaning.
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
            # As ROIPooler does, take a whole number that is written as a float.
            whole = isinstance(sampling_ratio, float) and sampling_ratio.is_integer()
            options['sampling_ratio'] = int(sampling_ratio) if whole else sampling_ratio
        # An omegaconf list is none of the sequences that the extractors know.
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
        """
        Args:
            x: one ``(N, C, H, W)`` map a scale.
            box_lists: the N images' boxes ``(x1, y1, x2, y2)``, in pixels of the input images; or their
                ``RotatedBoxes``, where the type takes them: all but those that quantise or learn to move.

        Returns:
            ``(M, C, height, width)`` for the M boxes of all images, in their order.
        """
        num_maps = len(self.extractor.spatial_scales)
        if len(x) != num_maps:
            raise ValueError(f'x: got {len(x)} maps, expected {num_maps}, one a scale')
        if len(box_lists) != x[0].shape[0]:
            raise ValueError(
                f'box_lists: got {len(box_lists)} lists of boxes, expected {x[0].shape[0]}, one an image'
            )
        # A batch without an image still has to give each map its gradient.
        rows = [x[0].new_zeros([0, 5])]
        if len(box_lists) > 0:
            rows = []
            for i, boxes in enumerate(box_lists):
                numbers = boxes.tensor
                if numbers.shape[1] not in (4, 5) or numbers.shape[1] != box_lists[0].tensor.shape[1]:
                    raise ValueError(
                        f'box_lists[{i}]: got boxes of {numbers.shape[1]} numbers, expected upright ones '
                        'of 4 in all images, or rotated ones of 5'
                    )
                rows.append(rows_of_image(numbers, i))
        rois = torch.cat(rows, dim=0)
        # As through ROIPooler, boxes get no gradient; PrRoIPool is made to give them one.
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
    """A pooler of any type, ours or Detectron2's own: ``L(build_pooler)(...)`` in a LazyConfig.

    Args:
        output_size, scales, sampling_ratio, canonical_box_size, canonical_level, options: see
            :class:`RoIPluginsPooler`; so are the errors.
        pooler_type: one of ``POOLER_TYPES``, or of Detectron2's own types.
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


def extractor_of(module: nn.Module) -> RoIExtractor | None:
    """The extractor in a pooler of ours, or one that computes what a pooler of Detectron2's does.

    None for a module that is no pooler, or one of rotated boxes.
    """
    if isinstance(module, RoIPluginsPooler):
        return module.extractor
    if not isinstance(module, ROIPooler):
        return None
    layer = module.level_poolers[0]
    if isinstance(layer, ROIAlign):
        method = {'sampling_ratio': layer.sampling_ratio, 'aligned': layer.aligned}
    elif isinstance(layer, RoIPool):
        method = {'region': 'round', 'sampling_ratio': None, 'reduction': 'max'}
    else:
        return None
    return RoIExtractor(
        module.output_size,
        [1 / layer.spatial_scale for layer in module.level_poolers],
        level_rule=Detectron2LevelRule(module.min_level, module.canonical_box_size, module.canonical_level),
        **method,
    )


def describe_poolers(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Type and options of each pooler of a model, by where it is, such as ``roi_heads.box_pooler``."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, RoIPluginsPooler):
            type_ = module.pooler_type
        elif isinstance(module, ROIPooler):
            type_ = f'ROIPooler of {type(module.level_poolers[0]).__name__}'
        else:
            continue
        extractor = extractor_of(module)
        found[name] = {'type': type_, **(describe(extractor) if extractor else {})}
    return found


def check_pooler_type(pooler_type: str, name: str = 'pooler_type') -> None:
    """Raises ValueError on a type that does not exist, ``name`` being where it was given."""
    if pooler_type not in POOLER_TYPES and pooler_type not in STOCK_POOLER_TYPES:
        near = ask_for_near(str(pooler_type), [*POOLER_TYPES, *STOCK_POOLER_TYPES])
        raise ValueError(
            f'{name}: got {pooler_type!r}, expected one of {", ".join(POOLER_TYPES)}, or of '
            f"Detectron2's own {', '.join(STOCK_POOLER_TYPES)}{near and '; ' + near.strip()}"
        )


def check_options(pooler_type: str, options: Iterable[str], name: str = '') -> None:
    """Raises TypeError on options that the type does not have, ``name`` being where they were given."""
    known = pooler_options(pooler_type)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(
            f'{", ".join(name + option for option in unknown)}: no option of {pooler_type}; '
            f'its options are {", ".join(known) or "none"}'
        )


def pooler_options(pooler_type: str) -> list[str]:
    """Names of the options that a type has beyond what every pooler takes."""
    taken = {'output_size', 'featmap_strides', 'sampling_ratio', 'level_rule'}
    return [name for name in _parameters(pooler_type) if name not in taken]


def needs_channels(pooler_type: str) -> bool:
    """Whether a type has weights for each channel of the maps, and takes their number as ``channels``."""
    make = POOLER_TYPES.get(pooler_type, ROIPooler)
    type_ = make.func if isinstance(make, functools.partial) else make
    return isinstance(type_, type) and issubclass(type_, RoIExtractor) and type_.needs_channels


def _parameters(pooler_type: str) -> list[str]:
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
            'before, which the level rule takes for granted'
        )
    return first, first + len(levels) - 1
