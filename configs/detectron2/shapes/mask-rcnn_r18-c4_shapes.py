"""Mask R-CNN on a narrow ResNet-18, stride 16, for the generated shapes: trains on two CPU cores.

Both heads read C4 itself: at this stride what a pooler loses to quantisation is large, and no neck
makes up for it. It starts from random weights and has but a few hundred steps. So batch
normalisation learns, and a RoI has one box and one mask whatever its class, for which there are more
examples than of each class.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from roi_plugins.integrations.detectron2 import build_pooler

# model
model = model_zoo.get_config('common/models/mask_rcnn_fpn.py').model
model.pixel_std = [57.375, 57.12, 58.395]
model.backbone = L(ResNet)(
    stem=L(BasicStem)(out_channels=32),
    stages=[
        L(ResNet.make_stage)(
            block_class=BasicBlock,
            num_blocks=2,
            stride_per_block=[stride, 1],
            in_channels=in_channels,
            out_channels=out_channels,
        )
        for stride, in_channels, out_channels in ((1, 32, 32), (2, 32, 64), (2, 64, 128))
    ],
    out_features=['res4'],
)
model.proposal_generator.update(
    in_features=['res4'],
    batch_size_per_image=128,
    pre_nms_topk=(500, 500),
    post_nms_topk=(150, 100),
)
# 24, 48 and 96 px, for objects of 15 to 119 px
model.proposal_generator.anchor_generator.update(sizes=[[24, 48, 96]], strides=[16])
model.proposal_generator.head.update(in_channels=128, num_anchors=9)
model.roi_heads.update(
    num_classes=5,
    batch_size_per_image=48,
    positive_fraction=1 / 3,
    box_in_features=['res4'],
    mask_in_features=['res4'],
)
for _head, _size in (('box', 7), ('mask', 14)):
    model.roi_heads[f'{_head}_pooler'] = L(build_pooler)(
        output_size=_size, scales=[1 / 16], sampling_ratio=0, pooler_type='ROIAlignV2'
    )
    model.roi_heads[f'{_head}_head'].input_shape = ShapeSpec(channels=128, height=_size, width=_size)
model.roi_heads.box_head.fc_dims = [256, 256]
model.roi_heads.box_predictor.update(
    input_shape=ShapeSpec(channels=256), cls_agnostic_bbox_reg=True, test_topk_per_image=20
)
# The last of the three is the transposed convolution.
model.roi_heads.mask_head.update(num_classes=1, conv_dims=[32, 32, 32], conv_norm='BN')

# data
dataloader = model_zoo.get_config('common/data/coco.py').dataloader
dataloader.train.dataset.names = 'shapes_train'
dataloader.train.mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length=192),
    L(T.RandomFlip)(horizontal=True),
    L(T.RandomFlip)(horizontal=False, vertical=True),
]
# Whole batches come from the worker, in place of single images.
dataloader.train.update(total_batch_size=8, aspect_ratio_grouping=False, num_workers=1)
dataloader.test.dataset.names = 'shapes_val'
dataloader.test.mapper.augmentations = [L(T.ResizeShortestEdge)(short_edge_length=192)]
dataloader.test.update(batch_size=8, num_workers=1)

# schedule
train = model_zoo.get_config('common/train.py').train
train.max_iter = 500
train.checkpointer.update(period=200, max_to_keep=2)
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1, end_value=0),
    warmup_factor=0.05,
    warmup_length=100 / 500,
    rescale_interval=True,
)
optimizer = model_zoo.get_config('common/optim.py').AdamW
# So short a training must soon forget the large gradients of its first steps.
optimizer.update(lr=1.5e-3, betas=(0.9, 0.99), weight_decay=0.01)
