_base_ = './mask-rcnn_r50-fpn_1x_stock_coco.py'

model = dict(
    roi_head=dict(
        bbox_roi_extractor=dict(
            _delete_=True,
            type='DeformableRoIExtractor',
            output_size=7,
            out_channels=256,
            featmap_strides=[4, 8, 16, 32],
            sampling_ratio=2),
        mask_roi_extractor=dict(
            _delete_=True,
            type='DeformableRoIExtractor',
            output_size=14,
            out_channels=256,
            featmap_strides=[4, 8, 16, 32],
            sampling_ratio=2)))
