"""What the commands print."""

from __future__ import annotations

import sys


def print_anything() -> None:
    """Lets stdout and stderr show a ``?`` for what their encoding lacks, such as ± in ASCII.

    A long comparison must not end in a UnicodeError for how a terminal is set up.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):  # a notebook's stream is no file
            stream.reconfigure(errors='replace')
