"""The trunk of mask-rcnn_r18-c4 in a one-stage detector, to start the trials of shapes_table2c.yaml from.

It reads no RoI, so that the trunk has not grown used to any extractor.
"""

_base_ = './mask-rcnn_r18-c4_shapes.py'

model = dict(
    _delete_=True,
    type='RetinaNet',
    data_preprocessor={{_base_.model.data_preprocessor}},
    backbone={{_base_.model.backbone}},
    neck=None,
    bbox_head=dict(
        type='RetinaHead',
        num_classes=5,
        in_channels=128,
        stacked_convs=1,
        feat_channels=128,
        anchor_generator={{_base_.model.rpn_head.anchor_generator}},
        bbox_coder={{_base_.model.rpn_head.bbox_coder}},
        loss_cls=dict(type='FocalLoss', use_sigmoid=True),
        loss_bbox={{_base_.model.rpn_head.loss_bbox}},
    ),
    train_cfg=dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
        sampler=dict(type='PseudoSampler'),
        allowed_border=-1,
        pos_weight=-1,
    ),
    test_cfg=dict(nms_pre=500, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20),
)

# schedule
max_iters = 800
warmup_iters = 100

train_cfg = dict(max_iters=max_iters)
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

# runtime
randomness = dict(seed=0)
