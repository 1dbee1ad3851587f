"""Training of an MMDetection config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from roi_plugins.settings import write_settings

from ..arguments import check_tracker
from ..checkpoints import first_whole
from ..errors import RunError
from ..output import check_writable
from . import runner
from .check_data import check_data
from .check_model import check_model
from .check_test import check_test, has_test
from .check_training import check_space_for_checkpoints, check_training, check_validation
from .checkpoints import check_checkpoint, last_checkpoint, saved_checkpoints
from .config import read_run_config
from .own_files import use_files
from .registered import check_registered
from .tracking import add_tracker


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
    track: str | None = None,
    dry_run: bool = False,
) -> None:
    """Trains a detector.

    Everything that the training and the test of the config need is checked first.

    Args:
        config: path of an MMDetection config.
        work_dir: the folder for checkpoints and logs; by default the config's ``work_dir``, else
            ``work_dirs/NAME`` with the name of the config.
        amp: train in mixed precision.
        resume: the checkpoint to resume from; ``'auto'`` for the last one in the work directory, if there is
            one.
        max_dets: the ``max_dets`` that will be given to :func:`~.test.test`.
        cfg_options: config options, ``{'dotted.key': value}``.
        launcher: how the processes were started, one of ``LAUNCHERS``.
        imports: modules to import first, see :func:`~roi_plugins.integrations.modules.import_modules`.
        extractor: a row of a comparison that replaces the extractors of the config, see
            :func:`~roi_plugins.extractors.presets.parse_preset`.
        heads: the heads whose extractors are replaced; by default all.
        train_data, test_data: COCO annotations and the folder of their images, which replace the config's
            data.
        track: the experiment tracker to log to as well, of ``roi_plugins.tracking.TRACKERS``.
        dry_run: check only, and do not train.

    Raises:
        RunError: an input or the tracker is missing; the test of the config would fail, or would report
            another AP than MMDetection's own test; the work directory holds checkpoints and ``resume`` is not
            given; or the checkpoint to resume from is damaged or holds more than data. With ``'auto'``,
            damaged checkpoints are skipped if there is an undamaged one.
        DataError: annotations cannot be evaluated.
    """
    check_tracker(track)
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
    # An error of the test is found before the training, not after it.
    check_training(cfg, check_test(cfg, max_dets) if has_test(cfg) else None)
    if amp:
        if not torch.cuda.is_available():
            raise RunError('--amp: MMEngine trains in mixed precision on a GPU only; there is none')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    settings = cfg.to_dict()  # without the checkpoint to resume from, which _find_start sets
    done = _find_start(cfg, resume)
    if done is None:
        return
    if cfg.get('default_hooks') is None:
        cfg.default_hooks = {}
    hooks = cfg.default_hooks
    hooks.setdefault('checkpoint', {'type': 'CheckpointHook'})
    if hooks.checkpoint is not None:
        hooks.checkpoint.setdefault('backend_args', {'backend': 'atomic_local'})
    check_space_for_checkpoints(cfg, check_model(cfg), done)
    if track:
        add_tracker(cfg, track)
    if not dry_run:
        write_settings(cfg.work_dir, settings, trains=True)  # each process writes the same
        runner.run(cfg, 'train')


def _find_start(cfg: Config, resume: str | Path | None) -> int | None:
    """Sets which checkpoint the training starts from.

    Args:
        cfg: the config, which is changed.
        resume: see :func:`train`.

    Returns:
        How many epochs or steps are done already; None if all are.

    Raises:
        RunError: the checkpoint is missing or damaged, or checkpoints of an earlier training would be
            overwritten.
    """
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
            if last.stem in ends:  # MMEngine would load the data of all steps, only to skip them
                print(f'{last} is of the last step: nothing is left to train')
                return None
            cfg.resume, cfg.load_from = True, str(last)
    else:
        cfg.resume, cfg.load_from = True, check_checkpoint(resume)
    if cfg.get('load_from'):
        check_checkpoint(cfg.load_from)
    done = last.stem.rpartition('_')[2] if cfg.get('resume') and last is not None else '0'
    return int(done) if done.isdecimal() else 0
