"""The C4 model of nuclei with the trunk's last stage, stride 32, as in Table 2d of Mask R-CNN.

The anchors keep C4's sizes.
"""

_base_ = './mask-rcnn_efficientnet-lite0-c4_nuclei.py'

model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(out_indices=(3,)),
    rpn_head=dict(in_channels=320, anchor_generator=dict(scales=[0.5, 1, 2, 4], strides=[32])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=320, featmap_strides=[32]),
        bbox_head=dict(in_channels=320),
        mask_roi_extractor=dict(out_channels=320, featmap_strides=[32]),
        mask_head=dict(in_channels=320),
    ),
)
