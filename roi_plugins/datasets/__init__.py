"""A generated dataset that needs no download: instances of plain shapes in COCO's format."""

from .shapes import CLASSES, ShapesSpec, generate_shapes

__all__ = ['CLASSES', 'ShapesSpec', 'generate_shapes']
