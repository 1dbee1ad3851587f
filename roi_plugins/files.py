"""Read and write JSON, and replace files as a whole: what everybody needs of a disk."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class DataError(ValueError):
    """Data that is missing or cannot be used; the message names the file and the cause."""


def read_json(path: str | Path, what: str) -> Any:
    """Reads a JSON file.

    Args:
        what: the kind of file, for errors, e.g. ``'prediction file'``.

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
    """Tells which files are there, and lists each folder once: a data set has many files in few folders."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}

    def has(self, path: str) -> bool:
        """Whether the folder of a path has an entry of its name."""
        folder, name = os.path.split(path)
        if folder not in self._names:
            try:
                self._names[folder] = set(os.listdir(folder or '.'))
            except OSError:
                self._names[folder] = set()
        return name in self._names[folder]


def write_json(path: str | Path, obj: Any) -> None:
    """Writes strict JSON aside and renames it: a reader finds the old file or the whole new one."""
    text = json.dumps(obj, indent=2, allow_nan=False) + '\n'
    with written_aside(path) as aside:
        aside.write_text(text, encoding='utf-8')


@contextlib.contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """Yields a path to write to, which replaces ``path`` if the block ends without an error."""
    path = Path(path)
    aside = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        yield aside
        with open(aside, 'rb') as file:
            os.fsync(file.fileno())  # a full disk or quota may show only here, and only this outlives a crash
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
