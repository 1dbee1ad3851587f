# In the box head alone; that of the masks reads as align-avg does.
_base_ = './mask-rcnn_r18-c4_align-avg_shapes.py'

model = dict(
    roi_head=dict(
        bbox_roi_extractor=dict(
            _delete_=True,
            type='PositionSensitiveRoIExtractor',
            output_size=7,
            in_channels=128,
            out_channels=10,
            featmap_strides=[16],
            sampling_ratio=2),
        bbox_head=dict(in_channels=10)))
