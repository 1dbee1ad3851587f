"""How cost grows, on tiny points: what is measured, left out and kept. How fast anything is, is no test."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from roi_plugins.benchmark import growth
from roi_plugins.benchmark.cases import BACKWARD, FORWARD, MMCV_ROI_ALIGN, ROI_ALIGN
from roi_plugins.benchmark.measure import LAYOUTS, OURS
from roi_plugins.benchmark.record import start_record
from roi_plugins.commands import benchmark

try:
    from roi_plugins.benchmark import growth_report
except ModuleNotFoundError:  # a bare machine with a GPU runs these tests too
    growth_report = None
needs_report = pytest.mark.skipif(growth_report is None, reason='matplotlib or tabulate is not installed')

CPU = torch.device('cpu')
STEPS = (FORWARD, BACKWARD)


def point(dimension, value, step, seconds, left_out=(), peak_bytes=2**20):
    """A point in which contenders took some seconds: (name, layout) -> seconds."""
    return {
        'name': f'{dimension}-{value}-{step}', 'dimension': dimension, 'value': value, 'step': step,
        'targets': [], 'copy_bytes_per_second': None, 'left_out': dict(left_out), 'command': 'the command',
        'measurements': [
            {'name': name, 'layout': layout, 'dtype': 'float32', 'variant': '', 'seconds': [s, s / 2, 2 * s],
             'floor_seconds': 1.0, 'peak_bytes': peak_bytes, 'synchronises': None}
            for (name, layout), s in seconds.items()
        ],
    }  # fmt: skip


@pytest.fixture
def fake(monkeypatch):
    """Instead of a measurement: gives the cases that were asked for, and torch's threads at that time."""
    asked = []

    def measure_case(case, device, effort):
        asked.append((case, torch.get_num_threads()))
        contenders = [(OURS, layout) for layout in LAYOUTS] + [(peer, 'NCHW') for peer in case.peers]
        seconds = dict.fromkeys(contenders, 1e-6 * case.num_rois * case.output_size**2)
        return point('', 0, case.step, seconds) | {'name': case.name}

    monkeypatch.setattr(growth, 'measure_case', measure_case)
    return asked


@pytest.mark.parametrize('step', STEPS)
def test_a_point_differs_from_the_base_in_one_dimension(step):
    base = replace(growth.make_case('channels', 256, step), name='')
    assert (base.num_rois, base.channels, base.output_size) == (512, 256, 7)
    assert base.map_shapes == [(1, 256, 64, 64)]
    expected = {
        'rois': lambda value: replace(base, num_rois=value, channels=16),
        'channels': lambda value: replace(base, channels=value),
        'map': lambda value: replace(base, image_size=(16 * value, 16 * value)),
        'output': lambda value: replace(base, output_size=value),
        'threads': lambda value: base,
    }
    assert set(expected) == set(growth.DIMENSIONS)
    for dimension, change in expected.items():
        for value in growth.DIMENSIONS[dimension].values:
            assert replace(growth.make_case(dimension, value, step), name='') == change(value)


def test_no_output_and_no_map_takes_more_than_a_gigabyte():
    for dimension, what in growth.DIMENSIONS.items():
        case = growth.make_case(dimension, what.values[-1], FORWARD)
        ((images, channels, height, width),) = case.map_shapes
        output = case.num_rois * case.channels * case.output_size**2
        assert 4 * max(output, images * channels * height * width) < 2**30, dimension


def test_threads_grow_to_twice_the_cores_and_are_no_dimension_of_a_gpu(monkeypatch):
    for cores, numbers in ((1, (1, 2)), (2, (1, 2, 4)), (6, (1, 2, 4, 6, 12)), (8, (1, 2, 4, 8, 16))):
        monkeypatch.setattr(growth.os, 'cpu_count', lambda cores=cores: cores)
        assert growth._thread_numbers() == numbers
    assert 'threads-1-forward' in growth.growth_measures(CPU, [])
    on_gpu = growth.growth_measures(torch.device('cuda'), [])
    assert 'rois-1-forward' in on_gpu and not any(name.startswith('threads') for name in on_gpu)


def test_threads_are_set_around_a_point_and_restored(fake, monkeypatch):
    before = torch.get_num_threads()
    record = growth.measure_point('threads', before + 1, FORWARD, CPU, [])
    assert (record['dimension'], record['value']) == ('threads', before + 1)
    growth.measure_point('channels', 16, FORWARD, CPU, [])
    assert [threads for _, threads in fake] == [before + 1, before]

    def fails(case, device, effort):
        raise RuntimeError

    monkeypatch.setattr(growth, 'measure_case', fails)
    with pytest.raises(RuntimeError):
        growth.measure_point('threads', before + 1, FORWARD, CPU, [])
    assert torch.get_num_threads() == before


def test_a_slow_peer_is_left_out_at_larger_points_of_its_dimension_and_step(fake):
    slow = 3 * growth.LIMIT
    done = [
        point('rois', 10, FORWARD, {(OURS, 'NCHW'): slow, (ROI_ALIGN, 'NCHW'): slow}),
        # The faster of its layouts counts.
        point('rois', 10, FORWARD, {(MMCV_ROI_ALIGN, 'NCHW'): slow, (MMCV_ROI_ALIGN, 'channels_last'): 0.1}),
    ]
    record = growth.measure_point('rois', 30, FORWARD, CPU, done)
    assert record['left_out'] == {ROI_ALIGN: 'took 3.0 s at rois-10-forward, over the limit of 1 s'}
    assert {m['name'] for m in record['measurements']} == {OURS, *growth.GROWTH_PEERS} - {ROI_ALIGN}
    for other in (('rois', 3, FORWARD), ('rois', 10, FORWARD), ('rois', 30, BACKWARD), ('map', 32, FORWARD)):
        assert growth.measure_point(*other, CPU, done)['left_out'] == {}


@pytest.mark.parametrize('step', STEPS)
def test_a_tiny_point_is_measured(step, monkeypatch):
    monkeypatch.setattr(growth, 'ROUNDS', 1)
    tiny = replace(growth.DIMENSIONS['output'], change=lambda case, value: replace(
        case, output_size=value, num_rois=4, channels=2, image_size=(64, 64)))  # fmt: skip
    monkeypatch.setitem(growth.DIMENSIONS, 'output', tiny)
    record = growth.measure_point('output', 2, step, CPU, [])
    contenders = [(m['name'], m['layout']) for m in record['measurements']]
    assert contenders[:3] == [(OURS, 'channels_last'), (OURS, 'NCHW'), (ROI_ALIGN, 'NCHW')]
    assert record['name'] == f'output-2-{step}'
    json.dumps(record, allow_nan=False)


@needs_report
def test_the_page_has_a_table_for_each_dimension_and_says_what_is_left_out():
    ours, peer = (OURS, 'NCHW'), (ROI_ALIGN, 'NCHW')
    cases = [
        point('rois', 100_000, FORWARD, {ours: 0.25}, {ROI_ALIGN: 'slow', MMCV_ROI_ALIGN: 'not installed'}),
        point('rois', 1, FORWARD, {ours: 1e-3, peer: 2e-3}, {MMCV_ROI_ALIGN: 'not installed'}),
        point('rois', 1, BACKWARD, {ours: 3e-3}, {MMCV_ROI_ALIGN: 'not installed'}, peak_bytes=None),
        point('output', 7, BACKWARD, {ours: 5e-3}, {MMCV_ROI_ALIGN: 'not installed'}),
    ]
    record = {**start_record(CPU, False), 'cases': cases}
    lines = [' '.join(line.split()) for line in growth_report.to_markdown(record).splitlines()]
    assert lines.index('## By RoIs (16 channels)') < lines.index('## By bins per side of the output')
    assert '| | what ran | 1 | 100,000 |' in lines
    assert '| forward time, ms | roi_plugins NCHW | 1 | 250 |' in lines
    assert '| forward time, ms | torchvision.ops.roi_align NCHW | 2 | |' in lines
    assert '| backward time, ms | roi_plugins NCHW | 3 | |' in lines
    assert '| forward memory, MiB | roi_plugins NCHW | 1 | 1 |' in lines
    assert f'- {MMCV_ROI_ALIGN}: not installed (left out: all points)' in lines
    assert f'- {ROI_ALIGN}: slow (left out: rois-100000-forward)' in lines
    for value in range(2, 7):
        cases.append(point('rois', value, FORWARD, {ours: 1e-3}, {ROI_ALIGN: 'slow'}))
    assert '(left out: 6 points, from rois-100000-forward to rois-6-forward)' in growth_report.to_markdown(
        record
    )
    del cases[4:]
    assert '- Command: `the command`' in lines

    figure = growth_report.plot_growth(record)
    assert len(figure.axes) == 4 * 2
    (line, peer_line) = figure.axes[0].get_lines()
    assert list(line.get_xdata()) == [1, 100_000] and list(line.get_ydata()) == [1, 250]
    assert list(peer_line.get_xdata()) == [1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        'roi_plugins NCHW', 'torchvision.ops.roi_align NCHW',
    ]  # fmt: skip


@needs_report
def test_the_tool_goes_on_where_it_stopped(fake, tmp_path, capsys, monkeypatch):
    tool = partial(benchmark.main, prog='tools/benchmark.py')
    arguments = ['--growth', '--device', 'cpu', '--cases', 'rois-1*', 'output-*', '--out', str(tmp_path)]

    def interrupted(case, device, effort):
        raise KeyboardInterrupt

    measure_case = growth.measure_case
    monkeypatch.setattr(growth, 'measure_case', lambda *args: (interrupted if fake else measure_case)(*args))
    with pytest.raises(KeyboardInterrupt):
        tool(arguments)
    kept = json.loads((tmp_path / 'growth.json').read_text())
    assert [case['name'] for case in kept['cases']] == ['rois-1-forward']

    monkeypatch.setattr(growth, 'measure_case', measure_case)
    assert tool(arguments) == 0
    printed = capsys.readouterr()
    assert 'rois-1-forward: already measured' in printed.err
    record = json.loads((tmp_path / 'growth.json').read_text())
    assert record['cases'][0] == kept['cases'][0]
    assert len(record['cases']) == 2 * (6 + len(growth.DIMENSIONS['output'].values))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['growth.json', 'growth.md', 'growth.png']
    assert (tmp_path / 'growth.md').read_text().startswith(printed.out)
    assert tool(['--growth', '--render', str(tmp_path)]) == 0
    assert capsys.readouterr().out == printed.out

    threads = str(torch.get_num_threads() + 1)
    before = torch.get_num_threads()
    try:
        assert tool([*arguments, '--threads', threads]) == 2
    finally:
        torch.set_num_threads(before)
    assert 'another threads' in capsys.readouterr().err


@needs_report
def test_the_tool_measures_growth_briefly_only(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(['--growth', '--quick', '--device', 'cpu'])
    assert 'leave out --quick' in capsys.readouterr().err
