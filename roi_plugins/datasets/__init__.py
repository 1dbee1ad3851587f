"""A generated dataset that needs no download: instances of plain shapes in COCO's format."""

from .shapes import CLASSES, PALETTE, ShapesSpec, generate_shapes

__all__ = ['CLASSES', 'PALETTE', 'ShapesSpec', 'generate_shapes']
