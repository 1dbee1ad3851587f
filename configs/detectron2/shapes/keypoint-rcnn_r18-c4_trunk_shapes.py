"""Keypoint R-CNN on the trunk of the demo, stride 16: Table 6 of the Mask R-CNN paper on generated shapes.

The keypoints are four corners of each shape, see roi_plugins/datasets/shapes.py. The trunk starts from
tools/make_trunk.py; its stem and its first stage are frozen. Images are not flipped upside down, since
Detectron2 does not exchange the keypoints `top` and `bottom` then.
"""

from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.data import transforms as T
from detectron2.data.detection_utils import create_keypoint_hflip_indices
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import KRCNNConvDeconvUpsampleHead

from roi_plugins.integrations.detectron2 import build_pooler

_masks = LazyConfig.load_rel('mask-rcnn_r18-c4_trunk_shapes.py')
model = _masks.model
dataloader = _masks.dataloader
optimizer = _masks.optimizer
lr_multiplier = _masks.lr_multiplier
train = _masks.train

# model
model.backbone.freeze_at = 2
for _name in ('mask_in_features', 'mask_pooler', 'mask_head'):
    model.roi_heads.pop(_name)
model.roi_heads.update(
    keypoint_in_features=['res4'],
    keypoint_pooler=L(build_pooler)(
        output_size=14, scales=[1 / 16], sampling_ratio=0, pooler_type='ROIAlignV2'
    ),
    keypoint_head=L(KRCNNConvDeconvUpsampleHead)(
        input_shape=ShapeSpec(channels=128, height=14, width=14),
        num_keypoints=4,
        conv_dims=[64] * 4,
        loss_normalizer='visible',
    ),
)

# data
dataloader.train.mapper.update(
    use_instance_mask=False,
    use_keypoint=True,
    keypoint_hflip_indices=L(create_keypoint_hflip_indices)(
        dataset_names='${dataloader.train.dataset.names}'
    ),
    augmentations=[L(T.ResizeShortestEdge)(short_edge_length=192), L(T.RandomFlip)(horizontal=True)],
)
# One tolerance for all corners. COCO's are from 0.025 (eyes) to 0.107 (hips).
dataloader.evaluator.kpt_oks_sigmas = [0.05] * 4

# schedule
train.max_iter = 600
train.checkpointer.period = 600
lr_multiplier.warmup_length = 60 / 600
