"""The output of the commands."""

from __future__ import annotations

import sys


def print_anything() -> None:
    """Makes stdout and stderr show a ``?`` for a character that their encoding lacks, such as ± in ASCII.

    Otherwise a long comparison could end with a UnicodeError, because of the settings of a terminal.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):  # the streams of a notebook lack it
            stream.reconfigure(errors='replace')
