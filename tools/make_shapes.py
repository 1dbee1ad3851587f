"""Generate the COCO-format dataset of shapes; ``--help`` says how. ``roi-plugins shapes`` is the same."""

import sys
from functools import partial

from roi_plugins.cli import run

main = partial(run, 'shapes', prog='tools/make_shapes.py')

if __name__ == '__main__':
    sys.exit(main())
