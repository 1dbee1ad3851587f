"""The comparison with an earlier benchmark, on made-up samples."""

import json

import numpy as np
import pytest
import torch

from roi_plugins.benchmark.cases import FORWARD
from roi_plugins.benchmark.record import start_record, write_record
from roi_plugins.commands import benchmark
from roi_plugins.files import DataError

against = pytest.importorskip('roi_plugins.benchmark.against', reason='matplotlib or tabulate is missing')

MACHINE = start_record(torch.device('cpu'), False)
PEER = 'torchvision.ops.roi_align'


def case(ours, peer=1.0, name='one', noise=0.02, rounds=12, seed=0, neighbour=()):
    """A case of the op in both layouts and of a peer; the neighbour slows both in some of the rounds."""
    generator = np.random.default_rng(seed)
    slow = np.ones(rounds)
    slow[list(neighbour)] = 3

    def measurement(name, layout, seconds, repeat):
        samples = seconds * slow[:, None] * np.exp(noise * generator.normal(size=(rounds, repeat)))
        return {'name': name, 'layout': layout, 'dtype': 'float32', 'variant': '', 'floor_seconds': None,
                'peak_bytes': None, 'synchronises': None, 'seconds': samples.ravel().tolist()}  # fmt: skip

    return {
        'name': name, 'step': FORWARD, 'copy_bytes_per_second': None, 'targets': [], 'left_out': {},
        'command': 'the command',
        'measurements': [
            measurement('roi_plugins', 'channels_last', 0.1, 20), measurement('roi_plugins', 'NCHW', ours, 5),
            *([measurement(PEER, 'NCHW', peer, 1)] if peer else []),
        ],
    }  # fmt: skip


def record(*cases, **changes):
    return {**MACHINE, 'cases': list(cases), **changes}


def verdicts(now, before):
    rows = against.compare(record(now), record(before), ['one'])
    return {row['ours'].split()[0]: row['verdict'] for row in rows}


@pytest.mark.parametrize(
    'ours, verdict',
    [(0.1, 'alike'), (0.107, 'alike'), (0.13, 'slower'), (0.07, 'faster')],
)
def test_a_change_beyond_noise_and_tolerance_is_called(ours, verdict):
    assert verdicts(case(ours, seed=1), case(0.1)) == {'channels_last': 'alike', 'NCHW': verdict}


def test_a_change_within_noise_is_left_open():
    assert verdicts(case(0.115, noise=0.5, seed=1), case(0.1))['NCHW'] == 'open'
    # Noise of the earlier run counts as well.
    assert verdicts(case(0.115, seed=1), case(0.1, noise=0.5))['NCHW'] == 'open'


def test_the_speed_of_the_machine_cancels():
    twice = case(0.2, peer=2.0, seed=1)
    twice['measurements'][0]['seconds'] = [2 * s for s in twice['measurements'][0]['seconds']]
    assert verdicts(twice, case(0.1)) == {'channels_last': 'alike', 'NCHW': 'alike'}


def test_a_neighbour_that_slows_some_of_the_rounds_is_no_change():
    disturbed = case(0.1, seed=1, neighbour=range(7))
    assert verdicts(disturbed, case(0.1)) == {'channels_last': 'alike', 'NCHW': 'alike'}


def test_equal_kernels_are_rarely_called_slower():
    called = [verdicts(case(0.1, noise=0.15, seed=2 * s), case(0.1, noise=0.15, seed=2 * s + 1))['NCHW']
              for s in range(100)]  # fmt: skip
    assert called.count('slower') <= 3 and called.count('faster') <= 3


def test_few_rounds_are_compared_too():
    assert verdicts(case(0.3, rounds=1, seed=1), case(0.1, rounds=3))['NCHW'] == 'slower'


def test_a_ratio_that_is_gone_is_named_and_no_ratio_at_all_is_an_error():
    before = record(case(0.1), case(0.1, name='two'))
    rows = against.compare(record(case(0.1)), before, ['one', 'two'])
    assert [row['verdict'] for row in rows] == ['alike', 'alike', 'not measured', 'not measured']
    text = against.to_markdown(record(case(0.1)), before, rows)
    lines = [' '.join(line.split()) for line in text.splitlines()]
    assert any(line.startswith(f'| one | {PEER} | NCHW float32 |') for line in lines)
    assert any(line.endswith('| | not measured |') for line in lines)
    with pytest.raises(DataError, match='no ratio to compare'):
        against.compare(record(case(0.1, peer=None)), before, ['one', 'two'])


def test_what_else_changed_is_said():
    earlier = record(case(0.1), kernels='sha256 earlier')
    earlier['versions'] = {**earlier['versions'], 'mmcv': '0.0.1'}
    now = record(case(0.1))
    text = against.to_markdown(now, earlier, against.compare(now, earlier, ['one']))
    assert f'sha256 earlier before, {now["kernels"]} now' in text
    assert 'and was 0.0.1' in text


def test_a_run_that_others_disturbed_is_said():
    now = record(case(0.1) | {'other_cores': 1.0}, threads=MACHINE['machine']['cores'])
    rows = against.compare(now, record(case(0.1)), ['one'])
    assert '- Now: **Disturbed**' in against.to_markdown(now, record(case(0.1)), rows)
    assert '- Before: **Disturbed**' in against.to_markdown(record(case(0.1)), now, rows)


@pytest.mark.parametrize(
    'change, message',
    [
        ({'machine': {'cpu': 'Other', 'instructions': 'SSE', 'gpu': None}}, 'was measured on Other with SSE'),
        ({'machine': {'cpu': 'Host', 'instructions': 'AVX2', 'gpu': 'H100'}}, 'H100 and Host with AVX2'),
        ({'threads': 77}, 'threads 77, now .*; give --threads 77'),
        ({'large_pages': True}, 'set THP_MEM_ALLOC_ENABLE=1'),
        ({'device': 'cuda'}, 'give --device cuda'),
    ],
)
def test_other_machines_and_settings_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        against.check_comparable(record(), {**record(), **change}, 'DIR')


def test_other_versions_and_kernels_are_compared():
    against.check_comparable(record(), record(kernels='other', versions={}, quick=True), 'DIR')


@pytest.fixture
def tool(monkeypatch, tmp_path):
    """The tool, whose measurements are made up, and a directory with an earlier benchmark."""
    earlier = tmp_path / 'earlier'
    write_record(record(case(0.1), case(0.1, name='gone')), earlier)
    measured = []

    def run(*arguments, now=0.1):
        def measure(name):
            return lambda: measured.append(name) or case(now, name=name, seed=1)

        monkeypatch.setattr(benchmark, '_case_measures', lambda *_: {n: measure(n) for n in ('one', 'two')})
        return benchmark.main(['--device', 'cpu', '--against', str(earlier), *arguments])

    return run, earlier, measured


def test_the_tool_exits_with_1_if_something_is_slower(tool, capsys):
    run, _, measured = tool
    assert run() == 0
    assert measured == ['one']  # neither what the earlier benchmark lacks, nor what is no case any more
    printed = capsys.readouterr().out
    assert printed.count('| alike') == 2 and printed.count('| not measured') == 2
    assert run(now=0.2) == 1
    assert '| slower' in capsys.readouterr().out


def test_the_tool_keeps_the_new_results_and_compares_them_again(tool, tmp_path, capsys):
    run, _, measured = tool
    out = tmp_path / 'out'
    assert run('--out', str(out), now=0.2) == 1
    kept = json.loads((out / 'benchmark.json').read_text())
    assert [case['name'] for case in kept['cases']] == ['one']
    assert (out / 'benchmark.md').exists() and (out / 'benchmark.png').exists()
    first = capsys.readouterr().out
    assert run('--out', str(out)) == 1
    assert measured == ['one']
    assert capsys.readouterr().out.splitlines()[-4:] == first.splitlines()[-4:]


def test_the_tool_refuses_before_it_measures(tool, tmp_path, capsys):
    run, earlier, measured = tool
    assert run('--cases', 'two') == 2
    assert 'has no results of two; it has one, gone' in capsys.readouterr().err
    write_record(record(case(0.1), threads=77), earlier)
    assert run() == 2
    assert 'give --threads 77' in capsys.readouterr().err
    (earlier / 'benchmark.json').unlink()
    assert run() == 2
    for arguments in (['--growth'], ['--render', str(tmp_path)], ['--out', str(earlier)]):
        with pytest.raises(SystemExit):
            run(*arguments)
    assert measured == []
