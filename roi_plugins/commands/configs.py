"""Prints the folder of the configs and plans of the package."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from roi_plugins.integrations.zoo import configs_folder


def main(arguments: Sequence[str] | None = None, prog: str = 'roi-plugins configs') -> int:
    """The command line of ``roi-plugins configs``. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Prints the folder of the configs and plans of the package. The other commands find its '
        'files by name, such as ablations/demo.yaml. Use the path in the _base_ of a config of your own.',
    )
    parser.parse_args(arguments)
    print(configs_folder())
    return 0
