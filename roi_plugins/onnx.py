"""ONNX export: translates the op to standard operators for PyTorch's exporter. ::

    torch.onnx.export(model, args, dynamo=True, custom_translation_table=roi_plugins.onnx.TRANSLATION_TABLE)

Methods that no standard operator computes raise an error, which gives the reason. ``docs/deployment.md``
lists those that can be exported, and where results differ. Needs ``onnx`` and ``onnxscript``.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, no_type_check

import torch

from . import ops  # noqa: F401  registers torch.ops.roi_plugins

try:
    from onnxscript import DOUBLE, FLOAT, INT64
    from onnxscript import opset18 as op
except ImportError as error:
    raise ImportError(
        f'roi_plugins.onnx: {error}; the ONNX export needs two more packages: pip install onnx onnxscript'
    ) from error


# Without annotations: PyTorch would take them for the types of an ONNX signature.
@no_type_check
def _roi_extract(
    features,
    rois,
    levels,
    offsets,
    seed,
    spatial_scale,
    output_size,
    region,
    sampling_ratio,
    reduction,
    aligned,
    min_samples,
    max_samples,
    position_sensitive,
):
    """Builds the graph of one call of the op, from the arguments of its schema."""
    extras = {
        'offsets': offsets is not None,
        'a seed': seed is not None,
        'position_sensitive': position_sensitive,
        'rotated RoIs': rois.shape[1] == 6,
    }
    _check(features, region, sampling_ratio, reduction, min_samples, max_samples, extras)

    def pool(map_, rois, scale):
        """Returns (k, C, height, width) float32 for (k, 5) RoIs on one map."""
        map_ = op.Cast(map_, to=FLOAT.dtype)
        if sampling_ratio is None:
            return op.MaxRoiPool(map_, rois, pooled_shape=output_size, spatial_scale=scale)
        batch_index = op.Squeeze(op.Slice(rois, axes=[1], starts=[0], ends=[1]), axes=[1])
        start, end = (op.Slice(rois, axes=[1], starts=[at], ends=[at + 2]) for at in (1, 3))
        if region == 'round':
            # RoIWarp is RoIAlign with a half-cell shift, of the box that Fast R-CNN rounds, in cells.
            start, end = (_round_half_away(op.Mul(corner, scale)) for corner in (start, end))
            end = op.Add(op.Max(start, end), 1.0)
        elif aligned and sampling_ratio == 0:
            # A side of length 0 has no samples; onnxruntime fails on a negative number of samples.
            end = op.Max(start, end)
        half_pixel = aligned or region == 'round'
        return op.RoiAlign(
            map_,
            op.Concat(start, end, axis=1),
            op.Cast(batch_index, to=INT64.dtype),
            coordinate_transformation_mode='half_pixel' if half_pixel else 'output_half_pixel',
            output_height=output_size[0],
            output_width=output_size[1],
            sampling_ratio=sampling_ratio,
            spatial_scale=1.0 if region == 'round' else scale,
        )

    # Boxes are computed with in float32, and so are the averages of half maps.
    rois = op.Cast(rois, to=FLOAT.dtype)
    # As in the op, a RoI with a coordinate that is not finite gives NaN and affects no other. onnxruntime
    # would fail, or read beyond the map.
    not_finite = op.Cast(op.Or(op.IsNaN(rois), op.IsInf(rois)), to=FLOAT.dtype)
    not_finite = op.Greater(op.ReduceSum(not_finite, axes=[1], keepdims=1), 0.0)
    rois = op.Where(not_finite, 0.0, rois)
    if levels is None:
        output = pool(features[0], rois, spatial_scale[0])
    else:
        levels = op.Cast(levels, to=INT64.dtype)
        size = op.Constant(value_ints=output_size)
        shape = op.Concat(op.Shape(rois, end=1), op.Shape(features[0], start=1, end=2), size, axis=0)
        output = op.Expand(0.0, shape)  # RoIs on no level keep this
        for level, (map_, scale) in enumerate(zip(features, spatial_scale, strict=True)):
            rows = op.Transpose(op.NonZero(op.Equal(levels, level)), perm=[1, 0])
            output = op.ScatterND(output, rows, pool(map_, op.GatherND(rois, rows), scale))
    output = op.Where(op.Unsqueeze(not_finite, axes=[2, 3]), math.nan, output)
    # The op's second result, the argmax, only serves the gradient.
    return (op.CastLike(output, features[0]),)


def _round_half_away(x: Any) -> Any:
    """Rounds half away from zero, as C does; ONNX's Round rounds half to even."""
    size = op.Abs(x)
    whole = op.Floor(size)
    whole = op.Where(op.GreaterOrEqual(op.Sub(size, whole), 0.5), op.Add(whole, 1.0), whole)
    return op.Mul(op.Sign(x), whole)


def _check(
    features: Sequence[Any],
    region: str,
    sampling_ratio: int | None,
    reduction: str,
    min_samples: int,
    max_samples: int | None,
    extras: Mapping[str, bool],
) -> None:
    """Raises NotImplementedError if no standard operator computes the same."""
    if any(extras.values()):
        reason = f'none takes {" or ".join(name for name, given in extras.items() if given)}'
    elif features[0].dtype == DOUBLE.dtype:
        reason = 'ONNX holds the scale in float32; export the model in float32: model.float()'
    elif reduction == 'integral':
        reason = 'none integrates the bilinear surface; RoiAlign averages samples of it'
    elif sampling_ratio is None and (region, reduction) != ('round', 'max'):
        reason = "its only one over whole cells, MaxRoiPool, is the maximum with region 'round'"
    elif sampling_ratio is not None and reduction == 'max':
        reason = (
            "the maximum of onnxruntime's RoiAlign is taken over weighted taps, not over interpolated "
            'samples (microsoft/onnxruntime#6146)'
        )
    elif sampling_ratio == 0 and (min_samples, max_samples) != (1, None):
        reason = "RoiAlign's size-adaptive grid has no bounds but min_samples=1, max_samples=None"
    else:
        return
    raise NotImplementedError(
        f'roi_extract with region={region!r}, sampling_ratio={sampling_ratio}, reduction={reduction!r}, '
        f'min_samples={min_samples}, max_samples={max_samples} on {features[0].dtype} maps has no equal '
        f'among the standard ONNX operators: {reason}. Those that have: docs/deployment.md'
    )


TRANSLATION_TABLE = {torch.ops.roi_plugins.roi_extract.default: _roi_extract}
