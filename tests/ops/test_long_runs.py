"""Many calls, from many places: memory stays where it was, and threads and processes get what one gets.

`make soak` is the long form of the first.
"""

import ctypes
import gc
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cases import METHODS, fitted, random_map, random_rois

import roi_plugins
from roi_plugins.ops import roi_extract

pytestmark = pytest.mark.slow

CALLS = int(os.environ.get('ROI_PLUGINS_SOAK', '500'))
NAMES = ['align-avg', 'align-max', 'pool-round-max', 'integral', 'rotated-max', 'deformable', 'ps-align']


def call(name, channels_last=False, seed=0, backward=True):
    """Output and gradients of one call, all inputs its own."""
    features = random_map(2, 8, 30, 40, seed=seed)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    rois = random_rois(20, 2, 120, 160, seed=seed)
    features, rois, method = fitted(METHODS[name], features, rois, (7, 7))
    leaves = [features.requires_grad_()]
    if method['reduction'] != 'integral':
        leaves.append(rois.requires_grad_())
    output = roi_extract(features, rois, (7, 7), 0.25, **method)
    if not backward:
        return [output.detach()]
    return [output.detach(), *torch.autograd.grad(output.square().sum(), leaves)]


class Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            'arena', 'ordblks', 'smblks', 'hblks', 'hblkhd', 'usmblks', 'fsmblks', 'uordblks', 'fordblks',
            'keepcost',
        )
    ]  # fmt: skip


def bytes_in_use():
    """What was allocated and not freed, to the byte."""
    gc.collect()
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Mallinfo
    info = mallinfo()
    return info.uordblks + info.hblkhd


def resident_bytes():
    """What of the process is in memory, with what the allocator keeps for the next."""
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


MEASURES = {'in use': bytes_in_use, 'Python objects': sys.getallocatedblocks, 'resident': resident_bytes}
# A call that kept a tensor or a single Python object would be over it.
GROWTH_OF_A_CALL = {'in use': 16, 'Python objects': 0.9, 'resident': 1024}


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), 'mallinfo2'), reason='asks glibc 2.33 for the memory in use'
)
@pytest.mark.skipif('asan' in os.environ.get('LD_PRELOAD', ''), reason='the sanitizer has its own allocator')
@pytest.mark.parametrize('channels_last', [False, True], ids=['nchw', 'channels_last'])
def test_memory_stays_where_it_was(channels_last):
    """Forward and backward, a method after the other, after a warm-up of a third as many calls."""

    def run(calls):
        for i in range(calls):
            call(NAMES[i % len(NAMES)], channels_last)

    run(CALLS // 3)
    windows = []
    for _ in range(3):  # what is kept once grows in one of them, a leak in all
        before = {name: measure() for name, measure in MEASURES.items()}
        run(CALLS // 3)
        windows.append({name: measure() - before[name] for name, measure in MEASURES.items()})
    print(f'{CALLS} calls, growth of each third: {windows}')
    for name, limit in GROWTH_OF_A_CALL.items():
        if name == 'resident' and CALLS < 10_000:  # the allocator settles late
            continue
        assert min(window[name] for window in windows) < CALLS // 3 * limit, name


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        for got, want in zip(one, other, strict=True):
            assert torch.equal(got, want)


def several_calls(seed=0, backward=True):
    return [call(name, i % 2 == 1, seed + i, backward) for i, name in enumerate(NAMES)]


def test_python_threads():
    """Each with calls of its own, all at the same time, and all with the same."""
    expected = [several_calls(start) for start in range(4)]
    with ThreadPoolExecutor(8) as pool:
        for found, start in zip(pool.map(several_calls, [0, 1, 2, 3] * 4), [0, 1, 2, 3] * 4, strict=True):
            assert_same(found, expected[start])
        features = random_map(2, 40, 30, 40)
        rois = random_rois(50, 2, 120, 160)
        want = roi_extract(features, rois, 7, 0.25)
        assert all(
            torch.equal(got, want)
            for got in pool.map(lambda _: roi_extract(features, rois, 7, 0.25), range(32))
        )


class Calls(torch.utils.data.Dataset):
    """What the calls of a seed give, computed where it is asked for."""

    def __init__(self, backward):
        self.backward = backward

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return several_calls(index, self.backward)


LOADER = """
import sys
import torch
sys.path.insert(0, {here!r})
from test_long_runs import Calls, assert_same, several_calls

if __name__ == '__main__':
    torch.set_num_threads(2)
    several_calls()  # the threads are there before the workers
    calls = Calls(backward={context!r} == 'spawn')
    expected = [calls[i] for i in range(len(calls))]
    loader = torch.utils.data.DataLoader(
        calls, batch_size=None, num_workers=2, multiprocessing_context={context!r}
    )
    for found, want in zip(loader, expected, strict=True):
        assert_same(found, want)
    print('same')
"""


@pytest.mark.parametrize('context', ['fork', 'spawn'])
def test_workers_of_a_data_loader(context, tmp_path):
    """Of a parent that has used the op with two threads, forward and backward. Torch itself sets limits to a
    forked process: its workers have one thread, as GNU's OpenMP would hang, and autograd refuses.
    """
    script = tmp_path / 'loader.py'
    script.write_text(LOADER.format(here=str(Path(__file__).parent), context=context))
    environ = {**os.environ, 'PYTHONPATH': str(Path(roi_plugins.__file__).parents[1])}
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, env=environ)
    assert run.stdout.split() == ['same'], run.stderr
