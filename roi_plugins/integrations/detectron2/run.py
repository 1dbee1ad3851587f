"""The description of a run, the same for both languages of configs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from omegaconf import DictConfig

from roi_plugins.evaluation.matching import COCO_SIGMAS, MAX_DETS


@dataclass
class Run:
    """What a training and an evaluation need of a config, YAML or LazyConfig.

    Attributes:
        cfg: the config.
        output_dir: the output folder.
        weights: the checkpoint to start from or to evaluate; ``''`` for random weights.
        train_datasets, test_datasets: names of the datasets to train and to evaluate on.
        settings: the names of settings in the language of the config, for errors.
        model, train_loader, test_loader: functions that build them.
        optimizer: builds the optimiser of a model.
        scheduler: builds the learning rate scheduler of an optimiser.
        batch_size: images in a step, of all processes together; None if only the user's own loader knows it.
        max_iter: the number of steps.
        checkpoints: the options of ``PeriodicCheckpointer``.
        amp: whether to train in mixed precision.
        ddp: the options of ``DistributedDataParallel``.
        log_period: steps between lines of the log.
        eval_period: steps between evaluations during the training; 0 for none.
        max_dets: how many detections of each class count in an image.
        sigmas: the OKS sigma of each keypoint.
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
    sigmas: Sequence[float] = COCO_SIGMAS

    @property
    def prefix(self) -> str:
        """The start of the file names of the checkpoints."""
        return self.checkpoints.get('file_prefix', 'model')
