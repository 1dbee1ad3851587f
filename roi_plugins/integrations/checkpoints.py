"""Safe checkpoint I/O: weights-only loading, integrity checks, finding the last one."""

from __future__ import annotations

import codecs
import contextlib
import os
import pickle
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

_SHOWN = 5

# numpy before 1.26 has no numpy._core.
_multiarray = import_module('numpy._core.multiarray' if find_spec('numpy._core') else 'numpy.core.multiarray')

ARRAY_GLOBALS = {
    **{
        f'{module}.{function.__name__}': function
        for function in (_multiarray._reconstruct, _multiarray.scalar)
        for module in ('numpy.core.multiarray', 'numpy._core.multiarray')
    },
    'numpy.ndarray': np.ndarray,
    'numpy.dtype': np.dtype,
    '_codecs.encode': codecs.encode,
}
"""The functions and classes that pickles of numpy arrays name, all of which are safe to call."""


@contextlib.contextmanager
def weights_only() -> Iterator[None]:
    """Makes every ``torch.load`` use the safe unpickler, as with ``weights_only=True``.

    Old versions of torch do not use it by default, callers may leave the argument out, and an environment
    variable may turn it off.
    """
    names = ('TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD')
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[names[0]] = '1'
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f'{module}.{name}' in ARRAY_GLOBALS:
            return ARRAY_GLOBALS[f'{module}.{name}']
        if (module, name) == ('collections', 'OrderedDict'):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f'{module}.{name} is not allowed')


def check_pickle(path: str | Path) -> None:
    """Checks that a pickle of weights (``.pkl``) holds numpy arrays and plain data only.

    Args:
        path: the file.

    Raises:
        pickle.UnpicklingError: it names another class or function.
    """
    with open(path, 'rb') as file:
        _ArrayUnpickler(file, encoding='latin1').load()


@contextlib.contextmanager
def saving(checkpoint: str | Path) -> Iterator[None]:
    """Turns an error while a checkpoint is written into an OSError that names the checkpoint.

    Args:
        checkpoint: the file that is written in the block.

    Raises:
        OSError: the operating system could not write it, such as to a full disk.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch's writer then fails to close the file, and raises a RuntimeError about that alone.
        said = error if isinstance(error, OSError) else error.__context__
        if not isinstance(said, OSError):
            raise
        raise OSError(
            said.errno,
            f'the checkpoint {checkpoint} was not saved: {said.strerror}; earlier checkpoints are unchanged',
        ) from error


def is_whole(checkpoint: str | Path) -> bool:
    """Whether a checkpoint is undamaged, by its checksums, which ``torch.load`` does not check.

    Args:
        checkpoint: the file. The format of torch before 1.6 has no checksums and counts as undamaged.
    """
    try:
        with open(checkpoint, 'rb') as file:
            start = file.read(2)
            if start == b'\x80\x02':  # torch before 1.6
                return True
            return start == b'PK' and zipfile.ZipFile(file).testzip() is None
    except Exception:  # whatever is wrong with it
        return False


def newest_first(folder: Path, checkpoints: Iterable[Path]) -> list[Path]:
    """The checkpoints of a training, the last one first.

    The file ``last_checkpoint`` in the folder names the last one. It may be missing, or name a checkpoint
    that is gone. MMEngine writes an absolute path to it, which is wrong once the folder has moved.

    Args:
        folder: the folder that the training saves to; it need not exist.
        checkpoints: the checkpoints found in it; one that ``last_checkpoint`` names is added.
    """
    try:
        named = Path((folder / 'last_checkpoint').read_text(encoding='utf-8').strip()).name
    except FileNotFoundError:
        named = ''
    found = set(checkpoints)
    if (folder / named).is_file():
        found.add(folder / named)
    return sorted(found, key=lambda path: (path.name == named, path.stat().st_mtime), reverse=True)


def first_whole(checkpoints: Iterable[Path]) -> Path | None:
    """The first checkpoint that is undamaged; each damaged one before it is skipped with a warning.

    Args:
        checkpoints: the files, in the order in which they are tried.

    Returns:
        The file; None if there are no checkpoints.

    Raises:
        ValueError: all are damaged. Whether to train from the start instead is for the user to decide.
    """
    damaged = []
    for path in checkpoints:
        if is_whole(path):
            return path
        print(f'warning: the checkpoint {path} is damaged and left out', file=sys.stderr)
        damaged.append(str(path))
    if damaged:
        raise ValueError(
            f'all checkpoints to resume from are damaged: {", ".join(damaged)}; move them away, and '
            'last_checkpoint beside them, to train from the start'
        )
    return None


def describe_incompatible_keys(
    missing_keys: Sequence[str], unexpected_keys: Sequence[str], incorrect_shapes: Sequence[str]
) -> str:
    """The weights of a checkpoint that do not fit a model, in words; the first few of each kind.

    Both frameworks only warn about these, and would then test a partly random model.

    Args:
        missing_keys: weights of the model that the checkpoint does not have.
        unexpected_keys: weights of the checkpoint that the model does not have.
        incorrect_shapes: weights whose shapes differ between the two.

    Returns:
        Text for an error message; empty if all weights fit.
    """
    kinds = {
        'it lacks': missing_keys,
        'the model does not have its': unexpected_keys,
        'of another shape are': incorrect_shapes,
    }
    parts = []
    for kind, names in kinds.items():
        if names:
            more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
            parts.append(f'{kind} {", ".join(names[:_SHOWN])}{more}')
    return '; '.join(parts)
