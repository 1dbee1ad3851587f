"""MMEngine's runner: built with errors that name the config, joined with other processes, run."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterator

import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..checkpoints import weights_only
from ..errors import RunError, describe_error
from .check_model import BUILD_ERRORS
from .checkpoints import CheckpointFits, RandomState, allow_mmengine_checkpoints, unsafe_objects, unwrapped
from .registered import explain_unregistered


@contextlib.contextmanager
def named_images() -> Iterator[None]:
    """Makes MMCV's ``LoadImageFromFile`` name the image in its errors.

    The method of the class is replaced, since a config may name the class with or without a scope, as an
    object, or use a subclass.
    """
    load = LoadImageFromFile.transform

    def transform(self: LoadImageFromFile, results: dict) -> dict | None:
        try:
            return load(self, results)
        except Exception as error:
            raise OSError(f'the image {results["img_path"]} cannot be read: {error}') from error

    LoadImageFromFile.transform = transform
    try:
        yield
    finally:
        LoadImageFromFile.transform = load


def run(cfg: Config, phase: str) -> torch.nn.Module:
    """Trains or tests a detector.

    Args:
        cfg: the config; ``load_from`` names the checkpoint to start from or to test.
        phase: ``'train'`` or ``'test'``.

    Returns:
        The model, without the wrapper of a distributed run.

    Raises:
        RunError: the config cannot be built, or the checkpoint is refused or does not fit it.
    """
    _join_processes(cfg)
    allow_mmengine_checkpoints()
    runner = _build_runner(cfg, phase)
    if phase == 'train':
        runner.register_hook(RandomState())
    else:
        # Hooks such as the EMA's change the weights that are loaded, so this one comes after them.
        runner.register_hook(CheckpointFits(), 'LOWEST')
    try:
        with weights_only(), named_images():
            getattr(runner, phase)()
    except KeyError as error:  # some types are looked up late, such as a transform inside a transform
        if not (message := explain_unregistered(error)):
            raise
        raise RunError(message) from error
    except pickle.UnpicklingError as error:
        if not cfg.load_from:  # the error is about the pretrained weights of the config
            raise
        raise RunError(
            f'the checkpoint {cfg.load_from} was not loaded, because it is damaged or holds objects '
            f'that could run code: {unsafe_objects(cfg.load_from) or error}. Give one that was '
            'saved by MMEngine'
        ) from error
    return unwrapped(runner.model)


def _build_runner(cfg: Config, phase: str) -> Runner:
    """Builds the runner with its loop, data and optimiser, so that mistakes in the config are found here."""
    build = RUNNERS.build if 'runner_type' in cfg else Runner.from_cfg
    try:
        with weights_only():
            runner = build(cfg)
            getattr(runner, f'{phase}_loop')  # this property builds the loop with its data
            if phase == 'train' and isinstance(runner, Runner):
                runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    except BUILD_ERRORS as error:
        message = explain_unregistered(error) or describe_error(error)
        raise RunError(f'the config {cfg.filename} cannot be built: {message}') from error
    return runner


def _join_processes(cfg: Config) -> None:
    """Joins the processes by gloo if there is no GPU.

    MMEngine would assign a GPU to each process, but leaves processes alone that are joined already.

    Raises:
        RunError: the launcher does not fit the way in which the process was started.
    """
    if cfg.launcher == 'pytorch' and 'RANK' not in os.environ:
        raise RunError(
            '--launcher pytorch: this process was not started by torchrun; use '
            'torchrun --nproc_per_node N ... --launcher pytorch'
        )
    if cfg.launcher == 'none' or torch.cuda.is_available():
        return
    if cfg.launcher != 'pytorch':
        raise RunError(
            f'--launcher {cfg.launcher} needs a GPU for each process and there is none; start with '
            'torchrun and --launcher pytorch'
        )
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    # MMEngine's defaults, except for device_ids.
    cfg.setdefault(
        'model_wrapper_cfg',
        {
            'type': 'MMDistributedDataParallel',
            'device_ids': None,
            'broadcast_buffers': False,
            'find_unused_parameters': cfg.get('find_unused_parameters', False),
        },
    )
