"""Builds the extension of the shared op; the metadata is in setup.cfg.

The library is registered through TORCH_LIBRARY and holds no Python symbol, so one build serves every
Python of a given torch: the wheel is tagged `py3-none-PLATFORM`. It is optional: without torch or a
compiler the package installs all the same and `roi_plugins.ops` falls back, audibly, to its pure-PyTorch
reference.

Environment:
    ROI_PLUGINS_CUDA  `0` leaves the CUDA kernels out, `1` makes their absence an error; by default
        they are built where an nvcc of torch's CUDA major version is found.
    ROI_PLUGINS_REQUIRE_EXTENSION  `1` makes a failed build of the op an error; the version then ends in
        the torch it was built for (`+torch2.11`, with CUDA kernels `+torch2.11.cu13`), and that torch is
        required.
    CUDA_HOME  the CUDA toolkit; that of the nvcc on the path if unset.
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

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # before setuptools 70.1
    try:
        from wheel.bdist_wheel import bdist_wheel
    except ImportError:
        sys.exit("roi_plugins: setuptools is too old here; with pip install -U 'setuptools<81' it installs.")

CSRC = Path('roi_plugins/ops/csrc')
REQUIRED = os.environ.get('ROI_PLUGINS_REQUIRE_EXTENSION') == '1'


def cuda_home():
    """The toolkit root that nvcc itself reports: the nvcc on the path may be a wrapper script."""
    if 'CUDA_HOME' in os.environ:
        path = os.path.join(os.environ['CUDA_HOME'], 'bin')
    else:
        path = os.pathsep.join([os.environ.get('PATH', ''), '/usr/local/cuda/bin'])
    nvcc = shutil.which('nvcc', path=path)
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
        reason = 'no nvcc was found in CUDA_HOME or on the path'
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


def without_extension(reason):
    """Ends a build that requires the extension; else says why the package will be without."""
    if REQUIRED:
        sys.exit(f'roi_plugins: ROI_PLUGINS_REQUIRE_EXTENSION=1, but {reason}.')
    print(
        f'roi_plugins: {reason}, so the compiled op is not built and the slow reference will be used. '
        "When that is mended: pip install -U 'setuptools<81' && pip install --no-build-isolation .",
        file=sys.stderr,
    )
    return {}


def built_for(torch, with_cuda):
    """Version and requirement of a build that is good for one torch alone."""
    version = re.search(r"__version__ = '(.+)'", Path('roi_plugins/__init__.py').read_text()).group(1)
    release = '.'.join(torch.__version__.split('.')[:2])
    cuda = f'.cu{torch.version.cuda.split(".")[0]}' if with_cuda else ''
    return {'version': f'{version}+torch{release}{cuda}', 'install_requires': [f'torch=={release}.*']}


def extension():
    """Keyword arguments of `setup` for the extension; none where it cannot be built."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: of a library that torch itself lacks
        return without_extension(f'torch cannot be imported here ({error})')
    compiler = os.environ.get('CXX', 'c++')
    if shutil.which(shlex.split(compiler)[0]) is None:
        return without_extension(f'there is no C++ compiler ({compiler})')
    with_cuda = cuda_wanted(torch)  # before cpp_extension is imported: it reads CUDA_HOME then
    from torch.utils import cpp_extension

    # Contraction off: geometry must round as the contract says on every target; the accumulation loops
    # ask for fused multiply-adds themselves.
    # No -std: torch adds that of its headers, C++17 or C++20.
    flags = {'cxx': ['-O3', '-g0', '-ffp-contract=off', '-Wall', '-Wno-psabi']}
    # at::parallel_for is compiled in here, and runs serially without. The runtime is not linked: it must
    # be the one that torch has loaded, or two pools of threads would fight for the cores.
    flags['cxx'].append('-fopenmp')
    flags['cxx'] += shlex.split(os.environ.get('ROI_PLUGINS_CXXFLAGS', ''))
    sources = [CSRC / 'op.cpp', *sorted(CSRC.glob('cpu/*.cpp'))]
    build = cpp_extension.CppExtension
    if with_cuda:
        os.environ.setdefault('TORCH_CUDA_ARCH_LIST', '8.0;9.0+PTX')
        flags['cxx'].append(f'-DROI_PLUGINS_WITH_CUDA={torch.version.cuda.split(".")[0]}')
        flags['nvcc'] = ['-O3', '--fmad=false', '--expt-relaxed-constexpr']
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
                if REQUIRED:
                    raise
                without_extension(f'it did not compile ({error})')

    class Wheel(bdist_wheel):
        def get_tag(self):
            return 'py3', 'none', super().get_tag()[2]

    build_ext = BuildOp.with_options(no_python_abi_suffix=True)
    return {
        'ext_modules': [module],
        'cmdclass': {'build_ext': build_ext, 'bdist_wheel': Wheel},
        **(built_for(torch, with_cuda) if REQUIRED else {}),
    }


setup(**extension())
