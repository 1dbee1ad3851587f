"""Checkpoints of MMDetection: finding, safe loading, integrity checks, atomic writes."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from roi_plugins.files import atomic_write

from ..checkpoints import ARRAY_GLOBALS, describe_incompatible_keys, is_whole, newest_first, saving
from ..errors import RunError


@register_backend('atomic_local', force=True)
class AtomicLocalBackend(LocalBackend):
    """MMEngine's backend for local files, with atomic writes.

    MMEngine removes the oldest checkpoint before it saves a new one. Here it is removed afterwards, so that
    an interrupted save leaves the old checkpoints as they were.
    """

    _outdated: ClassVar[list[str | Path]] = []

    def remove(self, filepath: str | Path) -> None:
        """Removes the file ``filepath`` after the next call of :meth:`put`."""
        self._outdated.append(filepath)

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes ``obj`` to the file ``filepath`` and makes its folder if needed."""
        with saving(filepath):
            Path(filepath).parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(filepath) as aside:
                aside.write_bytes(obj)
        while self._outdated:
            if (old := self._outdated.pop()) != filepath:
                super().remove(old)


class RandomState(Hook):
    """Saves torch's random state of the first process, so that a resumed training draws the same numbers.

    MMEngine itself restores the order of the data, but not the random state, by which heads sample boxes.
    """

    _state: list[torch.Tensor] | None = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint['random_state'] = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if runner.cfg.get('resume'):
            self._state = checkpoint.get('random_state')

    def before_train_epoch(self, runner: Runner) -> None:
        if self._state and len(self._state) == 1 + torch.cuda.device_count():
            torch.set_rng_state(self._state[0].cpu())
            torch.cuda.set_rng_state_all([state.cpu() for state in self._state[1:]])
        self._state = None


class CheckpointFits(Hook):
    """Raises RunError before weights are loaded that do not fit the model."""

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        expected = unwrapped(runner.model).state_dict()
        weights = checkpoint.get('state_dict', checkpoint)
        given = {name.removeprefix('module.'): value for name, value in weights.items()}
        incompatible_keys = describe_incompatible_keys(
            # Old versions of torch did not save num_batches_tracked; evaluation does not need it.
            [n for n in expected if n not in given and not n.endswith('.num_batches_tracked')],
            [name for name in given if name not in expected],
            [n for n, value in expected.items() if n in given and given[n].shape != value.shape],
        )
        if incompatible_keys:
            raise RunError(
                f'the checkpoint {runner.cfg.load_from} does not fit the config: '
                f'{incompatible_keys}. Give the '
                'config of the detector that it was trained for'
            )


def last_checkpoint(work_dir: str | Path) -> Path | None:
    """The last checkpoint that a training has left in its work directory; None if there is none."""
    return next(iter(saved_checkpoints(work_dir)), None)


def saved_checkpoints(work_dir: str | Path) -> list[Path]:
    """The checkpoints that a training has left in its work directory, the last one first.

    Args:
        work_dir: the work directory; it need not exist.
    """
    work_dir = Path(work_dir)
    return newest_first(work_dir, [*work_dir.glob('iter_*.pth'), *work_dir.glob('epoch_*.pth')])


def check_checkpoint(path: str | Path) -> str:
    """Checks that a checkpoint is there and undamaged.

    Args:
        path: a file, or a URL, which is not checked.

    Returns:
        ``path`` as a string.

    Raises:
        RunError: the file does not exist or is damaged.
    """
    if '://' not in str(path):
        if not Path(path).is_file():
            raise RunError(f'the checkpoint {path} does not exist')
        if not is_whole(path):
            raise RunError(f'the checkpoint {path} is damaged: it is not as torch.save wrote it')
    return str(path)


def allow_mmengine_checkpoints() -> None:
    """Lets ``torch.load(weights_only=True)`` read what MMEngine saves beside tensors.

    That is the history of the logged values: numpy arrays and :class:`HistoryBuffer`. They only hold data, so
    that a checkpoint still cannot run code.
    """
    named = {**ARRAY_GLOBALS, 'builtins.getattr': _history_statistic}
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            *(type(np.dtype(code)) for code in '?bBhHiIlLqQefd'),
            *(value if isinstance(value, type) else _under(name, value) for name, value in named.items()),
        ]
    )


def _under(name: str, function: Callable) -> Callable:
    """The function under another name, since torch 2.4 takes the name that it allows from the function."""

    def call(*arguments: Any) -> Any:
        return function(*arguments)

    call.__module__, _, call.__qualname__ = name.rpartition('.')
    call.__name__ = call.__qualname__
    return call


def _history_statistic(owner: Any, name: str) -> Any:
    """Replaces ``getattr``, which a pickled HistoryBuffer calls to get its four methods."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed')
    return getattr(owner, name)


def unsafe_objects(checkpoint: str) -> str:
    """The names of the objects in a checkpoint that ``weights_only`` refuses; empty if it cannot be read."""
    try:
        return ', '.join(torch.serialization.get_unsafe_globals_in_checkpoint(checkpoint))
    except Exception:  # a damaged file or a URL: the caller reports its own error
        return ''


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model without the wrapper that a distributed training puts around it."""
    return model.get_submodule('module') if is_model_wrapper(model) else model
