"""The CUDA kernels on the host under the thread sanitizer. `make sanitize` has it see every case."""

import os
import subprocess
from pathlib import Path

import pytest
from host_kernels import build, check, compiler


def runtime():
    """The sanitizer's library, which has to be there before Python; the compiler's, or only its name."""
    command = [compiler(), '-print-file-name=libtsan.so']
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path(runtime()).is_absolute(), reason='the C++ compiler has no thread sanitizer'),
]


@pytest.fixture(scope='module')
def package(tmp_path_factory):
    return build(tmp_path_factory.mktemp('cuda_on_host'), '-g1', '-fsanitize=thread')


def sanitized(package, *arguments, **environ):
    options = 'halt_on_error=1:exitcode=66'
    return check(package, *arguments, LD_PRELOAD=runtime(), TSAN_OPTIONS=options, **environ)


def test_no_races(package):
    every = 1 if os.environ.get('ROI_PLUGINS_ALL_CASES') == '1' else 13
    run = sanitized(package, '--every', str(every))
    assert run.returncode == 0, run.stderr[:5000]
    count = -(-624 // every) + 4
    assert run.stdout.strip() == f'{count} of {count} cases agree'


@pytest.mark.parametrize('missing', ['0', '1'], ids=['the first', 'the second'])
def test_a_missing_barrier_would_be_found(package, missing):
    run = sanitized(package, MISSING_BARRIER=missing)
    assert run.returncode == 66 and 'ThreadSanitizer: data race' in run.stderr, run.stderr[:5000]
