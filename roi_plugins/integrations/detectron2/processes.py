"""The processes of a Detectron2 run, started by ``launch`` or by torchrun, and the work of each."""

from __future__ import annotations

import argparse
import os
import re
import sys

import torch
from detectron2.engine import DEFAULT_TIMEOUT, default_setup
from detectron2.utils import comm

from roi_plugins.console import print_anything
from roi_plugins.evaluation.coco import print_metrics
from roi_plugins.files import DataError
from roi_plugins.settings import write_settings

from ..errors import RunError
from .arguments import as_command, configure
from .check_model import build_model
from .checkpoints import StrictCheckpointer, saved_checkpoints
from .config import as_settings
from .describe import describe
from .test import evaluate
from .train import train


def check_processes(args: argparse.Namespace) -> None:
    """Checks the numbers of machines and processes.

    Args:
        args: the command line.

    Raises:
        RunError: they contradict each other or the hardware.
    """
    if args.num_machines < 1:
        raise RunError(f'--num-machines: got {args.num_machines}, expected at least 1')
    # On one machine, Detectron2 takes 0 as 1.
    fewest = 0 if args.num_machines == 1 else 1
    if args.num_gpus < fewest:
        raise RunError(
            f'--num-gpus: got {args.num_gpus}, expected at least {fewest} on each machine; where there '
            'is no GPU it is the number of processes on the CPU'
        )
    if torch.cuda.is_available() and args.num_gpus > torch.cuda.device_count():
        raise RunError(f'--num-gpus: got {args.num_gpus}, but this machine has {torch.cuda.device_count()}')
    if not 0 <= args.machine_rank < args.num_machines:
        raise RunError(
            f'--machine-rank: got {args.machine_rank}, expected 0 to {args.num_machines - 1}, for '
            f'--num-machines is {args.num_machines}'
        )
    if args.num_machines > 1 and not re.fullmatch(r'tcp://.+:\d+|file://.+', args.dist_url):
        raise RunError(
            f'--dist-url: got {args.dist_url!r}, expected tcp://HOST:PORT, the same on all machines: '
            'an address of the machine of rank 0 and a port that is free there'
        )


def take_processes_from_torchrun(args: argparse.Namespace) -> None:
    """Sets the numbers of machines and processes to those that torchrun has started.

    Args:
        args: the command line, which is changed.

    Raises:
        RunError: the command line gives these numbers too.
    """
    given = [args.num_gpus, args.num_machines, args.machine_rank]
    if given != [1, 1, 0]:
        raise RunError(
            f'got --num-gpus {given[0]}, --num-machines {given[1]} and --machine-rank {given[2]}, but the '
            'processes were started by torchrun, which says how many there are; leave these options out'
        )
    args.num_gpus = int(os.environ['LOCAL_WORLD_SIZE'])
    args.num_machines = int(os.environ['GROUP_WORLD_SIZE'])
    args.machine_rank = int(os.environ['GROUP_RANK'])


def work_under_torchrun(args: argparse.Namespace) -> None:
    """Joins the processes that torchrun has started, as Detectron2's ``launch`` does, and does the work."""
    on_gpu = torch.cuda.is_available()
    torch.distributed.init_process_group('nccl' if on_gpu else 'gloo', timeout=DEFAULT_TIMEOUT)
    try:
        comm.create_local_process_group(args.num_gpus)
        if on_gpu:
            torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
        comm.synchronize()
        _work(args)
        # The others wait for the first process, which still evaluates: torchrun ends all if one leaves early.
        comm.synchronize()
    finally:
        torch.distributed.destroy_process_group()


def _work(args: argparse.Namespace) -> None:
    """Trains and evaluates, or only evaluates; each process does this."""
    print_anything()
    run = describe(configure(args), max_dets=args.max_dets)
    settings = as_settings(run.cfg)
    default_setup(run.cfg, args)
    if args.eval_only:
        model, checkpoint = build_model(run), run.weights
        StrictCheckpointer(model).load(checkpoint)
    else:
        if comm.is_main_process():
            write_settings(run.output_dir, settings, trains=True)
        model = train(run, args.resume, args.track)
        checkpoint = ''  # only the first process has it, maybe on a disk of its own
        if comm.is_main_process():
            checkpoint = str(saved_checkpoints(run.output_dir, run.prefix)[0])
    result = evaluate(run, model, config=args.config_file, checkpoint=checkpoint, command=as_command(args))
    if result is not None:
        if args.eval_only:
            del settings[run.settings['weights']]  # the tested weights are not a setting of their training
            write_settings(run.output_dir, settings, trains=False)
        print_metrics(result['metrics'])


def work_of_process(args: argparse.Namespace) -> None:
    """The work of a process that Detectron2's ``launch`` has started, or of the only process."""
    try:
        _work(args)
    except (RunError, DataError) as error:
        if torch.multiprocessing.parent_process() is None:
            raise
        # The parent would print a traceback of an error that is raised here.
        print_error(error)
        sys.exit(2)


def print_error(error: Exception) -> None:
    """Prints an error in one line, even if it has the message of a library in it."""
    print('error:', ' '.join(map(str.strip, str(error).splitlines())), file=sys.stderr, flush=True)
