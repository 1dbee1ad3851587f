"""Options of the command line that the tools of all frameworks have."""

from __future__ import annotations

import argparse


def add_max_dets(parser: argparse.ArgumentParser) -> None:
    """Adds ``--max-dets``, which is None where it is not given."""
    parser.add_argument(
        '--max-dets',
        type=_limit,
        metavar='N',
        help='how many detections of each class count in an image, those with the highest scores; by default '
        'the AP is the framework\'s own, at 100',
    )


def _limit(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r}; expected a number, 1 or more')
    return int(text)
