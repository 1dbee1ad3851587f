"""The generated images in Detectron2's catalogue, as ``shapes_train`` and ``shapes_val``.

They are looked for in the folder ``ROI_PLUGINS_SHAPES``, by default ``data/shapes``.
"""

import os

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances


def register_shapes(root: str) -> None:
    """Registers both halves of a folder that ``tools/make_shapes.py`` has made or will make."""
    for split in ('train', 'val'):
        name = f'shapes_{split}'
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        annotations = os.path.join(root, 'annotations', f'instances_{split}.json')
        register_coco_instances(name, {}, annotations, os.path.join(root, split))


register_shapes(os.environ.get('ROI_PLUGINS_SHAPES', 'data/shapes'))
