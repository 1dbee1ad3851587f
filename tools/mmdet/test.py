"""Evaluate a detector of MMDetection; ``--help`` says how. ``roi-plugins test`` is the same."""

import sys
from functools import partial

from roi_plugins.cli import run

main = partial(run, 'test', prog='tools/mmdet/test.py')

if __name__ == '__main__':
    sys.exit(main(['--framework', 'mmdet', *sys.argv[1:]]))
