from detectron2.config import LazyConfig

_stock = LazyConfig.load_rel('mask-rcnn_r50-fpn_1x_stock_coco.py')
model = _stock.model
dataloader = _stock.dataloader
optimizer = _stock.optimizer
lr_multiplier = _stock.lr_multiplier
train = _stock.train

model.roi_heads.box_pooler.update(pooler_type='Deformable', sampling_ratio=2, channels=256)
model.roi_heads.mask_pooler.update(pooler_type='Deformable', sampling_ratio=2, channels=256)
