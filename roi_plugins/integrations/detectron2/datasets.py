"""Datasets in Detectron2's catalogue: the generated images, COCO files by their paths, modules with more.

The generated images are ``shapes_train`` and ``shapes_val``. They are looked for in the folder
``ROI_PLUGINS_SHAPES``, by default ``data/shapes``.

COCO files of one's own need no Python: ``ANNOTATIONS.json@IMAGES``, the annotation file and the folder of the
images, is the name of a dataset wherever a config takes one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from .. import modules as own_modules
from ..errors import RunError

_FILES = '.json@'


def register_shapes(root: str) -> None:
    """Registers both halves of a folder that ``tools/make_shapes.py`` has made or will make."""
    for split in ('train', 'val'):
        annotations = os.path.join(root, 'annotations', f'instances_{split}.json')
        _register_coco(f'shapes_{split}', annotations, os.path.join(root, split))


def coco_files(annotations: str | Path, images: str | Path) -> str:
    """The name of a dataset of COCO files, which :func:`register_coco_files` understands.

    Args:
        annotations: COCO instance annotations, a ``.json`` file.
        images: the folder that the file names of the annotations are relative to.

    Raises:
        RunError: the annotations are not in a ``.json`` file.
    """
    if not str(annotations).endswith('.json'):
        raise RunError(f'the annotations {annotations} are not a .json file of COCO annotations')
    # Absolute, for the config that a run leaves is read from other folders too.
    return f'{os.path.abspath(annotations)}@{os.path.abspath(images)}'


def is_coco_files(name: str) -> bool:
    """Whether the name of a dataset is ``ANNOTATIONS.json@IMAGES``."""
    return _FILES in name


def register_coco_files(names: Sequence[str]) -> None:
    """Registers those of the names that are ``ANNOTATIONS.json@IMAGES`` and leaves the others alone."""
    for name in names:
        if is_coco_files(name) and name not in DatasetCatalog:
            start, _, images = name.partition(_FILES)
            _register_coco(name, f'{start}.json', images)


def import_modules(modules: Sequence[str]) -> None:
    """:func:`roi_plugins.integrations.modules.import_modules`, of modules that may register data again."""
    with registering_again():
        own_modules.import_modules(modules)


@contextlib.contextmanager
def registering_again() -> Iterator[None]:
    """Lets a config or module that registers datasets be read more than once in a process.

    Detectron2 asserts that no dataset is registered twice. Metadata still has to stay the same.
    """

    def register(name: str, func: Callable[[], list[dict]]) -> None:
        DatasetCatalog.pop(name, None)
        type(DatasetCatalog).register(DatasetCatalog, name, func)

    # Of the instance, over the method; a config that is read may import modules that do the same.
    before = vars(DatasetCatalog).get('register')
    DatasetCatalog.register = register
    try:
        yield
    finally:
        if before is None:
            del DatasetCatalog.register
        else:
            DatasetCatalog.register = before


def _register_coco(name: str, annotations: str, images: str) -> None:
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_coco_instances(name, {}, annotations, images)


register_shapes(os.environ.get('ROI_PLUGINS_SHAPES', 'data/shapes'))
