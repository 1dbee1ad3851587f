"""Checks that the output folder of a training can be written to and has room for its checkpoints."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from .errors import RunError


def check_writable(folder: str | Path, setting: str) -> None:
    """Checks that an output folder can be written to.

    Args:
        folder: the folder; it need not exist yet.
        setting: the setting that names it, for the error.

    Raises:
        RunError: it is not a folder, or cannot be written to.
    """
    existing = _existing(folder)
    if not existing.is_dir():
        raise RunError(f'{setting}: {existing} is not a folder')
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RunError(f'{setting}: {existing} cannot be written to')


def check_space(folder: str | Path, size: int, count: int, *, setting: str, count_setting: str) -> None:
    """Checks that a disk has room for the checkpoints of a training.

    Args:
        folder: the folder that they are saved to.
        size: bytes of a checkpoint.
        count: how many checkpoints there will be at the same time.
        setting: the setting that names the folder, for the error.
        count_setting: the settings that decide how many are saved, for the error.

    Raises:
        RunError: there is not enough room.
    """
    existing = _existing(folder)
    free = shutil.disk_usage(existing).free
    if size * count > free:
        raise RunError(
            f'{setting}: {count} checkpoints of about {_gigabytes(size)} are to be saved, but '
            f'{existing} has {_gigabytes(free)} free. Make room, or save fewer: {count_setting}'
        )


def checkpoint_bytes(model: torch.nn.Module, *optimizers: torch.optim.Optimizer) -> int:
    """Bytes of a checkpoint: the weights, and the state of the optimisers.

    Args:
        model: the model.
        optimizers: its optimisers; they need not have taken a step.
    """
    size = sum(value.nbytes for value in model.state_dict().values())
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        # SGD keeps the momentum of each weight, Adam and its variants keep two averages.
        copies = 2 if 'betas' in group else int(bool(group.get('momentum')))
        size += copies * sum(value.nbytes for value in group['params'])
    return size


def _gigabytes(size: int) -> str:
    return f'{size / 1e9:.2f} GB'


def _existing(path: str | Path) -> Path:
    """The path if it exists, else the nearest folder above it that does."""
    path = Path(path).absolute()
    return next(found for found in (path, *path.parents) if found.exists())
