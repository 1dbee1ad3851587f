"""Calls the peers in the fastest way that does the same work, on NCHW maps.

Everything that does not depend on the features, such as modules and lists of boxes, is made beforehand and
not timed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from roi_plugins.benchmark.cases import Case

Extract = Callable[[list[Tensor]], Tensor]


def _torchvision_roi_align(case: Case, rois: Tensor) -> Extract:
    from torchvision.ops import roi_align

    options = case.method['sampling_ratio'], case.method['aligned']
    return lambda maps: roi_align(maps[0], rois, case.output_size, case.scales[0], *options)


def _torchvision_roi_pool(case: Case, rois: Tensor) -> Extract:
    from torchvision.ops import roi_pool

    return lambda maps: roi_pool(maps[0], rois, case.output_size, case.scales[0])


def _torchvision_multi_scale(case: Case, rois: Tensor) -> Extract:
    # It has no option `aligned` and always samples as with False: the work is the same, half a cell away.
    from torchvision.ops import MultiScaleRoIAlign

    names = [str(level) for level in range(len(case.strides))]
    pooler = MultiScaleRoIAlign(names, case.output_size, case.method['sampling_ratio'])
    sizes = [case.image_size] * case.images
    # It only takes boxes in the dtype of the maps.
    boxes = {
        dtype: _boxes_by_image(case, rois.to(dtype))
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    }
    return lambda maps: pooler(dict(zip(names, maps, strict=True)), boxes[maps[0].dtype], sizes)


def _mmcv_roi_align(case: Case, rois: Tensor) -> Extract:
    from mmcv.ops import RoIAlign

    layer = RoIAlign(
        case.output_size,
        case.scales[0],
        sampling_ratio=case.method['sampling_ratio'],
        pool_mode=case.method['reduction'],
        aligned=case.method['aligned'],
    )
    return lambda maps: layer(maps[0], rois)


def _mmdet_single_roi_extractor(case: Case, rois: Tensor) -> Extract:
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

    extractor = SingleRoIExtractor(
        roi_layer=dict(
            type='RoIAlign',
            output_size=case.output_size,
            sampling_ratio=case.method['sampling_ratio'],
            aligned=case.method['aligned'],
        ),
        out_channels=case.channels,
        featmap_strides=list(case.strides),
    )
    return lambda maps: extractor(maps, rois)


def _detectron2_roi_pooler(case: Case, rois: Tensor) -> Extract:
    from detectron2.modeling.poolers import ROIPooler
    from detectron2.structures import Boxes

    pooler = ROIPooler(
        case.output_size,
        case.scales,
        case.method['sampling_ratio'],
        'ROIAlignV2' if case.method['aligned'] else 'ROIAlign',
    )
    boxes = [Boxes(boxes) for boxes in _boxes_by_image(case, rois)]
    return lambda maps: pooler(maps, boxes)


PEERS: dict[str, Callable[[Case, Tensor], Extract]] = {
    'torchvision.ops.roi_align': _torchvision_roi_align,
    'torchvision.ops.roi_pool': _torchvision_roi_pool,
    'torchvision.ops.MultiScaleRoIAlign': _torchvision_multi_scale,
    'mmcv.ops.RoIAlign': _mmcv_roi_align,
    'mmdet SingleRoIExtractor': _mmdet_single_roi_extractor,
    'detectron2 ROIPooler': _detectron2_roi_pooler,
}
"""The peers by name: ``(case, rois) -> (features -> output)``. They raise ImportError if not installed."""


def _boxes_by_image(case: Case, rois: Tensor) -> list[Tensor]:
    return [rois[rois[:, 0] == image, 1:].contiguous() for image in range(case.images)]
