# As Light-Head R-CNN has it: ten channels, each with a map for each of the 49 bins.
_base_ = './faster-rcnn_r50-fpn_1x_coco.py'

model = dict(
    roi_head=dict(
        bbox_roi_extractor=dict(
            type='PositionSensitiveRoIExtractor', in_channels=256, out_channels=10, sampling_ratio=2
        ),
        bbox_head=dict(in_channels=10),
    )
)
