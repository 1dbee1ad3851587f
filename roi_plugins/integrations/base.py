"""The contract of a framework: how its configs are read, and how its trainings and tests are run and watched.

A framework is a folder beside this file, a description such as :mod:`.mmdet_framework`, and a line in
:mod:`.registry`. The description imports nothing of the framework, so that a plan is read and watched where
others run it.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

from .arguments import as_arguments

WORK_DIR = '--work-dir, or work_dir of the plan'
"""What a user gives in place of a framework's own option for the folder of a run."""


@dataclass(frozen=True)
class Inputs:
    """What a trial is given beside its config, by options that the tools of all frameworks have.

    Attributes:
        imports: modules to be imported first, by their names, or ``.py`` files.
        train_data: COCO annotations and the folder of the images, in place of the config's training data.
        test_data: likewise, in place of its test data.
        max_dets: how many detections of each class count in an image.
        extractor: a row in the place of the config's extractors, as ``--extractor`` takes it.
        heads: those whose extractors are swapped; empty for all.
    """

    imports: tuple[str, ...] = ()
    train_data: tuple[str, str] | None = None
    test_data: tuple[str, str] | None = None
    max_dets: int | None = None
    extractor: str | None = None
    heads: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """The command line of it."""
        return as_arguments(**{field.name: getattr(self, field.name) for field in fields(self)})


@dataclass(frozen=True)
class Framework:
    """How trials of one framework are described, run and watched.

    Attributes:
        resolve: ``(config, options) -> dict``: all that the config says, with the files it inherits
            from and the options. What a trial was run with is compared by this.
        commands: ``(config, run_dir, options, inputs, checkpoint, num_gpus, num_nodes) -> list of commands``,
            to be run one after the other, of all GPUs together. Each may be run again after an interruption
            and then goes on where it was; after the last, ``run_dir`` holds a finished run: of these
            weights, or, where ``checkpoint`` is None, of those that the commands train.
        seed_option: the config option that seeds the initial weights and the order of the data.
        weights_options: the config options that name the weights to start from.
        progress: ``(end of the log) -> (what is done, seconds left of this command)``, or None.
        module: which the commands run as ``python -m``, and whose ``main(arguments)`` is the same; with
            ``check`` for its only argument it says what keeps commands from running, as
            ``roi_plugins.integrations.dry_run`` has it. None: it cannot.
        tool_arguments: ``(phase, config, others) -> arguments`` of ``module`` for a ``'train'`` or a
            ``'test'`` that a user asks for; ``config`` is None where only the help is wanted.
        inspection: the module whose ``find_extractors(config)`` gives the extractors that a config builds.
        train_step: the module whose ``load_step(config, checkpoint, device)`` gives a model and a step of its
            training, with its ``EXTRACTOR_TYPES``.
        plan_options: further config options that the commands set, and what a user gives in their place.
    """

    resolve: Callable[[Path, Mapping[str, Any]], dict]
    commands: Callable[[Path, Path, Mapping[str, Any], Inputs, Path | None, int, int], list[list[str]]]
    seed_option: str
    weights_options: tuple[str, ...]
    progress: Callable[[str], tuple[str, float] | None]
    module: str | None = None
    tool_arguments: Callable[[str, str | None, list[str]], list[str]] | None = None
    inspection: str | None = None
    train_step: str | None = None
    plan_options: Mapping[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def pkg_resources_allowed() -> Iterator[None]:
    """Both frameworks find configs by it; that it is deprecated is of no use to who runs a plan."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
        yield


def torchrun(num_gpus: int, num_nodes: int) -> list[str]:
    """The start of a command line, of one process for each of the GPUs.

    On several machines it is one agent on each, which Slurm starts in the allocation that it is called in;
    they find each other by the environment variable ``PET_RDZV_ENDPOINT``, torchrun's own.
    """
    start, nodes = [], ['--standalone']
    if num_nodes > 1:
        count = str(num_nodes)
        # In a step of its own beside the one that watches it, which holds the same CPUs and GPUs.
        start = ['srun', '--overlap', '--kill-on-bad-exit', '--nodes', count, '--ntasks', count]
        start += ['--ntasks-per-node', '1']
        nodes = ['--nnodes', count, '--rdzv_backend', 'c10d']
    processes = ['--nproc_per_node', str(num_gpus // num_nodes)]
    return [*start, sys.executable, '-m', 'torch.distributed.run', *nodes, *processes]


def as_seconds(*parts: str) -> float:
    days, hours, minutes, seconds = (int(part or 0) for part in parts)
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()
