"""The C4 model with the trunk's fourth stage, stride 32: to it what Table 2d of Mask R-CNN is to 2c.

Both heads read C5 itself. The anchors keep C4's sizes.
"""

_base_ = './mask-rcnn_r18-c4_shapes.py'

model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(num_stages=4, strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1), out_indices=(3,)),
    rpn_head=dict(
        in_channels=256, feat_channels=256, anchor_generator=dict(scales=[0.75, 1.5, 3], strides=[32])
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=256, featmap_strides=[32]),
        bbox_head=dict(in_channels=256),
        mask_roi_extractor=dict(out_channels=256, featmap_strides=[32]),
        mask_head=dict(in_channels=256),
    ),
)
