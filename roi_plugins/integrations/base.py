"""The contract of a framework: how its configs are read, and how its trainings and tests are run and watched.

A framework is a folder beside this file, a description such as :mod:`.mmdet_framework`, and a line in
:mod:`.registry`. The description does not import the framework, so that a plan can be read and watched on a
machine where the framework is not installed.
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
"""What a user gives instead of a framework's own option for the folder of a run."""


@dataclass(frozen=True)
class Inputs:
    """What a trial is given in addition to its config, by options that all frameworks' tools share.

    Attributes:
        imports: modules to import first, names or ``.py`` files.
        train_data: COCO annotations and the folder of their images, which replace the config's training data.
        test_data: likewise for the test data.
        max_dets: how many detections of each class count in an image.
        extractor: a row that replaces the config's extractors, as ``--extractor`` takes it.
        heads: the heads whose extractors are replaced; empty for all.
    """

    imports: tuple[str, ...] = ()
    train_data: tuple[str, str] | None = None
    test_data: tuple[str, str] | None = None
    max_dets: int | None = None
    extractor: str | None = None
    heads: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """The command-line arguments that give these inputs."""
        return as_arguments(**{field.name: getattr(self, field.name) for field in fields(self)})


@dataclass(frozen=True)
class Framework:
    """How trials of one framework are described, run and watched.

    Attributes:
        resolve: ``(config, options) -> dict``: the complete config, with the files it inherits from and the
            options. Two trials are the same if these are equal.
        commands: ``(config, run_dir, options, inputs, checkpoint, num_gpus, num_nodes, tracker) -> list of
            commands``, which are run one after the other, each on all GPUs. A command that is run again after
            an interruption continues where it was. After the last, ``run_dir`` holds a finished run: a test
            of ``checkpoint``, or, if it is None, of the weights that the commands train. A training logs its
            losses to ``tracker``, if it is not None.
        seed_option: the config option that seeds the initial weights and the order of the data.
        weights_options: the config options that name the weights to start from.
        progress: ``(end of the log) -> (what is done, seconds left of this command)``, or None.
        module: the module that the commands run by ``python -m``; its ``main(arguments)`` does the same. With
            the only argument ``check`` it reports what would make commands fail, see
            ``roi_plugins.integrations.dry_run``. None if there is no such module.
        tool_arguments: ``(phase, config, others) -> arguments`` of ``module`` for a ``'train'`` or ``'test'``
            that a user asks for; ``config`` is None if only the help is wanted.
        inspection: the module whose ``find_extractors(config)`` gives the extractors that a config builds;
            None if there is none.
        train_step: the module whose ``load_step(config, checkpoint, device)`` gives a model and a step of its
            training, and whose ``EXTRACTOR_TYPES`` are the classes of its extractors; None if there is none.
        plan_options: other config options that the commands set, and what a user gives instead.
    """

    resolve: Callable[[Path, Mapping[str, Any]], dict]
    commands: Callable[
        [Path, Path, Mapping[str, Any], Inputs, Path | None, int, int, str | None], list[list[str]]
    ]
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
    """Silences the warning that ``pkg_resources``, by which both frameworks find configs, is deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
        yield


def torchrun(num_gpus: int, num_nodes: int) -> list[str]:
    """The start of a command that runs one process for each GPU.

    On several machines, Slurm starts one torchrun agent on each, within the allocation in which the command
    is called. The agents find each other by torchrun's environment variable ``PET_RDZV_ENDPOINT``.

    Args:
        num_gpus: the number of GPUs on all machines together.
        num_nodes: the number of machines.

    Returns:
        The arguments, which are followed by those of ``python``.
    """
    start, nodes = [], ['--standalone']
    if num_nodes > 1:
        count = str(num_nodes)
        # --overlap, since the job step that watches this one holds the same CPUs and GPUs.
        start = ['srun', '--overlap', '--kill-on-bad-exit', '--nodes', count, '--ntasks', count]
        start += ['--ntasks-per-node', '1']
        nodes = ['--nnodes', count, '--rdzv_backend', 'c10d']
    processes = ['--nproc_per_node', str(num_gpus // num_nodes)]
    return [*start, sys.executable, '-m', 'torch.distributed.run', *nodes, *processes]


def as_seconds(*parts: str) -> float:
    """Seconds of days, hours, minutes and seconds; an empty string is 0."""
    days, hours, minutes, seconds = (int(part or 0) for part in parts)
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()
