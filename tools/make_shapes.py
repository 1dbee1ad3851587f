#!/usr/bin/env python
"""Generate the COCO-format dataset of shapes: `python tools/make_shapes.py data/shapes`."""

import argparse
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

if find_spec('roi_plugins') is None:  # not installed: use this checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from roi_plugins.console import print_anything
from roi_plugins.datasets import ShapesSpec, generate_shapes


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('root', help='folder to write; one that holds this dataset is left as is')
    for field in fields(ShapesSpec):
        flag = '--' + field.name.replace('_', '-')
        parser.add_argument(flag, type=int, default=field.default, help='default: %(default)s')
    args = vars(parser.parse_args(argv))
    print_anything()
    root = args.pop('root')
    try:
        print(generate_shapes(root, ShapesSpec(**args)))
    except (ValueError, OSError) as error:
        sys.exit(f'make_shapes: {error}')


if __name__ == '__main__':
    main()
