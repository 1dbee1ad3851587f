"""Measure the op beside its peers; ``--help`` says how. ``roi-plugins benchmark`` is the same."""

import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

if find_spec('roi_plugins') is None:  # not installed: use this checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from roi_plugins.cli import run

main = partial(run, 'benchmark', prog='tools/benchmark.py')

if __name__ == '__main__':
    sys.exit(main())
