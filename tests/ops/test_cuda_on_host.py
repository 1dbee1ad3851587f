"""The CUDA kernels' source, compiled as C++ and run on the host: their arithmetic and their indexing are
checked where there is no GPU (in CI there never is). What runs on a GPU is in the other tests.
"""

import subprocess

import pytest
import torch
from host_kernels import CSRC, build, check, compiler
from kernel_check import KERNELS, Implementation, check_fills

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def package(tmp_path_factory):
    return build(tmp_path_factory.mktemp('cuda_on_host'))


def test_kernels_agree_with_the_reference(package):
    run = check(package)
    assert run.returncode == 0, run.stderr[-3000:]
    # methods x dtypes x layouts x deterministic, and four more
    assert run.stdout.strip() == f'{39 * 4 * 2 * 2 + 4} of 628 cases agree'


def test_the_cpu_kernels_fill_no_memory_twice_either():
    try:
        check_fills(Implementation('cpu', KERNELS))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ('arch', 'cuda', 'vector'),
    [(750, 13000, False), (860, 13000, False), (900, 11080, False), (900, 12000, False),
     (900, 12010, True), (1200, 13000, True)],
)  # fmt: skip
def test_four_floats_are_added_whatever_the_code_is_compiled_for(arch, cuda, vector):
    """As one vector from 9.0 and CUDA 12.1 on, whose headers have it first; else one by one."""
    defines = ['-D__CUDACC__', f'-D__CUDA_ARCH__={arch}', f'-DCUDART_VERSION={cuda}']
    command = [compiler(), '-E', '-P', '-x', 'c++', *defines, str(CSRC / 'cuda/atomics.h')]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    body = text[text.index('add_four') : text.index('struct FloatingSum')]
    assert ('float4' in body) == vector
    assert body.count('atomicAdd') == (1 if vector else 4)
