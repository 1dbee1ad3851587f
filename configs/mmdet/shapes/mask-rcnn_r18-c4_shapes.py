"""Mask R-CNN on a narrow ResNet-18, stride 16, for the generated shapes: trains on two CPU cores.

Both heads read C4 itself: at this stride what an extractor loses to quantisation is large, and no
neck makes up for it. It starts from random weights and has but a few hundred steps. So batch
normalisation learns, residual branches do not begin at zero, and a RoI has one box and one mask
whatever its class, for which there are more examples than of each class.
"""

_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', 'mmdet::_base_/default_runtime.py']

custom_imports = dict(imports=['roi_plugins.integrations.mmdet'], allow_failed_imports=False)

classes = ('ellipse', 'triangle', 'rectangle', 'star', 'cross')

# model
model = dict(
    data_preprocessor=dict(pad_size_divisor=16),
    backbone=dict(
        depth=18,
        base_channels=32,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2,),
        frozen_stages=-1,
        norm_eval=False,
        zero_init_residual=False,
        init_cfg=None,
    ),
    neck=None,
    rpn_head=dict(
        in_channels=128,
        feat_channels=128,
        # 24, 48 and 96 px, for objects of 15 to 119 px
        anchor_generator=dict(scales=[1.5, 3, 6], strides=[16]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=128, featmap_strides=[16]),
        bbox_head=dict(
            in_channels=128, fc_out_channels=256, num_classes=len(classes), reg_class_agnostic=True
        ),
        mask_roi_extractor=dict(out_channels=128, featmap_strides=[16]),
        mask_head=dict(
            num_convs=2,
            in_channels=128,
            conv_out_channels=32,
            num_classes=len(classes),
            class_agnostic=True,
            norm_cfg=dict(type='BN'),
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=500, max_per_img=150),
        rcnn=dict(sampler=dict(num=48, pos_fraction=1 / 3)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=100), rcnn=dict(max_per_img=20)),
)

# data
data_root = 'data/shapes/'
image_scale = (192, 192)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5, direction=['horizontal', 'vertical']),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(
        type='CocoDataset',
        metainfo=dict(classes=classes),
        data_root=data_root,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        pipeline=train_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset',
        metainfo=dict(classes=classes),
        data_root=data_root,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_evaluator = dict(
    type='CocoMetric', ann_file=data_root + 'annotations/instances_val.json', metric=['bbox', 'segm']
)

# schedule
max_iters = 450
warmup_iters = 100

# No validation on the way: on two cores it would take the time of many steps.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters)
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=warmup_iters),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=warmup_iters,
        end=max_iters,
        T_max=max_iters - warmup_iters,
    ),
]
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.01), clip_grad=dict(max_norm=10)
)

# runtime
default_hooks = dict(
    logger=dict(interval=20), checkpoint=dict(by_epoch=False, interval=200, max_keep_ckpts=2)
)
log_processor = dict(by_epoch=False)
