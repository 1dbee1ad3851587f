"""Checks that the datasets of a run are there, complete, and of the classes of the model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from roi_plugins.evaluation.coco_files import check_annotations
from roi_plugins.files import Folders

from ..errors import RunError, explain_unknown
from .check_model import check_num_classes, has_head, num_keypoints
from .datasets import is_coco_files
from .run import Run

_WHERE = (
    'Put it there, or say where it is: DETECTRON2_DATASETS is the folder of coco/, ROI_PLUGINS_SHAPES the '
    'one of the generated images'
)

_OWN = (
    'COCO files of your own are named by --{half}-data ANNOTATIONS.json IMAGES, a module that registers '
    'datasets by --import MODULE'
)


def check_registered(name: str, setting: str, half: str) -> None:
    """Checks that a dataset is registered and that its annotations exist.

    Args:
        name: the name of the dataset.
        setting: the config option that names it, for the error.
        half: what it is used for, ``'train'`` or ``'test'``.

    Raises:
        RunError: the dataset is not in Detectron2's catalogue, or its annotations do not exist.
    """
    own = _OWN.format(half=half)
    if name not in DatasetCatalog:
        known = explain_unknown(name, DatasetCatalog)
        raise RunError(f'{setting}: the dataset {name!r} is not registered; {known}. {own}')
    annotations = MetadataCatalog.get(name).get('json_file')
    if annotations and '://' not in str(annotations) and not os.path.isfile(annotations):
        where = '' if is_coco_files(name) else f'. {_WHERE}. {own}'
        raise RunError(f'{setting}: the dataset {name} is not there: {annotations} does not exist{where}')


def check_test_set(run: Run, name: str, model: torch.nn.Module) -> list[str]:
    """Checks that a test set can be evaluated.

    Args:
        run: the run.
        name: the name of the test set.
        model: its model, whose heads say what is evaluated.

    Returns:
        The names of its categories, by ascending id.

    Raises:
        RunError: the dataset cannot be read, or images do not exist.
        DataError: the annotations cannot be evaluated.
    """
    kinds = [kind for kind, head in (('segm', 'mask'), ('keypoints', 'keypoint')) if has_head(model, head)]
    coco = check_annotations(MetadataCatalog.get(name).json_file, ['bbox', *kinds], run.sigmas)
    _check_images(name, _records(name, run.settings['test']))
    categories = sorted(coco.dataset['categories'], key=lambda entry: entry['id'])
    return [category.get('name', '') for category in categories]


def check_training_sets(run: Run, model: torch.nn.Module, test: str, test_classes: Sequence[str]) -> None:
    """Checks that the training data is complete, and that model and test set have the same classes.

    Args:
        run: the run.
        model: its model.
        test: the name of the test set.
        test_classes: the names of its classes, in order.

    Raises:
        RunError: data is missing, or the classes differ.
    """
    classes: dict[str, Sequence[str]] = {}
    for name in run.train_datasets:
        records = _records(name, run.settings['train'])
        _check_training_set(name, records, model)
        # The mapper of a LazyConfig may have the flips itself.
        if isinstance(run.cfg, CfgNode) and has_head(model, 'keypoint'):
            _check_flips(name)
        classes[name] = _train_classes(name, records)
        check_num_classes(run, model, name, len(classes[name]))
        _check_order(name, classes[name], test, test_classes)
    for name, found in classes.items():
        if list(found) != list(classes[run.train_datasets[0]]):
            raise RunError(
                f'{run.settings["train"]}: the classes of {name} and {run.train_datasets[0]} have '
                'different names, so they cannot be trained together'
            )


def _check_training_set(name: str, records: Sequence[Mapping[str, Any]], model: torch.nn.Module) -> None:
    annotated = [record for record in records if 'annotations' in record]
    objects = [a for record in annotated for a in record['annotations'] if not a.get('iscrowd', 0)]
    if annotated and not objects:
        raise RunError(f'the dataset {name} has {len(records)} images, but no object to train on')
    if objects and has_head(model, 'keypoint') and not any('keypoints' in found for found in objects):
        raise RunError(f'the dataset {name} has no keypoints, which the keypoint head is trained on')
    wanted = num_keypoints(model)
    labelled = {len(found['keypoints']) // 3 for found in objects if 'keypoints' in found}
    if wanted is not None and labelled - {wanted}:
        raise RunError(
            f'the dataset {name} has {max(labelled - {wanted})} keypoints an object, and the keypoint head '
            f'is for {wanted}'
        )
    without = sum('segmentation' not in found for found in objects)
    if has_head(model, 'mask') and without:
        raise RunError(
            f'the dataset {name} has no segmentation for {without} of its {len(objects)} objects, which the '
            'mask head is trained on'
        )
    _check_images(name, records)


def _check_flips(name: str) -> None:
    """Raises RunError if it is not known which keypoints a flipped image exchanges."""
    if not MetadataCatalog.get(name).as_dict().keys() >= {'keypoint_names', 'keypoint_flip_map'}:
        raise RunError(
            f'the dataset {name} has no keypoint_names and keypoint_flip_map in its metadata, which say what '
            'a flipped image shows: register it with them in a module that --import names'
        )


def _train_classes(name: str, records: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    """The names of the classes of a dataset, which are empty strings if it has none."""
    found = MetadataCatalog.get(name).get('thing_classes')
    if found is not None:
        return found
    labels = [a['category_id'] for record in records for a in record.get('annotations', ())]
    return [''] * (max(labels, default=-1) + 1)


def _records(name: str, setting: str) -> Sequence[Mapping[str, Any]]:
    """The images of a dataset as Detectron2 reads them; empty if the dataset is not a list."""
    try:
        found = DatasetCatalog.get(name)
    except (AssertionError, KeyError, IndexError, OSError, TypeError, ValueError) as error:
        source = MetadataCatalog.get(name).get('json_file', 'it')
        message = error if isinstance(error, OSError) else error.args[0] if error.args else error
        kind = type(error).__name__
        raise RunError(
            f'{setting}: the dataset {name} cannot be read from {source}: {kind}: {message}'
        ) from error
    if not isinstance(found, list):
        return ()
    if not found:
        raise RunError(f'{setting}: the dataset {name} is empty: it has no images')
    return found


def _check_images(name: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Raises RunError if images do not exist."""
    folders = Folders()
    paths = (str(record.get('file_name', '')) for record in records)
    missing = [path for path in paths if path and '://' not in path and not folders.has(path)]
    if missing:
        raise RunError(
            f'{len(missing)} of the {len(records)} images of the dataset {name} are not there, such as '
            f'{missing[0]}'
        )


def _check_order(train: str, found: Sequence[str], test: str, expected: Sequence[str]) -> None:
    """Raises RunError if a class has another index in the training data, since the index is its label."""
    for place, name in enumerate(found):
        if name and name in expected and expected[place] != name:
            raise RunError(
                f'the datasets {train} and {test} number their classes differently: by ascending category '
                f'id, {name!r} is class {place} of the first and {list(expected).index(name)} of the second'
            )
