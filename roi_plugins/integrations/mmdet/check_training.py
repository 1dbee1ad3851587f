"""Checks what a training of an MMDetection config needs: its data, a validation, disk space."""

from __future__ import annotations

import copy

import torch
from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from mmengine.optim import OptimWrapperDict, build_optim_wrapper
from mmengine.registry import OPTIMIZERS

from roi_plugins.evaluation.coco_files import check_annotations
from roi_plugins.evaluation.matching import REGIONS
from roi_plugins.files import read_json

from ..errors import RunError, describe_error
from ..output import check_space, checkpoint_bytes
from .check_data import class_names, coco_datasets, listed, no_category
from .check_model import BUILD_ERRORS, check_num_classes
from .check_test import Evaluation, annotation_file, metric_list, metrics_of
from .registered import check_type, enter_scope


def check_training(cfg: Config, evaluation: Evaluation | None) -> None:
    """Checks that the training data has objects, and the classes of the test in the same order.

    MMDetection numbers the classes in the order of the annotation file, whatever their order in ``metainfo``.

    Args:
        cfg: the config.
        evaluation: the test of the config; None if it has none. Then the number of classes of the heads
            counts.

    Raises:
        RunError: there is nothing to train on, or the classes differ.
        DataError: the annotations cannot be read.
    """
    enter_scope(cfg)
    setting = 'train_dataloader.dataset'
    for dataset in coco_datasets(cfg, 'train_dataloader'):
        names = class_names(setting, dataset)
        data = read_json(dataset.ann_file, 'annotation file')
        try:
            found = [entry['name'] for entry in data['categories'] if entry['name'] in names]
            count = len(data['images']), len(data['annotations'])
        except (KeyError, TypeError):
            raise RunError(
                f'{setting}.ann_file: {dataset.ann_file} has no images, annotations or categories with names'
            ) from None
        if not all(count):
            raise RunError(
                f'{setting}.ann_file: {dataset.ann_file} has {count[0]} images and {count[1]} annotations: '
                'nothing to train on'
            )
        if not found:
            raise RunError(no_category(setting, dataset.ann_file, names))
        if evaluation is None:
            check_num_classes(cfg, len(found), setting, dataset.ann_file)
        elif found != evaluation.classes:
            raise RunError(
                f'{setting}: its classes are {listed(found)}, in the order of {dataset.ann_file}, but those '
                f'of the test are {listed(evaluation.classes)}, in the order of {evaluation.ann_file}. They '
                'must be the same, in the same order: set metainfo.classes, or sort the categories of the '
                'files'
            )


def check_validation(cfg: Config) -> None:
    """Checks the annotations of the validation during a training, if there is one.

    Raises:
        RunError: the annotation file does not exist.
        DataError: the annotations cannot be evaluated.
    """
    if cfg.get('val_evaluator') is None:
        return
    enter_scope(cfg)
    for setting, options, kind in metrics_of('val_evaluator', cfg.val_evaluator):
        # Other metrics, such as LVISMetric, may need other annotations.
        if getattr(kind, 'compute_metrics', None) is not CocoMetric.compute_metrics:
            continue
        ann_file = options.get('ann_file')
        if ann_file and '://' not in str(ann_file) and not options.get('backend_args'):
            kinds = [kind for kind in metric_list(options) if kind in REGIONS]
            check_annotations(annotation_file(setting, options), kinds)


def check_space_for_checkpoints(cfg: Config, model: torch.nn.Module, done: int) -> None:
    """Checks that the disk has room for the checkpoints of a training.

    Args:
        cfg: the config.
        model: its model.
        done: how many epochs or steps of the training are done already.

    Raises:
        RunError: the disk would become full, or the optimiser cannot be built.
    """
    options = (cfg.get('default_hooks') or {}).get('checkpoint', {'type': 'CheckpointHook'})
    if options is None:
        return
    enter_scope(cfg)
    check_type(OPTIMIZERS, 'optim_wrapper.optimizer', cfg.optim_wrapper.get('optimizer'))
    try:
        wrapper = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    except BUILD_ERRORS as error:
        raise RunError(f'optim_wrapper: {describe_error(error)}') from error
    wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    train_cfg = cfg.get('train_cfg') or {}
    unit = 'epochs' if options.get('by_epoch', True) else 'iters'
    total, interval = train_cfg.get(f'max_{unit}'), options.get('interval', -1)
    if not total:  # saved by epoch but trained by step, or the other way round: the number is not known
        return
    count = total // interval - done // interval if interval > 0 else 0
    keep = options.get('max_keep_ckpts', -1)
    # A new checkpoint is written before the oldest is removed, and the last step is always saved.
    count = (count if keep < 0 else min(count, keep)) + 1
    check_space(
        cfg.work_dir,
        checkpoint_bytes(model, *(wrapper.optimizer for wrapper in wrappers)),
        count,
        setting='work_dir',
        count_setting='default_hooks.checkpoint.interval, max_keep_ckpts',
    )
