"""Answers ``roi-plugins ablate --dry-run``, which asks a framework whether the commands of a plan can run.

One process answers for all commands, since importing a framework takes seconds.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Sequence

from roi_plugins.files import DataError

from .errors import RunError


def answer(check: Callable[[Sequence[str]], None]) -> int:
    """Reads a JSON list of argument lists from stdin, and prints a JSON list of their problems.

    A problem is the error with which the command would end, in one line, or ``''``. All other output goes to
    stderr.

    Args:
        check: takes the arguments of a command, and raises an error if it would fail.

    Returns:
        The exit code, 0.
    """
    with contextlib.redirect_stdout(sys.stderr):
        problems = [_problem(check, arguments) for arguments in json.load(sys.stdin)]
    print(json.dumps(problems))
    return 0


def _problem(check: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> str:
    try:
        check(arguments)
    except (RunError, DataError) as error:
        return ' '.join(str(error).split())
    except Exception as error:  # configs are programs, which may raise anything
        return ' '.join(f'{type(error).__name__}: {error}'.split())
    return ''
