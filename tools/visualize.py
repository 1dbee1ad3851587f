"""Draw where the RoI extractors of a config read a box.

``--help`` says how. ``roi-plugins visualize`` is the same.
"""

import sys
from functools import partial

from roi_plugins.cli import run

main = partial(run, 'visualize', prog='tools/visualize.py')

if __name__ == '__main__':
    sys.exit(main())
