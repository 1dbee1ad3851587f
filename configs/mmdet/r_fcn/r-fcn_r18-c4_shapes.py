"""R-FCN on the generated shapes: no layer behind a RoI but the two that say which scores are whose.

BBoxHead with the average is R-FCN's vote. Ten scores: five classes, background, the four numbers of a box.
"""

_base_ = '../shapes/mask-rcnn_r18-c4_position-sensitive_shapes.py'

model = dict(
    roi_head=dict(
        bbox_roi_extractor=dict(mode='pool'),
        bbox_head=dict(
            _delete_=True,
            type='BBoxHead',
            with_avg_pool=True,
            in_channels=10,
            roi_feat_size=7,
            num_classes=5,
            bbox_coder={{_base_.model.roi_head.bbox_head.bbox_coder}},
            reg_class_agnostic=True,
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type='L1Loss', loss_weight=1.0),
        ),
    )
)
