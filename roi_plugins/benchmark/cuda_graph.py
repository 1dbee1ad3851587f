"""Measures the GPU time of a call without its launches, by replaying a CUDA graph with a cold L2 cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

SAMPLES = 100
_HEAD_START = 20  # replays that are not timed
_LEAST_CACHE = 2**26  # bytes, if the driver reports less or nothing


@dataclass(frozen=True)
class CapturedCall:
    """A call as a CUDA graph.

    Attributes:
        graph: the graph.
        call: the call. It keeps the tensors alive that the graph reads.
    """

    graph: torch.cuda.CUDAGraph
    call: Callable[[], object]

    def replay(self) -> None:
        """Does the work of the call once."""
        self.graph.replay()


def capture(make_call: Callable[[], Callable[[], object]], device: torch.device) -> CapturedCall:
    """Captures a call as a CUDA graph.

    Args:
        make_call: prepares the call. It runs on the stream of the capture, because autograd runs a backward
            pass on the stream of its forward pass, and a capture cannot wait for another stream.
        device: the GPU.

    Raises:
        RuntimeError: the call cannot be captured.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        call = make_call()
        for _ in range(3):  # the first calls load kernels, which is not possible during a capture
            call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    return CapturedCall(graph, call)


def cold_seconds(replay: Callable[[], object], flush: Callable[[], object]) -> list[float]:
    """Measures ``SAMPLES`` calls of ``replay``, each after a ``flush`` that is not timed.

    Args:
        replay: queues the work on the GPU.
        flush: queues work that fills the cache with other data, see :func:`reading_flush`.

    Returns:
        The GPU time of each call, in seconds.
    """
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(SAMPLES)
    ]
    # When the GPU has recorded the start, the replay must already be queued, or the host would be timed. So
    # the host never waits. It gets ahead by these calls, and it stays ahead, because a flush takes longer
    # than the launches of a sample.
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
    """Makes a call that fills the L2 cache with other data by reading four times its size.

    ``triton.testing.do_bench`` writes instead. Then the lines are written back during the timed call.

    Args:
        device: the GPU.
    """
    size = 4 * max(torch.cuda.get_device_properties(device).L2_cache_size, _LEAST_CACHE)
    return torch.zeros(size // torch.float32.itemsize, device=device).sum
