"""The arguments of the Detectron2 command line, and the config that they give."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from omegaconf import DictConfig, OmegaConf

from ..arguments import add_shared_options, add_track_option, as_arguments
from ..detectron2_framework import MODULE
from ..errors import RunError
from ..rows import read_row
from .config import read_config
from .datasets import coco_files, import_modules
from .rows import row_options

COMMAND = ['python', '-m', MODULE]
"""The start of the command that ``metrics.json`` records."""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line, which has the options of Detectron2's ``train_net.py`` and the shared ones.

    Args:
        argv: the arguments; by default ``sys.argv``.
    """
    parser = default_argument_parser()
    add_shared_options(parser)
    add_track_option(parser)
    args = parser.parse_args(argv)
    for option in args.opts:
        # argparse takes everything after the first config option as config options.
        if option.startswith('--'):
            parser.error(f'{option} has to stand before the options of the config, {" ".join(args.opts)}')
    return args


def configure(args: argparse.Namespace, notes: list[str] | None = None) -> CfgNode | DictConfig:
    """Imports the modules that a command line names, and reads its config with all options and data.

    Args:
        args: see :func:`parse_arguments`.
        notes: see :func:`~.config.read_config`.

    Raises:
        RunError: a module cannot be imported, or the config cannot be read.
    """
    import_modules(args.imports)
    options = list(args.opts)
    if args.extractor is not None:
        cfg = read_config(args.config_file, options)
        options += row_options(cfg, read_row(args.extractor), args.heads)
    cfg = read_config(args.config_file, options, notes)
    for half in ('train', 'test'):
        files = getattr(args, f'{half}_data')
        if files is None:
            continue
        name = coco_files(*files)
        if isinstance(cfg, CfgNode):
            cfg.DATASETS[half.upper()] = (name,)
        elif OmegaConf.select(cfg, f'dataloader.{half}.dataset.names') is None:
            raise RunError(
                f'--{half}-data: the LazyConfig has no dataloader.{half}.dataset.names to be replaced'
            )
        else:
            cfg.dataloader[half].dataset.names = name
    return cfg


def as_command(args: argparse.Namespace) -> list[str]:
    """The command of a run, as ``metrics.json`` records it."""
    command = [*COMMAND, '--num-gpus', str(args.num_gpus)]
    command += ['--num-machines', str(args.num_machines), '--config-file', args.config_file]
    data = args.train_data, args.test_data
    command += as_arguments(args.imports, *data, args.max_dets, args.extractor, args.heads)
    return [*command, *(['--eval-only'] if args.eval_only else []), *args.opts]


def identity(command: Sequence[str]) -> Sequence[str]:
    """The part of a recorded command that decides the result, without the number of processes."""
    return command[command.index('--config-file') :] if '--config-file' in command else command
