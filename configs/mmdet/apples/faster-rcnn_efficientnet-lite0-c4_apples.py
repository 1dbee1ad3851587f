"""The C5 model of apples without the trunk's last stage, stride 16, as in Table 2c of Mask R-CNN.

The anchors keep C5's sizes.
"""

_base_ = './faster-rcnn_efficientnet-lite0-c5_apples.py'

model = dict(
    data_preprocessor=dict(pad_size_divisor=16),
    backbone=dict(out_indices=(2,)),
    rpn_head=dict(in_channels=112, anchor_generator=dict(scales=[1.5, 2.5, 4], strides=[16])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=112, featmap_strides=[16]),
        bbox_head=dict(in_channels=112),
    ),
)
