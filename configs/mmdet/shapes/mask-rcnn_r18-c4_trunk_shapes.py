"""mask-rcnn_r18-c4_shapes.py from a trained trunk, for the demo: the RPN and the heads learn in a minute.

The trunk is from tools/make_trunk.py. It is frozen.
"""

_base_ = './mask-rcnn_r18-c4_shapes.py'

# model
model = dict(
    backbone=dict(
        frozen_stages=3,
        norm_eval=True,
        init_cfg=dict(
            _delete_=True, type='Pretrained', checkpoint='{{ fileDirname }}/../../trunks/r18-c4_shapes.pth'
        ),
    )
)

# data
train_dataloader = dict(batch_size=4)

# schedule
max_iters = 200
warmup_iters = 20

train_cfg = dict(max_iters=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=warmup_iters),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=warmup_iters,
        end=max_iters,
        T_max=max_iters - warmup_iters,
    ),
]

# runtime
default_hooks = dict(checkpoint=dict(interval=max_iters))
