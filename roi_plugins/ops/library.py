"""Loads the extension and registers with PyTorch what the op needs besides its kernels: output shapes for
tracing (fake kernels), the derivative, and the reference for devices without a kernel.
"""

import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import reference
from .arguments import Options
from .checks import check_gradient, check_inputs, check_options
from .reference import is_channels_last, memory_format

_EXTENSION = Path(__file__).with_name('_C.so')
_BUILD = "pip install -U 'setuptools<81' && pip install --no-build-isolation --no-deps -v ."
_BUILD_CUDA = _BUILD.replace('pip install --no-build', 'ROI_PLUGINS_CUDA=1 pip install --no-build')

_SCHEMAS = Path(__file__).with_name('schemas.inc')
SCHEMAS = {
    schema.partition('(')[0]: schema
    for schema in re.findall(r'^\w+\(.*', _SCHEMAS.read_text(encoding='utf-8'), re.MULTILINE)
}
"""The schema of each op by its name."""

_fallback = torch.library.Library('roi_plugins', 'FRAGMENT')
_warned: set[str] = set()


def extension_is_loaded() -> bool:
    """Returns whether the compiled kernels are loaded; if not, the slower PyTorch reference does the work."""
    return _loaded


def release_memory() -> int:
    """Gives the memory back that the op keeps on the CPU, as :func:`torch.cuda.empty_cache` does on a GPU.

    When a large result of the op is freed, the op keeps its memory for the next one, 512 MiB at most.

    Returns:
        How many bytes were given back.
    """
    return torch.ops.roi_plugins.release_memory()


class _Build(NamedTuple):
    """What the extension was built for. Its file says so, and is read before it is loaded, because loading it
    under another torch ends in an undefined symbol or, worse, in wrong behaviour.
    """

    torch: str
    cuda: str | None  # major version
    cards: list[str]  # as in TORCH_CUDA_ARCH_LIST

    @classmethod
    def read(cls) -> '_Build | None':
        """Returns what the file of the extension says; None if it says nothing."""
        built = re.search(
            rb'roi_plugins for (torch [\d.]+(?: \(pre-cxx11 ABI\))?)(?: with CUDA (\d+) for ([\w.+,]+))?\0',
            _EXTENSION.read_bytes(),
        )
        if built is None:
            return None
        torch_, cuda, cards = built.groups()
        return cls(
            torch_.decode(),
            cuda.decode() if cuda else None,
            cards.decode().split(',') if cards else [],
        )

    def is_for_this_torch(self) -> bool:
        here = 'torch ' + '.'.join(torch.__version__.split('.')[:2])
        if not torch.compiled_with_cxx11_abi():
            here += ' (pre-cxx11 ABI)'
        return self.torch == here and self.cuda in (None, (torch.version.cuda or '').split('.')[0])

    def serves(self, capability: tuple[int, int]) -> bool:
        """Returns whether a card can run it: code for its own major version and no newer, or any older PTX.

        Args:
            capability: compute capability of the card, such as ``(9, 0)``.
        """
        for card in self.cards:
            name, _, ptx = card.partition('+')
            family = name.lstrip('0123456789.')
            major, minor = map(int, name.removesuffix(family).split('.'))
            if family == 'a':  # for this capability alone
                fits = capability == (major, minor)
            else:
                has_ptx = bool(ptx) and not family
                fits = capability >= (major, minor) and (capability[0] == major or has_ptx)
            if fits:
                return True
        return False

    def __str__(self) -> str:
        return self.torch + (f' with CUDA {self.cuda}' if self.cuda else '')


def _warn_of_cards(build: _Build) -> None:
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if not build.serves(capability):
            warnings.warn(
                f'roi_plugins cannot run on cuda:{index}: {torch.cuda.get_device_name(index)} has compute '
                f'capability {capability[0]}.{capability[1]}, and the CUDA kernels were built for '
                f'{", ".join(build.cards)}; build them again here, in a checkout of roi_plugins, with: '
                f'{_BUILD_CUDA}',
                stacklevel=2,
            )


def _load_extension() -> bool:
    if os.environ.get('ROI_PLUGINS_DISABLE_EXTENSION') == '1':
        reason = 'it is disabled by ROI_PLUGINS_DISABLE_EXTENSION=1'
    elif not _EXTENSION.exists():
        reason = f'it was not built; build it, in a checkout of roi_plugins, with: {_BUILD}'
    elif not ((build := _Build.read()) and build.is_for_this_torch()):
        reason = (
            f'it was built for {build or "another torch"}, and this is torch {torch.__version__}; '
            f'build it again, in a checkout of roi_plugins, with: {_BUILD}'
        )
    else:
        try:
            torch.ops.load_library(str(_EXTENSION))
            if build.cards:
                # When CUDA is first used, or now if it is: asking for the cards would start it.
                torch.cuda._lazy_call(lambda: _warn_of_cards(build))
            return True
        except OSError as error:
            reason = (
                f'it does not load here ({error}); build it again, in a checkout of roi_plugins, '
                f'with: {_BUILD}'
            )
    warnings.warn(f'roi_plugins runs without its compiled op, many times slower: {reason}', stacklevel=2)
    return False


def _warn_of_reference(device: torch.device) -> None:
    if _loaded and device.type not in _warned:
        _warned.add(device.type)
        build = ''
        if device.type == 'cuda':
            build = f'; build it, in a checkout of roi_plugins, with: {_BUILD_CUDA}'
        warnings.warn(
            f'roi_plugins has no kernel for device type {device.type!r} in this build; '
            f'the slower PyTorch reference runs instead{build}',
            stacklevel=3,
        )


def _reference_forward(features: Sequence[Tensor], rois: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    _warn_of_reference(rois.device)
    return reference.extract(features, rois, *arguments)


def _reference_backward(grad: Tensor, argmax: Tensor, rois: Tensor, *arguments: Any) -> list[Tensor]:
    _warn_of_reference(rois.device)
    return reference.extract_backward(grad, argmax, rois, *arguments)


def _reference_backward_rois(
    grad: Tensor, argmax: Tensor, features: Sequence[Tensor], rois: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor]:
    _warn_of_reference(rois.device)
    return reference.extract_backward_rois(grad, argmax, features, rois, *arguments)


def _fake_forward(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    offsets: Tensor | None,
    seed: Tensor | None,
    *arguments: Any,
) -> tuple[Tensor, Tensor]:
    options = Options(*arguments)
    check_options(options)
    check_inputs(features, rois, levels, offsets, seed, options)
    first = features[0]
    height, width = options.output_size
    channels = first.shape[1] // (height * width if options.position_sensitive else 1)
    size = (rois.shape[0], channels, height, width)
    format_ = memory_format(is_channels_last(first))
    output = torch.empty(size, dtype=first.dtype, device=first.device, memory_format=format_)
    dtype = reference.argmax_dtype(options.sampling_ratio, options.max_samples)
    if options.reduction != 'max':
        return output, torch.empty(0, dtype=dtype, device=first.device)
    return output, torch.empty(size, dtype=dtype, device=first.device, memory_format=format_)


def _fake_backward(
    grad: Tensor,
    argmax: Tensor,
    rois: Tensor,
    levels: Tensor | None,
    offsets: Tensor | None,
    seed: Tensor | None,
    feature_shapes: Sequence[int],
    channels_last: bool,
    spatial_scale: Sequence[float],
    *_: Any,
) -> list[Tensor]:
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


def _fake_backward_rois(
    grad: Tensor,
    argmax: Tensor,
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    offsets: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    moved = rois.new_empty(0) if offsets is None else offsets
    # `new_empty` is contiguous, whatever the layout of its model.
    return rois.new_empty(rois.shape), moved.new_empty(moved.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, rois, levels, offsets, seed, *arguments = inputs
    options = Options(*arguments)
    check_gradient(rois, options.reduction)
    # The gradient to the features needs the shapes of the maps only; the one to the positions needs the maps.
    ctx.feature_shapes = list(features[0].shape[:2])
    for map_ in features:
        ctx.feature_shapes += map_.shape[2:]
    ctx.channels_last = is_channels_last(features[0])
    ctx.options = options
    moves = rois.requires_grad or (offsets is not None and offsets.requires_grad)
    # Otherwise every backward pass would make zeros as the gradient of the argmax, which has none.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], rois, levels, offsets, seed, *(features if moves else ()))


def _derivative(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    of_features, of_rois, _, of_offsets, *_ = ctx.needs_input_grad
    grads, grad_rois, grad_offsets = [None] * len(of_features), None, None
    if grad is not None:  # None if nothing used the output
        argmax, rois, levels, offsets, seed, *features = ctx.saved_tensors
        table = (rois, levels, offsets, seed)
        if any(of_features):
            grads = torch.ops.roi_plugins.roi_extract_backward(
                grad, argmax, *table, ctx.feature_shapes, ctx.channels_last, *ctx.options
            )
        if features:
            both = torch.ops.roi_plugins.roi_extract_backward_rois(
                grad, argmax, features, *table, *ctx.options
            )
            grad_rois = both[0] if of_rois else None
            grad_offsets = both[1] if of_offsets else None
    return (grads, grad_rois, None, grad_offsets, None, *[None] * len(ctx.options))


def _no_second_derivative(ctx: Any, *grads: Tensor | None) -> None:
    raise RuntimeError(
        'roi_extract: second derivatives are not supported; call backward without create_graph'
    )


def _refuse_tangents(arguments: tuple[Any, ...]) -> None:
    if forward_ad._current_level < 0:  # almost always, and every call passes here
        return
    for argument in arguments:
        for value in argument if isinstance(argument, list) else (argument,):
            if isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None:
                raise NotImplementedError(
                    'roi_extract: forward-mode derivatives are not supported (torch.func.jvp, '
                    'torch.func.jacfwd, torch.autograd.forward_ad); use backward or torch.autograd.grad'
                )


class _ReverseModeLibrary(torch.library.Library):
    """Registers derivatives that refuse forward mode.

    If no input requires a gradient, PyTorch's wrapper of a Python derivative drops the tangents of the
    inputs. An output without a tangent counts as a constant, so its derivative would be zero without an
    error.
    """

    def impl(self, op_name: Any, fn: Callable[..., Any], dispatch_key: str = '', **options: Any) -> None:
        def checked(keyset: Any, *arguments: Any, **keywords: Any) -> Any:
            _refuse_tangents(arguments)
            return fn(keyset, *arguments, **keywords)

        super().impl(op_name, checked, dispatch_key, **options)


def _one_by_one(op: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a rule for `torch.func.vmap` that calls an op in a loop: PyTorch's fallback takes no lists of
    tensors.
    """

    def pick(argument: Any, dim: Any, index: int) -> Any:
        if isinstance(argument, list):
            return [pick(each, each_dim, index) for each, each_dim in zip(argument, dim, strict=True)]
        return argument if dim is None else argument.select(dim, index)

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, int]:
        if info.batch_size == 0:
            raise ValueError('roi_extract: got a dimension of size 0 for vmap, expected at least one')
        results = []
        for index in range(info.batch_size):
            picked = [pick(each, dim, index) for each, dim in zip(arguments, in_dims, strict=True)]
            results.append(op(*picked))
        stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
        return type(results[0])(stacked), 0

    return rule


_loaded = _load_extension()
if not _loaded:
    for _schema in SCHEMAS.values():
        _fallback.define(_schema)
    _fallback.impl('assign_levels', reference.assign_levels, 'CompositeImplicitAutograd')
    _fallback.impl('release_memory', lambda: 0, 'CompositeImplicitAutograd')
for _name, _kernel, _fake in (
    ('roi_extract', _reference_forward, _fake_forward),
    ('roi_extract_backward', _reference_backward, _fake_backward),
    ('roi_extract_backward_rois', _reference_backward_rois, _fake_backward_rois),
):
    _fallback.impl(_name, _kernel, 'CompositeExplicitAutograd')
    torch.library.register_fake(f'roi_plugins::{_name}', _fake)
if not _loaded:  # else csrc/autograd.cpp registers the derivative
    _derivatives = _ReverseModeLibrary('roi_plugins', 'FRAGMENT')
    torch.library.register_autograd(
        'roi_plugins::roi_extract', _derivative, setup_context=_setup_context, lib=_derivatives
    )
    for _name in ('roi_extract_backward', 'roi_extract_backward_rois'):
        torch.library.register_autograd(f'roi_plugins::{_name}', _no_second_derivative, lib=_derivatives)
if hasattr(torch.library, 'register_vmap'):  # torch 2.5
    for _name in ('roi_extract', 'roi_extract_backward', 'roi_extract_backward_rois'):
        _op = getattr(torch.ops.roi_plugins, _name).default
        torch.library.register_vmap(f'roi_plugins::{_name}', _one_by_one(_op), lib=_fallback)
