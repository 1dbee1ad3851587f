"""Train a detector of MMDetection; ``--help`` says how. ``roi-plugins train`` is the same."""

import sys
from functools import partial

from roi_plugins.cli import run

main = partial(run, 'train', prog='tools/mmdet/train.py')

if __name__ == '__main__':
    sys.exit(main(['--framework', 'mmdet', *sys.argv[1:]]))
