"""Evaluates the runs of a comparison, large ones in parallel."""

from __future__ import annotations

import gc
import multiprocessing
import os
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pycocotools.coco import COCO

from roi_plugins.ablation.results import Run
from roi_plugins.evaluation.bootstrap import RunSample, sample_run
from roi_plugins.evaluation.coco import match_predictions, summarize
from roi_plugins.evaluation.coco_files import read_predictions
from roi_plugins.evaluation.matching import BOUNDARY, REGIONS
from roi_plugins.evaluation.tide import break_down_errors
from roi_plugins.files import DataError

PARALLEL_BYTES = 4_000_000
"""Prediction files that are smaller together are evaluated in this process: others would not pay."""


@dataclass(frozen=True)
class RunResult:
    """What is computed from the predictions of one run.

    Attributes:
        metrics: what :func:`~roi_plugins.evaluation.coco.evaluate` gives, by IoU type.
        samples: by IoU type, the AP over resamples of the images, and what
            :func:`~roi_plugins.evaluation.tide.break_down_errors` gives; None instead of the errors for
            keypoints, for Boundary AP and without details.
    """

    metrics: dict[str, dict[str, Any]]
    samples: dict[str, tuple[RunSample, pd.DataFrame | None]]


def evaluate_run(
    run: Run, coco: COCO, counts: np.ndarray, evaluations: Sequence[str], details: bool
) -> RunResult:
    """Evaluates the predictions of one run.

    Args:
        run: the run.
        coco: its annotations.
        counts: (images, R) what :func:`~roi_plugins.evaluation.bootstrap.resample_images` returned.
        evaluations: the kinds of AP, of ``EVALUATIONS``; those count of which the run has predictions.
        details: whether to break the errors down by kind as well.

    Raises:
        DataError: a prediction file cannot be used.
    """
    metrics, samples = {}, {}
    for iou_type in evaluations:
        path = run.predictions.get('segm' if iou_type == BOUNDARY else iou_type)
        if path is None:
            continue
        matches = match_predictions(coco, path, iou_type, run.max_dets, run.sigmas)
        metrics[iou_type] = summarize(matches)
        errors = None
        if details and iou_type in REGIONS:
            predictions = read_predictions(coco, path, iou_type)
            errors = break_down_errors(coco, predictions, iou_type, run.max_dets)
        samples[iou_type] = sample_run(metrics[iou_type], matches, counts), errors
    return RunResult(metrics, samples)


def evaluate_runs(
    runs: Sequence[Run], coco: COCO, counts: np.ndarray, evaluations: Sequence[str], details: bool
) -> Iterator[RunResult | DataError]:
    """Evaluates runs, one on each core at a time.

    Args:
        runs: the runs.
        coco, counts, evaluations, details: see :func:`evaluate_run`.

    Yields:
        The result of each run in the order of the runs, or the error that says why it has none.
    """
    arguments = coco, counts, evaluations, details
    workers = min(len(runs), _cores())
    if workers == 1 or sum(_size(path) for run in runs for path in run.predictions.values()) < PARALLEL_BYTES:
        for run in runs:
            try:
                yield evaluate_run(run, *arguments)
            except DataError as error:
                yield error
        return

    # A process for each run, not a pool: it gives its memory back, and none is left behind waiting for work
    # if this process is killed. It is forked because it then shares the annotations and the resamples.
    context = multiprocessing.get_context('fork')
    running: dict[Connection, tuple[int, ForkProcess]] = {}
    finished: dict[int, tuple[RunResult | Exception, str]] = {}
    started = 0
    try:
        for index, run in enumerate(runs):
            while index not in finished:
                while started < len(runs) and len(running) < workers:
                    receiver, sender = context.Pipe(duplex=False)
                    process = context.Process(target=_send, args=(sender, runs[started], *arguments))
                    process.start()
                    sender.close()  # so that the end of the process is the end of the pipe
                    running[receiver] = started, process
                    started += 1
                ready = wait(list(running))
                for receiver in [receiver for receiver in running if receiver in ready]:
                    done, process = running.pop(receiver)
                    finished[done] = _receive(receiver, process, runs[done])
            outcome, trace = finished.pop(index)
            if isinstance(outcome, Exception) and not isinstance(outcome, DataError):
                raise outcome from RuntimeError(f'in the process of {run.name}:\n{trace}')
            yield outcome
    finally:
        for receiver, (_, process) in running.items():
            process.terminate()
            process.join()
            receiver.close()


def _send(sender: Connection, *arguments: Any) -> None:
    # Collecting would go through all predictions again and again, and copy what is shared with the parent.
    gc.disable()
    try:
        sender.send((evaluate_run(*arguments), ''))
    except KeyboardInterrupt:
        pass  # the parent has it too, and says so
    except Exception as error:
        sender.send((error, traceback.format_exc()))


def _receive(receiver: Connection, process: ForkProcess, run: Run) -> tuple[RunResult | Exception, str]:
    with receiver:
        try:
            received = receiver.recv()
        except EOFError:
            received = None
    process.join()
    if received is None:
        error = RuntimeError(
            f'{run.name}: the process of its evaluation ended with exit code {process.exitcode}; '
            'was it out of memory?'
        )
        return error, ''
    return received


def _cores() -> int:
    """Returns how many cores this process may use; 1 where it cannot tell, as beside Linux."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 1


def _size(path: str | Path) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0
