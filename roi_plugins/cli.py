"""``roi-plugins COMMAND``: the tools of the package. They need no checkout of the repository.

This module imports neither torch nor a framework. Each command imports what it needs when it is called.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from roi_plugins import __version__
from roi_plugins.needs import explain_missing

COMMANDS = {
    'train': ('train', 'train a detector of MMDetection or Detectron2, as its own tools do'),
    'test': ('train', 'evaluate a detector, and write its predictions and metrics.json'),
    'ablate': ('ablate', 'train and evaluate a detector with several extractors, and compare them'),
    'compare': ('compare', 'print the table of AP of finished runs, with intervals'),
    'visualize': ('visualize', 'draw where the extractors of a config read a box'),
    'benchmark': ('benchmark', 'measure the op beside its peers'),
    'shapes': ('shapes', 'generate the small COCO-format dataset that the shapes configs are for'),
    'configs': ('configs', 'print the folder of the configs and plans of the package'),
}
"""The commands by name: the module in ``roi_plugins.commands``, and what the command does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
        arguments: the arguments; by default those of the process.

    Returns:
        The exit status of the command; 2 if it could not run.
    """
    parser = argparse.ArgumentParser(
        prog='roi-plugins',
        description='RoI feature extractors in MMDetection and Detectron2: train, evaluate, compare.',
        epilog='commands:\n'
        + '\n'.join(f'  {name:<10} {what}' for name, (_, what) in COMMANDS.items())
        + '\n\nroi-plugins COMMAND --help shows how to use each of them.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'roi_plugins {__version__}')
    parser.add_argument('command', choices=COMMANDS, metavar='COMMAND', help='one of the commands below')
    given = list(sys.argv[1:] if arguments is None else arguments)
    # The other arguments, also --help, are for the command.
    args = parser.parse_args(given[:1])
    return run(args.command, given[1:])


def run(command: str, arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Runs one command.

    Args:
        command: a name in ``COMMANDS``.
        arguments: the arguments of the command; by default those of the process.
        prog: the name that the command was called by, for its help and for the command lines that it records;
            by default ``roi-plugins COMMAND``.

    Returns:
        The exit status of the command; 2 if a package that it needs is not installed.
    """
    prog = prog or f'roi-plugins {command}'
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    module, _ = COMMANDS[command]
    try:
        main_of = import_module(f'roi_plugins.commands.{module}')
        return getattr(main_of, 'test_main' if command == 'test' else 'main')(arguments, prog)
    except ModuleNotFoundError as error:
        sentence = explain_missing(error)
        if sentence is None:
            raise
        print(f'error: {prog} needs {sentence}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
