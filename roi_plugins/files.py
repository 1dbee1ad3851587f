"""Reads and writes JSON, replaces files and makes folders atomically."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class DataError(ValueError):
    """Data is missing or cannot be used. The message names the file and the cause."""


def read_json(path: str | Path, what: str) -> Any:
    """Reads a JSON file.

    Args:
        path: the file.
        what: the kind of file, for errors, e.g. ``'prediction file'``.

    Returns:
        The content of the file.

    Raises:
        DataError: the file is missing, cannot be read or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise DataError(f'{path}: the {what} does not exist') from None
    except OSError as error:
        raise DataError(f'{path}: the {what} cannot be read: {error.strerror}') from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested too deeply
        raise DataError(f'{path}: the {what} is not JSON: {error}') from None


class Folders:
    """Tells which files exist. It lists each folder once, as a data set has many files in few folders."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}

    def has(self, path: str) -> bool:
        """Tells whether a path exists.

        Args:
            path: the path of a file.
        """
        folder, name = os.path.split(path)
        if folder not in self._names:
            try:
                self._names[folder] = set(os.listdir(folder or '.'))
            except OSError:
                self._names[folder] = set()
        return name in self._names[folder]


def write_json(path: str | Path, obj: Any) -> None:
    """Writes strict JSON atomically: a reader finds the old file or the whole new one.

    Args:
        path: the file.
        obj: what to write. NaN and infinity are not allowed.
    """
    text = json.dumps(obj, indent=2, allow_nan=False) + '\n'
    with atomic_write(path) as aside:
        aside.write_text(text, encoding='utf-8')


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Replaces a file atomically.

    Args:
        path: the file to replace.

    Yields:
        The path of a temporary file to write to. It replaces ``path`` if the block ends without an error.
    """
    path = Path(path)
    aside = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        yield aside
        with open(aside, 'rb') as file:
            # Without it, a crash could lose the data. A full disk or quota may raise an error only here.
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Makes a folder that appears when it is complete.

    Args:
        path: the folder, which does not exist yet or is empty. The folders above it are made if need be.

    Yields:
        The path of a folder to make and fill. It becomes ``path`` if the block ends without an error.

    Raises:
        OSError: another process has made ``path`` in the meantime. It is left unchanged.
    """
    target = Path(path).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{target.name}-', dir=target.parent) as aside:
        staged = Path(aside, target.name)
        yield staged
        staged.rename(target)
