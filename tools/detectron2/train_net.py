"""Train and evaluate a detector of Detectron2; ``--help`` says how."""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec('roi_plugins') is None:  # not installed: use this checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from roi_plugins.integrations.detectron2.runs import main

if __name__ == '__main__':
    sys.exit(main())
