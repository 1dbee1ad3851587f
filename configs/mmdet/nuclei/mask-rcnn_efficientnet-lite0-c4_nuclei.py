"""Mask R-CNN on EfficientNet-Lite0, stride 16, for nuclei in micrographs: docs/real-images.md.

Both heads read C4 itself, as in Table 2c of Mask R-CNN. The nuclei are tiny (half are below 20 px), so images
are scaled twice. An image has up to 375 of them: more proposals and detections than on COCO.
"""

_base_ = '../_base_/efficientnet-lite0_real.py'

classes = ('nucleus',)
max_dets = 400

# model
model = dict(
    type='MaskRCNN',
    data_preprocessor=dict(pad_mask=True, pad_size_divisor=16),
    rpn_head=dict(
        in_channels=112,
        # 16, 32, 64 and 128 px, for objects of 5 to 160 px
        anchor_generator=dict(scales=[1, 2, 4, 8], strides=[16]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=112, featmap_strides=[16]),
        bbox_head=dict(in_channels=112),
        mask_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0),
            out_channels=112,
            featmap_strides=[16],
        ),
        mask_head=dict(
            type='FCNMaskHead',
            num_convs=2,
            in_channels=112,
            conv_out_channels=64,
            num_classes=len(classes),
            norm_cfg=dict(type='BN'),
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0),
        ),
    ),
    train_cfg=dict(rcnn=dict(mask_size=28)),
    test_cfg=dict(
        rpn=dict(nms_pre=2000, max_per_img=2 * max_dets),
        rcnn=dict(max_per_img=max_dets, mask_thr_binary=0.5),
    ),
)

# data
data_root = 'data/nuclei/'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    # 256 px once scaled; cutting first has fewer pixels to scale
    dict(type='RandomCrop', crop_size=(128, 128), recompute_bbox=True),
    # the rest of a cut nucleus may be empty where its box is not
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1), by_mask=True),
    dict(type='Resize', scale_factor=2.0, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5, direction=['horizontal', 'vertical']),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale_factor=2.0, keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    dataset=dict(metainfo=dict(classes=classes), data_root=data_root, pipeline=train_pipeline)
)
test_dataloader = dict(
    batch_size=1,  # the images are of many sizes
    dataset=dict(metainfo=dict(classes=classes), data_root=data_root, pipeline=test_pipeline),
)
test_evaluator = dict(
    type='CocoMetric',
    ann_file=data_root + 'annotations/instances_val.json',
    metric=['bbox', 'segm'],
    proposal_nums=(1, 10, 100),  # the plans count 400 detections, by their max_dets
)
