"""Measure the op beside its peers; ``--help`` says how. ``roi-plugins benchmark`` is the same."""

import sys
from functools import partial

from roi_plugins.cli import run

main = partial(run, 'benchmark', prog='tools/benchmark.py')

if __name__ == '__main__':
    sys.exit(main())
