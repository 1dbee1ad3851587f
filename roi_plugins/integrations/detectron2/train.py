"""Training of a Detectron2 config, YAML or LazyConfig."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer, create_ddp_model, hooks
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter

from roi_plugins.evaluation.coco import METRICS, print_metrics
from roi_plugins.evaluation.coco import evaluate as compute_metrics

from ..errors import RunError
from .check_model import build, build_model
from .checkpoints import Checkpointer, saved_checkpoints
from .run import Run
from .test import ann_file_of, predict
from .tracking import TrackerWriter


def train(run: Run, resume: bool, tracker: str | None = None) -> torch.nn.Module:
    """Trains a model up to ``run.max_iter``.

    Args:
        run: the run.
        resume: whether to resume from the last checkpoint, if there is one.
        tracker: the experiment tracker to log to as well, of ``roi_plugins.tracking.TRACKERS``.

    Returns:
        The model.

    Raises:
        RunError: a part of the run cannot be built, or a checkpoint cannot be loaded.
    """
    saved = saved_checkpoints(run.output_dir, run.prefix) if resume else []
    model = build_model(run)
    optimizer = run.optimizer(model)
    loader = build('loader of the training data', run.train_loader)
    wrapped = _distributed(model, run.ddp)
    trainer = (AMPTrainer if run.amp else SimpleTrainer)(wrapped, loader, optimizer)
    checkpointer = Checkpointer(wrapped, str(run.output_dir), prefix=run.prefix, trainer=trainer)
    trainer.register_hooks([hooks.IterationTimer(), hooks.LRScheduler(optimizer, run.scheduler(optimizer))])
    # Register on every rank, before PeriodicWriter, so that evaluation metrics get logged.
    trainer.register_hooks(
        [hooks.EvalHook(run.eval_period, lambda: _metrics(run, model), eval_after_train=False)]
    )
    if comm.is_main_process():
        writers = [
            CommonMetricPrinter(run.max_iter),
            # Detectron2 calls this file metrics.json, which is the name of the result here.
            JSONWriter(str(run.output_dir / 'training.json')),
        ]
        if find_spec('tensorboard'):
            writers.append(TensorboardXWriter(str(run.output_dir)))  # which --track tensorboard asks for
        if tracker and tracker != 'tensorboard':
            writers.append(TrackerWriter(tracker, run.output_dir))
        trainer.register_hooks(
            [
                hooks.PeriodicCheckpointer(checkpointer, **run.checkpoints),
                hooks.PeriodicWriter(writers, period=run.log_period),
            ]
        )
    if len(set(comm.all_gather(bool(saved)))) > 1:
        raise RunError(
            f'--resume: not every machine sees the last checkpoint in {run.output_dir}, which has to '
            'be on storage that they share'
        )
    checkpointer.resume_or_load(run.weights, resume=resume)
    start = trainer.iter + 1 if saved else 0
    if start < run.max_iter:
        trainer.train(start, run.max_iter)
    return model


def _metrics(run: Run, model: torch.nn.Module) -> dict[str, dict[str, float]]:
    """Prints and returns the metrics of an evaluation during the training, as ``metrics.json`` has them."""
    metrics = {}
    for iou_type, predictions in predict(run, model).items():
        found = compute_metrics(ann_file_of(run), predictions, iou_type, run.max_dets, run.sigmas)
        metrics[iou_type] = {name: found[name] for name in METRICS}
    print_metrics(metrics)
    return metrics


def _distributed(model: torch.nn.Module, options: Mapping[str, Any]) -> torch.nn.Module:
    """As ``create_ddp_model``, which assumes that each process has a GPU, but also on the CPU."""
    if next(model.parameters()).device.type == 'cpu':
        options = {**options, 'device_ids': None}
    return create_ddp_model(model, **options)
