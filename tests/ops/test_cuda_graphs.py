"""On a GPU the host never waits for the op, so that a CUDA graph can hold it."""

import contextlib

import pytest
import torch
from cases import METHODS, fitted, random_map, random_rois

from roi_plugins.benchmark.cuda_graph import capture
from roi_plugins.ops import roi_extract

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason='torch sees no CUDA GPU here: nothing runs on one'
)


@pytest.fixture(params=[False, True], ids=['atomics', 'deterministic'])
def deterministic(request):
    torch.use_deterministic_algorithms(request.param)
    yield request.param
    torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def no_waiting():
    torch.cuda.set_sync_debug_mode('error')
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode('default')


def inputs(method, channels_last, seed=0):
    """Two maps, RoIs, and a call that gives the output and the gradients of the maps."""
    maps = [random_map(2, 16, side, side + 3, seed=seed + side) for side in (24, 12)]
    maps, rois, options = fitted(METHODS[method], maps, random_rois(30, 2, 96, 108, seed=seed), (7, 7))
    format_ = torch.channels_last if channels_last else torch.contiguous_format
    maps = [map_.cuda().contiguous(memory_format=format_).requires_grad_() for map_ in maps]
    levels = torch.arange(30, device='cuda') % 2
    if 'offsets' in options:
        options['offsets'] = options['offsets'].cuda()
    rois = rois.cuda()

    def call():
        output = roi_extract(maps, rois, 7, [1 / 4, 1 / 8], levels=levels, **options)
        return [output, *torch.autograd.grad(output, maps, torch.ones_like(output))]

    return maps, rois, call


@pytest.mark.parametrize('channels_last', [False, True], ids=['NCHW', 'channels_last'])
@pytest.mark.parametrize('method', METHODS)
def test_the_host_never_waits(method, channels_last, deterministic):
    _, _, call = inputs(method, channels_last)
    call()  # loads what is loaded once
    torch.cuda.synchronize()
    with no_waiting():
        call()


@pytest.mark.parametrize('channels_last', [False, True], ids=['NCHW', 'channels_last'])
@pytest.mark.parametrize('method', METHODS)
def test_a_graph_computes_on_what_is_in_its_tensors_now(method, channels_last, deterministic):
    held = {}

    def make_call():
        held['maps'], held['rois'], call = inputs(method, channels_last)

        def keep():
            held['results'] = call()

        return keep

    captured = capture(make_call, torch.device('cuda'))
    maps, rois, call = inputs(method, channels_last, seed=5)
    expected = call()
    with torch.no_grad():
        for old, new in zip([*held['maps'], held['rois']], [*maps, rois], strict=True):
            old.copy_(new)
    captured.replay()
    torch.cuda.synchronize()
    for mine, want in zip(held['results'], expected, strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-4, atol=1e-4)
