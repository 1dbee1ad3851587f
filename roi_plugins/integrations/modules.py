"""Imports modules of the user, which register datasets, transforms or parts of models."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from .errors import RunError


def absolute_modules(modules: Sequence[str]) -> list[str]:
    """The modules with absolute paths for ``.py`` files, so that they are found from any folder."""
    return [os.path.abspath(module) if module.endswith('.py') else module for module in modules]


def import_modules(modules: Sequence[str], given_by: str = '--import') -> None:
    """Imports modules that register datasets, transforms or parts of models.

    Args:
        modules: dotted names, which may be of modules in the current folder, or paths of ``.py`` files. A
            module that is imported already is not imported again.
        given_by: the option or setting that named them, for errors.

    Raises:
        RunError: a module is not found, or fails while it is imported.
    """
    # ``python -m`` has the current folder on the path, but tools have their own folder instead.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for module in modules:
        try:
            if module.endswith('.py'):
                _import_file(module)
            else:
                importlib.import_module(module)
        except (ImportError, FileNotFoundError) as error:
            raise RunError(
                f'{given_by}: {module} cannot be imported: {error}. Give the name of a module that Python '
                'finds from here, or the path of a .py file'
            ) from error
        except Exception as error:  # modules are programs, which may raise anything
            cause = ' '.join(f'{type(error).__name__}: {error}'.split())
            if not isinstance(error, SyntaxError):  # its message names the line
                where = traceback.extract_tb(error.__traceback__)[-1]
                cause += f' (line {where.lineno} of {where.filename})'
            raise RunError(f'{given_by}: {module} cannot be imported: {cause}') from error


def _import_file(path: str) -> None:
    file = Path(path).resolve()
    known = sys.modules.get(file.stem)
    if known is not None:
        if Path(getattr(known, '__file__', None) or '').resolve() == file:
            return
        raise ImportError(f'there is another module {file.stem} already; rename the file')
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None  # as of any .py file
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # as any import does; pickle looks up what the module defines here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[file.stem]
        raise
