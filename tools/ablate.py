"""Run an ablation, a plan of trainings and tests, and print its table of AP.

``--help`` says how. ``roi-plugins ablate`` is the same.
"""

import sys
from functools import partial

from roi_plugins.cli import run

main = partial(run, 'ablate', prog='tools/ablate.py')

if __name__ == '__main__':
    sys.exit(main())
