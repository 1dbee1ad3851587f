"""A training step of an MMDetection config, whose time and memory can be measured."""

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

from ..checkpoints import weights_only
from .checkpoints import allow_mmengine_checkpoints
from .config import read_config
from .extractors import MMDetRoIExtractor

EXTRACTOR_TYPES = (BaseRoIExtractor, MMDetRoIExtractor)


def load_step(
    config: str | Path, checkpoint: str | Path, device: torch.device
) -> tuple[nn.Module, Callable[[], object]]:
    """A training step of a finished training, for the ``train_step`` of a ``Framework``.

    Args:
        config: path of the config.
        checkpoint: path of the trained weights.
        device: where the model runs.

    Returns:
        The detector, and a function that runs a step. The learning rate is 0, so that the weights stay.
    """
    cfg = read_config(config)
    model, step = build_step(cfg, device, num_batches=1, learns=False)
    allow_mmengine_checkpoints()
    with weights_only():
        load_checkpoint(model, str(checkpoint), map_location='cpu', strict=True, logger='silent')
    return model, step


def build_step(
    cfg: Config, device: torch.device, *, num_batches: int, learns: bool = True
) -> tuple[nn.Module, Callable[[], object]]:
    """Builds a detector and its training step.

    Args:
        cfg: the config.
        device: where the model runs.
        num_batches: how many batches of the training data the steps take in turn. They are loaded here, since
            a training loads images in parallel to its steps.
        learns: whether the weights are initialised and trained. If False, the learning rate is 0.

    Returns:
        The detector, and a function that runs a step: forward, losses, backward and optimiser.
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
