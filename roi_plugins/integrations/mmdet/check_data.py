"""Checks that the datasets of an MMDetection config are there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.registry import DATASETS
from pycocotools.coco import COCO

from roi_plugins.files import Folders

from ..errors import RunError
from .check_model import build
from .registered import class_of, is_subclass

_OPTIONS = {
    'train_dataloader': 'train-data',
    'val_dataloader': 'test-data',
    'test_dataloader': 'test-data',
}


def check_data(cfg: Config, *loaders: str) -> None:
    """Checks that annotations and image folders exist.

    Args:
        cfg: the config.
        loaders: the settings of the data loaders to check, such as ``'train_dataloader'``.

    Raises:
        RunError: a file or folder does not exist, or is not named by one path.
    """
    for loader in loaders:
        for dataset in innermost_datasets((cfg.get(loader) or {}).get('dataset') or {}):
            if dataset.get('backend_args'):
                continue  # not local files
            setting = f'{loader}.dataset'
            root = dataset.get('data_root') or ''
            ann_file = dataset.get('ann_file') or ''
            prefixes = dataset.get('data_prefix') or {}
            if not isinstance(prefixes, Mapping):
                raise RunError(f"{setting}.data_prefix is {prefixes!r}; expected dict(img='FOLDER')")
            named = {'ann_file': ann_file, **{f'data_prefix.{key}': prefixes[key] for key in prefixes}}
            for key, path in {'data_root': root, **named}.items():
                if path is not None and not isinstance(path, (str, os.PathLike)):
                    raise RunError(
                        f'{setting}.{key} is {path!r}; expected one path. For several annotation files give '
                        'several datasets in a ConcatDataset'
                    )
            for path in filter(None, named.values()):
                full = os.path.join(root, path)
                if '://' not in full and not os.path.exists(full):
                    raise RunError(
                        f'{loader}: the dataset is not there: {full} does not exist. Put it there, '
                        f'or say where it is with --cfg-options {setting}.data_root=FOLDER. COCO files of '
                        f'your own are named by --{_OPTIONS[loader]} ANNOTATIONS.json IMAGES'
                    )
            full = os.path.join(root, ann_file)
            if ann_file and os.path.isfile(full) and not os.path.getsize(full):
                raise RunError(f'{setting}.ann_file: {full} is empty')


def innermost_datasets(dataset: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The configs of the datasets inside wrappers such as ``RepeatDataset`` and ``ConcatDataset``."""
    inner = [dataset['dataset']] if 'dataset' in dataset else dataset.get('datasets', [])
    if not inner:
        yield dataset
    for part in inner:
        yield from innermost_datasets(part)


def coco_datasets(cfg: Config, loader: str) -> Iterator[CocoDataset]:
    """The datasets of a loader that read local COCO files, built without reading their annotations.

    Args:
        cfg: the config.
        loader: the setting of the loader.

    Raises:
        RunError: a dataset cannot be built, or its annotations do not exist.
    """
    for options in innermost_datasets((cfg.get(loader) or {}).get('dataset') or {}):
        kind = class_of(DATASETS, options.get('type'))
        if not is_subclass(kind, CocoDataset) or options.get('backend_args'):
            continue
        dataset = build(DATASETS, f'{loader}.dataset', {**options, 'lazy_init': True, 'pipeline': []})
        if not os.path.isfile(dataset.ann_file):
            raise RunError(f'{loader}.dataset.ann_file is {dataset.ann_file!r}; expected an annotation file')
        yield dataset


def check_images(coco: COCO, ann_file: str, dataset: Any) -> None:
    """Checks the images of a test set.

    Args:
        coco: the annotations that are evaluated.
        ann_file: their file, for the error.
        dataset: the test set.

    Raises:
        RunError: an image is not in the annotations, is in the dataset twice, or its file does not exist.
    """
    seen: set[int] = set()
    folders = Folders()
    if not len(dataset):
        raise RunError('test_dataloader.dataset has no images')
    for index in range(len(dataset)):
        image = dataset.get_data_info(index)
        id_, path = image.get('img_id'), str(image.get('img_path', ''))
        if id_ not in coco.imgs:
            raise RunError(f'test_dataloader.dataset has the image {id_}, which {ann_file} does not have')
        if id_ in seen:
            raise RunError(f'test_dataloader.dataset has the image {id_} twice')
        seen.add(id_)
        if not path or '://' in path or getattr(dataset, 'backend_args', None):
            continue
        # The second check is for files behind links, which the listed folders do not show.
        if not folders.has(path) and not os.path.exists(path):
            raise RunError(f'test_dataloader.dataset: the image {path} does not exist')


def class_names(setting: str, dataset: Any) -> Sequence[str]:
    """The classes of a dataset; a RunError, which names ``setting``, if it has none."""
    metainfo = dataset.metainfo
    if not isinstance(metainfo, Mapping):
        raise RunError(f'{setting}: its parts have different metainfo; give them the same')
    names = metainfo.get('classes')
    if not isinstance(names, (list, tuple)) or not names:
        raise RunError(f"{setting}.metainfo.classes is {names!r}; expected names, as in ('cat', 'dog')")
    return names


def no_category(setting: str, ann_file: str, names: Sequence[str]) -> str:
    """The error message for annotations that have none of the classes ``names`` of a dataset."""
    return (
        f'{setting}.metainfo.classes is {listed(names)}, but {ann_file} has no category of such a name: set '
        'it to the names in the file'
    )


def listed(names: Sequence[str]) -> str:
    """The first six names, for an error message."""
    shown = ', '.join(names[:6])
    return f'{shown}, ... ({len(names)} in all)' if len(names) > 6 else shown
