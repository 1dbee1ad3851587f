"""COCO files of the user's own in place of the data of an MMDetection config."""

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

# A validation during the training must not run on what the config has, of other classes.
_LOADERS = {'train': ('train_dataloader',), 'test': ('test_dataloader', 'val_dataloader')}
_EVALUATORS = {'train': (), 'test': ('test_evaluator', 'val_evaluator')}


def use_files(cfg: Config, half: str, files: Sequence[str | Path] | None) -> None:
    """Puts COCO files in the place of the config's data: of its innermost dataset, and of its metrics.

    What else the dataset has stays, such as its type, pipeline, filter and wrappers. Of a ``ConcatDataset``
    its first part stays. The paths are absolute, for the config is saved and read from other folders too.

    Args:
        half: ``'train'``; or ``'test'``, which is the validation too, if there is one.
        files: instance annotations (``.json``) and the folder of the images; None leaves all as it is.

    Raises:
        RunError: the config has no such data, or it is not in COCO format; or the folder is not there.
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
    dataset.pop('backend_args', None)  # of a store that is not the local disk
    return dataset


def _classes(option: str, annotations: str) -> list[str]:
    """The names of the categories as CocoDataset numbers them: as the file lists them."""
    if not annotations.endswith('.json'):
        raise RunError(f'{option}: the annotations {annotations} are not a .json file of COCO annotations')
    try:
        classes = [category['name'] for category in read_json(annotations, 'annotation file')['categories']]
    except (KeyError, TypeError):
        classes = []
    if not classes:
        raise RunError(f'{option}: {annotations} has no categories with names, as COCO annotations do')
    return classes
