"""The benchmark on tiny cases: what it counts and keeps. How fast anything is, is no test."""

import contextlib
import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from roi_plugins.benchmark import cuda_graph, measure, peers
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
from roi_plugins.benchmark.peers import PEERS, Peer
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


@pytest.fixture(autouse=True)
def torchvision_is_measured(monkeypatch):
    """Also beside Intel's extension: whose kernel runs makes no difference here."""
    monkeypatch.setattr(peers, 'find_spec', lambda name: None)


@pytest.fixture
def tool(monkeypatch):
    """The tool's main, on tiny cases and with little effort."""
    module = import_module('roi_plugins.commands.benchmark')
    peers = 'torchvision.ops.roi_align', 'mmcv.ops.RoIAlign'
    targets = {('torchvision.ops.roi_align', 'NCHW', 'float32'): 1e9}
    cases = (
        tiny('one', peers=peers[:1], targets=targets),
        tiny('two', step=BACKWARD, peers=peers, targets=targets),
    )
    monkeypatch.setitem(CASES, 'cpu', cases)
    monkeypatch.setattr(module, 'FULL', ONCE)
    monkeypatch.setattr(module, 'QUICK', ONCE)
    return partial(_run, module)


def _run(module, *arguments):
    return module.main(['--device', 'cpu', *arguments], 'tools/benchmark.py')


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
        assert case.num_rois == 1 or (side.min() < 24 and side.max() > 350)


@pytest.mark.parametrize('step', [FORWARD, BACKWARD, BOTH])
def test_measures_both_layouts_and_every_peer(step):
    peers = ('torchvision.ops.MultiScaleRoIAlign',)
    record = measure.measure_case(tiny(step=step, strides=FPN, peers=peers), CPU, ONCE)
    assert [(m['name'], m['layout']) for m in record['measurements']] == [
        ('roi_plugins', 'channels_last'),
        ('roi_plugins', 'NCHW'),
        ('torchvision.ops.MultiScaleRoIAlign', 'NCHW'),
        (measure.WRITING, ''),
    ]
    for m in record['measurements']:
        assert len(m['seconds']) >= 2 and min(m['seconds']) > 0
        assert m['floor_seconds'] > 0 and m['synchronises'] is None
    assert record['left_out'] == {}
    json.dumps(record, allow_nan=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='torch sees no CUDA GPU here')
@pytest.mark.parametrize(
    'step, variants',
    [
        (FORWARD, ['', 'cuda graph']),
        (BACKWARD, ['', 'deterministic', 'cuda graph', 'cuda graph, deterministic']),
    ],
)
def test_on_a_gpu_the_op_never_makes_the_host_wait_and_can_be_captured(step, variants):
    case = tiny(step=step, strides=FPN, peers=PYRAMID_PEERS[:1], dtypes=('float32', 'bfloat16'))
    record = measure.measure_case(case, torch.device('cuda'), ONCE)
    ours = [m for m in record['measurements'] if m['name'] == 'roi_plugins']
    for variant in variants:
        assert sum(m['variant'] == variant for m in ours) == 4, record['left_out']
    assert len(ours) == 4 * len(variants)
    for m in ours:
        assert m['synchronises'] is (None if 'cuda graph' in m['variant'] else False)
        assert min(m['seconds']) > 0
    peers = [m for m in record['measurements'] if m['name'] == PYRAMID_PEERS[0]]
    assert all(m['synchronises'] for m in peers)
    json.dumps(record, allow_nan=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='torch sees no CUDA GPU here')
def test_on_a_gpu_a_replay_computes_the_gradients():
    device = torch.device('cuda')
    case = tiny(step=BACKWARD, strides=FPN, num_rois=64, channels=64, image_size=(448, 672))
    rois = case.make_rois().to(device)
    features = case.make_features('channels_last', 'float32', device)
    grads = []

    def make_call():
        call = measure.prepare(lambda maps: case.extract(maps, rois), features, BACKWARD)
        return lambda: grads.append(call())

    captured = cuda_graph.capture(make_call, device)
    expected, replayed = grads[-2], grads[-1]  # the last warm-up, and what the graph writes
    captured.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(replayed, expected, rtol=1e-4, atol=1e-4)
    seconds = cuda_graph.cold_seconds(captured.replay, cuda_graph.reading_flush(device))
    assert min(seconds) > 0 and np.median(seconds) < 1e-2


class FakeGPU:
    """Stands for ``torch.cuda`` where there is none: keeps a log of what a GPU would be given, in order."""

    def __init__(self, monkeypatch):
        self.log = []
        monkeypatch.setattr(cuda_graph, 'SAMPLES', 3)
        monkeypatch.setattr(cuda_graph, '_HEAD_START', 2)
        cuda = torch.cuda
        monkeypatch.setattr(cuda, 'Event', self._event)
        monkeypatch.setattr(cuda, 'Stream', lambda device: SimpleNamespace(wait_stream=lambda other: None))
        monkeypatch.setattr(cuda, 'stream', self._scope('stream'))
        monkeypatch.setattr(cuda, 'graph', lambda graph, stream: self._scope('capture')(stream))
        monkeypatch.setattr(
            cuda, 'CUDAGraph', lambda: SimpleNamespace(replay=lambda: self.log.append('replay'))
        )
        monkeypatch.setattr(cuda, 'current_stream', lambda device: None)
        monkeypatch.setattr(cuda, 'synchronize', lambda *device: self.log.append('synchronize'))
        monkeypatch.setattr(
            cuda, 'get_device_properties', lambda device: SimpleNamespace(L2_cache_size=50 * 2**20)
        )
        monkeypatch.setattr(cuda, 'set_sync_debug_mode', lambda mode: None)
        monkeypatch.setattr(measure, 'peak_extra_bytes', lambda call, device: call() and None)

    def _event(self, enable_timing):
        assert enable_timing
        event = SimpleNamespace(elapsed_time=lambda end: 2.0)
        event.record = lambda: self.log.append(event)
        return event

    def _scope(self, name):
        @contextlib.contextmanager
        def scope(stream):
            self.log.append((name, stream))
            yield
            self.log.append((f'end of {name}', stream))

        return scope


def test_only_the_replay_is_timed_and_the_host_never_waits(monkeypatch):
    gpu = FakeGPU(monkeypatch)
    samples = cuda_graph.cold_seconds(lambda: gpu.log.append('replay'), lambda: gpu.log.append('flush'))
    assert samples == [2e-3] * cuda_graph.SAMPLES
    warm_up, timed = gpu.log[: -4 * cuda_graph.SAMPLES - 1], gpu.log[-4 * cuda_graph.SAMPLES - 1 : -1]
    assert warm_up and set(warm_up) == {'flush', 'replay'}
    assert gpu.log[-1] == 'synchronize'
    events = timed[1::4] + timed[3::4]
    assert len({id(event) for event in events}) == 2 * cuda_graph.SAMPLES
    assert timed[0::4] == ['flush'] * cuda_graph.SAMPLES
    assert timed[2::4] == ['replay'] * cuda_graph.SAMPLES


def test_the_cache_is_flushed_by_reading(monkeypatch):
    FakeGPU(monkeypatch)
    calls = []

    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            calls.append((func, args[0].nbytes, result.nbytes))
            return result

    flush = cuda_graph.reading_flush(CPU)
    with Log():
        flush()
    ((func, read, written),) = calls
    assert func is torch.ops.aten.sum.default
    assert read >= 4 * 50 * 2**20 and written == 4


@pytest.mark.parametrize('deterministic', [False, True])
def test_a_backward_pass_is_captured_on_the_stream_of_its_forward_pass(monkeypatch, deterministic):
    gpu = FakeGPU(monkeypatch)

    def extract(maps):
        gpu.log.append('forward')
        maps[0].register_hook(
            lambda grad: gpu.log.append(('backward', torch.are_deterministic_algorithms_enabled()))
        )
        return 2 * maps[0]

    case = tiny(step=BACKWARD)
    monkeypatch.setattr(Case, 'extract', lambda self, maps, rois, levels: extract(maps))
    left_out = {}
    replays = list(measure._replay(case, case.make_rois(), left_out))
    assert left_out == {}
    assert [(c.layout, c.variant) for c, _ in replays] == [
        (layout, variant)
        for layout in measure.LAYOUTS
        for variant in ('cuda graph', 'cuda graph, deterministic')
    ]
    end = gpu.log.index('replay')
    if deterministic:
        end, start = gpu.log.index('replay', gpu.log.index('forward', end)), gpu.log.index('forward', end) - 1
    else:
        start = 0
    stream = gpu.log[start][1]
    backward = ('backward', deterministic)
    assert [entry for entry in gpu.log[start:end] if entry != 'flush'] == [
        ('stream', stream), 'forward', backward, backward, backward, ('end of stream', stream),
        ('capture', stream), backward, ('end of capture', stream),
    ]  # fmt: skip


def test_what_cannot_be_captured_is_left_out_with_the_cause(monkeypatch):
    gpu = FakeGPU(monkeypatch)

    @contextlib.contextmanager
    def graph(graph, stream):
        try:
            yield
        finally:
            if 'refused' in gpu.log:
                raise RuntimeError('capture was invalidated')

    def extract(self, maps, rois, levels):
        if self.step == FORWARD and len(gpu.log) > 8 and maps[0].is_contiguous():
            gpu.log.append('refused')
            raise RuntimeError('operation not permitted when stream is capturing\nframes')

    monkeypatch.setattr(torch.cuda, 'graph', graph)
    monkeypatch.setattr(Case, 'extract', extract)
    case, left_out = tiny(), {}
    assert [c.layout for c, _ in measure._replay(case, case.make_rois(), left_out)] == ['channels_last']
    reason = 'operation not permitted when stream is capturing'
    assert left_out == {'roi_plugins NCHW float32, cuda graph': reason}


@pytest.mark.parametrize('variant, deterministic', [('', False), ('deterministic', True)])
def test_a_variant_is_inspected_under_its_own_algorithms(monkeypatch, variant, deterministic):
    asked = []
    FakeGPU(monkeypatch)
    contender = measure.Contender(
        'roi_plugins', 'NCHW', 'float32',
        lambda: asked.append(torch.are_deterministic_algorithms_enabled()), variant,
    )  # fmt: skip
    measure._inspect(contender, torch.device('cuda'))
    assert asked == [deterministic] * 2  # for the memory, and for whether the host waits
    assert not torch.are_deterministic_algorithms_enabled()


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
    record = measure.measure_case(tiny(strides=FPN, peers=(PYRAMID_PEERS[2], 'mmcv.ops.RoIAlign')), CPU, ONCE)
    assert {m['name'] for m in record['measurements']} == {'roi_plugins', measure.WRITING}
    assert list(record['left_out']) == [PYRAMID_PEERS[2], 'mmcv.ops.RoIAlign']
    assert all(reason.startswith('not installed') for reason in record['left_out'].values())


@needs_report
def test_what_is_left_out_is_listed():
    case = {'name': 'tiny', 'step': FORWARD, 'command': 'c', 'copy_bytes_per_second': None, 'targets': [],
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

    monkeypatch.setitem(PEERS, 'picky', Peer(refuses, dtypes={'cpu': ('float32', 'bfloat16')}))
    record = measure.measure_case(tiny(peers=('picky',), dtypes=('float32', 'bfloat16')), CPU, ONCE)
    assert record['left_out'] == {'picky NCHW bfloat16': 'not for BFloat16'}
    assert [m['dtype'] for m in record['measurements'] if m['name'] == 'picky'] == ['float32']


@pytest.mark.parametrize('step', [FORWARD, BACKWARD, BOTH])
def test_the_result_alone_is_written_to_new_memory_in_each_dtype(step):
    case = tiny(step=step, strides=FPN, dtypes=('float32', 'bfloat16'))
    output, maps = [(6, 3, 2, 2)], case.map_shapes
    shapes = {FORWARD: output, BACKWARD: maps, BOTH: output + maps}[step]
    contenders = measure._writing_contenders(case, CPU)
    assert [c.dtype for c in contenders] == ['float32', 'bfloat16']
    for contender in contenders:
        first, second = contender.call(), contender.call()
        assert [tensor.shape for tensor in first] == shapes
        assert {str(tensor.dtype) for tensor in first} == {f'torch.{contender.dtype}'}
        assert all((tensor == 1).all() for tensor in first)
        assert first[0].data_ptr() != second[0].data_ptr()


def test_between_calls_others_allocate_and_the_results_are_freed(monkeypatch):
    log = []

    class Result:
        def __del__(self):
            log.append('freed')

    def call():
        log.append('call')
        return Result()

    contender = measure.Contender('roi_plugins', 'NCHW', 'float32', call, before=lambda: log.append('others'))
    (seconds,) = measure.interleave([contender], CPU, ONCE)
    assert len(seconds) >= ONCE.min_rounds
    assert log == ['others', 'call', 'freed'] * (len(log) // 3)

    monkeypatch.setattr(measure, 'allocate_as_training', lambda: log.append('all'))
    log.clear()
    record = measure.measure_case(tiny(between_allocations=True), CPU, ONCE)
    assert len(record['measurements']) == 3 and log.count('all') >= 3 * (2 + ONCE.min_rounds)
    log.clear()
    measure.measure_case(tiny(), CPU, ONCE)
    assert log == []


GIVEN_BACK = """
import torch
from roi_plugins.benchmark.measure import _status_bytes, allocate_as_training

for _ in range(5):
    allocate_as_training()
    before = _status_bytes('VmRSS')
    output = torch.ones(2**22)
    grown = _status_bytes('VmRSS') - before
    del output
    assert grown > 15 * 2**20, grown
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='not the malloc of glibc')
def test_other_allocations_give_the_memory_of_an_output_back():
    # In a process of its own, because the test of the peak depends on all that was allocated before.
    subprocess.run([sys.executable, '-c', GIVEN_BACK], check=True)


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='memory is read from Linux')
def test_peak_memory_counts_what_is_freed_on_the_way():
    mebibyte = 2**20

    def call():
        torch.ones(64 * mebibyte, dtype=torch.uint8)  # gone before the next
        return torch.ones(16 * mebibyte, dtype=torch.uint8)

    call()
    peaks = [measure.peak_extra_bytes(call, CPU) for _ in range(3)]
    assert min(peaks) > 63 * mebibyte  # also where malloc could have kept the memory of the first time
    # In one run of all tests one was 80 MiB, for a reason that was not found; so not all have to be right.
    assert min(peaks) < 75 * mebibyte


def measurement(name, seconds, layout='NCHW', dtype='float32', variant='', floor=1e-3):
    return {
        'name': name, 'layout': layout, 'dtype': dtype, 'variant': variant, 'seconds': seconds,
        'floor_seconds': floor, 'peak_bytes': 3 * 2**20, 'synchronises': name != 'roi_plugins',
    }  # fmt: skip


@needs_report
def test_ratios_aims_and_the_peers_fastest_dtype():
    case = {
        'name': 'c',
        'step': FORWARD,
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
    rows = {row['ours']: row for row in report.ratio_rows(case)}
    assert rows['NCHW float32']['ratio'] == pytest.approx(4)  # in the same dtype
    assert rows['channels_last bfloat16']['ratio'] == pytest.approx(5)
    lines = [' '.join(line.split()) for line in report.to_markdown(record).splitlines()]
    assert '| c | peer | 4.0x, aim 3x: met | 5.0x (peer in float16), aim 6x: not met |' in lines
    what = 'channels_last bfloat16'
    assert f'| c | {what}, deterministic / atomic | 3.00 | at most 4 | met |' in lines
    assert f'| c | {what}, replayed / floor | 1.70 | at most 1.6 | not met |' in lines
    assert '| c | roi_plugins NCHW float32 | 2 | 1.5 to 5.5 | 3 | 2.0 | 3 | no |' in lines
    assert not any('slower than' in line for line in lines)


@needs_report
def test_a_peer_is_compared_in_its_best_layout_and_a_loss_is_shown():
    case = {
        'name': 'c',
        'step': FORWARD,
        'command': 'python tools/benchmark.py',
        'copy_bytes_per_second': 4e12,
        'left_out': {},
        'targets': [['peer', 'NCHW', 'float32', 3], ['peer', 'channels_last', 'float32', 1.3]],
        'max_writing_ratio': 1.15,
        'measurements': [
            measurement('roi_plugins', [1e-3], 'channels_last'),
            measurement('roi_plugins', [2e-3], 'NCHW'),
            measurement('roi_plugins', [1e-3], 'channels_last', 'bfloat16'),
            measurement('peer', [1.4e-3], 'channels_last'),
            measurement('peer', [8e-3], 'NCHW'),
            measurement('peer', [3e-3], 'channels_last', 'bfloat16'),
            measurement(measure.WRITING, [1e-3], ''),
            measurement(measure.WRITING, [0.5e-3], '', 'bfloat16'),
        ],
    }
    record = {**start_record(CPU, False), 'cases': [case]}
    lines = [' '.join(line.split()) for line in report.to_markdown(record).splitlines()]
    assert (
        '| c | peer | 1.4x, aim 1.3x: met | **0.70x, slower** (peer in channels_last); peer in NCHW: 4.0x, '
        'aim 3x: met | 3.0x |'
    ) in lines
    assert 'The op is slower than the peer in 1 of 3 comparisons (bold).' in lines
    assert f'| c | channels_last float32 / {measure.WRITING} | 1.00 | at most 1.15 | met |' in lines
    assert f'| c | NCHW float32 / {measure.WRITING} | 2.00 | at most 1.15 | not met |' in lines
    assert f'| c | channels_last bfloat16 / {measure.WRITING} | 2.00 | at most 1.15 | not met |' in lines
    assert {row['peer'] for row in report.ratio_rows(case)} == {'peer'}
    report.plot_ratios(record)


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
    assert 'one: already measured' in printed.err
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


@pytest.mark.slow
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
    assert len(record['cases'][0]['measurements']) == 4
    assert 'cannot be imported' in record['cases'][1]['left_out']['train-step']

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
