"""The memory of results: kept for the next ones, given back when asked for, and never shared by two."""

import os
import threading

import pytest
import torch
from cases import random_map, random_rois

from roi_plugins.ops import extension_is_loaded, release_memory, roi_extract

MEBIBYTE = 2**20
needs_extension = pytest.mark.skipif(not extension_is_loaded(), reason='only the compiled op keeps memory')


def extract(num_rois=128, channels=64, channels_last=True, **options):
    """An output of 128 * 64 * 7 * 7 * 4 bytes, that is 1.53 MiB."""
    features = random_map(2, channels, 20, 20)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    return roi_extract(features, random_rois(num_rois, 2, 20, 20), 7, 1.0, **options)


@pytest.fixture(autouse=True)
def nothing_kept():
    release_memory()
    yield
    release_memory()


@needs_extension
def test_a_freed_result_gives_its_memory_to_the_next():
    output = extract()
    address = output.data_ptr()
    assert release_memory() == 0  # it is in use
    del output
    assert extract(127).data_ptr() == address  # a little smaller will do
    kept = release_memory()
    assert MEBIBYTE < kept < 2 * MEBIBYTE
    assert release_memory() == 0


@needs_extension
def test_two_results_never_share_memory():
    first = extract()
    copy = first.clone()
    view = first[3:5, ::2]
    del first
    others = [extract() for _ in range(3)]
    for other in others:
        other.fill_(7)
    assert torch.equal(view, copy[3:5, ::2])
    assert len({other.data_ptr() for other in others}) == 3


@needs_extension
def test_small_results_are_left_to_malloc():
    extract(8)
    assert release_memory() == 0


@needs_extension
def test_what_is_kept_is_bounded():
    outputs = [extract(2048, 256) for _ in range(6)]  # 98 MiB each
    del outputs
    assert 300 * MEBIBYTE < release_memory() <= 512 * MEBIBYTE


@pytest.mark.parametrize('channels_last', [True, False])
@pytest.mark.parametrize('reduction', ['avg', 'max'])
def test_a_result_is_an_ordinary_tensor(channels_last, reduction):
    output = extract(channels_last=channels_last, reduction=reduction)
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    assert (
        output.is_contiguous(memory_format=wanted)
        and output.stride() == torch.empty(output.shape, memory_format=wanted).stride()
    )
    assert output.data_ptr() % 64 == 0
    assert torch.equal(output.clone().share_memory_(), output)
    assert torch.equal(torch.from_numpy(output.numpy()), output)


def test_memory_that_is_used_again_gives_the_same_results():
    features = random_map(2, 64, 64, 64).requires_grad_()
    rois = random_rois(128, 2, 64, 64)

    def run():
        output = roi_extract(features, rois, 7, 1.0, reduction='max')
        (grad,) = torch.autograd.grad(output.square().sum(), features)
        return output.detach().clone(), grad.clone()

    first = run()
    for _ in range(3):
        torch.full((128, 64, 7, 7), torch.nan)
        for a, b in zip(first, run(), strict=True):
            assert torch.equal(a, b)


def test_threads_may_free_what_others_made():
    failures = []

    def work(seed):
        for _ in range(20):
            output = extract(128 + seed)
            output.fill_(seed)
            if not (output == seed).all():
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='the system has no fork')
@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
def test_a_forked_process_goes_on():
    before = extract()
    kept = extract()
    del kept
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(extract(), before) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(extract(), before)
