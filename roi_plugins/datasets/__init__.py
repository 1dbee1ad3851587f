"""A generated dataset that needs no download: instances of plain shapes in COCO's format."""

from .shapes import CLASSES, KEYPOINTS, ShapesSpec, generate_shapes

__all__ = ['CLASSES', 'KEYPOINTS', 'ShapesSpec', 'generate_shapes']
