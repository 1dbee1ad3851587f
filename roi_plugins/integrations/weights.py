"""Checkpoints as neither framework takes them: read without running code, checked, and never half a file."""

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
"""What a pickle of numpy arrays names, old or new: it makes data, and runs no code of the file's choice."""


@contextlib.contextmanager
def only_data() -> Iterator[None]:
    """Every ``torch.load`` uses the safe unpickler: by a version of torch that would not, by a caller that
    does not say so, and against the environment variable that turns it off."""
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
    """Raises ``pickle.UnpicklingError`` on a file of weights (``.pkl``) that holds more than numpy arrays."""
    with open(path, 'rb') as file:
        _ArrayUnpickler(file, encoding='latin1').load()


@contextlib.contextmanager
def saving(checkpoint: str | Path) -> Iterator[None]:
    """What the system says while a checkpoint is written becomes an OSError that names it."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch's writer then fails to close what it could not write, and says that alone.
        said = error if isinstance(error, OSError) else error.__context__
        if not isinstance(said, OSError):
            raise
        raise OSError(
            said.errno, f'the checkpoint {checkpoint} was not saved: {said.strerror}; those before it stay'
        ) from error


def is_whole(checkpoint: str | Path) -> bool:
    """Whether a file is as ``torch.save`` wrote it; ``torch.load`` does not look at the sums in it."""
    try:
        with open(checkpoint, 'rb') as file:
            start = file.read(2)
            if start == b'\x80\x02':  # of torch before 1.6: without sums
                return True
            return start == b'PK' and zipfile.ZipFile(file).testzip() is None
    except Exception:  # whatever is wrong with it
        return False


def first_whole(checkpoints: Iterable[Path]) -> Path | None:
    """The first that is whole, with a warning of each before it; None where there are none.

    Raises:
        ValueError: all are damaged: to start anew instead is for the user to decide.
    """
    damaged = []
    for path in checkpoints:
        if is_whole(path):
            return path
        print(f'warning: the checkpoint {path} is damaged and left out', file=sys.stderr)
        damaged.append(str(path))
    if damaged:
        raise ValueError(
            f'no checkpoint to resume from is whole: {", ".join(damaged)}; move them away, and '
            'last_checkpoint beside them, to train from the start'
        )
    return None


def describe_misfit(missing: Sequence[str], unexpected: Sequence[str], misshapen: Sequence[str]) -> str:
    """Names the weights that do not fit, the first of each kind; empty where all do.

    Both frameworks only warn of these, and test what is then partly a random model.

    Args:
        missing: names of weights of the model that the checkpoint lacks.
        unexpected: those of the checkpoint that the model does not have.
        misshapen: those of both whose shapes differ.
    """
    kinds = {
        'it lacks': missing,
        'the model does not have its': unexpected,
        'of another shape are': misshapen,
    }
    parts = []
    for kind, names in kinds.items():
        if names:
            more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
            parts.append(f'{kind} {", ".join(names[:_SHOWN])}{more}')
    return '; '.join(parts)
