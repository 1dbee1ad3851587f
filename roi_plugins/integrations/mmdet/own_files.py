"""Replaces the data of an MMDetection config by COCO files of the user."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from mmengine.registry import DATASETS

from roi_plugins.files import read_json

from ..errors import RunError
from .check_test import metrics_of
from .registered import class_of, is_subclass, type_name

# The validation during a training is replaced too: the config's own data may have other classes.
_LOADERS = {'train': ('train_dataloader',), 'test': ('test_dataloader', 'val_dataloader')}
_EVALUATORS = {'train': (), 'test': ('test_evaluator', 'val_evaluator')}


def use_files(cfg: Config, half: str, files: Sequence[str | Path] | None) -> None:
    """Replaces the annotations, images and classes of a config's dataset, and the annotations of its metrics.

    The rest of the dataset stays, such as its type, pipeline, filter and wrappers. A ``ConcatDataset`` is
    replaced by its first part. The paths become absolute, since the saved config is read from other folders.

    Args:
        cfg: the config, which is changed.
        half: ``'train'``, or ``'test'`` for the test and the validation.
        files: instance annotations (``.json``) and the folder of the images; None changes nothing.

    Raises:
        RunError: the config has no such data, it is not in COCO format, or the folder does not exist.
        DataError: the annotations cannot be read.
    """
    if files is None:
        return
    option = f'--{half}-data'
    annotations, images = map(os.path.abspath, files)
    data = {
        'data_root': '',
        'ann_file': annotations,
        'data_prefix': {'img': images},
        'metainfo': {'classes': _classes(option, annotations)},
    }
    if not os.path.isdir(images):
        raise RunError(f'{option}: the folder of images {images} does not exist')
    first, *others = _LOADERS[half]
    if not (cfg.get(first) or {}).get('dataset'):
        raise RunError(f'{option}: the config {cfg.filename} has no {first}.dataset to be replaced')
    for loader in (first, *(other for other in others if (cfg.get(other) or {}).get('dataset'))):
        cfg[loader].dataset = _replaced(option, f'{loader}.dataset', cfg[loader].dataset, data)
    for evaluator in _EVALUATORS[half]:
        for _, options, kind in metrics_of(evaluator, cfg.get(evaluator)):
            if is_subclass(kind, CocoMetric):
                options['ann_file'] = annotations
                options.pop('backend_args', None)


def _replaced(option: str, setting: str, dataset: Any, data: Mapping[str, Any]) -> Any:
    if dataset.get('datasets'):
        return _replaced(option, f'{setting}.datasets.0', dataset['datasets'][0], data)
    if 'dataset' in dataset:
        dataset['dataset'] = _replaced(option, f'{setting}.dataset', dataset['dataset'], data)
        return dataset
    kind = class_of(DATASETS, dataset.get('type'))
    if not is_subclass(kind, CocoDataset):
        raise RunError(
            f'{option}: {setting}.type is {type_name(dataset)}, which does not read COCO files; give a '
            'config whose dataset is a CocoDataset'
        )
    for key, value in data.items():
        dataset[key] = value
    dataset.pop('backend_args', None)  # it reads from another store than the local disk
    return dataset


def _classes(option: str, annotations: str) -> list[str]:
    """The names of the categories in the order of the file, by which CocoDataset numbers them."""
    if not annotations.endswith('.json'):
        raise RunError(f'{option}: the annotations {annotations} are not a .json file of COCO annotations')
    try:
        classes = [category['name'] for category in read_json(annotations, 'annotation file')['categories']]
    except (KeyError, TypeError):
        classes = []
    if not classes:
        raise RunError(f'{option}: {annotations} has no categories with names, as COCO annotations do')
    return classes
