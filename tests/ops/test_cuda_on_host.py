"""The CUDA kernels' source, compiled as C++ and run on the host: their arithmetic and their indexing are
checked where there is no GPU (in CI there never is). What runs on a GPU is in the other tests.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
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
        *('-std=c++20', '-O1', '-fPIC', '-shared', '-ffp-contract=off', '-Wno-unknown-pragmas'),
        *('-Dforward_cpu=forward_cuda', '-Dbackward_cpu=backward_cuda'),
        '-Dbackward_rois_cpu=backward_rois_cuda',
        f'-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}',
        *(f'-I{HOST}', f'-I{CSRC}'),
        *(f'-isystem{path}' for path in cpp_extension.include_paths()),
        *('-x', 'c++', str(CSRC / 'op.cpp'), *map(str, sorted(CSRC.glob('cuda/*.cu')))),
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
backward_rois = torch.ops.roi_plugins.roi_extract_backward_rois
torch.manual_seed(0)
images, shapes, scales = 2, [(20, 23), (10, 12)], [1 / 8, 1 / 16]
corner, extent = torch.rand(20, 2) * 200 - 40, torch.rand(20, 2) * 150 - 10
rois = torch.cat([torch.randint(0, images, (20, 1)).float(), corner, corner + extent], 1)
rois[0, 1:] = torch.tensor([-1e30, -1e30, 1e30, 1e30])
rois[1, 3] = torch.nan
rois[2] = torch.tensor([1, 0, 0, 184, 160])  # a bin of more cells than a block keeps
levels = torch.randint(-1, 3, (20,))
levels[2] = 0
# Channels in whole vectors and not, fewer than one, more than a block's; bins in one tile and in two.
sizes = [(16, [3, 4]), (5, [3, 4]), (2, [1, 2]), (40, [17, 5]), (9, [2, 18])]
regions = [('none', 2), ('none', 0), ('round', None), ('round', 2), ('floor', None), ('bins', None)]
methods = [(*region, reduction) for region in regions for reduction in ('avg', 'max')]
methods += [('none', None, 'integral')]
upright = [{}, {'seed': torch.tensor([7])}]
angles = torch.rand(20, 1) * 720 - 360
rotated = torch.cat([rois[:, :1], corner + extent / 2, extent.abs(), angles], 1)
rotated[0, 1:5] = torch.tensor([90, 70, 1e30, 1e30])
rotated[1, 5] = torch.nan
single = [
    *[(('none', ratio, reduction), {'rois': rotated, **seed})
      for ratio in (2, 3, 0) for reduction in ('avg', 'max') for seed in upright],
    (('none', None, 'integral'), {'rois': rotated}),
    *[(('none', ratio, 'avg'), {'offsets': 0.2, **seed}) for ratio in (2, 0) for seed in upright],
    *[(method, {'position_sensitive': True})
      for method in (('none', 2, 'avg'), ('none', None, 'integral'), ('round', None, 'avg'))],
]
methods = [(method, {}) for method in methods] + [
    (method, upright[1]) for method in methods if method[1] is not None] + single
cases = itertools.product(
    methods, (torch.float32, torch.bfloat16, torch.float64),
    (torch.contiguous_format, torch.channels_last), (False, True))
count = 0
for case, (channels, size), aligned in zip(
        cases, itertools.cycle(sizes), itertools.cycle((True, False, False, True, True))):
    (((region, ratio, reduction), given), dtype, layout, deterministic) = case
    torch.use_deterministic_algorithms(deterministic)
    sensitive = given.get('position_sensitive', False)
    options = (scales, size, region, ratio, reduction, aligned, 1, None, sensitive)
    boxes, offsets, seed = given.get('rois', rois), given.get('offsets'), given.get('seed')
    if offsets is not None:
        offsets = torch.randn(len(boxes), 2, *size) * offsets
        offsets[3, 0, 0, 0] = torch.inf
    where = (boxes, levels, offsets, seed)
    channels = min(channels, 2) * size[0] * size[1] if sensitive else channels
    features = [torch.randn(images, channels, *s).to(dtype).relu() for s in shapes]
    features = [f.contiguous(memory_format=layout) for f in features]
    output, winner = forward(features, *where, *options)
    expected, expected_winner = reference.extract(features, *where, *options)
    tolerance = dict(rtol=2e-2, atol=2e-2) if dtype == torch.bfloat16 else dict(rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output, expected, equal_nan=True, **tolerance)
    assert output.stride() == expected.stride()
    if dtype != torch.bfloat16:  # its few digits make near ties, which rounding decides
        assert torch.equal(winner, expected_winner)
    grad = torch.randn_like(output)
    flat = [images, channels, *[n for s in shapes for n in s]]
    last = layout == torch.channels_last
    grads = backward(grad, winner, *where, flat, last, *options)
    expected = reference.extract_backward(grad, winner, *where, flat, last, *options)
    for got, want in zip(grads, expected):
        torch.testing.assert_close(got, want, **tolerance)
        assert got.stride() == want.stride()
    if not deterministic and (boxes.shape[1] == 5 or reduction != 'integral'):
        got = backward_rois(grad, winner, features, *where, *options)
        want = reference.extract_backward_rois(grad, winner, features, *where, *options)
        # Of half precision some sums are large. The first box is beyond all claims, the third on kinks.
        tolerance = dict(rtol=5e-2, atol=5e-1) if dtype == torch.bfloat16 else dict(rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(got[0][[1, *range(3, 20)]], want[0][[1, *range(3, 20)]], **tolerance)
        torch.testing.assert_close(got[1][3:], want[1][3:], **tolerance)
    if deterministic:
        broken = grad.clone()
        broken[5, 0, 0, 0] = torch.inf
        assert any(g.isnan().any() for g in backward(broken, winner, *where, flat, last, *options))
        zeros = backward(grad * 0, winner, *where, flat, last, *options)
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
    assert run.stdout.strip() == f'{(6 * 2 + 1 + 3 * 2 + 20) * 3 * 2 * 2} cases agree'


@pytest.mark.parametrize(
    ('arch', 'cuda', 'vector'),
    [(750, 13000, False), (860, 13000, False), (900, 11080, False), (900, 12000, False),
     (900, 12010, True), (1200, 13000, True)],
)  # fmt: skip
def test_four_floats_are_added_whatever_the_code_is_compiled_for(arch, cuda, vector):
    """As one vector from 9.0 and CUDA 12.1 on, whose headers have it first; else one by one."""
    defines = ['-D__CUDACC__', f'-D__CUDA_ARCH__={arch}', f'-DCUDART_VERSION={cuda}']
    command = [os.environ.get('CXX', 'c++'), '-E', '-P', '-x', 'c++', *defines, str(CSRC / 'cuda/atomics.h')]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    body = text[text.index('add_four') : text.index('struct FloatingSum')]
    assert ('float4' in body) == vector
    assert body.count('atomicAdd') == (1 if vector else 4)
