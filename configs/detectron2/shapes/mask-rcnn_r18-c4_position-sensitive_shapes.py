"""In the box head alone; that of the masks reads as align-avg does."""

from detectron2.config import LazyConfig

_align = LazyConfig.load_rel('mask-rcnn_r18-c4_align-avg_shapes.py')
model = _align.model
dataloader = _align.dataloader
optimizer = _align.optimizer
lr_multiplier = _align.lr_multiplier
train = _align.train

model.roi_heads.box_pooler.update(pooler_type='PositionSensitive', channels=128, depth=10)
model.roi_heads.box_head.input_shape.channels = 10
