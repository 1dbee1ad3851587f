"""Errors that the tools report in one line, with exit code 2, and the wording of their messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class RunError(RuntimeError):
    """A run cannot start as asked. The message names the cause and what to do."""


def explain_unknown(name: str, known: Iterable[Any]) -> str:
    """The end of a message about an unknown name: similar names, and all that exist.

    Args:
        name: the unknown name.
        known: the names that exist.
    """
    known = sorted(map(str, known))
    return f'{ask_for_near(name, known)}There is {", ".join(known) or "none"}'


def ask_for_near(name: str, known: Iterable[str]) -> str:
    """``'did you mean A or B? '``, with the names that are similar to an unknown one; ``''`` if none is.

    Args:
        name: the unknown name.
        known: the names that exist.
    """
    known = list(known)
    near = difflib.get_close_matches(name, known)
    if not near:
        near = [other for other in known if other.lower() == name.lower()]
    return f'did you mean {" or ".join(near)}? ' if near else ''


def describe_error(error: BaseException) -> str:
    """The message of an error in one line, or the name of its type if it has no message."""
    # str() of a KeyError puts the message in quotes.
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return ' '.join(message.split()) or type(error).__name__
