"""The frameworks by name."""

from __future__ import annotations

from . import detectron2_framework, mmdet_framework
from .base import Framework

FRAMEWORKS: dict[str, Framework] = {
    'mmdet': mmdet_framework.FRAMEWORK,
    'detectron2': detectron2_framework.FRAMEWORK,
}
