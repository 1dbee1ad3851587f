_base_ = './mask-rcnn_r50-caffe-c5_1x_stock_coco.py'

model = dict(
    roi_head=dict(
        bbox_roi_extractor=dict(
            _delete_=True,
            type='AlignAvgRoIExtractor',
            output_size=7,
            out_channels=2048,
            featmap_strides=[32],
            sampling_ratio=2),
        mask_roi_extractor=dict(
            _delete_=True,
            type='AlignAvgRoIExtractor',
            output_size=14,
            out_channels=2048,
            featmap_strides=[32],
            sampling_ratio=2)))
