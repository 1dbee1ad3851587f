"""Builds the extension of the shared op and puts the configs into the wheel; the metadata is in setup.cfg.

The library is registered through TORCH_LIBRARY and holds no Python symbol, so one build serves every
Python of a given torch: the wheel is tagged `py3-none-PLATFORM`. It is optional: without torch or a
compiler the package installs all the same and `roi_plugins.ops` falls back, audibly, to its pure-PyTorch
reference.

Environment:
    ROI_PLUGINS_CUDA  `0` leaves the CUDA kernels out, `1` makes their absence an error; by default they are
        built where an nvcc of torch's CUDA major version is found, and left out where they do not compile.
    TORCH_CUDA_ARCH_LIST  the compute capabilities to build them for, by number: `8.6 9.0+PTX`. If unset,
        those of the cards that torch sees here; where it sees none, the list of a wheel, `CARDS`.
    CUDA_HOME  the CUDA toolkit; that of the nvcc on the path if unset.
    ROI_PLUGINS_REQUIRE_EXTENSION  `1` is for wheels: a failed build of the op, or of the CUDA kernels where
        they are built, is an error; they are for `CARDS` whatever card is here; the version ends in the torch
        it was built for (`+torch2.11`, with CUDA kernels `+torch2.11.cu13`), and that torch is required.
    ROI_PLUGINS_CXXFLAGS  further flags for the C++ compiler, after ours: those of a sanitizer, say.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # before setuptools 70.1
    try:
        from wheel.bdist_wheel import bdist_wheel
    except ImportError:
        sys.exit("roi_plugins: setuptools is too old here; with pip install -U 'setuptools<81' it installs.")

CSRC = Path('roi_plugins/ops/csrc')
CONFIGS = Path('configs')
# From T4 and RTX 20 to Blackwell; a later card compiles the PTX of the last. Cut to what nvcc knows.
CARDS = ['7.5', '8.0', '8.6', '9.0', '10.0', '12.0']
REQUIRED = os.environ.get('ROI_PLUGINS_REQUIRE_EXTENSION') == '1'
CUDA_REQUIRED = os.environ.get('ROI_PLUGINS_CUDA') == '1'


class BuildPy(build_py):
    """Puts configs, plans and trunk into a wheel as ``roi_plugins/configs``; a checkout has them beside."""

    def run(self):
        super().run()
        if not getattr(self, 'editable_mode', False):
            # An earlier build may have left others.
            shutil.rmtree(Path(self.build_lib, 'roi_plugins', CONFIGS), ignore_errors=True)
            for source, target in self._configs():
                self.mkpath(os.path.dirname(target))
                self.copy_file(source, target)

    def get_outputs(self, include_bytecode=True):
        return super().get_outputs(include_bytecode) + [target for _, target in self._configs()]

    def get_output_mapping(self):
        return {**super().get_output_mapping(), **{target: source for source, target in self._configs()}}

    def _configs(self):
        folder = Path(self.build_lib, 'roi_plugins')
        files = [path for path in sorted(CONFIGS.rglob('*')) if path.suffix in ('.py', '.yaml', '.pth')]
        if not files:
            sys.exit(f'roi_plugins: the configs are missing: there is none in {CONFIGS.resolve()}.')
        return [(str(path), str(folder / path)) for path in files]


class NoCuda(Exception):
    """Why the CUDA kernels cannot be built, and what would help."""


def say(sentence):
    print(f'roi_plugins: {sentence}', file=sys.stderr)


def output_of(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


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


def toolkit(torch):
    """Root and release of the CUDA toolkit that goes with this torch."""
    if torch.version.cuda is None:
        raise NoCuda('this torch is a build without CUDA; install one with it')
    major = torch.version.cuda.split('.')[0]
    help_ = f'install the toolkit of CUDA {major} and name it: CUDA_HOME=/path/to/it'
    home = cuda_home()
    if home is None:
        raise NoCuda(f'no nvcc was found in CUDA_HOME or on the path; {help_}')
    release = re.search(r'release (\d+\.\d+)', output_of(f'{home}/bin/nvcc', '--version')).group(1)
    if release.split('.')[0] != major:
        raise NoCuda(
            f'torch was built for CUDA {torch.version.cuda}, and the nvcc in {home} is of {release}; {help_}'
        )
    return home, release


def number(card):
    """(8, 6) of `8.6`, `8.6+PTX`; (9, 0) of `9.0a`; None of anything else."""
    match = re.fullmatch(r'(\d+)\.(\d)[af]?(\+PTX)?', card)
    return match and (int(match.group(1)), int(match.group(2)))


def cards_for(torch, home, release):
    """The compute capabilities to compile for, as in TORCH_CUDA_ARCH_LIST."""
    listed = re.findall(r'compute_(\d+)(\d)\b', output_of(f'{home}/bin/nvcc', '--list-gpu-arch'))
    known = sorted((int(major), int(minor)) for major, minor in listed)
    knows = f'nvcc {release} knows {", ".join(f"{major}.{minor}" for major, minor in known)}'
    wanted = re.split('[ ;]+', os.environ.get('TORCH_CUDA_ARCH_LIST', '').strip(' ;'))
    if wanted != ['']:
        unknown = [card for card in wanted if number(card) not in known]
        if unknown:
            raise NoCuda(
                f'TORCH_CUDA_ARCH_LIST asks for {", ".join(unknown)}, and {knows}; list some of those, or '
                'install a toolkit that knows it'
            )
        return wanted
    if REQUIRED or not torch.cuda.is_available():
        cards = [card for card in CARDS if number(card) in known]
        return [*cards[:-1], cards[-1] + '+PTX']
    here = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    cards = []
    for card in sorted(here):
        nearest = max((k for k in known if k <= card), default=None)
        if nearest:  # runs what is compiled for its own major version; else it compiles the PTX
            cards.append('{}.{}'.format(*nearest) + ('' if nearest[0] == card[0] else '+PTX'))
    if not cards:
        raise NoCuda(
            f'the card here, {torch.cuda.get_device_name()}, has compute capability '
            f'{".".join(map(str, max(here)))}, and {knows}; install a torch and a toolkit of an older CUDA'
        )
    return cards


def cuda_cards(torch):
    """What to compile the CUDA kernels for; nothing where they are left out, and then it says why."""
    if os.environ.get('ROI_PLUGINS_CUDA') == '0':
        return []
    try:
        home, release = toolkit(torch)
        cards = cards_for(torch, home, release)
    except NoCuda as reason:
        if CUDA_REQUIRED:
            sys.exit(f'roi_plugins: ROI_PLUGINS_CUDA=1, but {reason}.')
        say(f'building without CUDA kernels: {reason}.')
        return []
    os.environ['CUDA_HOME'] = home
    return cards


def without_extension(reason):
    """Ends a build that requires the extension; else says why the package will be without, for `setup`."""
    if REQUIRED:
        sys.exit(f'roi_plugins: ROI_PLUGINS_REQUIRE_EXTENSION=1, but {reason}.')
    say(
        f'{reason}, so the compiled op is not built and the slow reference will be used. '
        "When that is mended: pip install -U 'setuptools<81' && pip install --no-build-isolation ."
    )
    return {'cmdclass': {'build_py': BuildPy}}


def built_for(torch, with_cuda):
    """Version and requirement of a build that is good for one torch alone."""
    version = re.search(r"__version__ = '(.+)'", Path('roi_plugins/__init__.py').read_text()).group(1)
    release = '.'.join(torch.__version__.split('.')[:2])
    cuda = f'.cu{torch.version.cuda.split(".")[0]}' if with_cuda else ''
    return {'version': f'{version}+torch{release}{cuda}', 'install_requires': [f'torch=={release}.*']}


def gencode(cards):
    """nvcc's flags for some cards. They are ours, because torch knows only those of its own time."""
    flags = []
    for card in cards:
        arch = card.removesuffix('+PTX').replace('.', '')
        flags.append(f'-gencode=arch=compute_{arch},code=sm_{arch}')
        if card.endswith('+PTX'):
            flags.append(f'-gencode=arch=compute_{arch},code=compute_{arch}')
    return flags


def extension():
    """Keyword arguments of `setup` for the extension; none where it cannot be built."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: of a library that torch itself lacks
        return without_extension(f'torch cannot be imported here ({error})')
    compiler = os.environ.get('CXX', 'c++')
    if shutil.which(shlex.split(compiler)[0]) is None:
        return without_extension(f'there is no C++ compiler ({compiler})')
    cards = cuda_cards(torch)  # before cpp_extension is imported: it reads CUDA_HOME then
    from torch.utils import cpp_extension

    def module(cards):
        """The extension, with CUDA kernels for some cards or for none."""
        # Contraction off: geometry must round as the contract says on every target; the accumulation loops
        # ask for fused multiply-adds themselves.
        # No -std: torch adds that of its headers, C++17 or C++20.
        flags = {'cxx': ['-O3', '-g0', '-ffp-contract=off', '-Wall', '-Wno-psabi']}
        # at::parallel_for is compiled in here, and runs serially without. The runtime is not linked: it must
        # be the one that torch has loaded, or two pools of threads would fight for the cores.
        flags['cxx'].append('-fopenmp')
        flags['cxx'] += shlex.split(os.environ.get('ROI_PLUGINS_CXXFLAGS', ''))
        sources = [*sorted(CSRC.glob('*.cpp')), *sorted(CSRC.glob('cpu/*.cpp'))]
        build = cpp_extension.CppExtension
        if cards:
            flags['cxx'].append(f'-DROI_PLUGINS_WITH_CUDA={torch.version.cuda.split(".")[0]}')
            flags['cxx'].append(f'-DROI_PLUGINS_CARDS={",".join(cards)}')
            flags['nvcc'] = ['-O3', '--fmad=false', '--expt-relaxed-constexpr', *gencode(cards)]
            sources += sorted(CSRC.glob('cuda/*.cu'))
            build = cpp_extension.CUDAExtension
        return build(
            'roi_plugins.ops._C',
            [str(source) for source in sources],
            include_dirs=[str(CSRC.resolve())],
            depends=[str(CSRC.parent / 'schemas.inc'), *map(str, CSRC.rglob('*.h'))],
            extra_compile_args=flags,
            optional=True,
        )

    class BuildOp(cpp_extension.BuildExtension):
        def build_extensions(self):
            (extension,) = self.extensions
            extension.optional = False  # or distutils would keep what failed to itself
            try:
                super().build_extensions()
            except Exception as error:
                if REQUIRED or (cards and CUDA_REQUIRED):
                    raise
                if cards:
                    say(
                        f'building without CUDA kernels: for {", ".join(cards)} they did not compile (the '
                        'compiler says why, above); when that is mended, build again with ROI_PLUGINS_CUDA=1.'
                    )
                    cards.clear()
                    vars(extension).update(vars(module(cards)))
                    self.build_extensions()
                else:
                    without_extension(f'it did not compile ({error})')
            extension.optional = True

    class Wheel(bdist_wheel):
        def get_tag(self):
            return 'py3', 'none', super().get_tag()[2]

    build_ext = BuildOp.with_options(no_python_abi_suffix=True)
    return {
        'ext_modules': [module(cards)],
        'cmdclass': {'build_py': BuildPy, 'build_ext': build_ext, 'bdist_wheel': Wheel},
        **(built_for(torch, bool(cards)) if REQUIRED else {}),
    }


setup(**extension())
