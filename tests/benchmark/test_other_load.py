"""Whether other processes disturb a measurement."""

import subprocess
import sys
import time

import pytest

from roi_plugins.benchmark.other_load import OtherLoad, warning


def record(others, threads=2, device='cpu', cores=2):
    cases = [{'name': name, 'other_cores': load} for name, load in others.items()]
    return {'machine': {'cores': cores}, 'threads': threads, 'device': device, 'cases': cases}


def test_cores_that_the_op_needed_are_warned_of():
    text = warning(record({'one': 1.0, 'two': 0.05, 'three': 0.42, 'four': None}))
    assert 'kept up to 1.0 of 2 cores busy, and the op runs on 2' in text
    assert text.endswith('idle machine: one, three')
    assert warning(record({'one': 0.05, 'two': None})) is None
    assert warning(record({'one': 0.05}, threads=4)) is None  # more threads than cores


def test_of_many_a_few_are_named():
    text = warning(record({str(number): 1.0 for number in range(9)}))
    assert text.endswith('idle machine: 0, 1, 2, 3, 4 and 4 more of 9')


def test_cores_that_the_op_left_to_others_are_not():
    assert warning(record({'one': 1.0}, threads=1)) is None
    assert warning(record({'one': 1.0}, device='cuda')) is None


def test_results_from_before_it_was_watched_have_no_warning():
    old = record({})
    old['cases'] = [{'name': 'one'}]
    assert warning(old) is None


@pytest.mark.skipif(OtherLoad().cores() is None, reason='the system does not tell')
def test_other_processes_are_seen_and_this_one_is_not_counted():
    def load(call):
        watch = OtherLoad()
        call()
        return watch.cores()

    def spin():
        end = time.perf_counter() + 0.7
        while time.perf_counter() < end:
            pass

    busy = 'import time\nend = time.perf_counter() + 0.7\nwhile time.perf_counter() < end: pass'
    # Others may be busy too, so this compares.
    assert load(lambda: subprocess.run([sys.executable, '-c', busy])) > load(spin) + 0.2
