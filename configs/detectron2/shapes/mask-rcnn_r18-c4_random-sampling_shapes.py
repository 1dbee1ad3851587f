from detectron2.config import LazyConfig

_stock = LazyConfig.load_rel('mask-rcnn_r18-c4_stock_shapes.py')
model = _stock.model
dataloader = _stock.dataloader
optimizer = _stock.optimizer
lr_multiplier = _stock.lr_multiplier
train = _stock.train

model.roi_heads.box_pooler.update(pooler_type='RandomSampling', sampling_ratio=2)
model.roi_heads.mask_pooler.update(pooler_type='RandomSampling', sampling_ratio=2)
