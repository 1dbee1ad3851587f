"""Position-sensitive in the box head alone, which reads its ten channels; the masks are read as align-avg."""

_base_ = './mask-rcnn_r18-c4_shapes.py'

model = dict(
    roi_head=dict(
        bbox_roi_extractor=dict(
            type='PositionSensitiveRoIExtractor', in_channels=128, out_channels=10, sampling_ratio=2
        ),
        bbox_head=dict(in_channels=10),
        mask_roi_extractor=dict(type='AlignAvgRoIExtractor', sampling_ratio=2),
    )
)
