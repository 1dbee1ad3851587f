"""Checkpoints of Detectron2: read without running code, checked, and never half-written."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from roi_plugins.files import written_aside

from ..errors import RunError
from ..weights import (
    check_pickle,
    describe_misfit,
    first_whole,
    is_whole,
    only_data,
    saving,
)

_PARTIAL = '.partial.'  # the start of the name of a checkpoint that is being written


def saved_checkpoints(folder: str | Path, prefix: str = 'model') -> list[Path]:
    """The checkpoints that a training has left in its output folder, the last one first.

    They count whether or not ``last_checkpoint`` names one: it may be lost, or name one that is gone.

    Args:
        folder: the output folder; it need not exist.
        prefix: the start of the names of the files, ``file_prefix`` of ``PeriodicCheckpointer``.
    """
    folder = Path(folder)
    try:
        named = (folder / 'last_checkpoint').read_text(encoding='utf-8').strip()
    except FileNotFoundError:
        named = ''
    saved = {path for path in folder.glob('*.pth') if path.name.startswith(f'{prefix}_')}
    if named and (folder / named).is_file():
        saved.add(folder / named)
    return sorted(saved, key=lambda path: (path.name == named, path.stat().st_mtime), reverse=True)


class DataCheckpointer(DetectionCheckpointer):
    """Detectron2's, but a checkpoint that is not to be had, damaged or holds more than data is a RunError."""

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            return super().load(path, *args, **kwargs)
        except OSError as error:  # of the network too
            raise RunError(f'the checkpoint {path} cannot be read: {error}') from error

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            if filename.endswith('.pkl'):
                check_pickle(filename)
            elif not is_whole(filename):
                raise RunError(f'the checkpoint {filename} is damaged: it is not as torch.save wrote it')
            with only_data():
                return super()._load_file(filename)
        except pickle.UnpicklingError as error:
            raise RunError(
                f'the checkpoint {filename} was not loaded, for it is damaged or holds objects that could '
                f'run code: {error}'
            ) from error


class Checkpointer(DataCheckpointer):
    """Detectron2's, but no file is ever half-written, and damaged ones are passed over.

    Args:
        model, save_dir, checkpointables: as for Detectron2's.
        prefix: the start of the names of the files, ``file_prefix`` of ``PeriodicCheckpointer``.
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
        """Of :meth:`save`, which has written the file."""
        folder = Path(self.save_dir)
        name = last_filename_basename.removeprefix(_PARTIAL)
        with written_aside(folder / name) as aside:
            os.replace(folder / last_filename_basename, aside)
        with written_aside(folder / 'last_checkpoint') as aside:
            aside.write_text(name, encoding='utf-8')

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        saved = saved_checkpoints(self.save_dir, self._prefix) if resume else []
        if not saved:
            # Not by Detectron2's own rule, which would take whatever last_checkpoint names.
            return super().resume_or_load(path, resume=False)
        try:
            return self.load(str(first_whole(saved)))
        except ValueError as error:
            raise RunError(str(error)) from None


class StrictCheckpointer(DataCheckpointer):
    """Detectron2's, but weights that are not the model's are a RunError."""

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        rest = super().load(path, *args, **kwargs)
        if self._misfit:
            raise RunError(
                f'--eval-only: the checkpoint {path} does not fit the config: {self._misfit}. Give the '
                'config of the detector that it was trained for'
            )
        return rest

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        found = super()._load_model(checkpoint)
        self._misfit = describe_misfit(
            found.missing_keys, found.unexpected_keys, [name for name, *_ in found.incorrect_shapes]
        )
        return found
