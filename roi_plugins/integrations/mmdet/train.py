"""Training of an MMDetection config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from roi_plugins.settings import write_settings

from ..errors import RunError
from ..output import check_writable
from ..weights import (
    first_whole,
)
from . import runner
from .check_data import check_data
from .check_model import check_model
from .check_test import check_test, has_test
from .check_training import (
    check_space_for_checkpoints,
    check_training,
    check_validation,
)
from .checkpoints import check_checkpoint, last_checkpoint, saved_checkpoints
from .config import read_run_config
from .own_files import use_files
from .registered import check_registered


def train(
    config: str | Path,
    *,
    work_dir: str | Path | None = None,
    amp: bool = False,
    resume: str | Path | None = None,
    max_dets: int | None = None,
    cfg_options: Mapping[str, Any] | None = None,
    launcher: str = 'none',
    imports: Sequence[str] = (),
    extractor: str | None = None,
    heads: Sequence[str] = (),
    train_data: Sequence[str | Path] | None = None,
    test_data: Sequence[str | Path] | None = None,
    dry_run: bool = False,
) -> None:
    """Trains a detector.

    Args:
        config: path of an MMDetection config.
        work_dir: where checkpoints and logs go; by default the config's ``work_dir``, else
            ``work_dirs/{name of the config}``.
        amp: mixed precision.
        resume: a checkpoint, or ``'auto'`` for the last one in the work directory, if any.
        max_dets: what the test will be given.
        cfg_options: config options, ``{'dotted.key': value}``.
        launcher: how the processes were started, one of ``LAUNCHERS``.
        imports: modules to import first, see :func:`~roi_plugins.integrations.modules.import_modules`.
        extractor: a row of a comparison in the place of the config's extractors, see
            :func:`~roi_plugins.extractors.presets.parse_preset`.
        heads: those whose extractors are swapped; by default all.
        train_data, test_data: COCO annotations and the folder of their images, in place of the config's.
        dry_run: look at all that a training and its test need, and stop.

    Raises:
        RunError: an input is missing; the test of the config would fail, or report another AP than
            MMDetection's own; the work directory holds checkpoints and ``resume`` is not
            given; or a checkpoint to be resumed is damaged or holds more than data. With ``'auto'``,
            damaged ones are left out as long as there is one before.
    """
    cfg = read_run_config(config, work_dir, cfg_options, launcher, imports, extractor, heads)
    for setting in ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper'):
        if cfg.get(setting) is None:
            raise RunError(f'the config {config} has no {setting}, which a training needs')
    check_registered(cfg, 'train_dataloader', 'val_dataloader', 'test_dataloader')
    use_files(cfg, 'train', train_data)
    use_files(cfg, 'test', test_data)
    check_writable(cfg.work_dir, 'work_dir')
    check_data(cfg, 'train_dataloader', 'val_dataloader')
    check_validation(cfg)
    # What would fail after the training is an error before it.
    check_training(cfg, check_test(cfg, max_dets) if has_test(cfg) else None)
    if amp:
        if not torch.cuda.is_available():
            raise RunError('--amp: MMEngine trains in mixed precision on a GPU only; there is none')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    settings = cfg.to_dict()  # what is resumed from is none of them
    if resume is None and cfg.get('resume'):
        resume = cfg.get('load_from') or 'auto'
    last = last_checkpoint(cfg.work_dir)
    if resume is None:
        if last is not None:
            raise RunError(
                f'{cfg.work_dir} holds the checkpoint {last.name} of an earlier training: give '
                '--resume to continue it, or another --work-dir'
            )
    elif resume == 'auto':
        try:
            last = first_whole(saved_checkpoints(cfg.work_dir))
        except ValueError as error:
            raise RunError(str(error)) from None
        if last is not None:
            ends = [f'{unit}_{cfg.train_cfg.get(f"max_{unit}s")}' for unit in ('iter', 'epoch')]
            if last.stem in ends:  # MMEngine would load the data of all steps, to skip them
                print(f'{last} is of the last step: nothing is left to train')
                return
            cfg.resume, cfg.load_from = True, str(last)
    else:
        cfg.resume, cfg.load_from = True, check_checkpoint(resume)
    if cfg.get('default_hooks') is None:
        cfg.default_hooks = {}
    hooks = cfg.default_hooks
    hooks.setdefault('checkpoint', {'type': 'CheckpointHook'})
    if hooks.checkpoint is not None:
        hooks.checkpoint.setdefault('backend_args', {'backend': 'atomic_local'})
    if cfg.get('load_from'):
        check_checkpoint(cfg.load_from)
    done = last.stem.rpartition('_')[2] if cfg.get('resume') and last is not None else '0'
    check_space_for_checkpoints(cfg, check_model(cfg), int(done) if done.isdecimal() else 0)
    if not dry_run:
        write_settings(cfg.work_dir, settings, trains=True)  # the same by each process
        runner.run(cfg, 'train')
