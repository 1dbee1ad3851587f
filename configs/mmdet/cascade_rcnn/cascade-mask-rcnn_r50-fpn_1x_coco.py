_base_ = 'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py'

custom_imports = dict(imports=['roi_plugins.integrations.mmdet'], allow_failed_imports=False)
