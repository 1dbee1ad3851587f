"""Mask R-CNN R-50-C4, stride 16: the model of Table 2c of the Mask R-CNN paper.

Boxes and masks share one 14x14 RoI feature, which res5 reads.
"""

_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50-caffe-c4_1x_coco.py'

custom_imports = dict(imports=['roi_plugins.integrations.mmdet'], allow_failed_imports=False)
