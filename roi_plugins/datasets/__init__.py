"""Data that needs no download: a generated COCO-format instance dataset of plain shapes."""

from .shapes import CLASSES, PALETTE, ShapesSpec, generate_shapes

__all__ = ['CLASSES', 'PALETTE', 'ShapesSpec', 'generate_shapes']
