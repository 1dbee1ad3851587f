"""mask-rcnn_r18-c4_shapes.py from a trained trunk, for the demo: the RPN and the heads learn in a minute.

The trunk is from tools/make_trunk.py. It is frozen.
"""

from pathlib import Path

from detectron2.config import LazyConfig

_scratch = LazyConfig.load_rel('mask-rcnn_r18-c4_shapes.py')
model = _scratch.model
dataloader = _scratch.dataloader
optimizer = _scratch.optimizer
lr_multiplier = _scratch.lr_multiplier
train = _scratch.train

# model
model.backbone.freeze_at = 4
train.init_checkpoint = str(Path(__file__).absolute().parents[2] / 'trunks/r18-c4_shapes.pth')

# data
dataloader.train.total_batch_size = 4

# schedule
train.max_iter = 200
train.checkpointer.period = 200
lr_multiplier.warmup_length = 20 / 200
