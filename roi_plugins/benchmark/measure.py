"""Measures time and memory of the op and its peers, side by side in one process."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from roi_plugins.benchmark.cases import BACKWARD, FORWARD, LAYOUTS, Case
from roi_plugins.benchmark.cuda_graph import capture, cold_seconds, reading_flush
from roi_plugins.benchmark.peers import PEERS, Extract
from roi_plugins.ops import assign_levels_mmdet, release_memory

OURS = 'roi_plugins'
WRITING = 'writing the result alone'
_TURN = 0.1  # roughly how many seconds a contender runs before the next one does
_SAMPLE = 0.001  # roughly how many seconds of calls make a sample on the CPU, if one call takes less
DETERMINISTIC, GRAPH = 'deterministic', 'cuda graph'
GRAPH_DETERMINISTIC = f'{GRAPH}, {DETERMINISTIC}'
_LIVE_MEGABYTES = (24, 2, 60, 30, 6, 28, 1, 20, 12, 26, 3, 16)


@dataclass(frozen=True)
class Effort:
    """How long to measure. In each round every contender runs. Rounds repeat until both limits are reached.

    Attributes:
        seconds: the least time.
        min_rounds: the least number of rounds.
    """

    seconds: float
    min_rounds: int


FULL = Effort(seconds=15, min_rounds=7)
QUICK = Effort(seconds=1, min_rounds=3)


@dataclass(frozen=True)
class Contender:
    """One way of doing a case's work.

    Attributes:
        name: ``OURS``, ``WRITING``, or the name of a peer.
        layout: one of :data:`~roi_plugins.benchmark.cases.LAYOUTS`; ``''`` where it makes no difference.
        dtype: the name of the torch dtype of the features.
        call: does the work once.
        variant: ``''`` as a user calls it; ``DETERMINISTIC`` with the deterministic algorithms of torch;
            ``GRAPH`` for the op alone, with given levels, replayed from a CUDA graph with a cold L2 cache; or
            ``GRAPH_DETERMINISTIC`` for both.
        before: runs before each call of ``call``, and is not timed.
    """

    name: str
    layout: str
    dtype: str
    call: Callable[[], object]
    variant: str = ''
    before: Callable[[], object] | None = None


def measure_case(case: Case, device: torch.device, effort: Effort) -> dict[str, Any]:
    """Measures a case.

    Args:
        case: the case.
        device: where to measure.
        effort: how long to measure.

    Returns:
        A record for JSON. Under ``'measurements'`` there is a record for each contender, with ``'seconds'``
        (a list of samples), ``'floor_seconds'``, ``'peak_bytes'`` (memory beyond the inputs while it runs
        once; None if it cannot be measured) and ``'synchronises'`` (whether the host waits for the GPU; None
        on the CPU). Under ``'left_out'`` there are the reasons why peers were not measured, under
        ``'targets'`` those of the case, as (peer, layout, dtype, ratio), and under ``'max_writing_ratio'``
        that of the case.
    """
    rois = case.make_rois().to(device)
    left_out: dict[str, str] = {}
    contenders = [
        *_our_contenders(case, rois, device),
        *_peer_contenders(case, rois, device, left_out),
        *_writing_contenders(case, device),
    ]
    if case.between_allocations:
        contenders = [replace(contender, before=allocate_as_training) for contender in contenders]
    samples = interleave(contenders, device, effort)
    bandwidth = copy_bandwidth(device)
    floor_seconds = {
        dtype: case.floor_bytes(rois, _itemsize(dtype)) / bandwidth for dtype in {c.dtype for c in contenders}
    }
    measurements = [
        measurement(c, seconds, floor_seconds[c.dtype], **_inspect(c, device))
        for c, seconds in zip(contenders, samples, strict=True)
    ]
    if device.type == 'cuda':
        replays = _replay(case, rois, left_out)
        measurements += [measurement(c, seconds, floor_seconds[c.dtype]) for c, seconds in replays]
    return {
        'name': case.name,
        'step': case.step,
        'copy_bytes_per_second': bandwidth,
        'targets': [[*key, ratio] for key, ratio in case.targets.items()],
        'max_writing_ratio': case.max_writing_ratio,
        'measurements': measurements,
        'left_out': left_out,
    }


def measurement(
    contender: Contender,
    seconds: list[float],
    floor_seconds: float | None = None,
    peak_bytes: int | None = None,
    synchronises: bool | None = None,
) -> dict[str, Any]:
    """Makes one of the ``'measurements'`` that :func:`measure_case` returns.

    Args:
        contender: what was measured.
        seconds: the samples, in seconds per call.
        floor_seconds: the time that the memory bandwidth alone takes; None if it is not known.
        peak_bytes: see :func:`peak_extra_bytes`.
        synchronises: see :func:`synchronises`; None on the CPU.
    """
    return {
        'name': contender.name,
        'layout': contender.layout,
        'dtype': contender.dtype,
        'variant': contender.variant,
        'seconds': seconds,
        'floor_seconds': floor_seconds,
        'peak_bytes': peak_bytes,
        'synchronises': synchronises,
    }


def _inspect(contender: Contender, device: torch.device) -> dict[str, Any]:
    with _algorithms(contender.variant):
        return {
            'peak_bytes': peak_extra_bytes(contender.call, device),
            'synchronises': synchronises(contender.call) if device.type == 'cuda' else None,
        }


def interleave(contenders: list[Contender], device: torch.device, effort: Effort) -> list[list[float]]:
    """Times contenders, which take turns so that noise on the machine affects all of them.

    Args:
        contenders: what to time.
        device: where they run.
        effort: how long to measure.

    Returns:
        For each contender the samples, in seconds per call.
    """
    numbers, repeats = [], []
    for contender in contenders:
        with _algorithms(contender.variant):
            seconds = _time(contender, 1, device)  # this also warms up
            if seconds < _TURN or device.type == 'cuda':  # a first call on a GPU also loads kernels
                seconds = _time(contender, 1, device)
        # On a GPU, a sample needs several calls in a row, because the launches run ahead of the work. On the
        # CPU one call is long enough for the clock, but tiny calls would fill files of megabytes.
        least = _TURN if device.type == 'cuda' else _SAMPLE
        numbers.append(1 if contender.before else min(max(int(least / seconds), 1), 20))
        most = 20 if contender.before is None else 4  # what runs before a call may take longer than it
        repeats.append(min(max(int(_TURN / (numbers[-1] * seconds)), 1), most))
    samples: list[list[float]] = [[] for _ in contenders]
    rounds, start = 0, time.perf_counter()
    while rounds < effort.min_rounds or time.perf_counter() - start < effort.seconds:
        rounds += 1
        for contender, number, repeat, taken in zip(contenders, numbers, repeats, samples, strict=True):
            # The first call of a turn is left out: another contender has used the caches and threads before
            # it.
            with _algorithms(contender.variant):
                turn = [_time(contender, number, device) for _ in range(repeat + 1)]
            taken += turn[1:]
    return samples


def _time(contender: Contender, number: int, device: torch.device) -> float:
    if contender.before is not None:
        contender.before()
    return time_calls(contender.call, number, device)


def allocate_as_training() -> None:
    """Allocates, writes and frees tensors as a training does between two calls of the op.

    Several tensors of 1 to 60 MiB are alive at once, and they are freed in another order. Then free memory
    goes back to the system, where that can be asked for. Whether malloc does so by itself depends on
    everything that the process has allocated before. What the op keeps of its own results stays with it.
    """
    live: list[torch.Tensor] = []
    for megabytes in _LIVE_MEGABYTES:
        live.append(torch.ones(megabytes * 2**20, dtype=torch.uint8))
        if len(live) > 6:
            del live[3]
    del live
    _trim()


def _trim() -> None:
    """Gives the free memory of malloc back to the system, where there is glibc."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def time_calls(call: Callable[[], object], number: int, device: torch.device) -> float:
    """Times calls in a row.

    Args:
        call: does the work once.
        number: how many calls.
        device: where they run.

    Returns:
        Seconds per call.
    """
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(number):
        call()
    _synchronize(device)
    return (time.perf_counter() - start) / number


@functools.cache
def copy_bandwidth(device: torch.device) -> float:
    """Measures the bandwidth of a copy that is larger than any cache, into memory that is already mapped.

    Args:
        device: where to copy.

    Returns:
        Bytes per second, read and written together.
    """
    source = torch.ones(2**26 if device.type == 'cpu' else 2**28, device=device)
    target = torch.ones_like(source)
    seconds = sorted(time_calls(lambda: target.copy_(source), 1, device) for _ in range(11))
    return 2 * source.nbytes / seconds[5]


def peak_extra_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Measures the peak memory of one call, without what was allocated before it, but with its result.

    On a GPU this is the memory that torch's allocator gave out. On Linux it is the growth of the resident
    set, which includes every allocation.

    Args:
        call: does the work once.
        device: where it runs.

    Returns:
        Bytes; None on other systems.
    """
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    # Otherwise the call could use memory that the op or malloc kept, which would not be counted.
    release_memory()
    _trim()
    try:
        with open('/proc/self/clear_refs', 'w') as file:
            file.write('5')  # resets the peak to the present size
        before = _status_bytes('VmRSS')
        result = call()
        peak = _status_bytes('VmHWM')
        del result
        return max(peak - before, 0)
    except OSError:
        return None


def synchronises(call: Callable[[], object]) -> bool:
    """Tells whether a call makes the host wait for the GPU.

    Args:
        call: does the work once.
    """
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        call()
    except RuntimeError as error:
        if 'synchronizing CUDA operation' not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode('default')
    return False


def _replay(
    case: Case, rois: torch.Tensor, left_out: dict[str, str]
) -> Iterator[tuple[Contender, list[float]]]:
    """Times the op alone, with given levels. What cannot be captured goes to ``left_out``.

    Yields:
        A contender with its GPU seconds.
    """
    levels = assign_levels_mmdet(rois, len(case.strides))
    flush = reading_flush(rois.device)
    variants = (GRAPH, GRAPH_DETERMINISTIC) if case.step == BACKWARD else (GRAPH,)
    for layout, dtype, variant in itertools.product(LAYOUTS, case.dtypes, variants):
        features = case.make_features(layout, dtype, rois.device)
        make_call = functools.partial(
            prepare, lambda maps: case.extract(maps, rois, levels), features, case.step
        )
        try:
            with _algorithms(variant):
                captured = capture(make_call, rois.device)
        except RuntimeError as error:
            cause = error.__context__ or error  # ending a failed capture raises an error of its own
            left_out[f'{OURS} {layout} {dtype}, {variant}'] = str(cause).partition('\n')[0]
        else:
            contender = Contender(OURS, layout, dtype, captured.replay, variant)
            yield contender, cold_seconds(contender.call, flush)


def _our_contenders(case: Case, rois: torch.Tensor, device: torch.device) -> list[Contender]:
    contenders = []
    for layout in LAYOUTS:
        for dtype in case.dtypes:
            features = case.make_features(layout, dtype, device)
            call = prepare(lambda maps: case.extract(maps, rois), features, case.step)
            contenders.append(Contender(OURS, layout, dtype, call))
            if device.type == 'cuda' and case.step == BACKWARD:
                contenders.append(Contender(OURS, layout, dtype, call, DETERMINISTIC))
    return contenders


def _peer_contenders(
    case: Case, rois: torch.Tensor, device: torch.device, left_out: dict[str, str]
) -> list[Contender]:
    make_features = functools.cache(functools.partial(case.make_features, device=device))
    contenders = []
    for name in case.peers:
        peer = PEERS[name]
        if case.step not in peer.steps:
            continue
        for layout, dtype in itertools.product(peer.layouts, peer.dtypes.get(device.type, ())):
            if dtype != 'float32' and case.dtypes == ('float32',):
                continue  # the op in float32 is only compared with float32
            try:
                call = prepare(peer(case, rois), make_features(layout, dtype), case.step)
                call()
            except ImportError as error:
                left_out[name] = f'not installed ({error})'
                break
            except RuntimeError as error:
                left_out[f'{name} {layout} {dtype}'] = str(error).partition('\n')[0]
            else:
                contenders.append(Contender(name, layout, dtype, call))
    return contenders


def _writing_contenders(case: Case, device: torch.device) -> list[Contender]:
    """Makes the least that any implementation does: new memory for the result, each element written once."""

    def write(dtype: torch.dtype) -> list[torch.Tensor]:
        return [torch.empty(shape, dtype=dtype, device=device).fill_(1) for shape in case.result_shapes]

    return [
        Contender(WRITING, '', dtype, functools.partial(write, getattr(torch, dtype)))
        for dtype in case.dtypes
    ]


def prepare(
    extract: Extract, features: list[torch.Tensor], step: str, weights: Sequence[torch.Tensor] = ()
) -> Callable[[], object]:
    """Makes a call that does ``step`` of ``extract(features)``.

    Args:
        extract: maps features to the output.
        features: the maps. A forward pass uses them as they are; the other steps use copies that need
            gradients.
        step: ``FORWARD``, ``BACKWARD`` or ``BOTH``.
        weights: tensors that get a gradient besides the features.
    """
    if step == FORWARD:
        return lambda: extract(features)
    # In some peers, a level that no RoI reads has no gradient.
    grad_of = functools.partial(torch.autograd.grad, allow_unused=True)
    features = [map_.detach().requires_grad_() for map_ in features]
    output = extract(features)
    grad = torch.randn_like(output)
    inputs = [*features, *weights]
    if step == BACKWARD:
        return lambda: grad_of(output, inputs, grad, retain_graph=True)
    return lambda: grad_of(extract(features), inputs, grad)


def _algorithms(variant: str) -> contextlib.AbstractContextManager[None]:
    """Switches to the algorithms of a variant. Enter it outside of what is timed: switching takes time."""
    if variant in (DETERMINISTIC, GRAPH_DETERMINISTIC):
        return _deterministic()
    return contextlib.nullcontext()  # without a call of the switch, which would import torch's compiler


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def _itemsize(dtype: str) -> int:
    return getattr(torch, dtype).itemsize


def _status_bytes(key: str) -> int:
    with open('/proc/self/status', encoding='utf-8') as file:
        for line in file:
            if line.startswith(key + ':'):
                return 1024 * int(line.split()[1])
    raise OSError(f'/proc/self/status has no {key}')
