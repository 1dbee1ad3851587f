"""The shared op: extracts a feature of fixed size for every RoI. It knows nothing of detectors."""

from .functional import roi_extract
from .levels import assign_levels_detectron2, assign_levels_mmdet
from .library import extension_is_loaded, release_memory

__all__ = [
    'assign_levels_detectron2',
    'assign_levels_mmdet',
    'extension_is_loaded',
    'release_memory',
    'roi_extract',
]
