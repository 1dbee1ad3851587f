"""The command line that trains and tests MMDetection configs, with the options of MMDetection's own tools.

``tools/mmdet/train.py`` and ``tools/mmdet/test.py`` are the same as ``python -m`` of this module with
``train`` or ``test`` before their arguments.

What differs from MMDetection's own tools:

- A test writes COCO predictions and ``metrics.json``, see :mod:`roi_plugins.run_record`.
- Earlier results are overwritten only with ``--overwrite``.
- Checkpoints are loaded with torch's safe unpickler.
- Without a GPU, the processes are joined by gloo.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import DictAction

from roi_plugins.console import print_anything
from roi_plugins.evaluation.coco import print_metrics
from roi_plugins.files import DataError

from ..arguments import add_shared_options, add_track_option
from ..dry_run import answer
from ..errors import RunError
from ..mmdet_framework import MODULE
from .config import LAUNCHERS
from .test import test
from .train import train


def train_main(argv: Sequence[str] | None = None) -> int:
    """Trains as the command line says.

    Args:
        argv: the arguments; by default ``sys.argv``.

    Returns:
        The exit code: 0, or 2 after an error that was printed.
    """
    return _main(train, _parse_training(argv))


def _parse_training(argv: Sequence[str] | None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description='Train a detector of MMDetection.')
    parser.add_argument('config', help='path of the config')
    parser.add_argument('--work-dir', help='where checkpoints and logs go')
    parser.add_argument('--amp', action='store_true', help='train in mixed precision')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from a checkpoint; without a path, from the last one in the work directory',
    )
    add_track_option(parser)
    return _parse(parser, argv)


def test_main(argv: Sequence[str] | None = None) -> int:
    """Tests as the command line says; arguments and exit code are as for :func:`train_main`."""
    return _main(test, _parse_test(argv))


def _parse_test(argv: Sequence[str] | None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description='Evaluate a detector of MMDetection: writes COCO predictions and metrics.json.'
    )
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='a checkpoint, or a work directory for its last one')
    parser.add_argument('--work-dir', help='where predictions and metrics.json go')
    parser.add_argument(
        '--overwrite', action='store_true', help='replace another result in the work directory'
    )
    return _parse(parser, argv)


def check(argv: Sequence[str]) -> None:
    """Checks that a command would run to its end, without running it.

    Args:
        argv: ``train`` or ``test``, and the arguments that follow it.

    Raises:
        RunError, DataError: the command would fail.
    """
    phase, *rest = argv
    if phase == 'train':
        train(**_parse_training(rest), dry_run=True)
    else:
        test(**_parse_test(rest), dry_run=True)


class _Options(DictAction):
    """MMEngine's ``DictAction``, with a usage error for an option without a value."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, *rest: Any) -> None:
        for pair in values:
            if '=' not in pair:
                parser.error(f'--cfg-options: {pair!r} is not of the form KEY=VALUE')
        super().__call__(parser, namespace, values, *rest)


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> dict[str, Any]:
    add_shared_options(parser)
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_Options,
        metavar='KEY=VALUE',
        help='override settings of the config, e.g. train_cfg.max_epochs=1 key="[a,b]"',
    )
    parser.add_argument(
        '--launcher', choices=LAUNCHERS, default='none', help='how the processes were started'
    )
    # torch.distributed.launch gives this option; torchrun sets the environment variable instead.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    args = vars(parser.parse_args(argv))
    os.environ.setdefault('LOCAL_RANK', str(args.pop('local_rank')))
    return args


def _main(function: Any, args: dict[str, Any]) -> int:
    print_anything()
    try:
        result = function(**args)
        # The others wait for the first process, which still evaluates and writes: a process that ends closes
        # its connections, and torchrun ends all processes if one of them fails.
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
    except (RunError, DataError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if result:
        print_metrics(result['metrics'])
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``train`` or ``test``.

    Args:
        argv: ``train`` or ``test``, and the arguments that follow it; by default ``sys.argv``.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    commands = {'train': train_main, 'test': test_main}
    if given[:1] == [] or given[0] not in commands:
        print(f'usage: python -m {MODULE} train|test ...', file=sys.stderr)
        return 1
    return commands[given[0]](given[1:])


if __name__ == '__main__':
    sys.exit(answer(check) if sys.argv[1:] == ['check'] else main())
