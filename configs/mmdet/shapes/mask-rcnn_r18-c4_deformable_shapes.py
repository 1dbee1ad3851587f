_base_ = './mask-rcnn_r18-c4_stock_shapes.py'

model = dict(
    roi_head=dict(
        bbox_roi_extractor=dict(
            _delete_=True,
            type='DeformableRoIExtractor',
            output_size=7,
            out_channels=128,
            featmap_strides=[16],
            sampling_ratio=2),
        mask_roi_extractor=dict(
            _delete_=True,
            type='DeformableRoIExtractor',
            output_size=14,
            out_channels=128,
            featmap_strides=[16],
            sampling_ratio=2)))
