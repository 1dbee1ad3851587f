"""The CUDA kernels' source, compiled as C++ and run on the host: their arithmetic and their indexing are
checked where there is no GPU (in CI there never is). What runs on a GPU is in the other tests.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / 'roi_plugins' / 'ops' / 'csrc'
HOST = Path(__file__).with_name('cuda_on_host')


@pytest.fixture(scope='module')
def package(tmp_path_factory):
    """A copy of the package whose library has the CUDA kernels in the CPU kernels' place."""
    root = tmp_path_factory.mktemp('cuda_on_host')
    ops = root / 'roi_plugins' / 'ops'
    ops.mkdir(parents=True)
    (ops.parent / '__init__.py').touch()
    for source in CSRC.parent.glob('*.py'):
        shutil.copy(source, ops)
    command = [
        os.environ.get('CXX', 'c++'),
        *('-std=c++17', '-O1', '-fPIC', '-shared', '-ffp-contract=off', '-Wno-unknown-pragmas'),
        *('-Dforward_cpu=forward_cuda', '-Dbackward_cpu=backward_cuda'),
        *(f'-I{HOST}', f'-I{CSRC}'),
        *(f'-isystem{path}' for path in cpp_extension.include_paths()),
        *('-x', 'c++', str(CSRC / 'op.cpp'), str(CSRC / 'cuda' / 'roi_extract.cu')),
        *(f'-L{path}' for path in cpp_extension.library_paths()),
        *('-lc10', '-ltorch_cpu', '-o', str(ops / '_C.so')),
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    return root


# Runs in a process of its own, where this library takes the place of the package's.
CHECK = """
import itertools, torch
from roi_plugins.ops import extension_is_loaded, reference

assert extension_is_loaded()

forward = torch.ops.roi_plugins.roi_extract
backward = torch.ops.roi_plugins.roi_extract_backward
torch.manual_seed(0)
images, shapes, scales = 2, [(20, 23), (10, 12)], [1 / 8, 1 / 16]
corner, extent = torch.rand(40, 2) * 200 - 40, torch.rand(40, 2) * 150 - 10
rois = torch.cat([torch.randint(0, images, (40, 1)).float(), corner, corner + extent], 1)
rois[0, 1:] = torch.tensor([-1e30, -1e30, 1e30, 1e30])
rois[1, 3] = torch.nan
rois[2] = torch.tensor([1, 0, 0, 184, 160])  # a bin of more cells than a block keeps
levels = torch.randint(-1, 3, (40,))
levels[2] = 0
# Channels in whole vectors and not, fewer than one, more than a block's; bins in one tile and in two.
sizes = [(16, [3, 4]), (5, [3, 4]), (2, [1, 2]), (40, [17, 5]), (9, [2, 18])]
regions = [('none', 2), ('none', 0), ('round', None), ('round', 2), ('floor', None), ('bins', None)]
methods = [(*region, reduction) for region in regions for reduction in ('avg', 'max')]
cases = itertools.product(
    [*methods, ('none', None, 'integral')], (True, False), (torch.float32, torch.bfloat16, torch.float64),
    (torch.contiguous_format, torch.channels_last), (False, True))
count = 0
for case, (channels, size) in zip(cases, itertools.cycle(sizes)):
    (region, ratio, reduction), aligned, dtype, layout, deterministic = case
    torch.use_deterministic_algorithms(deterministic)
    options = (scales, size, region, ratio, reduction, aligned, 1, None)
    features = [torch.randn(images, channels, *s).to(dtype).relu() for s in shapes]
    features = [f.contiguous(memory_format=layout) for f in features]
    output, winner = forward(features, rois, levels, *options)
    expected, expected_winner = reference.extract(features, rois, levels, *options)
    tolerance = dict(rtol=2e-2, atol=2e-2) if dtype == torch.bfloat16 else dict(rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output, expected, equal_nan=True, **tolerance)
    assert output.stride() == expected.stride()
    if dtype != torch.bfloat16:  # its few digits make near ties, which rounding decides
        assert torch.equal(winner, expected_winner)
    grad = torch.randn_like(output)
    flat = [images, channels, *[n for s in shapes for n in s]]
    last = layout == torch.channels_last
    grads = backward(grad, winner, rois, levels, flat, last, *options)
    expected = reference.extract_backward(grad, winner, rois, levels, flat, last, *options)
    for got, want in zip(grads, expected):
        torch.testing.assert_close(got, want, **tolerance)
        assert got.stride() == want.stride()
    if deterministic:
        broken = grad.clone()
        broken[5, 0, 0, 0] = torch.inf
        assert any(g.isnan().any() for g in backward(broken, winner, rois, levels, flat, last, *options))
        zeros = backward(grad * 0, winner, rois, levels, flat, last, *options)
        assert all((g == 0).all() for g in zeros)
    count += 1
print(count, 'cases agree')
"""


def test_kernels_agree_with_the_reference(package):
    environment = {**os.environ, 'PYTHONPATH': str(package), 'OMP_NUM_THREADS': '1'}
    run = subprocess.run(
        [sys.executable, '-c', CHECK], capture_output=True, text=True, env=environment, cwd=package
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.strip() == f'{(6 * 2 + 1) * 2 * 3 * 2 * 2} cases agree'
