#!/usr/bin/env python
"""Builds the wheel for one torch, and tries it in an empty environment: `python tools/wheels.py`.

The wheel works with every Python, so `--python` builds it and `--use-python` may be another one that tries
it. It needs uv (`pip install uv`), which finds the Pythons; `PYENV_VERSION=3.11.7:3.12.1` and the like select
those of pyenv.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETUPTOOLS = 'setuptools<81'

USE = """
import torch
from roi_plugins.ops import extension_is_loaded, roi_extract
assert extension_is_loaded()
features = torch.arange(64.0).reshape(1, 1, 8, 8).requires_grad_()
output = roi_extract(features, torch.tensor([[0.0, 1, 1, 5, 5]]), 2, 1.0)
output.sum().backward()
assert output.flatten().tolist() == [13.5, 15.5, 29.5, 31.5] and features.grad.sum() == 4
print('works with torch', torch.__version__)
"""


def run(*command, **options):
    subprocess.run([str(part) for part in command], check=True, **options)


def environment(path, python, *requirements):
    """Makes a virtual environment with these requirements, and returns its interpreter."""
    run('uv', 'venv', '--quiet', '--clear', '--python', python, path)
    install(path, *requirements)
    return Path(path) / 'bin' / 'python'


def install(path, *arguments):
    run('uv', 'pip', 'install', '--quiet', '--python', path, *arguments)


def copy_sources(folder):
    """Copies what a build needs, without the library of an earlier build, which may be for another torch."""
    for name in ('setup.py', 'setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, folder)
    ignored = shutil.ignore_patterns('*.so', '__pycache__')
    for name in ('roi_plugins', 'configs'):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)


def build_wheel(interpreter, out):
    """Builds the wheel for the torch of an interpreter, and returns its path in the folder ``out``."""
    with tempfile.TemporaryDirectory(prefix='roi_plugins_wheel_') as folder:
        source, built = Path(folder) / 'source', Path(folder) / 'built'
        source.mkdir()
        copy_sources(source)
        run(
            *('uv', 'build', '--quiet', '--wheel', '--no-build-isolation', '--python', interpreter),
            *('--out-dir', built, source),
            # ninja is in the folder of the interpreter
            env={
                **os.environ,
                'ROI_PLUGINS_REQUIRE_EXTENSION': '1',
                'PATH': f'{interpreter.parent}{os.pathsep}{os.environ["PATH"]}',
            },
        )
        (wheel,) = built.glob('*.whl')
        out.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(wheel, out))


def main(argv=None):
    pinned = next(x for x in (ROOT / 'requirements.txt').read_text().split() if x.startswith('torch=='))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--torch', default=pinned[7:], help='release of torch; default: %(default)s')
    parser.add_argument('--python', default='3.11', help='builds the wheel; default: %(default)s')
    parser.add_argument('--use-python', default='3.11', help='uses the wheel; default: %(default)s')
    parser.add_argument('--out', type=Path, default=ROOT / 'dist', help='default: %(default)s')
    args = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory(prefix='roi_plugins_wheel_') as folder:
            interpreter = environment(
                f'{folder}/build', args.python, f'torch=={args.torch}', 'numpy', SETUPTOOLS, 'ninja'
            )
            wheel = build_wheel(interpreter, args.out)
            # The wheel requires its torch itself.
            interpreter = environment(f'{folder}/use', args.use_python, wheel, 'numpy')
            run(interpreter, '-W', 'error', '-c', USE, cwd=folder)
    except FileNotFoundError as error:
        sys.exit(f'wheel: {error.filename} was not found; uv is on the package index: pip install uv')
    except subprocess.CalledProcessError as error:
        sys.exit(f'wheel: this failed, see above: {" ".join(error.cmd)}')
    print(wheel)


if __name__ == '__main__':
    main()
