"""The CPU kernels use the threads that torch is told to use, and not another runtime's beside them."""

import subprocess
import sys
from pathlib import Path

import pytest

# In a process of its own, where nothing has started a thread of torch's pool before the op does.
CHECK = """
import os, torch
from roi_plugins.ops import extension_is_loaded, roi_extract

def threads():
    return len(os.listdir('/proc/self/task'))

def runtimes():
    with open('/proc/self/maps') as maps:
        files = (line.split('/')[-1].strip() for line in maps)
        return set(filter(lambda name: name.startswith(('libgomp', 'libomp', 'libiomp')), files))

assert extension_is_loaded()
torch.set_num_threads({threads})
features = torch.ones(1, 64, 16, 16)  # too few for torch's own loops to go parallel
rois = torch.tensor([[0.0, 2.0, 2.0, 12.0, 12.0]]).repeat(32, 1)
before, loaded = threads(), runtimes()
roi_extract(features, rois[:1], 7, 1.0)  # so little work that waking a thread would take longer
after_little = threads()
roi_extract(features, rois, 7, 1.0)
print(after_little - before, threads() - before, runtimes() - loaded)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/task').is_dir(), reason='counts threads in /proc')
@pytest.mark.parametrize('threads', [1, 2, 3])
def test_the_op_starts_the_threads_that_torch_has(threads):
    run = subprocess.run(
        [sys.executable, '-c', CHECK.format(threads=threads)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ['0', str(threads - 1), 'set()']
