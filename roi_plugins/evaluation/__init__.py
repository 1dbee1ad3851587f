"""COCO average precision, its errors by kind (TIDE), and its uncertainty (bootstrap)."""
