"""Faster R-CNN on EfficientNet-Lite0, stride 32, for photographs of apple trees: docs/real-images.md.

The head reads C5 itself, as in Table 2d of Mask R-CNN. Most apples are 23 to 65 px in images of 480 px.
"""

_base_ = '../_base_/efficientnet-lite0_real.py'

classes = ('apple',)

# model
model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(out_indices=(3,)),
    rpn_head=dict(
        in_channels=320,
        # 24, 40 and 64 px
        anchor_generator=dict(scales=[0.75, 1.25, 2], strides=[32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=320, featmap_strides=[32]), bbox_head=dict(in_channels=320)
    ),
)

# data
data_root = 'data/apples/'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    # Whole images would take more than twice the time.
    dict(type='RandomCrop', crop_size=(320, 320)),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(2, 2)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale_factor=1.0, keep_ratio=True),  # as it is; sets the scale_factor of the results
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    dataset=dict(metainfo=dict(classes=classes), data_root=data_root, pipeline=train_pipeline)
)
test_dataloader = dict(
    batch_size=4,
    dataset=dict(metainfo=dict(classes=classes), data_root=data_root, pipeline=test_pipeline),
)
test_evaluator = dict(type='CocoMetric', ann_file=data_root + 'annotations/instances_val.json', metric='bbox')
