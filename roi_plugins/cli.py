"""``roi-plugins COMMAND``: the tools of the package, without a checkout.

It imports neither torch nor a framework: each command imports what it needs when it is called.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from roi_plugins import __version__

COMMANDS = {
    'train': ('train', 'train a detector of MMDetection or Detectron2, as their own tools do'),
    'test': ('train', 'evaluate one, and leave predictions and metrics.json'),
    'ablate': ('ablate', 'train and evaluate a detector with several extractors, and compare them'),
    'compare': ('compare', 'print the table of AP of finished runs, with intervals'),
    'visualize': ('visualize', 'draw where the extractors of a config read a box'),
    'benchmark': ('benchmark', 'measure the op beside its peers'),
    'shapes': ('shapes', 'generate the small COCO-format dataset that the shapes configs are for'),
    'configs': ('configs', 'print the folder of the configs and plans of the package'),
}
"""By name: the module in ``roi_plugins.commands``, and what it does."""

TOOLS = {
    **{name: name for name in ('filelock', 'jinja2', 'matplotlib', 'numpy', 'pandas', 'plotly')},
    **{name: name for name in ('pycocotools', 'rich', 'scipy', 'shapely', 'submitit', 'tabulate')},
    'PIL': 'pillow',
    'yaml': 'pyyaml',
}
"""By the name of its module: the packages of the extra ``tools``."""

_TOOLS_HINT = "pip install 'roi_plugins[tools]'"
_MMDET_HINT = "MMDetection, with MMEngine and MMCV, runs this config: pip install 'roi_plugins[mmdet]'"
_DETECTRON2_HINT = (
    "Detectron2 runs this config: pip install 'roi_plugins[detectron2]', and pip install "
    '--no-build-isolation git+https://github.com/facebookresearch/detectron2.git'
)
_HINTS = {
    **dict.fromkeys(TOOLS, _TOOLS_HINT),
    'torchvision': "pip install 'roi_plugins[benchmark]'",
    'faster_coco_eval': "pip install 'roi_plugins[boundary]'",
    **dict.fromkeys(('mmdet', 'mmengine', 'mmcv'), _MMDET_HINT),
    **dict.fromkeys(('detectron2', 'fvcore', 'iopath', 'omegaconf', 'yacs'), _DETECTRON2_HINT),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
        arguments: by default those of the process.

    Returns:
        The exit status of the command; 2 where it could not be run as asked.
    """
    parser = argparse.ArgumentParser(
        prog='roi-plugins',
        description='RoI feature extractors in MMDetection and Detectron2: train, evaluate, compare.',
        epilog='commands:\n'
        + '\n'.join(f'  {name:<10} {what}' for name, (_, what) in COMMANDS.items())
        + '\n\nroi-plugins COMMAND --help says how each is used.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'roi_plugins {__version__}')
    parser.add_argument('command', choices=COMMANDS, metavar='COMMAND', help='one of those below')
    given = list(sys.argv[1:] if arguments is None else arguments)
    # The rest is the command's own, its --help too.
    args = parser.parse_args(given[:1])
    return run(args.command, given[1:])


def run(command: str, arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Runs one command.

    Args:
        command: a name in ``COMMANDS``.
        arguments: what follows it; by default those of the process.
        prog: what it was called as, for its help and for the command line that it records; by default
            ``roi-plugins COMMAND``.

    Returns:
        Its exit status; 2 where a package that it needs is not installed.
    """
    prog = prog or f'roi-plugins {command}'
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    module, _ = COMMANDS[command]
    try:
        main_of = import_module(f'roi_plugins.commands.{module}')
        return getattr(main_of, 'test_main' if command == 'test' else 'main')(arguments, prog)
    except ModuleNotFoundError as error:
        sentence = _explain_missing(error.name or '')
        if sentence is None:
            raise
        print(f'error: {prog} needs {sentence}', file=sys.stderr)
        return 2


def _explain_missing(module: str) -> str | None:
    """What is missing and how to get it; None for a module that this package does not need."""
    if module == 'mmcv._ext':
        return 'the operators of MMCV, and this one is built without: MMCV_WITH_OPS=1 pip install mmcv'
    package = module.partition('.')[0]
    if package not in _HINTS or find_spec(package) is not None:
        return None
    return f'{package}, which is not installed. {_HINTS[package]}'


if __name__ == '__main__':
    sys.exit(main())
