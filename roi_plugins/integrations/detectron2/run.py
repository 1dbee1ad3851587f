"""What a training and an evaluation need of a config, whichever its language."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from omegaconf import DictConfig

from roi_plugins.evaluation.matching import MAX_DETS


@dataclass
class Run:
    """What a training and an evaluation need of a config, whichever its language.

    Attributes:
        cfg: the config as Detectron2 knows it.
        output_dir: where everything goes.
        weights: what the model starts from, or is evaluated with; ``''``: random weights.
        train_datasets, test_datasets: names of the datasets to train and to evaluate on.
        settings: what the config calls what an error may be about.
        model, train_loader, test_loader: build them.
        optimizer, scheduler: ``(model) ->`` and ``(optimizer) ->`` what Detectron2's trainers take.
        batch_size: images a step of all processes; None where a loader of the user's own knows it.
        max_iter, checkpoints: the steps of the training; options of ``PeriodicCheckpointer``.
        amp, ddp, log_period: mixed precision; options of DistributedDataParallel; steps a log line.
        eval_period: steps between evaluations during the training; ``0``: none.
        max_dets: how many detections of each class count in an image.
    """

    cfg: CfgNode | DictConfig
    output_dir: Path
    weights: str
    train_datasets: Sequence[str]
    test_datasets: Sequence[str]
    settings: Mapping[str, str]
    model: Callable[[], torch.nn.Module]
    train_loader: Callable[[], Any]
    test_loader: Callable[[], Any]
    optimizer: Callable[[torch.nn.Module], torch.optim.Optimizer]
    scheduler: Callable[[torch.optim.Optimizer], Any]
    batch_size: int | None
    max_iter: int
    checkpoints: Mapping[str, Any]
    amp: bool
    ddp: Mapping[str, Any]
    log_period: int
    eval_period: int
    max_dets: int = MAX_DETS

    @property
    def prefix(self) -> str:
        """The start of the names of its checkpoints."""
        return self.checkpoints.get('file_prefix', 'model')
