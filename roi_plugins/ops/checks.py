"""Argument checks of the op for the fake kernels and the reference.

`csrc/op.cpp` holds the same checks for the compiled kernels; `tests/ops/test_bad_input.py` runs both.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .arguments import Options

MAX_LEVELS = 16
MAX_SAMPLES = 2**14  # the most samples per bin and axis that an argument may ask for
PAIRS = (
    "'none' with a number (with None for reduction 'integral'), 'round' with a number or None, 'floor' and "
    "'bins' with None"
)
FEATURE_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def expect(valid: object, name: str, got: object, expected: str, error: type[Exception] = ValueError) -> None:
    """Raises ``error``, which names an argument, what came and what was expected, unless ``valid``."""
    if not valid:
        raise error(f'{name}: got {got}, expected {expected}')


def check_options(options: Options) -> None:
    """Raises ValueError if an option has no meaning, or two have none together."""
    scales, output_size, region, sampling_ratio, reduction, _, min_samples, max_samples, grouped = options
    expect(
        len(output_size) == 2 and min(output_size) > 0,
        'output_size',
        tuple(output_size),
        'two positive sizes (height, width)',
    )
    for scale in scales:
        expect(
            math.isfinite(scale) and scale > 0,
            'spatial_scale',
            scale,
            'a positive number of cells per input pixel (1 / stride)',
        )
    expect(
        region in ('none', 'round', 'floor', 'bins'),
        'region',
        repr(region),
        "'none', 'round', 'floor' or 'bins'",
    )
    expect(
        reduction in ('avg', 'max', 'integral'),
        'reduction',
        repr(reduction),
        "'avg', 'max' or 'integral'",
    )
    expect(
        sampling_ratio is None or 0 <= sampling_ratio <= MAX_SAMPLES,
        'sampling_ratio',
        sampling_ratio,
        f'None (every cell), 0 (from the size of the RoI) or a positive number up to {MAX_SAMPLES}',
    )
    expect(
        1 <= min_samples <= MAX_SAMPLES and (max_samples is None or min_samples <= max_samples),
        'min_samples, max_samples',
        f'{min_samples} and {max_samples}',
        f'1 <= min_samples <= max_samples, and min_samples up to {MAX_SAMPLES}',
    )
    cells = sampling_ratio is None
    if reduction == 'integral':
        expect(
            region == 'none' and cells,
            'region, sampling_ratio',
            f"'{region}' and {sampling_ratio} with reduction 'integral'",
            "'none' and None, for it takes no samples",
        )
    elif (region in ('floor', 'bins') and not cells) or (region == 'none' and cells):
        grid = 'sampling_ratio None' if cells else 'a bilinear grid'
        raise ValueError(
            f"region, sampling_ratio: region '{region}' does not go with {grid}; the valid pairs are {PAIRS}"
        )
    expect(
        not grouped or (reduction != 'max' and (region == 'none' or (region == 'round' and cells))),
        'position_sensitive',
        f"True with region '{region}', sampling_ratio {sampling_ratio} and reduction '{reduction}'",
        "region 'none', or 'round' with sampling_ratio None, and reduction 'avg' or 'integral'",
    )


def check_inputs(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    offsets: Tensor | None,
    seed: Tensor | None,
    options: Options,
) -> None:
    """Raises ValueError or TypeError if shapes, dtypes or devices do not fit together or do not fit the
    options. The options themselves have to be valid already.
    """
    scales, output_size, region, sampling_ratio, reduction, _, _, _, position_sensitive = options
    num_scales = len(scales)
    expect(0 < len(features) <= MAX_LEVELS, 'features', f'{len(features)} maps', f'1 to {MAX_LEVELS}')
    expect(
        len(features) == num_scales,
        'spatial_scale',
        f'{num_scales} scales for {len(features)} maps',
        'one a map',
    )
    first = features[0]
    for i, map_ in enumerate(features):
        name = f'features[{i}]'
        shape = tuple(map_.shape)
        expect(map_.dim() == 4, name, f'shape {shape}', '(N, C, H, W)')
        expect(map_.dtype == first.dtype, name, map_.dtype, f'that of features[0], {first.dtype}', TypeError)
        expect(map_.device == first.device, name, map_.device, f'that of features[0], {first.device}')
        expect(
            map_.shape[:2] == first.shape[:2],
            name,
            f'shape {shape}',
            f'the images and channels of features[0], {tuple(first.shape)}',
        )
        expect(map_.shape[2] > 0 and map_.shape[3] > 0, name, f'shape {shape}', 'at least one cell')
    expect(
        first.dtype in FEATURE_DTYPES,
        'features',
        f'dtype {first.dtype}',
        'float32, float64, float16 or bfloat16',
        TypeError,
    )
    bins = output_size[0] * output_size[1]
    expect(
        not position_sensitive or first.shape[1] % bins == 0,
        'features',
        f'{first.shape[1]} channels',
        f'a multiple of the {bins} bins of output_size, for position_sensitive',
    )
    expect(
        rois.dim() == 2 and rois.shape[1] in (5, 6),
        'rois',
        f'shape {tuple(rois.shape)}',
        '(K, 5) rows of (batch_index, x1, y1, x2, y2), or (K, 6) of (batch_index, cx, cy, w, h, angle)',
    )
    rotated = rois.shape[1] == 6
    expect(
        not rotated or (region == 'none' and not position_sensitive),
        'rois',
        f"rotated ones (K, 6) with region '{region}' and position_sensitive {position_sensitive}",
        "region 'none' without position_sensitive, or upright ones (K, 5)",
    )
    expect(rois.dtype.is_floating_point, 'rois', f'dtype {rois.dtype}', 'a floating type', TypeError)
    expect(rois.device == first.device, 'rois', rois.device, f'that of features, {first.device}')
    if first.shape[0] == 0:
        expect(rois.shape[0] == 0, 'features', 'an empty batch with RoIs', 'at least one image')
    expect(
        levels is not None or len(features) == 1,
        'levels',
        f'None for {len(features)} maps',
        "the (K,) index of each RoI's map",
    )
    if levels is not None:
        expect(
            levels.dim() == 1 and levels.shape[0] == rois.shape[0],
            'levels',
            f'shape {tuple(levels.shape)}',
            f'({rois.shape[0]},), one a RoI',
        )
        expect(
            levels.dtype in (torch.int64, torch.int32),
            'levels',
            f'dtype {levels.dtype}',
            'int64 or int32',
            TypeError,
        )
        expect(levels.device == rois.device, 'levels', levels.device, f'that of rois, {rois.device}')
    if offsets is not None:
        method = f"region '{region}', sampling_ratio {sampling_ratio}, reduction '{reduction}'"
        expect(
            region == 'none'
            and sampling_ratio is not None
            and reduction == 'avg'
            and not rotated
            and not position_sensitive,
            'offsets',
            f'some with {method}, rois (K, {rois.shape[1]}) and position_sensitive {position_sensitive}',
            "region 'none', a sampling_ratio, reduction 'avg', rois (K, 5) and no position_sensitive",
        )
        shape = (rois.shape[0], 2, *output_size)
        expect(
            offsets.dim() == 4 and tuple(offsets.shape) == shape,
            'offsets',
            f'shape {tuple(offsets.shape)}',
            f'{shape}, (x, y) of each bin',
        )
        expect(
            offsets.dtype.is_floating_point,
            'offsets',
            f'dtype {offsets.dtype}',
            'a floating type',
            TypeError,
        )
        expect(offsets.device == rois.device, 'offsets', offsets.device, f'that of rois, {rois.device}')
    if seed is not None:
        expect(
            sampling_ratio is not None,
            'seed',
            f"one with sampling_ratio None and reduction '{reduction}'",
            'a sampling_ratio: only the samples of a grid are jittered',
        )
        expect(seed.numel() == 1, 'seed', f'shape {tuple(seed.shape)}', 'one number')
        expect(seed.dtype == torch.int64, 'seed', f'dtype {seed.dtype}', 'int64', TypeError)
        expect(seed.device == rois.device, 'seed', seed.device, f'that of rois, {rois.device}')


def check_indices(rois: Tensor, num_images: int) -> None:
    """Raises ValueError if the type of the RoIs cannot hold the index of every image. A rounded index would
    read another image. TorchScript compiles this.
    """
    most = num_images
    if rois.dtype == torch.bfloat16:
        most = 257
    elif rois.dtype == torch.float16:
        most = 2049
    if num_images > most:
        raise ValueError(
            f'rois: got dtype {rois.dtype} for {num_images} images, expected float32 or float64: the batch '
            f'index is rounded, but for at most {most} images'
        )


def check_gradient(rois: Tensor, reduction: str) -> None:
    """Raises ValueError if a gradient is asked for that the op does not have."""
    expect(
        not (rois.requires_grad and rois.shape[1] == 6 and reduction == 'integral'),
        'rois',
        "rotated ones that require a gradient with reduction 'integral'",
        "reduction 'avg' or 'max' for that gradient, or rois.detach()",
    )
