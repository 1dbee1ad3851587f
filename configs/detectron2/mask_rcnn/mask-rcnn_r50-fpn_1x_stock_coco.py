"""Mask R-CNN R-50-FPN 1x of the model zoo, with poolers of any type: a variant names another."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from roi_plugins.integrations.detectron2 import build_pooler

_zoo = model_zoo.get_config('COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py')
model = _zoo.model
dataloader = _zoo.dataloader
optimizer = _zoo.optimizer
lr_multiplier = _zoo.lr_multiplier
train = _zoo.train

for _head, _size in (('box', 7), ('mask', 14)):
    model.roi_heads[f'{_head}_pooler'] = L(build_pooler)(
        output_size=_size,
        scales=[1 / 4, 1 / 8, 1 / 16, 1 / 32],
        sampling_ratio=0,
        pooler_type='ROIAlignV2',
    )
