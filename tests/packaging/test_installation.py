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
from pathlib import Path

import pytest
import torch

from roi_plugins import __version__
from roi_plugins.ops import library

ROOT = Path(__file__).resolve().parents[2]
RELEASE = '.'.join(torch.__version__.split('.')[:2])
HERE = f'torch {RELEASE}' + ('' if torch.compiled_with_cxx11_abi() else ' (pre-cxx11 ABI)')
STUB = '__attribute__((used)) const char stub[] = "{}"; void missing(); void f() {{ missing(); }}'
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get('CXX', 'c++')) is None, reason='there is no C++ compiler'
)


@pytest.fixture
def source(tmp_path):
    """A checkout with a stub for the kernels."""
    source = tmp_path / 'source'
    ignored = shutil.ignore_patterns('*.so', 'csrc', '__pycache__')
    shutil.copytree(ROOT / 'roi_plugins', source / 'roi_plugins', ignore=ignored)
    for name in ('setup.py', 'setup.cfg', 'pyproject.toml', 'README.md'):
        shutil.copy(ROOT / name, source)
    csrc = source / 'roi_plugins/ops/csrc'
    csrc.mkdir()
    (csrc / 'op.cpp').write_text(STUB.format(f'roi_plugins for {HERE}'))
    return source


def build(source, **environ):
    """What is said while pip's hook builds the wheel, and the wheel, if there is one."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith('ROI_PLUGINS_')}
    run = subprocess.run(
        [sys.executable, '-c', 'from setuptools.build_meta import build_wheel as build; build("..")'],
        capture_output=True,
        text=True,
        cwd=source,
        env={**inherited, 'ROI_PLUGINS_CUDA': '0', **environ},
    )
    wheels = list(source.parent.glob('*.whl'))
    assert (run.returncode == 0) == bool(wheels), run.stderr[-3000:]
    return run.stdout + run.stderr, wheels[0] if wheels else None


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


@needs_compiler
@pytest.mark.skipif(torch.version.cuda is None, reason='this torch is a build without CUDA')
@pytest.mark.parametrize(
    ('nvcc', 'reason'),
    [
        (None, 'no nvcc was found'),
        ('echo "#\\$ TOP=$(dirname "$0")/.." >&2; echo release 9.2, V9.2', 'nvcc in .* is another major'),
    ],
    ids=['no nvcc', 'an old nvcc'],
)
def test_without_the_cuda_toolkit_of_torch(source, tmp_path, nvcc, reason):
    toolkit = tmp_path / 'toolkit'
    (toolkit / 'bin').mkdir(parents=True)
    if nvcc:
        (toolkit / 'bin' / 'nvcc').write_text(f'#!/bin/sh\n{nvcc}\n')
        (toolkit / 'bin' / 'nvcc').chmod(0o755)
    said, wheel = build(source, ROI_PLUGINS_CUDA='', CUDA_HOME=str(toolkit))
    assert re.search(f'building without CUDA kernels: .*{reason}', said), said
    assert has_extension(wheel)
    wheel.unlink()
    said, wheel = build(source, ROI_PLUGINS_CUDA='1', CUDA_HOME=str(toolkit))
    assert wheel is None and 'ROI_PLUGINS_CUDA=1, but' in said


@pytest.mark.parametrize(
    ('text', 'named'),
    [
        (HERE, None),
        (f'{HERE} with CUDA {(torch.version.cuda or "none").split(".")[0]}', None),
        ('torch 1.0', 'torch 1.0'),
        (f'torch {RELEASE}9', f'torch {RELEASE}9'),
        (f'{HERE} with CUDA 9', f'{HERE} with CUDA 9'),
        ('nothing', 'another torch'),
    ],
)
def test_a_library_says_its_torch(tmp_path, monkeypatch, text, named):
    if named is None and 'none' in text:
        pytest.skip('this torch is a build without CUDA')
    file = tmp_path / '_C.so'
    file.write_bytes(b'\x7fELF\0roi_plugins for ' + text.encode() + b'\0\0')
    monkeypatch.setattr(library, '_EXTENSION', file)
    assert library._built_for_another_torch() == named


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
