"""A training step of a Detectron2 config, to be measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.config import CfgNode, LazyConfig
from detectron2.modeling.poolers import ROIPooler
from detectron2.utils.events import EventStorage
from torch import nn

from .checkpoints import DataCheckpointer
from .poolers import RoIPluginsPooler
from .runs import describe, read_config

EXTRACTOR_TYPES = (ROIPooler, RoIPluginsPooler)


def load_step(
    config: str | Path, checkpoint: str | Path, device: torch.device
) -> tuple[nn.Module, Callable[[], object]]:
    """The detector of a finished training, and what trains it for one step: forward, losses, backward and
    optimiser, always on the first batch of the training data. The learning rate is 0: the weights stay.

    Args:
        config: the ``config.yaml`` that the training left, or what it was made of.
    """
    cfg = _read(Path(config))
    if isinstance(cfg, CfgNode):
        cfg.MODEL.DEVICE = str(device)
        cfg.DATALOADER.NUM_WORKERS = 0
    else:
        cfg.train.device = str(device)
        cfg.dataloader.train.num_workers = 0
    run = describe(cfg)
    torch.manual_seed(0)
    model = run.model()
    DataCheckpointer(model).load(str(checkpoint))
    model.train()
    optimizer = run.optimizer(model)
    for group in optimizer.param_groups:
        group['lr'] = 0.0
    data = next(iter(run.train_loader()))

    def step() -> None:
        with EventStorage():
            loss = sum(model(data).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return model, step


def _read(config: Path):
    if config.suffix == '.py':
        return read_config(config)
    # A LazyConfig is saved as YAML too, but has no MODEL.
    saved = LazyConfig.load(str(config))
    return saved if 'model' in saved else read_config(config)
