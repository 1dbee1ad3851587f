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

from roi_plugins.files import written_aside

from ..errors import RunError
from ..weights import (
    ARRAY_GLOBALS,
    describe_misfit,
    is_whole,
    saving,
)


@register_backend('atomic_local', force=True)
class AtomicLocalBackend(LocalBackend):
    """MMEngine's local files, but written aside and renamed: an interrupted save leaves the old.

    So does what MMEngine removes before a save, to make room for it: it is removed after.
    """

    _outdated: ClassVar[list[str | Path]] = []

    def remove(self, filepath: str | Path) -> None:
        """Removes the file ``filepath`` once another one is written."""
        self._outdated.append(filepath)

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes ``obj`` to the file ``filepath``, and makes its folder if needed."""
        with saving(filepath):
            Path(filepath).parent.mkdir(parents=True, exist_ok=True)
            with written_aside(filepath) as aside:
                aside.write_bytes(obj)
        while self._outdated:
            if (old := self._outdated.pop()) != filepath:
                super().remove(old)


class RandomState(Hook):
    """Lets a resumed training draw what it would have drawn: torch's random numbers, of the first process.

    MMEngine goes on with the right data, but samples the boxes of the heads as at the start.
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
    """Raises RunError on weights that are not the model's, before they are loaded."""

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        expected = unwrapped(runner.model).state_dict()
        weights = checkpoint.get('state_dict', checkpoint)
        given = {name.removeprefix('module.'): value for name, value in weights.items()}
        misfit = describe_misfit(
            # Models of old versions of torch did not count their batches, and nothing needs it.
            [n for n in expected if n not in given and not n.endswith('.num_batches_tracked')],
            [name for name in given if name not in expected],
            [n for n, value in expected.items() if n in given and given[n].shape != value.shape],
        )
        if misfit:
            raise RunError(
                f'the checkpoint {runner.cfg.load_from} does not fit the config: {misfit}. Give the '
                'config of the detector that it was trained for'
            )


def last_checkpoint(work_dir: str | Path) -> Path | None:
    """The newest checkpoint that a training has left in its work directory, if any."""
    return next(iter(saved_checkpoints(work_dir)), None)


def saved_checkpoints(work_dir: str | Path) -> list[Path]:
    """The last one first."""
    work_dir = Path(work_dir)
    try:
        named = Path((work_dir / 'last_checkpoint').read_text(encoding='utf-8').strip())
    except FileNotFoundError:
        named = Path()
    # MMEngine wrote an absolute path, which is wrong once the folder is moved; and it removes old
    # checkpoints before it writes this file, so that after a crash the named one may be gone.
    saved = {*work_dir.glob('iter_*.pth'), *work_dir.glob('epoch_*.pth')}
    if (work_dir / named.name).is_file():
        saved.add(work_dir / named.name)
    return sorted(saved, key=lambda path: (path.name == named.name, path.stat().st_mtime), reverse=True)


def check_checkpoint(path: str | Path) -> str:
    """The path of a checkpoint, or its URL; a RunError where the file is not there or is damaged."""
    if '://' not in str(path):
        if not Path(path).is_file():
            raise RunError(f'the checkpoint {path} does not exist')
        if not is_whole(path):
            raise RunError(f'the checkpoint {path} is damaged: it is not as torch.save wrote it')
    return str(path)


def allow_mmengine_checkpoints() -> None:
    """Lets ``torch.load(weights_only=True)`` read what MMEngine saves beside tensors.

    That is the history of the logged values: numpy arrays and :class:`HistoryBuffer`. The safe
    unpickler stays on; all that is allowed here holds data and runs no code of the file's choice.
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
    """A function that is known by another name; torch 2.4 has no other way to allow it under that."""

    def call(*arguments: Any) -> Any:
        return function(*arguments)

    call.__module__, _, call.__qualname__ = name.rpartition('.')
    call.__name__ = call.__qualname__
    return call


def _history_statistic(owner: Any, name: str) -> Any:
    """Stands for ``getattr``, by which a pickled HistoryBuffer refers to its four methods."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed')
    return getattr(owner, name)


def unsafe_objects(checkpoint: str) -> str:
    try:
        return ', '.join(torch.serialization.get_unsafe_globals_in_checkpoint(checkpoint))
    except Exception:  # a damaged file, or not a local one: the caller has the first error
        return ''


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    return model.get_submodule('module') if is_model_wrapper(model) else model
