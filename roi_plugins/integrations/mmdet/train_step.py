"""A training step of an MMDetection config, to be measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, load_checkpoint
from torch import nn

from ..weights import only_data
from .checkpoints import allow_mmengine_checkpoints
from .config import read_config
from .extractors import MMDetRoIExtractor

EXTRACTOR_TYPES = (BaseRoIExtractor, MMDetRoIExtractor)


def load_step(
    config: str | Path, checkpoint: str | Path, device: torch.device
) -> tuple[nn.Module, Callable[[], object]]:
    """:func:`build_step` of a finished training, whose weights stay as they are."""
    cfg = read_config(config)
    model, step = build_step(cfg, device, num_batches=1, learns=False)
    allow_mmengine_checkpoints()
    with only_data():
        load_checkpoint(model, str(checkpoint), map_location='cpu', strict=True, logger='silent')
    return model, step


def build_step(
    cfg: Config, device: torch.device, *, num_batches: int, learns: bool = True
) -> tuple[nn.Module, Callable[[], object]]:
    """A detector, and what trains it for one step: forward, losses, backward and optimiser.

    Args:
        num_batches: of the training data, loaded here and then taken in turn: loading images is no part
            of the step, and in training runs beside it.
        learns: False: a learning rate of 0, and nothing is loaded to start from.
    """
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    if learns:
        model.init_weights()
    model.to(device).train()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    if not learns:
        for group in optim_wrapper.optimizer.param_groups:
            group['lr'] = 0.0
    loader = {**cfg.train_dataloader, 'num_workers': 0, 'persistent_workers': False}
    batches = iter(Runner.build_dataloader(loader, seed=0))
    data = [next(batches) for _ in range(num_batches)]
    turn = 0

    def step() -> None:
        nonlocal turn
        model.train_step(data[turn % len(data)], optim_wrapper)
        turn += 1

    return model, step
