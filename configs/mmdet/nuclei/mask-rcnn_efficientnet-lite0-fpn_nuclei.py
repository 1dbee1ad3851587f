"""The C4 model of nuclei with an FPN of strides 4 to 32."""

_base_ = './mask-rcnn_efficientnet-lite0-c4_nuclei.py'

strides = [4, 8, 16, 32]

model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(out_indices=(0, 1, 2, 3)),
    neck=dict(_delete_=True, type='FPN', in_channels=[24, 40, 112, 320], out_channels=64, num_outs=4),
    # 16, 32, 64 and 128 px
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4], strides=strides)),
    roi_head=dict(
        # At COCO's 56, all nuclei but the largest would read the finest map.
        bbox_roi_extractor=dict(out_channels=64, featmap_strides=strides, finest_scale=16),
        bbox_head=dict(in_channels=64),
        mask_roi_extractor=dict(out_channels=64, featmap_strides=strides, finest_scale=16),
        mask_head=dict(in_channels=64),
    ),
)
