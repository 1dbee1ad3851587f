"""What the tools of either framework say in one line, with exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class RunError(RuntimeError):
    """A run that cannot be started as asked; the message names the cause and what to do."""


def explain_unknown(name: str, known: Iterable[Any]) -> str:
    """For messages: the names that are near to one that does not exist, then all that do."""
    known = sorted(map(str, known))
    return f'{ask_for_near(name, known)}There is {", ".join(known) or "none"}'


def ask_for_near(name: str, known: Iterable[str]) -> str:
    """For messages: ``'did you mean A or B? '``, of the names near to one that does not exist, or ``''``."""
    known = list(known)
    near = difflib.get_close_matches(name, known)
    if not near:
        near = [other for other in known if other.lower() == name.lower()]
    return f'did you mean {" or ".join(near)}? ' if near else ''


def describe_error(error: BaseException) -> str:
    """What an error of a config says, in one line."""
    # The text of a KeyError is in quotes.
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return ' '.join(message.split()) or type(error).__name__
