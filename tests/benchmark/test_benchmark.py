"""The benchmark on tiny cases: what it counts and keeps. How fast anything is, is no test."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from roi_plugins.benchmark import measure
from roi_plugins.benchmark.cases import (
    ALIGN_AVG,
    ALIGN_MAX,
    BACKWARD,
    BOTH,
    C4,
    CASES,
    FORWARD,
    FPN,
    PYRAMID_PEERS,
    QUANTIZED_POOL,
    Case,
)
from roi_plugins.benchmark.peers import PEERS
from roi_plugins.benchmark.record import resume_record, start_record, write_record
from roi_plugins.files import DataError

try:
    from roi_plugins.benchmark import report
except ModuleNotFoundError:  # a bare machine with a GPU runs these tests too
    report = None
needs_report = pytest.mark.skipif(report is None, reason='matplotlib or tabulate is not installed')

TINY = dict(num_rois=6, channels=3, image_size=(96, 160))
ONCE = measure.Effort(seconds=0, min_rounds=2)
CPU = torch.device('cpu')


def tiny(name='tiny', step=FORWARD, method=ALIGN_AVG, strides=C4, peers=(), **kwargs):
    return Case(name, 2, step, method, strides, peers, **{**TINY, **kwargs})


@pytest.fixture
def tool(monkeypatch):
    """The tool's main, on tiny cases and with little effort."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / 'tools'))
    module = import_module('benchmark')
    peers = 'torchvision.ops.roi_align', 'mmcv.ops.RoIAlign'
    targets = {('torchvision.ops.roi_align', 'NCHW', 'float32'): 1e9}
    cases = (
        tiny('one', peers=peers[:1], targets=targets),
        tiny('two', step=BACKWARD, peers=peers, targets=targets),
    )
    monkeypatch.setitem(CASES, 'cpu', cases)
    monkeypatch.setattr(module, 'FULL', ONCE)
    monkeypatch.setattr(module, 'QUICK', ONCE)
    yield partial(_run, module)
    sys.modules.pop('benchmark')


def _run(module, *arguments):
    return module.main(['--device', 'cpu', *arguments])


def brute_force_cells(case, rois):
    """Cells of the samples of a 2x2 grid in 2x2 bins, aligned, in float64."""
    touched = set()
    for image, x1, y1, x2, y2 in rois.double().tolist():
        size = ((x2 - x1) * (y2 - y1)) ** 0.5
        level = 0
        if len(case.strides) > 1:
            level = int(np.clip(np.floor(np.log2(size / 56 + 1e-6)), 0, len(case.strides) - 1))
        _, _, height, width = case.map_shapes[level]
        axes = []
        for low, high, cells in ((y1, y2, height), (x1, x2, width)):
            start, end = low / case.strides[level] - 0.5, high / case.strides[level] - 0.5
            samples = [start + (i + 0.5) * (end - start) / 4 for i in range(4)]
            inside = [min(max(s, 0), cells - 1) for s in samples if -1 <= s <= cells]
            taps = {int(np.floor(s)) for s in inside} | {int(np.ceil(s)) for s in inside}
            axes.append(taps)
        touched |= {(int(image), level, y, x) for y in axes[0] for x in axes[1]}
    return len(touched)


@pytest.mark.parametrize('strides', [C4, FPN, (32,)])
@pytest.mark.parametrize('method', [ALIGN_AVG, ALIGN_MAX])
def test_floor_is_touched_cells_once_and_output_once(strides, method):
    case = tiny(strides=strides, method=method, num_rois=9)
    rois = case.make_rois()
    touched = brute_force_cells(case, rois)
    assert case.count_touched_cells(rois) == touched
    output = 9 * 3 * 2 * 2
    gradients = sum(np.prod(shape) for shape in case.map_shapes)
    assert case.floor_bytes(rois, 2) == 2 * (touched * 3 + output)
    assert replace(case, step=BACKWARD).floor_bytes(rois, 4) == 4 * (output + gradients)
    both = 4 * (touched * 3 + 2 * output + gradients)
    assert replace(case, step=BOTH).floor_bytes(rois, 4) == both


def test_whole_cells_are_counted_in_max_too():
    case = tiny(method=QUANTIZED_POOL, num_rois=1, images=1)
    rois = torch.tensor([[0, 16.0, 32.0, 48.0, 64.0]])  # cells 1 to 3 and 2 to 4
    assert case.count_touched_cells(rois) == 9


def test_rois_lie_in_the_images_and_are_of_mixed_sizes():
    for case in (case for cases in CASES.values() for case in cases):
        rois = case.make_rois()
        assert rois.shape == (case.num_rois, 5)
        assert rois[:, 0].tolist() == sorted(rois[:, 0].tolist())
        assert set(rois[:, 0].tolist()) == set(range(case.images))
        assert rois[:, 1:].min() >= 0
        assert (rois[:, 3] <= case.image_size[1]).all() and (rois[:, 4] <= case.image_size[0]).all()
        side = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
        assert side.min() < 24 and side.max() > 350


@pytest.mark.parametrize(
    'name, method, strides',
    [
        ('torchvision.ops.roi_align', ALIGN_AVG, C4),
        ('torchvision.ops.roi_pool', QUANTIZED_POOL, C4),
        ('mmcv.ops.RoIAlign', ALIGN_AVG, C4),
        ('mmcv.ops.RoIAlign', ALIGN_MAX, C4),
        ('torchvision.ops.MultiScaleRoIAlign', {**ALIGN_AVG, 'aligned': False}, FPN),
        ('mmdet SingleRoIExtractor', ALIGN_AVG, FPN),
        ('detectron2 ROIPooler', ALIGN_AVG, FPN),
    ],
)
def test_peers_compute_what_the_op_computes(name, method, strides):
    case = tiny(method=method, strides=strides, num_rois=40, image_size=(448, 672))
    rois = case.make_rois()
    features = case.make_features('NCHW', 'float32', CPU)
    try:
        extract = PEERS[name](case, rois)
    except ImportError as error:
        pytest.skip(f'{name} is not installed: {error}')
    torch.testing.assert_close(extract(features), case.extract(features, rois), rtol=1e-4, atol=1e-4)


def test_every_case_names_known_peers_and_aims_at_them():
    for case in (case for cases in CASES.values() for case in cases):
        assert set(case.peers) <= set(PEERS)
        for peer, layout, dtype in case.targets:
            assert peer in case.peers and layout in measure.LAYOUTS and dtype in case.dtypes


@pytest.mark.parametrize('step', [FORWARD, BACKWARD, BOTH])
def test_measures_both_layouts_and_every_peer(step):
    peers = ('torchvision.ops.MultiScaleRoIAlign',)
    record = measure.measure_case(tiny(step=step, strides=FPN, peers=peers), CPU, ONCE)
    assert [(m['name'], m['layout']) for m in record['measurements']] == [
        ('roi_plugins', 'channels_last'),
        ('roi_plugins', 'NCHW'),
        ('torchvision.ops.MultiScaleRoIAlign', 'NCHW'),
    ]
    for m in record['measurements']:
        assert len(m['seconds']) >= 2 and min(m['seconds']) > 0
        assert m['floor_seconds'] > 0 and m['synchronises'] is None
    assert record['left_out'] == {}
    json.dumps(record, allow_nan=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='torch sees no CUDA GPU here')
@pytest.mark.parametrize('step, variant', [(FORWARD, 'cuda graph'), (BACKWARD, 'deterministic')])
def test_on_a_gpu_the_op_never_makes_the_host_wait(step, variant):
    case = tiny(step=step, strides=FPN, peers=PYRAMID_PEERS[:1], dtypes=('float32', 'bfloat16'))
    record = measure.measure_case(case, torch.device('cuda'), ONCE)
    ours = [m for m in record['measurements'] if m['name'] == 'roi_plugins']
    assert sum(m['variant'] == variant for m in ours) == 4
    assert not any(m['synchronises'] for m in ours)
    peers = [m for m in record['measurements'] if m['name'] == PYRAMID_PEERS[0]]
    assert all(m['synchronises'] for m in peers)
    json.dumps(record, allow_nan=False)


def test_a_call_that_makes_the_host_wait_is_told_from_one_that_fails(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: None)
    monkeypatch.setattr(torch.cuda, 'set_sync_debug_mode', modes.append)

    def waits():
        raise RuntimeError('called a synchronizing CUDA operation')

    def fails():
        raise RuntimeError('out of memory')

    assert measure.synchronises(waits)
    assert not measure.synchronises(lambda: None)
    with pytest.raises(RuntimeError, match='out of memory'):
        measure.synchronises(fails)
    assert modes == ['error', 'default'] * 3


def test_missing_peers_are_left_out_and_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv.ops', None)
    monkeypatch.setitem(sys.modules, 'detectron2.modeling.poolers', None)
    record = measure.measure_case(
        tiny(strides=FPN, peers=(PYRAMID_PEERS[2], 'mmcv.ops.RoIAlign')), CPU, ONCE
    )
    assert {m['name'] for m in record['measurements']} == {'roi_plugins'}
    assert list(record['left_out']) == [PYRAMID_PEERS[2], 'mmcv.ops.RoIAlign']
    assert all(reason.startswith('not installed') for reason in record['left_out'].values())


@needs_report
def test_what_is_left_out_is_listed():
    case = {'name': 'tiny', 'command': 'c', 'copy_bytes_per_second': None, 'targets': [],
            'measurements': [], 'left_out': {'mmcv.ops.RoIAlign': 'not installed (cause)'}}  # fmt: skip
    markdown = report.to_markdown({**start_record(CPU, False), 'cases': [case]})
    assert '- tiny: mmcv.ops.RoIAlign: not installed (cause)' in markdown


def test_a_dtype_that_a_peer_refuses_is_left_out_and_named(monkeypatch):
    def refuses(case, rois):
        def extract(maps):
            if maps[0].dtype == torch.bfloat16:
                raise RuntimeError('not for BFloat16\nC++ frames')
            return case.extract(maps, rois)

        return extract

    monkeypatch.setitem(PEERS, 'picky', refuses)
    monkeypatch.setitem(measure.PEER_DTYPES, 'cpu', ('float32', 'bfloat16'))
    record = measure.measure_case(tiny(peers=('picky',)), CPU, ONCE)
    assert record['left_out'] == {'picky, bfloat16': 'not for BFloat16'}
    assert [m['dtype'] for m in record['measurements'] if m['name'] == 'picky'] == ['float32']


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='memory is read from Linux')
def test_peak_memory_counts_what_is_freed_on_the_way():
    mebibyte = 2**20

    def call():
        torch.ones(64 * mebibyte, dtype=torch.uint8)  # gone before the next
        return torch.ones(16 * mebibyte, dtype=torch.uint8)

    call()
    peaks = [measure.peak_extra_bytes(call, CPU) for _ in range(2)]
    for peak in peaks:  # also where malloc could have kept the memory of the first time
        assert 63 * mebibyte < peak < 75 * mebibyte


def measurement(name, seconds, layout='NCHW', dtype='float32', variant='', floor=1e-3):
    return {
        'name': name, 'layout': layout, 'dtype': dtype, 'variant': variant, 'seconds': seconds,
        'floor_seconds': floor, 'peak_bytes': 3 * 2**20, 'synchronises': name != 'roi_plugins',
    }  # fmt: skip


@needs_report
def test_ratios_aims_and_the_peers_fastest_dtype():
    case = {
        'name': 'c',
        'command': 'python tools/benchmark.py',
        'copy_bytes_per_second': 4e12,
        'left_out': {},
        'targets': [['peer', 'NCHW', 'float32', 3], ['peer', 'channels_last', 'bfloat16', 6]],
        'measurements': [
            measurement('roi_plugins', [2e-3, 1e-3, 9e-3]),
            measurement('roi_plugins', [1e-3], 'channels_last', 'bfloat16'),
            measurement('roi_plugins', [3e-3], 'channels_last', 'bfloat16', 'deterministic'),
            measurement('roi_plugins', [1.7e-3], 'channels_last', 'bfloat16', 'cuda graph'),
            measurement('peer', [8e-3]),
            measurement('peer', [5e-3], dtype='float16'),
        ],
    }
    record = {**start_record(CPU, False), 'device': 'cuda', 'cases': [case]}
    rows = {row['ours']: row for row in report._ratio_rows(case)}
    assert rows['NCHW float32']['ratio'] == pytest.approx(4)  # in the same dtype
    assert rows['channels_last bfloat16']['ratio'] == pytest.approx(5)
    lines = [' '.join(line.split()) for line in report.to_markdown(record).splitlines()]
    assert '| c | peer | 4.0x, aim 3x: met | 5.0x (peer in float16), aim 6x: not met |' in lines
    what = 'channels_last bfloat16'
    assert f'| c | {what}, deterministic / atomic | 3.00 | at most 4 | met |' in lines
    assert f'| c | {what}, replayed / floor | 1.70 | at most 1.6 | not met |' in lines
    assert '| c | roi_plugins NCHW float32 | 2 | 1.5 to 5.5 | 3 | 2.0 | 3 | no |' in lines


@needs_report
def test_large_pages_are_part_of_the_settings(monkeypatch, tmp_path):
    plain = start_record(CPU, False)
    monkeypatch.setenv('THP_MEM_ALLOC_ENABLE', '1')
    large = start_record(CPU, False)
    assert 'THP_MEM_ALLOC_ENABLE=1' in report.to_markdown(large)
    assert 'THP_MEM_ALLOC_ENABLE' not in report.to_markdown(plain)
    write_record(plain, tmp_path)
    with pytest.raises(DataError, match='large_pages'):
        resume_record(large, tmp_path)


@needs_report
def test_tool_keeps_results_case_by_case(tool, tmp_path, capsys):
    out = tmp_path / 'out'
    assert tool('--cases', 'one', '--out', str(out)) == 0
    first = json.loads((out / 'benchmark.json').read_text())
    assert [case['name'] for case in first['cases']] == ['one']
    assert first['machine']['cpu'] and first['versions']['torch'] and first['threads'] >= 1
    assert (out / 'benchmark.png').read_bytes().startswith(b'\x89PNG')

    capsys.readouterr()
    assert tool('--cases', 'one', 'two', '--out', str(out)) == 0
    printed = capsys.readouterr()
    assert 'one: is there already' in printed.err
    second = json.loads((out / 'benchmark.json').read_text())
    assert second['cases'][0] == first['cases'][0]
    assert [case['name'] for case in second['cases']] == ['one', 'two']
    markdown = (out / 'benchmark.md').read_text()
    assert markdown.startswith(printed.out)
    assert 'aim 1e+09x: not met' in markdown
    assert f'Command: `python tools/benchmark.py --device cpu --cases one --out {out}`' in markdown


@needs_report
def test_tool_refuses_to_mix_or_overwrite(tool, tmp_path, capsys):
    assert tool('--cases', 'one', '--out', str(tmp_path)) == 0
    before = (tmp_path / 'benchmark.json').read_bytes()
    assert tool('--quick', '--cases', 'two', '--out', str(tmp_path)) == 2
    assert 'another quick (False; now True)' in capsys.readouterr().err
    assert (tmp_path / 'benchmark.json').read_bytes() == before

    (tmp_path / 'benchmark.json').unlink()
    assert tool('--cases', 'one', '--out', str(tmp_path)) == 2
    assert 'benchmark.md' in capsys.readouterr().err


BARE = """
import runpy, sys
for name in 'pycocotools tabulate matplotlib mmcv mmengine mmdet detectron2 pandas scipy'.split():
    sys.modules[name] = None
sys.path.insert(0, {tests!r})
from test_benchmark import CASES, tiny
CASES['cpu'] = (tiny(peers=('torchvision.ops.roi_align', 'mmcv.ops.RoIAlign')),)
sys.argv = {argv!r}
runpy.run_path({tool!r}, run_name='__main__')
"""


def run_bare(*arguments):
    """The tool with a tiny case where there is nothing but torch, torchvision, pytest and hypothesis."""
    tool = str(Path(__file__).parents[2] / 'tools' / 'benchmark.py')
    argv = [tool, '--device', 'cpu', '--quick', *arguments]
    script = BARE.format(tests=str(Path(__file__).parent), argv=argv, tool=tool)
    return subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)


@needs_report
def test_tool_measures_on_a_bare_machine_and_another_makes_the_pages(tool, tmp_path, capsys):
    out = tmp_path / 'out'
    done = run_bare('--out', str(out))
    assert done.returncode == 0, done.stderr
    assert [path.name for path in out.iterdir()] == ['benchmark.json']
    assert f'python tools/benchmark.py --render {out}' in done.stderr
    assert 'tabulate' in done.stderr or 'matplotlib' in done.stderr
    record = json.loads((out / 'benchmark.json').read_text())
    assert [case['name'] for case in record['cases']] == ['tiny', 'train-step']
    assert 'mmcv.ops.RoIAlign' in record['cases'][0]['left_out']
    assert len(record['cases'][0]['measurements']) == 3
    assert 'mmdet is not installed' in record['cases'][1]['left_out']['train-step']

    record['device'] = 'cuda'  # as if it came from a machine with a GPU
    record['machine'].update(gpu='NVIDIA H200', cuda='13.0', compute_capability='9.0')
    before = json.dumps(record)
    (out / 'benchmark.json').write_text(before)
    assert tool('--render', str(out)) == 0
    printed = capsys.readouterr().out
    assert '- GPU: NVIDIA H200, compute capability 9.0, CUDA 13.0' in printed
    assert (out / 'benchmark.md').read_text().startswith(printed)
    assert (out / 'benchmark.png').read_bytes().startswith(b'\x89PNG')
    assert (out / 'benchmark.json').read_text() == before
    assert tool('--render', str(tmp_path)) == 2
    assert 'benchmark does not exist' in capsys.readouterr().err


def test_tool_on_a_bare_machine_needs_a_place_for_the_results(tmp_path):
    done = run_bare()
    assert done.returncode == 2 and '--out DIR' in done.stderr
    done = run_bare('--render', str(tmp_path))
    assert done.returncode == 2 and '--render: needs' in done.stderr


def test_threads_may_outnumber_the_cores_and_each_number_has_a_directory(tool, tmp_path, capsys):
    threads = torch.get_num_threads()
    many = 4 * os.cpu_count()
    try:
        for number in (many, many + 1):
            out = tmp_path / str(number)
            assert tool('--threads', str(number), '--cases', 'one', '--out', str(out)) == 0
            assert json.loads((out / 'benchmark.json').read_text())['threads'] == number
        assert tool('--threads', str(many), '--cases', 'two', '--out', str(out)) == 2
        assert f'another threads ({many + 1}; now {many})' in capsys.readouterr().err
    finally:
        torch.set_num_threads(threads)


def test_tool_names_the_cases_there_are(tool, capsys):
    with pytest.raises(SystemExit):
        tool('--cases', 'three')
    assert 'there are one, two, train-step' in capsys.readouterr().err
