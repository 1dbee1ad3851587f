"""What an installation does where something is missing, and that no library is loaded that another torch was
built for. The kernels are left out of it: a stub in their place compiles in no time.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest
import torch
from wheel_building import build, copy_sources

from roi_plugins import __version__
from roi_plugins.ops import library

pytestmark = pytest.mark.slow

RELEASE = '.'.join(torch.__version__.split('.')[:2])
HERE = f'torch {RELEASE}' + ('' if torch.compiled_with_cxx11_abi() else ' (pre-cxx11 ABI)')
STUB = '__attribute__((used)) const char stub[] = "{}"; void missing(); void f() {{ missing(); }}'
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get('CXX', 'c++')) is None, reason='there is no C++ compiler'
)


@pytest.fixture
def source(tmp_path):
    """A checkout with a stub for the kernels."""
    source = copy_sources(tmp_path / 'source')
    csrc = source / 'roi_plugins/ops/csrc'
    csrc.mkdir()
    (csrc / 'op.cpp').write_text(STUB.format(f'roi_plugins for {HERE}'))
    return source


def has_extension(wheel):
    return 'roi_plugins/ops/_C.so' in zipfile.ZipFile(wheel).namelist()


@needs_compiler
def test_a_wheel_says_its_torch_and_serves_every_python(source):
    _, wheel = build(source, ROI_PLUGINS_REQUIRE_EXTENSION='1')
    platform = sysconfig.get_platform().replace('-', '_').replace('.', '_')
    assert wheel.name == f'roi_plugins-{__version__}+torch{RELEASE}-py3-none-{platform}.whl'
    assert has_extension(wheel)
    (metadata,) = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith('METADATA'))
    assert f'Requires-Dist: torch=={RELEASE}.*\n' in zipfile.ZipFile(wheel).read(metadata).decode()


@pytest.mark.parametrize('missing', ['compiler', 'torch'])
def test_without_what_the_op_is_built_with(source, tmp_path, missing):
    if missing == 'torch':
        (tmp_path / 'torch.py').write_text('raise ImportError("No module named torch")')
        environ, reason = {'PYTHONPATH': str(tmp_path)}, 'torch cannot be imported here'
    else:
        environ, reason = {'CXX': 'no-such-compiler'}, 'there is no C++ compiler (no-such-compiler)'
    said, wheel = build(source, **environ)
    assert reason in said and 'pip install --no-build-isolation .' in said
    assert wheel.name == f'roi_plugins-{__version__}-py3-none-any.whl'
    assert not has_extension(wheel)
    wheel.unlink()
    said, wheel = build(source, ROI_PLUGINS_REQUIRE_EXTENSION='1', **environ)
    assert wheel is None and f'ROI_PLUGINS_REQUIRE_EXTENSION=1, but {reason}' in said


def test_where_the_op_does_not_compile(source):
    said, wheel = build(source, CXX='false')
    assert 'roi_plugins: it did not compile' in said
    assert not has_extension(wheel)


@pytest.fixture
def toolkit(source, tmp_path, monkeypatch):
    """A CUDA toolkit: an nvcc of some release that knows some architectures, and compiles by a command; by
    default, the C++ compiler.
    """
    (source / 'roi_plugins/ops/csrc/cuda').mkdir()
    (source / 'roi_plugins/ops/csrc/cuda/kernels.cu').write_text('int kernels() { return 0; }')
    root = tmp_path / 'toolkit'
    (root / 'bin').mkdir(parents=True)
    (root / 'lib64').mkdir()
    compiler = os.environ.get('CXX', 'c++')
    for library_ in ('c10_cuda', 'torch_cuda', 'cudart'):
        command = [compiler, '-shared', '-x', 'c++', '/dev/null', '-o', root / f'lib64/lib{library_}.so']
        subprocess.run(command, check=True)

    def make(release, archs, compile_=f'exec {compiler} -x c++ -fPIC -c "$source" -o "$object"'):
        (root / 'bin' / 'nvcc').write_text(f"""#!/bin/sh
case " $* " in
  *" --dryrun "*) echo "#\\$ TOP={root}" >&2 ;;
  *" --version "*) echo "Cuda compilation tools, release {release}, V{release}.0" ;;
  *" --list-gpu-arch "*) printf 'compute_%s\\n' {archs} ;;
  *)
    echo "$*" >>{root}/calls
    for word; do
      case "$word" in *.cu) source=$word ;; *.o) object=$word ;; esac
    done
    {compile_} ;;
esac
""")
        (root / 'bin' / 'nvcc').chmod(0o755)

    # Of what the build asks torch, only what this test is about: whether there is a card.
    (tmp_path / 'card').mkdir()
    (tmp_path / 'card' / 'sitecustomize.py').write_text("""
import os
card = os.environ.get('TEST_CARD')
if card:
    import torch.cuda
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1
    torch.cuda.get_device_capability = lambda i=0: tuple(map(int, card.split('.')))
    torch.cuda.get_device_name = lambda i=0: 'a card'
""")
    monkeypatch.setenv('PYTHONPATH', str(tmp_path / 'card'))
    monkeypatch.setenv('CUDA_HOME', str(root))
    monkeypatch.delenv('TORCH_CUDA_ARCH_LIST', raising=False)
    return make


CUDA = torch.version.cuda or '0.0'
needs_cuda_torch = pytest.mark.skipif(torch.version.cuda is None, reason='this torch is a build without CUDA')


def calls(tmp_path):
    """What nvcc was asked to generate."""
    text = (tmp_path / 'toolkit' / 'calls').read_text()
    return re.findall(r'-gencode=arch=compute_(\w+),code=(\w+)', text)


@needs_compiler
@needs_cuda_torch
@pytest.mark.parametrize(
    ('nvcc', 'environ', 'reason'),
    [
        (None, {}, 'no nvcc was found.*; install the toolkit of CUDA .* CUDA_HOME='),
        (('9.2', '60 70'), {}, f'torch was built for CUDA {CUDA}, and the nvcc in .* is of 9.2; install'),
        ((CUDA, '80 90'), {'TORCH_CUDA_ARCH_LIST': '6.1;8.0 99.0+PTX'},
         f'TORCH_CUDA_ARCH_LIST asks for 6.1, 99.0\\+PTX, and nvcc {CUDA} knows 8.0, 9.0; list some'),
        ((CUDA, '80 90'), {'TORCH_CUDA_ARCH_LIST': 'Volta'}, 'asks for Volta, and nvcc'),
        ((CUDA, '80 90'), {'TEST_CARD': '7.0'},
         f'the card here, a card, has compute capability 7.0, and nvcc {CUDA} knows 8.0, 9.0; install'),
        ((CUDA, '80 90', 'echo unsupported host compiler >&2; exit 1'), {},
         'for 8.0, 9.0\\+PTX they did not compile .*, build again with ROI_PLUGINS_CUDA=1'),
    ],
    ids=['no nvcc', 'an old nvcc', 'an unknown arch', 'a name', 'an old card', 'a failed compilation'],
)  # fmt: skip
def test_where_cuda_kernels_cannot_be_built(source, toolkit, nvcc, environ, reason):
    """The CPU's are built, and one sentence says why and what helps; a build that needs the others ends."""
    if nvcc:
        toolkit(*nvcc)
    said, wheel = build(source, ROI_PLUGINS_CUDA='', **environ)
    sentences = re.findall('^roi_plugins: .*', said, re.MULTILINE)
    assert len(sentences) == 1 and re.search(f'building without CUDA kernels: .*{reason}', sentences[0]), said
    assert has_extension(wheel)
    wheel.unlink()
    said, wheel = build(source, ROI_PLUGINS_CUDA='1', **environ)
    assert wheel is None
    assert 'ROI_PLUGINS_CUDA=1, but' in said or 'unsupported host compiler' in said


@needs_compiler
@needs_cuda_torch
@pytest.mark.parametrize(
    ('archs', 'environ', 'generated'),
    [
        ('75 80 86 87 89 90 100 120 121', {}, '75 80 86 90 100 120+'),
        ('70 75 80 86 90', {}, '75 80 86 90+'),
        ('75 80 86 90', {'TORCH_CUDA_ARCH_LIST': '8.0;8.6+PTX'}, '80 86+'),
        ('75 80 86 90', {'TORCH_CUDA_ARCH_LIST': '9.0a'}, '90a'),
        ('75 80 86 90', {'TEST_CARD': '8.6'}, '86'),
        ('75 80 86 90', {'TEST_CARD': '8.9'}, '86'),
        ('75 80 86 90', {'TEST_CARD': '12.0'}, '90+'),
        ('75 80 86 90', {'TEST_CARD': '8.6', 'ROI_PLUGINS_REQUIRE_EXTENSION': '1'}, '75 80 86 90+'),
    ],
    ids=['all', 'an older toolkit', 'a list', 'one arch alone', 'a card', 'its major version', 'a newer card',
         'a wheel'],
)  # fmt: skip
def test_the_cards_that_the_kernels_are_built_for(source, toolkit, tmp_path, archs, environ, generated):
    toolkit(CUDA, archs)
    said, wheel = build(source, ROI_PLUGINS_CUDA='1', **environ)
    expected = []
    for arch in generated.split():
        number = arch.rstrip('+')
        expected.append((number, f'sm_{number}'))
        if arch.endswith('+'):
            expected.append((number, f'compute_{number}'))
    assert wheel and calls(tmp_path) == expected, said
    major = CUDA.split('.')[0]
    assert (f'+torch{RELEASE}.cu{major}-' in wheel.name) == ('ROI_PLUGINS_REQUIRE_EXTENSION' in environ)


@pytest.mark.parametrize(
    ('text', 'named'),
    [
        (HERE, None),
        (f'{HERE} with CUDA {CUDA.split(".")[0]} for 7.5,12.0+PTX', None),
        ('torch 1.0', 'torch 1.0'),
        (f'torch {RELEASE}9', f'torch {RELEASE}9'),
        (f'{HERE} with CUDA 9 for 7.5', f'{HERE} with CUDA 9'),
        ('nothing', 'another torch'),
    ],
)
def test_a_library_says_its_torch(tmp_path, monkeypatch, text, named):
    if 'CUDA 0' in text:
        pytest.skip('this torch is a build without CUDA')
    file = tmp_path / '_C.so'
    file.write_bytes(b'\x7fELF\0roi_plugins for ' + text.encode() + b'\0\0')
    monkeypatch.setattr(library, '_EXTENSION', file)
    build = library._Build.read()
    assert named == (None if build and build.is_for_this_torch() else str(build or 'another torch'))
    if '12.0' in text:
        assert build.cards == ['7.5', '12.0+PTX']


def test_the_library_in_use_says_its_cards():
    """The sources' own words, which the stubs above only repeat."""
    build = library._Build.read()
    assert build.is_for_this_torch()
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    assert bool(build.cards) == has_kernel('roi_plugins::roi_extract', 'CUDA')


@pytest.mark.parametrize(
    ('cards', 'served', 'not_served'),
    [
        ('8.0 8.6', [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0), (12, 0)]),
        ('8.6', [(8, 9)], [(8, 0)]),
        ('8.6+PTX', [(8, 6), (9, 0), (12, 0)], [(7, 5), (8, 0)]),
        ('9.0a+PTX', [(9, 0)], [(10, 0)]),
        ('10.0f', [(10, 0), (10, 3)], [(12, 0)]),
        ('7.5 12.0+PTX', [(7, 5), (12, 0), (12, 1), (13, 0)], [(7, 0), (8, 0), (10, 0)]),
    ],
)
def test_a_card_that_the_kernels_do_not_serve_is_named(monkeypatch, cards, served, not_served):
    here = [*served, *not_served]
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: len(here))
    monkeypatch.setattr(torch.cuda, 'get_device_capability', here.__getitem__)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda index: f'card {index}')
    with pytest.warns(UserWarning) as record:
        library._warn_of_cards(library._Build(HERE, '13', cards.split()))
    said = [str(warning.message) for warning in record]
    assert len(said) == len(not_served)
    for index, text in enumerate(said, len(served)):
        assert f'cuda:{index}: card {index} has compute capability {here[index][0]}.{here[index][1]}' in text
        assert ', '.join(cards.split()) in text and 'ROI_PLUGINS_CUDA=1 pip install' in text


@needs_compiler
def test_a_library_of_another_torch_is_not_loaded(source):
    ops = source / 'roi_plugins' / 'ops'
    (ops / 'stub.cpp').write_text(STUB.format('roi_plugins for torch 1.0'))
    compiler = os.environ.get('CXX', 'c++')
    subprocess.run([compiler, '-shared', '-fPIC', 'stub.cpp', '-o', '_C.so'], cwd=ops, check=True)
    program = (
        'import torch; from roi_plugins.ops import extension_is_loaded, roi_extract; '
        'assert not extension_is_loaded(); '
        'print(roi_extract(torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 2, 2]]), 1, 1.0).item())'
    )
    run = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, cwd=source)
    assert (run.returncode, run.stdout) == (0, '1.0\n'), run.stderr
    assert run.stderr.count('Warning') == 1 and 'undefined symbol' not in run.stderr
    assert f'it was built for torch 1.0, and this is torch {torch.__version__}; build it again' in run.stderr
    assert 'pip install --no-build-isolation' in run.stderr
