"""A training step of a Detectron2 config, whose time and memory can be measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling.poolers import ROIPooler
from detectron2.utils.events import EventStorage
from torch import nn

from roi_plugins.files import read_json
from roi_plugins.run_record import METRICS_FILE

from .arguments import COMMAND, parse_arguments
from .check_data import check_registered
from .checkpoints import DataCheckpointer
from .config import read_config
from .datasets import import_modules
from .describe import describe
from .poolers import RoIPluginsPooler
from .saved_config import read_saved_config

EXTRACTOR_TYPES = (ROIPooler, RoIPluginsPooler)


def load_step(
    config: str | Path, checkpoint: str | Path, device: torch.device
) -> tuple[nn.Module, Callable[[], object]]:
    """A training step of a finished training, for the ``train_step`` of a ``Framework``.

    Args:
        config: the ``config.yaml`` that the training has saved, or the config of the training.
        checkpoint: path of the trained weights.
        device: where the model runs.

    Returns:
        The detector, and a function that runs a step: forward, losses, backward and optimiser, always on the
        first batch of the training data. The learning rate is 0, so that the weights stay.

    Raises:
        RunError: the training data is not registered or does not exist.
    """
    imported = _register_data(Path(config).parent)
    is_python = Path(config).suffix == '.py'
    cfg = read_config(config) if is_python else read_saved_config(config, imported)
    if isinstance(cfg, CfgNode):
        cfg.MODEL.DEVICE = str(device)
        cfg.DATALOADER.NUM_WORKERS = 0
    else:
        cfg.train.device = str(device)
        cfg.dataloader.train.num_workers = 0
    run = describe(cfg)
    for name in run.train_datasets:
        check_registered(name, run.settings['train'], 'train')
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


def _register_data(run_dir: Path) -> list[str]:
    """Registers the data of a finished run again, by its imports and its LazyConfig.

    Returns:
        The packages that the run imported.
    """
    if not (run_dir / METRICS_FILE).is_file():
        return []
    command = read_json(run_dir / METRICS_FILE, 'record').get('command', [])
    # An earlier version called the module detectron2.runs.
    if command[:2] != COMMAND[:2] or not command[2].startswith(f'{__package__}.'):
        return []
    args = parse_arguments(command[len(COMMAND) :])
    import_modules(args.imports)
    if args.config_file.endswith('.py') and Path(args.config_file).is_file():
        read_config(args.config_file)
    return [Path(m).stem if m.endswith('.py') else m.partition('.')[0] for m in args.imports]
