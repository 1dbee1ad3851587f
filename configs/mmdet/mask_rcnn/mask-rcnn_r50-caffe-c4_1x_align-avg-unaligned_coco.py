_base_ = './mask-rcnn_r50-caffe-c4_1x_stock_coco.py'

model = dict(
    roi_head=dict(
        bbox_roi_extractor=dict(
            _delete_=True,
            type='AlignAvgRoIExtractor',
            output_size=14,
            out_channels=1024,
            featmap_strides=[16],
            sampling_ratio=2,
            aligned=False)))
