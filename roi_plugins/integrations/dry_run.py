"""What ``tools/ablate.py --dry-run`` asks the tools of a framework: whether their commands can run.

All commands are asked about at once, for it takes seconds to import a framework.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Sequence

from roi_plugins.files import DataError

from .errors import RunError


def answer(check: Callable[[Sequence[str]], None]) -> int:
    """Reads the arguments of commands from stdin and prints what keeps each from running, '' if nothing.

    Both are lists in JSON. What is printed on the way goes to stderr.
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
    except Exception as error:  # configs are programs: anything can happen in them
        return ' '.join(f'{type(error).__name__}: {error}'.split())
    return ''
