"""GPU time of a call without its launches: replayed from a CUDA graph, with a cold second-level cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

SAMPLES = 100
_HEAD_START = 20  # replays that are not timed
_LEAST_CACHE = 2**26  # bytes, where the driver reports less or nothing


@dataclass(frozen=True)
class CapturedCall:
    graph: torch.cuda.CUDAGraph
    call: Callable[[], object]  # holds the tensors that the graph reads

    def replay(self) -> None:
        self.graph.replay()


def capture(make_call: Callable[[], Callable[[], object]], device: torch.device) -> CapturedCall:
    """A call as a CUDA graph.

    Args:
        make_call: prepares the call. It runs on the stream of the capture, because autograd runs a backward
            pass on the stream of its forward pass, and a capture cannot wait for another stream.

    Raises:
        RuntimeError: the call cannot be captured.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        call = make_call()
        for _ in range(3):  # the first calls load kernels, which a capture cannot
            call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    return CapturedCall(graph, call)


def cold_seconds(replay: Callable[[], object], flush: Callable[[], object]) -> list[float]:
    """GPU seconds of ``SAMPLES`` calls of ``replay``, each after a ``flush`` that is not timed."""
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(SAMPLES)
    ]
    # The GPU must find a replay queued when it has recorded the start, or it would time the host. So the
    # host never waits: it gets ahead by these calls, and stays ahead, since a flush takes longer than the
    # launches of a sample.
    for _ in range(_HEAD_START):
        flush()
        replay()
    for start, end in events:
        flush()
        start.record()
        replay()
        end.record()
    torch.cuda.synchronize()
    return [1e-3 * start.elapsed_time(end) for start, end in events]


def reading_flush(device: torch.device) -> Callable[[], object]:
    """What fills the second-level cache with other data by reading four times its size.

    Writing, as ``triton.testing.do_bench`` does, leaves lines whose write-back falls into the timed call.
    """
    size = 4 * max(torch.cuda.get_device_properties(device).L2_cache_size, _LEAST_CACHE)
    return torch.zeros(size // torch.float32.itemsize, device=device).sum
