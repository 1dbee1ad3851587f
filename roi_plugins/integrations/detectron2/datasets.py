"""Registers datasets in Detectron2's catalogue.

The generated images are registered as ``shapes_train`` and ``shapes_val``. Their folder is the environment
variable ``ROI_PLUGINS_SHAPES``, by default ``data/shapes``.

A config may name COCO files directly: ``ANNOTATIONS.json@IMAGES``, the annotation file and the folder of the
images, is the name of a dataset.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from roi_plugins.datasets import KEYPOINTS

from .. import modules as own_modules
from ..errors import RunError

_FILES = '.json@'

_SHAPES_KEYPOINTS = {'keypoint_names': list(KEYPOINTS), 'keypoint_flip_map': [('right', 'left')]}


def register_shapes(root: str) -> None:
    """Registers the training and test data of a folder that ``tools/make_shapes.py`` makes.

    Args:
        root: the folder; it need not exist yet.
    """
    for split in ('train', 'val'):
        annotations = os.path.join(root, 'annotations', f'instances_{split}.json')
        _register_coco(f'shapes_{split}', annotations, os.path.join(root, split), **_SHAPES_KEYPOINTS)


def coco_files(annotations: str | Path, images: str | Path) -> str:
    """The name of a dataset of COCO files, as :func:`register_coco_files` takes it.

    Args:
        annotations: COCO instance annotations, a ``.json`` file.
        images: the folder of the images.

    Returns:
        ``ANNOTATIONS.json@IMAGES`` with absolute paths.

    Raises:
        RunError: the annotations are not a ``.json`` file.
    """
    if not str(annotations).endswith('.json'):
        raise RunError(f'the annotations {annotations} are not a .json file of COCO annotations')
    # The paths are absolute, since the saved config of a run is read from other folders.
    return f'{os.path.abspath(annotations)}@{os.path.abspath(images)}'


def is_coco_files(name: str) -> bool:
    """Whether the name of a dataset is ``ANNOTATIONS.json@IMAGES``."""
    return _FILES in name


def register_coco_files(names: Sequence[str]) -> None:
    """Registers the datasets whose names are ``ANNOTATIONS.json@IMAGES``.

    Args:
        names: names of datasets; others are ignored.
    """
    for name in names:
        if is_coco_files(name) and name not in DatasetCatalog:
            start, _, images = name.partition(_FILES)
            _register_coco(name, f'{start}.json', images)


def import_modules(modules: Sequence[str]) -> None:
    """As :func:`roi_plugins.integrations.modules.import_modules`; the modules may register datasets again."""
    with registering_again():
        own_modules.import_modules(modules)


@contextlib.contextmanager
def registering_again() -> Iterator[None]:
    """Allows datasets to be registered again, since a process may read a config or module more than once.

    Detectron2 itself asserts that no dataset is registered twice. It still asserts that its metadata is the
    same.
    """

    def register(name: str, func: Callable[[], list[dict]]) -> None:
        DatasetCatalog.pop(name, None)
        type(DatasetCatalog).register(DatasetCatalog, name, func)

    # An attribute of the catalogue hides its method. The blocks may be nested.
    before = vars(DatasetCatalog).get('register')
    DatasetCatalog.register = register
    try:
        yield
    finally:
        if before is None:
            del DatasetCatalog.register
        else:
            DatasetCatalog.register = before


def _register_coco(name: str, annotations: str, images: str, **metadata: Any) -> None:
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_coco_instances(name, metadata, annotations, images)


register_shapes(os.environ.get('ROI_PLUGINS_SHAPES', 'data/shapes'))
