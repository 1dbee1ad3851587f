"""The processes of a Detectron2 run, started by ``launch`` or by torchrun, and the work of each."""

from __future__ import annotations

import argparse
import os
import re
import sys

import torch
from detectron2.engine import (
    DEFAULT_TIMEOUT,
    default_setup,
)
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
    """Raises RunError on numbers of machines and processes that make no sense together."""
    if args.num_machines < 1:
        raise RunError(f'--num-machines: got {args.num_machines}, expected at least 1')
    # On one machine, 0 is Detectron2's other word for one process.
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
    """Sets the numbers of machines and processes to those that torchrun has started."""
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
    """What Detectron2's ``launch`` does in a process that it has started."""
    on_gpu = torch.cuda.is_available()
    torch.distributed.init_process_group('nccl' if on_gpu else 'gloo', timeout=DEFAULT_TIMEOUT)
    try:
        comm.create_local_process_group(args.num_gpus)
        if on_gpu:
            torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
        comm.synchronize()
        _work(args)
        # The first process still evaluates when the others are done, and torchrun ends all when one leaves.
        comm.synchronize()
    finally:
        torch.distributed.destroy_process_group()


def _work(args: argparse.Namespace) -> None:
    """What each process does."""
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
        model = train(run, args.resume)
        checkpoint = ''  # the first process alone names it: it has written it, maybe elsewhere
        if comm.is_main_process():
            checkpoint = str(saved_checkpoints(run.output_dir, run.prefix)[0])
    result = evaluate(run, model, config=args.config_file, checkpoint=checkpoint, command=as_command(args))
    if result is not None:
        if args.eval_only:
            del settings[run.settings['weights']]  # what is tested is no part of how it was made
            write_settings(run.output_dir, settings, trains=False)
        print_metrics(result['metrics'])


def work_of_process(args: argparse.Namespace) -> None:
    """Of a process that Detectron2's ``launch`` has started, or of the only one."""
    try:
        _work(args)
    except (RunError, DataError) as error:
        if torch.multiprocessing.parent_process() is None:
            raise
        # What it raised would come out of the parent as a traceback.
        print_error(error)
        sys.exit(2)


def print_error(error: Exception) -> None:
    """In one line, also where the message of a library is in it."""
    print('error:', ' '.join(map(str.strip, str(error).splitlines())), file=sys.stderr, flush=True)
