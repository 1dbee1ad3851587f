"""Checkpoints of Detectron2: finding, safe loading, integrity checks, atomic writes."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from roi_plugins.files import atomic_write

from ..checkpoints import (
    check_pickle,
    describe_incompatible_keys,
    first_whole,
    is_whole,
    newest_first,
    saving,
    weights_only,
)
from ..errors import RunError

_PARTIAL = '.partial.'  # starts the name of a checkpoint while it is written


def saved_checkpoints(folder: str | Path, prefix: str = 'model') -> list[Path]:
    """The checkpoints that a training has left in its output folder, the last one first.

    Args:
        folder: the output folder; it need not exist.
        prefix: the start of the file names, ``file_prefix`` of ``PeriodicCheckpointer``.
    """
    folder = Path(folder)
    return newest_first(folder, (path for path in folder.glob('*.pth') if path.name.startswith(f'{prefix}_')))


class DataCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer; a checkpoint that is missing, damaged or not plain data is a RunError."""

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            return super().load(path, *args, **kwargs)
        except OSError as error:  # network errors are among these
            raise RunError(f'the checkpoint {path} cannot be read: {error}') from error

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            if filename.endswith('.pkl'):
                check_pickle(filename)
            elif not is_whole(filename):
                raise RunError(f'the checkpoint {filename} is damaged: it is not as torch.save wrote it')
            with weights_only():
                return super()._load_file(filename)
        except pickle.UnpicklingError as error:
            raise RunError(
                f'the checkpoint {filename} was not loaded, because it is damaged or holds objects that '
                f'could run code: {error}'
            ) from error


class Checkpointer(DataCheckpointer):
    """Detectron2's checkpointer, with atomic writes; a resumed training skips damaged checkpoints.

    Args:
        model, save_dir, checkpointables: as for ``DetectionCheckpointer``.
        prefix: the start of the file names, ``file_prefix`` of ``PeriodicCheckpointer``.
    """

    def __init__(self, model: nn.Module, save_dir: str, *, prefix: str = 'model', **checkpointables: Any):
        super().__init__(model, save_dir, **checkpointables)
        self._prefix = prefix

    def save(self, name: str, **kwargs: Any) -> None:
        folder = Path(self.save_dir)
        try:
            with saving(folder / f'{name}.pth'):
                super().save(f'{_PARTIAL}{name}', **kwargs)
        finally:
            (folder / f'{_PARTIAL}{name}.pth').unlink(missing_ok=True)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Renames the file that :meth:`save` has written, and names it in ``last_checkpoint``."""
        folder = Path(self.save_dir)
        name = last_filename_basename.removeprefix(_PARTIAL)
        with atomic_write(folder / name) as aside:
            os.replace(folder / last_filename_basename, aside)
        with atomic_write(folder / 'last_checkpoint') as aside:
            aside.write_text(name, encoding='utf-8')

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        saved = saved_checkpoints(self.save_dir, self._prefix) if resume else []
        if not saved:
            # With resume=True, Detectron2 would load whatever last_checkpoint names.
            return super().resume_or_load(path, resume=False)
        try:
            return self.load(str(first_whole(saved)))
        except ValueError as error:
            raise RunError(str(error)) from None


class StrictCheckpointer(DataCheckpointer):
    """Detectron2's checkpointer; weights that do not fit the model are a RunError."""

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        rest = super().load(path, *args, **kwargs)
        if self._incompatible_keys:
            raise RunError(
                f'--eval-only: the checkpoint {path} does not fit the config: '
                f'{self._incompatible_keys}. Give the config of the detector that it was trained for'
            )
        return rest

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        found = super()._load_model(checkpoint)
        self._incompatible_keys = describe_incompatible_keys(
            found.missing_keys, found.unexpected_keys, [name for name, *_ in found.incorrect_shapes]
        )
        return found
