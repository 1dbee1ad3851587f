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

from ..errors import RunError, describe_error
from ..weights import (
    only_data,
)
from .check_model import BUILD_ERRORS
from .checkpoints import CheckpointFits, RandomState, allow_mmengine_checkpoints, unsafe_objects, unwrapped
from .registered import explain_unregistered


@contextlib.contextmanager
def named_images() -> Iterator[None]:
    """Lets errors of MMCV's ``LoadImageFromFile`` name the image, whatever a config calls this class."""
    load = LoadImageFromFile.transform

    def transform(self: LoadImageFromFile, results: dict) -> dict | None:
        try:
            return load(self, results)
        except Exception as error:
            raise OSError(f'the image {results["img_path"]} cannot be read: {error}') from error

    # Of the class: a config may name it with a scope, as an object, or by a subclass.
    LoadImageFromFile.transform = transform
    try:
        yield
    finally:
        LoadImageFromFile.transform = load


def run(cfg: Config, phase: str) -> torch.nn.Module:
    """Trains or tests, as ``phase`` says. Returns the model."""
    _join_processes(cfg)
    allow_mmengine_checkpoints()
    runner = _build_runner(cfg, phase)
    if phase == 'train':
        runner.register_hook(RandomState())
    else:
        # After the hooks that change what is loaded, such as the EMA's.
        runner.register_hook(CheckpointFits(), 'LOWEST')
    try:
        with only_data(), named_images():
            getattr(runner, phase)()
    except KeyError as error:  # of what is built last, such as a transform in a transform
        if not (message := explain_unregistered(error)):
            raise
        raise RunError(message) from error
    except pickle.UnpicklingError as error:
        if not cfg.load_from:  # it is of the config's own pretrained weights
            raise
        raise RunError(
            f'the checkpoint {cfg.load_from} was not loaded, for it is damaged or holds objects '
            f'that could run code: {unsafe_objects(cfg.load_from) or error}. Give one that was '
            'saved by MMEngine'
        ) from error
    return unwrapped(runner.model)


def _build_runner(cfg: Config, phase: str) -> Runner:
    """The runner, with what it builds at its start: what fails here is the config's fault."""
    build = RUNNERS.build if 'runner_type' in cfg else Runner.from_cfg
    try:
        with only_data():
            runner = build(cfg)
            getattr(runner, f'{phase}_loop')  # builds it with its data, once
            if phase == 'train' and isinstance(runner, Runner):
                runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    except BUILD_ERRORS as error:
        message = explain_unregistered(error) or describe_error(error)
        raise RunError(f'the config {cfg.filename} cannot be built: {message}') from error
    return runner


def _join_processes(cfg: Config) -> None:
    """Without a GPU, joins the processes by gloo, which MMEngine then leaves alone.

    MMEngine itself would choose a GPU for each process.
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
    # MMEngine's defaults, but for the GPU.
    cfg.setdefault(
        'model_wrapper_cfg',
        {
            'type': 'MMDistributedDataParallel',
            'device_ids': None,
            'broadcast_buffers': False,
            'find_unused_parameters': cfg.get('find_unused_parameters', False),
        },
    )
