"""The folder that a training writes to: whether it can be written to, and has room for the checkpoints."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from .errors import RunError


def check_writable(folder: str | Path, setting: str) -> None:
    """Raises RunError where an output folder is none, or cannot be written to.

    Args:
        folder: it need not be there yet.
        setting: what names it, for the message.
    """
    existing = _existing(folder)
    if not existing.is_dir():
        raise RunError(f'{setting}: {existing} is not a folder')
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RunError(f'{setting}: {existing} cannot be written to')


def check_space(folder: str | Path, size: int, count: int, *, setting: str, count_setting: str) -> None:
    """Raises RunError where the checkpoints of a training would fill the disk.

    Args:
        folder: where they are saved.
        size: of one, in bytes.
        count: how many there will be at a time.
        setting: what names the folder, for the message.
        count_setting: what decides how many are saved.
    """
    existing = _existing(folder)
    free = shutil.disk_usage(existing).free
    if size * count > free:
        raise RunError(
            f'{setting}: {count} checkpoints of about {_gigabytes(size)} are to be saved, but '
            f'{existing} has {_gigabytes(free)} free. Make room, or save fewer: {count_setting}'
        )


def checkpoint_bytes(model: torch.nn.Module, *optimizers: torch.optim.Optimizer) -> int:
    """The size of a checkpoint: the weights, and what optimisers keep of each that is trained."""
    size = sum(value.nbytes for value in model.state_dict().values())
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        # SGD's momentum, or the two averages of Adam and its kin.
        copies = 2 if 'betas' in group else int(bool(group.get('momentum')))
        size += copies * sum(value.nbytes for value in group['params'])
    return size


def _gigabytes(size: int) -> str:
    return f'{size / 1e9:.2f} GB'


def _existing(path: str | Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = Path(path).absolute()
    return next(found for found in (path, *path.parents) if found.exists())
