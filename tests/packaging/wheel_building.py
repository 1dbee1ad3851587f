"""Builds wheels of the checkout as pip does, in a copy of it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def copy_sources(source):
    """What a build needs, but for the sources of the kernels, into a new folder; returns it."""
    ignored = shutil.ignore_patterns('*.so', 'csrc', '__pycache__')
    for name in ('roi_plugins', 'configs'):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ('setup.py', 'setup.cfg', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, source)
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
