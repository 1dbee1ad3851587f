"""Train and evaluate a detector of Detectron2.

``--help`` says how. ``roi-plugins train`` and ``test`` are the same.
"""

import sys
from functools import partial

from roi_plugins.cli import run

main = partial(run, 'train', prog='tools/detectron2/train_net.py')

if __name__ == '__main__':
    sys.exit(main(['--framework', 'detectron2', *sys.argv[1:]]))
