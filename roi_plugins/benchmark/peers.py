"""Calls the peers in the fastest way that does the same work.

Everything that does not depend on the features, such as modules and lists of boxes, is made beforehand and
not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec

import torch
from torch import Tensor

from roi_plugins.benchmark.cases import BACKWARD, BOTH, FORWARD, INTEL, LAYOUTS, ONNXRUNTIME, OPENVINO, Case

Extract = Callable[[list[Tensor]], Tensor]


@dataclass(frozen=True)
class Peer:
    """Another implementation. Calling it with (case, rois) makes a function from features to the output.

    Attributes:
        make: the same call. It raises ImportError if the peer is not installed, and RuntimeError if it cannot
            be measured here.
        layouts: the layouts in which it is measured: all that its kernels read without a copy.
        dtypes: the dtypes in which it is measured, by the type of device.
        steps: the steps that it can do.
    """

    make: Callable[[Case, Tensor], Extract]
    layouts: tuple[str, ...] = ('NCHW',)
    dtypes: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {'cpu': ('float32',), 'cuda': ('float32', 'float16', 'bfloat16')}
    )
    steps: tuple[str, ...] = (FORWARD, BACKWARD, BOTH)

    def __call__(self, case: Case, rois: Tensor) -> Extract:
        return self.make(case, rois)


def _torchvision_roi_align(case: Case, rois: Tensor) -> Extract:
    from torchvision.ops import roi_align

    _require_torchvisions_kernel()
    options = _align_options(case)
    return lambda maps: roi_align(maps[0], rois, case.output_size, case.scales[0], *options)


def _torchvision_roi_pool(case: Case, rois: Tensor) -> Extract:
    from torchvision.ops import roi_pool

    return lambda maps: roi_pool(maps[0], rois, case.output_size, case.scales[0])


def _torchvision_multi_scale(case: Case, rois: Tensor) -> Extract:
    # It has no option `aligned` and always samples as with False: the work is the same, half a cell away.
    from torchvision.ops import MultiScaleRoIAlign

    _require_torchvisions_kernel()
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

    _require_torchvisions_kernel()
    pooler = ROIPooler(
        case.output_size,
        case.scales,
        case.method['sampling_ratio'],
        'ROIAlignV2' if case.method['aligned'] else 'ROIAlign',
    )
    boxes = [Boxes(boxes) for boxes in _boxes_by_image(case, rois)]
    return lambda maps: pooler(maps, boxes)


def _intel_roi_align(case: Case, rois: Tensor) -> Extract:
    import intel_extension_for_pytorch  # noqa: F401  registers the op

    extract = torch.ops.torch_ipex.ROIAlign_forward
    options = case.scales[0], case.output_size, case.output_size, *_align_options(case)
    return lambda maps: extract(maps[0], rois, *options)


def _onnxruntime_roi_align(case: Case, rois: Tensor) -> Extract:
    import onnxruntime
    from onnx import TensorProto, helper

    sampling_ratio, aligned = _align_options(case)
    size = case.output_size
    node = helper.make_node(
        'RoiAlign',
        ['features', 'boxes', 'images'],
        ['output'],
        mode='avg',
        coordinate_transformation_mode='half_pixel' if aligned else 'output_half_pixel',
        output_height=size,
        output_width=size,
        sampling_ratio=sampling_ratio,
        spatial_scale=case.scales[0],
    )
    shapes = {
        'features': (TensorProto.FLOAT, case.map_shapes[0]),
        'boxes': (TensorProto.FLOAT, (case.num_rois, 4)),
        'images': (TensorProto.INT64, (case.num_rois,)),
        'output': (TensorProto.FLOAT, (case.num_rois, case.channels, size, size)),
    }
    *inputs, output = (helper.make_tensor_value_info(name, *shape) for name, shape in shapes.items())
    model = helper.make_model(
        helper.make_graph([node], 'roi_align', inputs, [output]),
        opset_imports=[helper.make_opsetid('', 16)],
        ir_version=8,  # the version that came with this opset; onnx writes a newer one than runtimes read
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=['CPUExecutionProvider']
    )
    value = onnxruntime.OrtValue.ortvalue_from_numpy  # it shares the memory of the array
    boxes, images = value(rois[:, 1:].contiguous().numpy()), value(rois[:, 0].long().numpy())

    def extract(maps: list[Tensor]) -> Tensor:
        inputs = {'features': value(maps[0].numpy()), 'boxes': boxes, 'images': images}
        (output,) = session.run_with_ort_values(['output'], inputs)
        return torch.from_dlpack(output)  # its numpy() would copy

    return extract


def _openvino_roi_align(case: Case, rois: Tensor) -> Extract:
    import openvino
    from openvino import opset9

    sampling_ratio, aligned = _align_options(case)
    inputs = [
        opset9.parameter(list(case.map_shapes[0]), openvino.Type.f32),
        opset9.parameter([case.num_rois, 4], openvino.Type.f32),
        opset9.parameter([case.num_rois], openvino.Type.i32),
    ]
    node = opset9.roi_align(
        *inputs,
        pooled_h=case.output_size,
        pooled_w=case.output_size,
        sampling_ratio=sampling_ratio,
        spatial_scale=case.scales[0],
        mode='avg',
        # Its 'half_pixel' moves the boxes by half a pixel of the image too.
        aligned_mode='half_pixel_for_nn' if aligned else 'asymmetric',
    )
    compiled = openvino.Core().compile_model(
        openvino.Model([node], inputs, 'roi_align'),
        'CPU',
        {
            'INFERENCE_NUM_THREADS': torch.get_num_threads(),
            'INFERENCE_PRECISION_HINT': 'f32',
            'PERFORMANCE_HINT': 'LATENCY',
        },
    )
    request = compiled.create_infer_request()
    boxes, images = rois[:, 1:].contiguous().numpy(), rois[:, 0].int().numpy()

    def extract(maps: list[Tensor]) -> Tensor:
        # The output is the memory of the request, the same in every call.
        output = request.infer([maps[0].numpy(), boxes, images], share_inputs=True, share_outputs=True)
        return torch.from_numpy(output[0])

    return extract


def _align_options(case: Case) -> tuple[int, bool]:
    return case.method['sampling_ratio'], case.method['aligned']


PEERS: dict[str, Peer] = {
    'torchvision.ops.roi_align': Peer(_torchvision_roi_align),
    'torchvision.ops.roi_pool': Peer(_torchvision_roi_pool),
    'torchvision.ops.MultiScaleRoIAlign': Peer(_torchvision_multi_scale),
    'mmcv.ops.RoIAlign': Peer(_mmcv_roi_align),
    'mmdet SingleRoIExtractor': Peer(_mmdet_single_roi_extractor),
    'detectron2 ROIPooler': Peer(_detectron2_roi_pooler),
    INTEL: Peer(_intel_roi_align, LAYOUTS, {'cpu': ('float32', 'bfloat16')}),
    ONNXRUNTIME: Peer(_onnxruntime_roi_align, dtypes={'cpu': ('float32',)}, steps=(FORWARD,)),
    OPENVINO: Peer(_openvino_roi_align, dtypes={'cpu': ('float32',)}, steps=(FORWARD,)),
}
"""The peers by name."""


def _boxes_by_image(case: Case, rois: Tensor) -> list[Tensor]:
    return [rois[rois[:, 0] == image, 1:].contiguous() for image in range(case.images)]


def _require_torchvisions_kernel() -> None:
    """Raises RuntimeError where torchvision's ``roi_align`` on the CPU is Intel's, or will be."""
    if find_spec('intel_extension_for_pytorch') is not None:
        raise RuntimeError(
            "Intel's extension is installed here, and replaces torchvision's roi_align when it is imported"
        )
