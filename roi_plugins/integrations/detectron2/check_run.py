"""Checks everything that a run needs before it starts: settings, weights, data, model, disk space."""

from __future__ import annotations

import os

import torch
from detectron2.config import CfgNode
from omegaconf import OmegaConf

from ..errors import RunError
from ..output import check_space, checkpoint_bytes
from .check_data import check_registered, check_test_set, check_training_sets
from .check_model import (
    build,
    build_model,
    check_max_dets,
    check_model,
    check_num_classes,
    check_pooler_options,
)
from .check_test import check_evaluator
from .checkpoints import saved_checkpoints
from .run import Run


def check_run(
    run: Run,
    *,
    eval_only: bool,
    resume: bool,
    num_processes: int,
    saves: bool,
    max_dets: int | None = None,
) -> None:
    """Checks that a run will come to its end.

    Args:
        run: the run, described for the CPU, since its model is built for the check.
        eval_only, resume: the options of that name.
        num_processes: how many processes train together, on all machines.
        saves: whether this machine saves the checkpoints.
        max_dets: the option of that name.

    Raises:
        RunError: the run would fail.
        DataError: the annotations cannot be evaluated.
    """
    _check_settings(run)
    _check_weights(run, eval_only, resume)
    if not eval_only:
        _check_training(run, num_processes)
        # The loader of a LazyConfig may have data without a name.
        if not run.train_datasets and isinstance(run.cfg, CfgNode):
            raise RunError(f'{run.settings["train"]}: got none, expected at least one dataset')
        for name in run.train_datasets:
            check_registered(name, run.settings['train'], 'train')
    test = check_evaluator(run)
    model = build_model(run)
    check_model(run, model)
    if max_dets is not None:
        check_max_dets(run, model, max_dets)
    classes = check_test_set(run, test, model)
    check_num_classes(run, model, test, len(classes))
    if not eval_only:
        check_training_sets(run, model, test, classes)
        optimizer = build('optimiser', lambda: run.optimizer(model))
        build('schedule', lambda: run.scheduler(optimizer))
        if saves:
            _check_space(run, model, optimizer, resume)


def _check_settings(run: Run) -> None:
    """Raises RunError for settings that this tool does not support."""
    cfg = run.cfg
    if not isinstance(cfg, CfgNode):
        return
    for name, node in (('TEST.AUG', cfg.TEST.AUG), ('TEST.PRECISE_BN', cfg.TEST.PRECISE_BN)):
        if node.ENABLED:
            raise RunError(f"{name}.ENABLED is True, which this tool does not support; Detectron2's does")
    if cfg.TEST.EXPECTED_RESULTS:
        raise RunError("TEST.EXPECTED_RESULTS is set, which this tool does not verify; Detectron2's does")
    check_pooler_options(cfg)


def _check_weights(run: Run, eval_only: bool, resume: bool) -> None:
    name = run.settings['weights']
    if eval_only and not run.weights:
        raise RunError(f'--eval-only: {name} names no checkpoint')
    if not eval_only and resume and saved_checkpoints(run.output_dir, run.prefix):
        return  # the training resumes from these
    if run.weights and '://' not in run.weights and not os.path.isfile(run.weights):
        raise RunError(
            f'{"--eval-only: the checkpoint" if eval_only else f"{name}:"} {run.weights} does not exist'
        )


def _check_training(run: Run, num_processes: int) -> None:
    if run.max_iter < 1:
        raise RunError(f'{run.settings["max_iter"]}: got {run.max_iter}, expected at least 1')
    batch = run.batch_size
    if batch is not None and (batch < num_processes or batch % num_processes):
        raise RunError(
            f'{run.settings["batch"]}: got {batch}, expected a multiple of the {num_processes} processes '
            'that share it'
        )
    if isinstance(run.cfg, CfgNode):
        if run.cfg.MODEL.LOAD_PROPOSALS:
            for path in run.cfg.DATASETS.PROPOSAL_FILES_TRAIN:
                if '://' not in path and not os.path.isfile(path):
                    raise RunError(f'DATASETS.PROPOSAL_FILES_TRAIN: {path} does not exist')
        size = run.cfg.SOLVER.REFERENCE_WORLD_SIZE
        if size not in (0, num_processes):
            raise RunError(
                f'SOLVER.REFERENCE_WORLD_SIZE is {size} and there are {num_processes} processes, but this '
                'tool does not scale batch and schedule: set them for that many, and it to 0'
            )
    else:
        for key in ('dataloader.train', 'optimizer', 'lr_multiplier'):
            if OmegaConf.select(run.cfg, key) is None:
                raise RunError(f'the LazyConfig has no {key}, which a training needs')


def _check_space(run: Run, model: torch.nn.Module, optimizer: torch.optim.Optimizer, resume: bool) -> None:
    """Raises RunError if the checkpoints of the training would fill the disk."""
    saved = saved_checkpoints(run.output_dir, run.prefix) if resume else []
    period, keep = run.checkpoints['period'], run.checkpoints.get('max_to_keep')
    done = 0
    if saved:
        step = saved[0].stem.removeprefix(f'{run.prefix}_')
        done = int(step) + 1 if step.isdecimal() else run.max_iter
    if done >= run.max_iter:
        return
    count = run.max_iter // period - done // period if period > 0 else 0
    # A new checkpoint is written before the oldest is removed, and the last is saved again as model_final.
    count = (count if keep is None else min(count, keep + 1)) + 1
    check_space(
        run.output_dir,
        checkpoint_bytes(model, optimizer),
        count,
        setting=run.settings['output'],
        count_setting=run.settings['period'],
    )
