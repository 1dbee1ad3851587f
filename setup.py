"""Builds the extension of the shared op; the metadata is in setup.cfg.

The library is registered through TORCH_LIBRARY and holds no Python symbol, so one build serves every
Python of a given torch. It is optional: without torch or a compiler the package installs all the same
and `roi_plugins.ops` falls back, audibly, to its pure-PyTorch reference.

Environment:
    ROI_PLUGINS_CUDA  `0` leaves the CUDA kernels out, `1` makes their absence an error; by default
        they are built where an nvcc of torch's CUDA major version is found.
    ROI_PLUGINS_REQUIRE_EXTENSION  `1` makes a failed build of the op an error.
    ROI_PLUGINS_CXXFLAGS  further flags for the C++ compiler, after ours: those of a sanitizer, say.
    TORCH_CUDA_ARCH_LIST  as for every torch extension; `8.0;9.0+PTX` if unset.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

CSRC = Path('roi_plugins/ops/csrc')


def cuda_home():
    """The toolkit root that nvcc itself reports: the nvcc on the path may be a wrapper script."""
    nvcc = shutil.which('nvcc') or shutil.which('nvcc', path='/usr/local/cuda/bin')
    if nvcc is None:
        return None
    probe = subprocess.run([nvcc, '--dryrun', '-c', 'any.cu'], capture_output=True, text=True)
    top = re.search(r'^#\$ TOP=(.+)$', probe.stderr, re.MULTILINE)
    return os.path.realpath(top.group(1)) if top else None


def cuda_wanted(torch):
    """Whether to build the CUDA kernels; says why not."""
    choice = os.environ.get('ROI_PLUGINS_CUDA')
    if choice == '0':
        return False
    home = cuda_home()
    if torch.version.cuda is None:
        reason = 'this torch is a build without CUDA'
    elif home is None:
        reason = 'no nvcc was found on the path'
    else:
        version = subprocess.run(
            [f'{home}/bin/nvcc', '--version'], capture_output=True, text=True, check=True
        ).stdout
        release = re.search(r'release (\d+)\.', version)
        if release and release.group(1) == torch.version.cuda.split('.')[0]:
            os.environ['CUDA_HOME'] = home
            return True
        reason = f'torch was built for CUDA {torch.version.cuda}, nvcc in {home} is another major'
    if choice == '1':
        sys.exit(f'roi_plugins: ROI_PLUGINS_CUDA=1, but {reason}.')
    print(f'roi_plugins: building without CUDA kernels: {reason}.', file=sys.stderr)
    return False


def extension():
    """Keyword arguments of `setup` for the extension; none where it cannot be built."""
    try:
        import torch
    except ImportError:
        print(
            'roi_plugins: torch is not importable here, so the compiled op is not built and the slow '
            'reference will be used. Install torch first, then: pip install --no-build-isolation .',
            file=sys.stderr,
        )
        return {}
    with_cuda = cuda_wanted(torch)  # before cpp_extension is imported: it reads CUDA_HOME then
    from torch.utils import cpp_extension

    # Contraction off: geometry must round as the contract says on every target; the accumulation loops
    # ask for fused multiply-adds themselves.
    flags = {'cxx': ['-O3', '-g0', '-std=c++17', '-ffp-contract=off', '-Wall', '-Wno-psabi']}
    # at::parallel_for is compiled in here, and runs serially without. The runtime is not linked: it must
    # be the one that torch has loaded, or two pools of threads would fight for the cores.
    flags['cxx'].append('-fopenmp')
    flags['cxx'] += shlex.split(os.environ.get('ROI_PLUGINS_CXXFLAGS', ''))
    sources = [CSRC / 'op.cpp', *sorted(CSRC.glob('cpu/*.cpp'))]
    build = cpp_extension.CppExtension
    if with_cuda:
        os.environ.setdefault('TORCH_CUDA_ARCH_LIST', '8.0;9.0+PTX')
        flags['cxx'].append('-DROI_PLUGINS_WITH_CUDA')
        flags['nvcc'] = ['-O3', '-std=c++17', '--fmad=false', '--expt-relaxed-constexpr']
        sources += sorted(CSRC.glob('cuda/*.cu'))
        build = cpp_extension.CUDAExtension
    module = build(
        'roi_plugins.ops._C',
        [str(source) for source in sources],
        include_dirs=[str(CSRC.resolve())],
        depends=[str(header) for header in CSRC.rglob('*.h')],
        extra_compile_args=flags,
    )
    module.optional = True

    class BuildOp(cpp_extension.BuildExtension):
        def build_extensions(self):
            try:
                super().build_extensions()
            except Exception as error:
                if os.environ.get('ROI_PLUGINS_REQUIRE_EXTENSION') == '1':
                    raise
                print(
                    f'roi_plugins: the compiled op could not be built ({error}), so the slow reference '
                    'will be used. With a C++17 compiler: pip install --no-build-isolation .',
                    file=sys.stderr,
                )

    build_ext = BuildOp.with_options(no_python_abi_suffix=True)
    return {'ext_modules': [module], 'cmdclass': {'build_ext': build_ext}}


setup(**extension())
