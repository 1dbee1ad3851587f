"""Print the table of AP of finished runs; ``--help`` says how. ``roi-plugins compare`` is the same."""

import sys
from functools import partial

from roi_plugins.cli import run

main = partial(run, 'compare', prog='tools/compare.py')

if __name__ == '__main__':
    sys.exit(main())
