"""`make gpu` where there is no card, and with one that a stand-in for Python pretends to see."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
STEPS = [
    *('about', 'build', 'smoke', 'graphs', 'test', 'memcheck', 'racecheck', 'synccheck', 'initcheck'),
    *('benchmark', 'ncu', 'train', 'scaling'),
]


def gpu(out, *steps, **environ):
    command = ['bash', ROOT / 'tools' / 'gpu.sh', out, *steps]
    environ = {**os.environ, 'PYTHON': sys.executable, **environ}
    return subprocess.run(command, capture_output=True, text=True, env=environ)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a card')
def test_every_step_names_what_is_missing(tmp_path):
    run = gpu(tmp_path / 'out')
    lines = run.stdout.splitlines()
    assert run.returncode == 1 and [line.split()[0] for line in lines[:-1]] == STEPS
    assert all(re.search(r'left out +0 s  torch .* sees no CUDA GPU', line) for line in lines[:-1])
    assert f'0 ok, 0 failed, {len(STEPS)} left out' in lines[-1]
    assert (tmp_path / 'out' / 'summary.txt').read_text() == run.stdout
    assert all('sees no CUDA GPU' in (tmp_path / 'out' / f'{step}.log').read_text() for step in STEPS)


@pytest.fixture
def pretender(tmp_path):
    """A Python that sees a card, and whose smoke test fails."""
    python = tmp_path / 'bin' / 'python'
    python.parent.mkdir()
    python.write_text("""#!/bin/sh
case "$*" in
  *kernel_check*) echo "1 of 2 cases agree"; exit 1 ;;
  *"import detectron2"*) exit 1 ;;
  *test_cuda_graphs*) echo "7 passed" ;;
esac
""")
    python.chmod(0o755)
    return str(python)


def test_a_step_that_fails_does_not_stop_the_next(tmp_path, pretender):
    run = gpu(tmp_path / 'out', 'smoke', 'graphs', 'train', PYTHON=pretender)
    smoke, graphs, train, last = run.stdout.splitlines()
    assert re.fullmatch(r'smoke +failed +\d+ s  1 of 2 cases agree', smoke)
    assert re.fullmatch(r'graphs +ok +\d+ s  7 passed', graphs)
    assert re.fullmatch(r'train +left out +0 s  Python module detectron2.modeling cannot be imported', train)
    assert run.returncode == 1 and last.startswith('1 ok, 1 failed, 1 left out')
    assert (tmp_path / 'out' / 'smoke.log').read_text() == '1 of 2 cases agree\n'
    again = gpu(tmp_path / 'out', 'graphs', PYTHON=pretender)
    assert again.returncode == 0
    assert (tmp_path / 'out' / 'summary.txt').read_text() == run.stdout + again.stdout


def test_a_python_that_is_not_there_is_named(tmp_path):
    run = gpu(tmp_path, 'smoke', PYTHON='no-such-python')
    assert run.returncode == 1 and re.search(r'left out .* no-such-python does not run', run.stdout)


def test_an_unknown_step_is_named(tmp_path, pretender):
    run = gpu(tmp_path, 'smok', PYTHON=pretender)
    assert run.returncode == 1
    assert f'there is no such step; the steps are: {" ".join(STEPS)}' in run.stdout


def test_out_is_asked_for():
    run = subprocess.run(['bash', ROOT / 'tools' / 'gpu.sh'], capture_output=True, text=True)
    assert run.returncode == 2 and 'usage: tools/gpu.sh OUT [STEP ...]' in run.stderr
