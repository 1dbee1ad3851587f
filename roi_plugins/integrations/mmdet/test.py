"""Test of an MMDetection config: COCO predictions and ``metrics.json``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process

from roi_plugins.run_record import write_run
from roi_plugins.settings import write_settings

from ..arguments import as_arguments
from ..errors import RunError
from ..mmdet_framework import MODULE
from ..output import check_writable
from ..results import check_same_run, partial_predictions, replace_predictions
from . import runner
from .check_model import check_model
from .check_test import check_test
from .checkpoints import check_checkpoint, last_checkpoint
from .config import read_run_config
from .inspect import describe_extractors
from .own_files import use_files
from .registered import check_registered


def test(
    config: str | Path,
    checkpoint: str | Path,
    *,
    work_dir: str | Path | None = None,
    overwrite: bool = False,
    max_dets: int | None = None,
    cfg_options: Mapping[str, Any] | None = None,
    launcher: str = 'none',
    imports: Sequence[str] = (),
    extractor: str | None = None,
    heads: Sequence[str] = (),
    train_data: Sequence[str | Path] | None = None,
    test_data: Sequence[str | Path] | None = None,
    dry_run: bool = False,
) -> dict[str, Any] | None:
    """Evaluates a detector on the test set of its config, which must be in COCO format.

    Args:
        config: path of an MMDetection config.
        checkpoint: a checkpoint, or the work directory of a training, whose last checkpoint is used.
        work_dir: the folder for predictions and ``metrics.json``; by default the config's ``work_dir``, else
            ``work_dirs/NAME`` with the name of the config.
        overwrite: replace the result of another config, checkpoint or options in ``work_dir``.
        max_dets: how many detections of each class count in an image, those with the highest scores; by
            default the AP is MMDetection's own, at 100.
        cfg_options: config options, ``{'dotted.key': value}``.
        launcher: how the processes were started, one of ``LAUNCHERS``.
        imports, extractor, heads, test_data: as for :func:`~.train.train`.
        train_data: as for :func:`~.train.train`. It only changes the config that is saved in ``work_dir``.
        dry_run: check only, and do not test.

    Returns:
        The content of ``metrics.json``; None in processes other than the first, and with ``dry_run``.

    Raises:
        RunError: an input is missing; the checkpoint does not fit the config; the AP would differ from
            MMDetection's own; or the work directory holds another result.
        DataError: the annotations cannot be evaluated.
    """
    cfg = read_run_config(config, work_dir, cfg_options, launcher, imports, extractor, heads)
    check_registered(cfg, 'test_dataloader')
    use_files(cfg, 'train', train_data)
    use_files(cfg, 'test', test_data)
    settings = cfg.to_dict()
    if Path(checkpoint).is_dir():
        last = last_checkpoint(checkpoint)
        if last is None:
            raise RunError(f'{checkpoint} holds no checkpoint: train first, or name a .pth file')
        checkpoint = last
    cfg.resume, cfg.load_from = False, check_checkpoint(checkpoint)
    evaluation = check_test(cfg, max_dets)
    run_dir = Path(cfg.work_dir)
    check_writable(run_dir, 'work_dir')
    check_model(cfg)
    command = ['python', '-m', MODULE, 'test', str(config), str(checkpoint)]
    command += as_arguments(train_data=train_data)
    command += ['--work-dir', str(run_dir), '--launcher', launcher]
    command += as_arguments(imports, None, test_data, max_dets, extractor, heads)
    if cfg_options:
        command += ['--cfg-options', *(f'{key}={value}' for key, value in cfg_options.items())]
    if not overwrite:
        new = _identity(config, checkpoint, command)
        check_same_run(
            run_dir,
            lambda found: _identity(found['config'], found['checkpoint'], found['command']) == new,
            'Give another --work-dir, or --overwrite to replace it',
        )
    if dry_run:
        return None

    # The metric only writes predictions: AP is computed by write_run, as for every framework.
    partial = partial_predictions(run_dir)
    writer = {**evaluation.metric, 'format_only': True, 'outfile_prefix': str(partial / 'predictions')}
    cfg.test_evaluator = [writer, *evaluation.other_metrics]
    model = runner.run(cfg, 'test')
    if not is_main_process():
        return None
    replace_predictions(run_dir, partial, evaluation.iou_types)
    write_settings(run_dir, settings, trains=False)
    return write_run(
        run_dir,
        framework='mmdet',
        config=config,
        checkpoint=checkpoint,
        ann_file=evaluation.ann_file,
        category_ids=evaluation.category_ids,
        max_dets=evaluation.max_dets,
        image_dir=evaluation.image_dir,
        command=command,
        extractors=describe_extractors(model),
    )


def _identity(
    config: str | Path, checkpoint: str | Path, command: Sequence[str]
) -> tuple[str, str, list[str]]:
    """What decides the result of a test; not how it was launched, nor the order of its options."""
    options = command[command.index('--launcher') + 2 :]
    return os.path.realpath(config), os.path.realpath(checkpoint), sorted(options)
