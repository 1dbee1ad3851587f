"""The extractors in Detectron2: a pooler, and RoI heads that take it through ``POOLER_TYPE``.

In ``tools/detectron2/train_net.py`` the type is enough: ``MODEL.ROI_BOX_HEAD.POOLER_TYPE AlignMax``, or
``model.roi_heads.box_pooler.pooler_type=AlignMax`` for a LazyConfig. In a script:

YAML: after ``add_roi_plugins_config(cfg)``, name one of the RoI heads and a type::

    MODEL:
      ROI_HEADS: {NAME: RoIPluginsStandardROIHeads}     # or ...CascadeROIHeads, ...Res5ROIHeads, ...RROIHeads
      ROI_BOX_HEAD: {POOLER_TYPE: AlignMax}

LazyConfig: ``model.roi_heads.box_pooler = L(build_pooler)(..., pooler_type='AlignMax')``.
"""

from .box_heads import AverageVoteHead
from .nodes import add_roi_plugins_config
from .poolers import POOLER_TYPES, RoIPluginsPooler, build_pooler
from .roi_heads import (
    RoIPluginsCascadeROIHeads,
    RoIPluginsRes5ROIHeads,
    RoIPluginsRROIHeads,
    RoIPluginsStandardROIHeads,
)

__all__ = [
    'POOLER_TYPES',
    'AverageVoteHead',
    'RoIPluginsCascadeROIHeads',
    'RoIPluginsPooler',
    'RoIPluginsRROIHeads',
    'RoIPluginsRes5ROIHeads',
    'RoIPluginsStandardROIHeads',
    'add_roi_plugins_config',
    'build_pooler',
]
