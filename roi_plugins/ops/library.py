"""Loads the extension, and tells PyTorch what it has to know of the op besides its kernels: shapes for
tracing (fake kernels), the derivative, and what to do on a device without a kernel.
"""

import os
import warnings
from pathlib import Path

import torch

from . import reference
from .checks import check_inputs, check_options
from .reference import is_channels_last, memory_format

_EXTENSION = Path(__file__).with_name('_C.so')

# As in csrc/op.cpp, which defines it where the extension can be loaded. No argument has a default: with
# one, the derivative that is registered from Python breaks in TorchScript.
_OPTIONS = (
    'float[] spatial_scale, int[] output_size, str region, int? sampling_ratio, str reduction, '
    'bool aligned, int min_samples, int? max_samples'
)
SCHEMAS = {
    'roi_extract': (
        f'(Tensor[] features, Tensor rois, Tensor? levels, {_OPTIONS}) '
        '-> (Tensor output, Tensor winner)'
    ),
    'roi_extract_backward': (
        '(Tensor grad, Tensor winner, Tensor rois, Tensor? levels, SymInt[] feature_shapes, '
        f'bool channels_last, {_OPTIONS}) -> Tensor[]'
    ),
}

_fallback = torch.library.Library('roi_plugins', 'FRAGMENT')
_warned: set[str] = set()


def extension_is_loaded() -> bool:
    """Whether the compiled kernels are there; otherwise the PyTorch reference does the work."""
    return _loaded


def _load_extension() -> bool:
    if os.environ.get('ROI_PLUGINS_DISABLE_EXTENSION') == '1':
        reason = 'it is disabled by ROI_PLUGINS_DISABLE_EXTENSION=1'
    elif not _EXTENSION.exists():
        reason = 'it was not built; build it with: pip install --no-build-isolation .'
    else:
        try:
            torch.ops.load_library(str(_EXTENSION))
            return True
        except OSError as error:
            reason = (
                f'it does not load under torch {torch.__version__} ({error}); build it again with: '
                'pip install --no-build-isolation --force-reinstall --no-deps .'
            )
    warnings.warn(
        f'roi_plugins runs without its compiled op, many times slower: {reason}', stacklevel=2
    )
    return False


def _warn_of_reference(device: torch.device) -> None:
    if _loaded and device.type not in _warned:
        _warned.add(device.type)
        warnings.warn(
            f'roi_plugins has no kernel for device type {device.type!r} in this build; '
            'the slower PyTorch reference runs instead',
            stacklevel=3,
        )


def _reference_forward(features, rois, levels, *options):
    _warn_of_reference(rois.device)
    return reference.extract(features, rois, levels, *options)


def _reference_backward(grad, winner, rois, levels, feature_shapes, channels_last, *options):
    _warn_of_reference(rois.device)
    return reference.extract_backward(
        grad, winner, rois, levels, feature_shapes, channels_last, *options
    )


def _fake_forward(
    features,
    rois,
    levels,
    spatial_scale,
    output_size,
    region,
    sampling_ratio,
    reduction,
    aligned,
    min_samples,
    max_samples,
):
    check_options(
        spatial_scale, output_size, region, sampling_ratio, reduction, min_samples, max_samples
    )
    check_inputs(features, rois, levels, len(spatial_scale))
    first = features[0]
    size = (rois.shape[0], first.shape[1], *output_size)
    format_ = memory_format(is_channels_last(first))
    output = torch.empty(size, dtype=first.dtype, device=first.device, memory_format=format_)
    dtype = reference.winner_dtype(sampling_ratio, max_samples)
    if reduction != 'max':
        return output, torch.empty(0, dtype=dtype, device=first.device)
    return output, torch.empty(size, dtype=dtype, device=first.device, memory_format=format_)


def _fake_backward(grad, winner, rois, levels, feature_shapes, channels_last, spatial_scale, *_):
    images, channels = feature_shapes[:2]
    return [
        torch.empty(
            (images, channels, feature_shapes[2 + 2 * i], feature_shapes[3 + 2 * i]),
            dtype=grad.dtype,
            device=grad.device,
            memory_format=memory_format(channels_last),
        )
        for i in range(len(spatial_scale))
    ]


def _setup_context(ctx, inputs, output):
    features, rois, levels, *options = inputs
    # Shapes, not maps: an average needs none of their values back.
    ctx.feature_shapes = list(features[0].shape[:2])
    for map_ in features:
        ctx.feature_shapes += map_.shape[2:]
    ctx.channels_last = is_channels_last(features[0])
    ctx.options = options
    # Or every backward pass would fill a gradient of the winner, which has none, with zeros.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], rois, levels)


def _derivative(ctx, grad, _):
    if grad is None:  # of an output that nobody used
        maps = (len(ctx.feature_shapes) - 2) // 2
        return ([None] * maps, *[None] * (2 + len(ctx.options)))
    winner, rois, levels = ctx.saved_tensors
    grads = torch.ops.roi_plugins.roi_extract_backward(
        grad, winner, rois, levels, ctx.feature_shapes, ctx.channels_last, *ctx.options
    )
    return (grads, *[None] * (2 + len(ctx.options)))


def _no_second_derivative(ctx, *grads):
    raise RuntimeError(
        'roi_extract: second derivatives are not supported; call backward without create_graph'
    )


_loaded = _load_extension()
if not _loaded:
    for _name, _schema in SCHEMAS.items():
        _fallback.define(_name + _schema)
_fallback.impl('roi_extract', _reference_forward, 'CompositeExplicitAutograd')
_fallback.impl('roi_extract_backward', _reference_backward, 'CompositeExplicitAutograd')
torch.library.register_fake('roi_plugins::roi_extract', _fake_forward)
torch.library.register_fake('roi_plugins::roi_extract_backward', _fake_backward)
torch.library.register_autograd(
    'roi_plugins::roi_extract', _derivative, setup_context=_setup_context
)
torch.library.register_autograd('roi_plugins::roi_extract_backward', _no_second_derivative)
