"""A worked example of a swap: MMDetection's Mask R-CNN R-50-FPN 1x with AlignMax in both heads.

Everything that is not said here is inherited, the output size, channels and strides too. The ratio is stated
because the zoo's own, 0, is adaptive sampling; `--extractor align-max` over the zoo's config does the same.
"""

_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'

# MMDetection's own tools need this line; those of this package do not.
custom_imports = dict(imports=['roi_plugins.integrations.mmdet'], allow_failed_imports=False)

model = dict(
    roi_head=dict(
        bbox_roi_extractor=dict(type='AlignMaxRoIExtractor', sampling_ratio=2),
        mask_roi_extractor=dict(type='AlignMaxRoIExtractor', sampling_ratio=2),
    )
)
