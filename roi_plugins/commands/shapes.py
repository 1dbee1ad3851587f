"""Generates the COCO-format dataset of shapes. The shapes configs look for it in data/shapes.

roi-plugins shapes data/shapes
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields

from roi_plugins.console import print_anything
from roi_plugins.datasets import ShapesSpec, generate_shapes


def main(arguments: Sequence[str] | None = None, prog: str = 'roi-plugins shapes') -> int:
    """The command line of ``roi-plugins shapes``. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('root', help='folder to write; if it has this dataset already, nothing is written')
    for field in fields(ShapesSpec):
        flag = '--' + field.name.replace('_', '-')
        parser.add_argument(flag, type=int, default=field.default, help='default: %(default)s')
    args = vars(parser.parse_args(arguments))
    print_anything()
    root = args.pop('root')
    try:
        print(generate_shapes(root, ShapesSpec(**args)))
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0
