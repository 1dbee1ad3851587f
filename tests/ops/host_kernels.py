"""The CUDA kernels' source compiled as C++, in the CPU kernels' place: `csrc/cuda/launch.h` gives way to
`cuda_on_host/cuda/launch.h`, which runs an OS thread for each CUDA thread.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from torch.utils import cpp_extension

HERE = Path(__file__).resolve().parent
OPS = HERE.parents[1] / 'roi_plugins' / 'ops'
CSRC = OPS / 'csrc'


def compiler():
    return os.environ.get('CXX', 'c++')


def build(root: Path, *flags: str) -> Path:
    """A copy of the package in `root` whose library has the CUDA kernels in the CPU kernels' place."""
    ops = root / 'roi_plugins' / 'ops'
    ops.mkdir(parents=True)
    (ops.parent / '__init__.py').touch()
    for source in (*OPS.glob('*.py'), OPS / 'schemas.inc'):
        shutil.copy(source, ops)
    command = [
        compiler(),
        *('-std=c++20', '-O1', '-fPIC', '-shared', '-pthread', '-ffp-contract=off', '-Wno-unknown-pragmas'),
        *flags,
        *('-Dforward_cpu=forward_cuda', '-Dbackward_cpu=backward_cuda'),
        '-Dbackward_rois_cpu=backward_rois_cuda',
        f'-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}',
        *(f'-I{HERE / "cuda_on_host"}', f'-I{CSRC}'),
        *(f'-isystem{path}' for path in cpp_extension.include_paths()),
        *('-x', 'c++', *map(str, (*sorted(CSRC.glob('*.cpp')), *sorted(CSRC.glob('cuda/*.cu'))))),
        *(f'-L{path}' for path in cpp_extension.library_paths()),
        *('-lc10', '-ltorch_cpu', '-o', str(ops / '_C.so')),
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    return root


def check(root: Path, *arguments: str, wrapper=(), **environ: str) -> subprocess.CompletedProcess:
    """Runs `kernel_check.py` with what `build` made, in a process where that takes the package's place."""
    environ = {**os.environ, 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1', **environ}
    command = [*wrapper, sys.executable, str(HERE / 'kernel_check.py'), '--device', 'cpu', *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environ, cwd=root)
