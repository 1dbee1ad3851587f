"""Position-sensitive in the box head alone, which reads its ten channels; the masks are read as align-avg."""

from detectron2.config import LazyConfig

_stock = LazyConfig.load_rel('mask-rcnn_r18-c4_shapes.py')
model = _stock.model
dataloader = _stock.dataloader
optimizer = _stock.optimizer
lr_multiplier = _stock.lr_multiplier
train = _stock.train

model.roi_heads.box_pooler.update(pooler_type='PositionSensitive', sampling_ratio=2, channels=128, depth=10)
model.roi_heads.box_head.input_shape.channels = 10
model.roi_heads.mask_pooler.update(pooler_type='AlignAvg', sampling_ratio=2)
