"""The command line that trains and evaluates Detectron2 configs, with the options of ``train_net.py``.

``tools/detectron2/train_net.py`` is the same as ``python -m`` of this module.

What differs from Detectron2's own tool:

- After the training, one evaluation writes COCO predictions and ``metrics.json`` to the output folder (see
  :mod:`roi_plugins.run_record`). Losses, and the results of evaluations during the training
  (``TEST.EVAL_PERIOD``, ``train.eval_period``), go to ``training.json``.
- Earlier results are never overwritten.
- Without a GPU, the processes that ``--num-gpus`` asks for run on the CPU. ``torchrun`` may start them.
- Naming a type of this package swaps a pooler, ``MODEL.ROI_BOX_HEAD.POOLER_TYPE AlignMax``; see :mod:`.swap`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import torch
from detectron2.engine import launch
from torch.multiprocessing import ProcessExitedException

from roi_plugins.files import DataError
from roi_plugins.run_record import METRICS_FILE

from ..arguments import check_tracker
from ..dry_run import answer
from ..errors import RunError
from ..output import check_writable
from ..results import check_same_run
from .arguments import as_command, configure, identity, parse_arguments
from .check_run import check_run
from .checkpoints import saved_checkpoints
from .describe import describe
from .processes import (
    check_processes,
    print_error,
    take_processes_from_torchrun,
    work_of_process,
    work_under_torchrun,
)
from .run import Run


def check(argv: Sequence[str]) -> None:
    """Checks that a command would run to its end, without running it.

    Args:
        argv: the arguments of the command.

    Raises:
        RunError, DataError: the command would fail.
    """
    args = parse_arguments(argv)
    _check(describe(configure(args), 'cpu', args.max_dets), args)


def main(argv: Sequence[str] | None = None) -> int:
    """Trains and evaluates, or only evaluates with ``--eval-only``.

    Args:
        argv: the arguments; by default ``sys.argv``.

    Returns:
        The exit code: 0, or 2 after an error that was printed.
    """
    args = parse_arguments(argv)
    under_torchrun = torch.distributed.is_torchelastic_launched()
    try:
        if under_torchrun:
            take_processes_from_torchrun(args)
        else:
            check_processes(args)
        # One process of each machine checks; the others wait until it joins them.
        if not under_torchrun or os.environ['LOCAL_RANK'] == '0':
            notes: list[str] = []
            _check(describe(configure(args, notes), 'cpu', args.max_dets), args)
            if args.machine_rank == 0:
                print(*notes, sep='\n', end='\n' * bool(notes), file=sys.stderr, flush=True)
        if under_torchrun:
            work_under_torchrun(args)
            return 0
        launch(
            work_of_process,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url='auto' if args.num_machines == 1 else args.dist_url,
            args=(args,),
        )
    except (RunError, DataError) as error:
        print_error(error)
        return 2
    except ProcessExitedException as error:
        if error.exit_code != 2:  # such as a process that was killed
            raise
        return 2  # the process has printed its error
    return 0


def _check(run: Run, args: argparse.Namespace) -> None:
    """Checks everything that a run needs, before any process is started.

    Raises:
        RunError, DataError: the run would fail.
    """
    if args.track and args.eval_only:
        raise RunError('--track is for a training, but --eval-only is given; leave one of them out')
    check_tracker(args.track)
    check_writable(run.output_dir, run.settings['output'])
    _check_output(run, args)
    check_run(
        run,
        eval_only=args.eval_only,
        resume=args.resume,
        num_processes=max(args.num_gpus, 1) * args.num_machines,
        saves=args.machine_rank == 0,
        max_dets=args.max_dets,
    )


def _check_output(run: Run, args: argparse.Namespace) -> None:
    """Raises RunError if the output folder holds the checkpoints or the result of another run."""
    saved = saved_checkpoints(run.output_dir, run.prefix)
    if saved and not args.resume and not args.eval_only:
        raise RunError(
            f'{run.output_dir} holds the checkpoint {saved[0].name} of an earlier training: give --resume '
            'to continue it, or another OUTPUT_DIR (train.output_dir)'
        )
    new = identity(as_command(args))
    check_same_run(
        run.output_dir,
        lambda found: identity(found['command']) == new,
        f'Give another OUTPUT_DIR (train.output_dir), or move its {METRICS_FILE} and predictions away',
    )


if __name__ == '__main__':
    sys.exit(answer(check) if sys.argv[1:] == ['check'] else main())
