"""The loops of each instruction set compute the same, down to the bits of a conversion."""

import os
import subprocess
import sys

import pytest

CAPABILITIES = {'default': 'DEFAULT', 'avx2': 'AVX2', 'avx512': 'AVX512'}

# Each RoI reads one cell, or the average of two neighbours, so that a result is known to the last bit.
CHECK = """
import itertools, torch
from roi_plugins.ops import extension_is_loaded, roi_extract
from roi_plugins.ops.reference import memory_format

assert extension_is_loaded()
print(torch.backends.cpu.get_cpu_capability())

def cells(values, channels_last, width):
    features = values.reshape(1, -1, 1, 2).contiguous(memory_format=memory_format(channels_last))
    rois = torch.tensor([[0.0, 0.0, 0.0, width, 1.0]])
    return roi_extract(features, rois, 1, 1.0, region='none', sampling_ratio=1, aligned=True)

for dtype, channels_last in itertools.product((torch.float16, torch.bfloat16), (True, False)):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    # 2**16 channels, then numbers of channels that leave vectors, half vectors and single channels over.
    for values in (every, every[:2 * 37], every[-2 * 61:]):
        pairs = torch.stack([values, values.flip(0)], dim=1)
        found = cells(pairs, channels_last, 1.0)
        assert torch.equal(torch.nan_to_num(found.flatten(), 7), torch.nan_to_num(values, 7))
        found = cells(pairs, channels_last, 2.0)
        wanted = pairs.float().mul(0.5).sum(1).to(dtype)
        assert torch.equal(torch.nan_to_num(found.flatten(), 7), torch.nan_to_num(wanted, 7))
"""


@pytest.mark.parametrize('capability', CAPABILITIES)
def test_half_types_are_read_and_rounded_as_torch_does(capability):
    run = subprocess.run(
        [sys.executable, '-c', CHECK],
        capture_output=True,
        text=True,
        env={**os.environ, 'ATEN_CPU_CAPABILITY': capability},
    )
    if run.stdout.split()[:1] != [CAPABILITIES[capability]]:
        pytest.skip(f'this processor has no {capability}')
    assert run.returncode == 0, run.stderr


SUMS = """
import hashlib, itertools, torch
from cases import random_map, random_rois
from roi_plugins.ops import roi_extract

print(torch.backends.cpu.get_cpu_capability())
digest = hashlib.sha256()
for dtype, reduction in itertools.product((torch.float32, torch.float64, torch.bfloat16), ('avg', 'max')):
    features = random_map(2, 77, 20, 24, dtype=dtype).requires_grad_()
    output = roi_extract(features, random_rois(40, 2, 20, 24), 7, 1.0, reduction=reduction)
    (grad,) = torch.autograd.grad(output.square().sum(), features)
    digest.update(output.detach().double().numpy().tobytes() + grad.double().numpy().tobytes())
print(digest.hexdigest())
"""


def test_wider_vectors_give_the_same_bits():
    found = {}
    for capability in ('avx2', 'avx512'):
        run = subprocess.run(
            [sys.executable, '-c', SUMS],
            capture_output=True,
            text=True,
            cwd=os.path.dirname(__file__),
            env={**os.environ, 'ATEN_CPU_CAPABILITY': capability},
        )
        assert run.returncode == 0, run.stderr
        name, digest = run.stdout.split()
        found[name] = digest
    if found.keys() != {'AVX2', 'AVX512'}:
        pytest.skip('this processor has no avx512')
    assert len(set(found.values())) == 1


@pytest.mark.parametrize('capability', ['default', 'avx2'])
def test_the_suite_of_cases_passes_with_fewer_instructions(capability):
    run = subprocess.run(
        [
            sys.executable,
            '-m',
            'pytest',
            '-q',
            '-x',
            '-p',
            'no:cacheprovider',
            'test_parity.py',
            'test_oracle.py',
        ],
        capture_output=True,
        text=True,
        cwd=os.path.dirname(__file__),
        env={**os.environ, 'ATEN_CPU_CAPABILITY': capability},
    )
    assert run.returncode == 0, run.stdout[-3000:]
