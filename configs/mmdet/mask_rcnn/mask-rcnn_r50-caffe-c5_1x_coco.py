"""Mask R-CNN R-50-C5, stride 32: the model of Table 2d of the Mask R-CNN paper.

C4's settings, with res5 moved from the RoI head into the backbone. The head is therefore the
paper's other one (Figure 4, right: two fully connected layers on 7x7 for boxes, four convolutions
on 14x14 for masks), on the 2048 channels of C5. Unlike MMDetection's DC5 models, res5 is not
dilated: the coarse stride is what Table 2d measures. Anchors keep C4's sizes, 32 to 512 px.
"""

_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50-caffe-c4_1x_coco.py'

custom_imports = dict(imports=['roi_plugins.integrations.mmdet'], allow_failed_imports=False)

model = dict(
    backbone=dict(num_stages=4, strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1), out_indices=(3,)),
    rpn_head=dict(
        in_channels=2048, feat_channels=2048, anchor_generator=dict(scales=[1, 2, 4, 8, 16], strides=[32])
    ),
    roi_head=dict(
        shared_head=None,
        bbox_roi_extractor=dict(roi_layer=dict(output_size=7), out_channels=2048, featmap_strides=[32]),
        bbox_head=dict(type='Shared2FCBBoxHead', with_avg_pool=False, fc_out_channels=1024),
        mask_roi_extractor=dict(
            _delete_=True,
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0),
            out_channels=2048,
            featmap_strides=[32],
        ),
        mask_head=dict(num_convs=4),
    ),
    train_cfg=dict(rcnn=dict(mask_size=28)),
)
