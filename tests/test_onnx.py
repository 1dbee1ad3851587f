"""The ONNX export: what onnxruntime answers is what the extractor answers, or the export says why not."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from building import build_extractor
from torch.onnx.errors import OnnxExporterError

from roi_plugins.extractors import (
    EXTRACTORS,
    AdaptiveSampling,
    AlignAvg,
    AlignMax,
    AllLevels,
    Precise,
    QuantizedPool,
    RandomSampling,
    RoIWarp,
)
from roi_plugins.ops import roi_extract

onnxruntime = pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
pytest.importorskip('onnxscript', reason='onnx and onnxscript are not installed')

from roi_plugins.onnx import TRANSLATION_TABLE  # noqa: E402  needs them

pytestmark = [
    pytest.mark.filterwarnings('ignore:.isinstance.treespec, LeafSpec:FutureWarning'),
    # Maps share the number of images, and the exporter says so.
    pytest.mark.filterwarnings('ignore:# The axis name:UserWarning'),
]

STRIDES = [4, 8, 16]
IMAGE = (192, 256)
SIZE = (3, 2)

EXPORTABLE = {
    'align-avg': AlignAvg(SIZE, STRIDES),
    'align-avg-3': AlignAvg(SIZE, STRIDES, sampling_ratio=3),
    'align-avg-legacy': AlignAvg(SIZE, STRIDES, aligned=False),
    'align-avg-adaptive': AlignAvg(SIZE, STRIDES, sampling_ratio=0),
    'align-avg-adaptive-legacy': AlignAvg(SIZE, STRIDES, sampling_ratio=0, aligned=False),
    'adaptive': AdaptiveSampling(SIZE, STRIDES),
    'pool': QuantizedPool(SIZE, STRIDES),
    'warp-avg': RoIWarp(SIZE, STRIDES),
    'warp-avg-adaptive': RoIWarp(SIZE, STRIDES, sampling_ratio=0),
    'random-sampling': RandomSampling(SIZE, STRIDES),
    'content-adaptive': build_extractor('ContentAdaptive', SIZE, STRIDES),
    'all-levels': AllLevels(SIZE, STRIDES),
    'all-levels-concat': AllLevels(SIZE, STRIDES, 'concat', sampling_ratio=0),
}

ONLY_POOL = 'MaxRoiPool, is the maximum with region'
TAPS = r'weighted taps.*onnxruntime#6146'
REFUSED = {
    'align-max': (AlignMax(SIZE, STRIDES), TAPS),
    'align-max-adaptive': (AlignMax(SIZE, STRIDES, sampling_ratio=0), TAPS),
    'adaptive-max': (AdaptiveSampling(SIZE, STRIDES, reduction='max'), TAPS),
    'warp-max': (RoIWarp(SIZE, STRIDES, reduction='max'), TAPS),
    'adaptive-min': (AdaptiveSampling(SIZE, STRIDES, min_samples=2), 'has no bounds'),
    'adaptive-max-samples': (AdaptiveSampling(SIZE, STRIDES, max_samples=2), 'has no bounds'),
    'pool-avg': (QuantizedPool(SIZE, STRIDES, reduction='avg'), ONLY_POOL),
    'pool-floor': (QuantizedPool(SIZE, STRIDES, region='floor'), ONLY_POOL),
    'precise': (Precise(SIZE, STRIDES), 'none integrates the bilinear surface'),
    'random-sampling-max': (RandomSampling(SIZE, STRIDES, reduction='max'), TAPS),
    'deformable': (build_extractor('Deformable', SIZE, STRIDES), 'none takes offsets'),
    'position-sensitive': (
        build_extractor('PositionSensitive', SIZE, STRIDES),
        'none takes position_sensitive',
    ),
    'pool-bins': (QuantizedPool(SIZE, STRIDES, region='bins'), ONLY_POOL),
}

# What detectors make when they have not learnt yet, at the borders of every rule.
WILD = torch.tensor(
    [
        [0, 50, 50, 10, 10],  # inverted
        [1, 50, 10, 20, 90],  # on one axis: no level in a pyramid
        [0, 10, 90, 50, 20],
        [0, 5, 5, 5, 5],  # a point
        [1, 5, 5, 5, 95],  # a line
        [0, -500, -500, 700, 700],
        [1, -90, -90, -40, -40],  # beside the map
        [0, 300, 300, 340, 330],
        [0, 0, 0, 256, 192],  # the image
        [1, 250, 186, 260, 196],
        [0, -6, -2, 10, 14],  # half cells, negative too, at strides 4, 8 and 16
        [1, 2, 6, 26, 30],
        [0, 4, 12, 20, 28],
        [0, 8, 24, 40, 56],
        [1, 20, 20, 20.5, 20.5],  # far less than a cell
        [0, torch.nan, 2, 90, 90],
        [1, 2, 2, torch.inf, 90],
        [0, -torch.inf, 2, 90, 90],
    ]
)


def generator():
    return torch.Generator().manual_seed(0)


def pyramid(num_maps=3, dtype=torch.float32):
    """Maps with values of both signs: a maximum that starts at 0 would show."""
    shapes = [(2, 3, IMAGE[0] // stride, IMAGE[1] // stride) for stride in STRIDES]
    return [torch.randn(shape, generator=generator()).to(dtype) - 1 for shape in shapes[:num_maps]]


def random_rois(num_rois=200):
    corners = torch.rand(num_rois, 4, generator=generator()) * 1.6 - 0.3
    corners *= torch.tensor([IMAGE[1], IMAGE[0]] * 2)
    return torch.cat([torch.arange(num_rois)[:, None] % 2, corners], dim=1)


class Together(torch.nn.Module):
    """Several extractors, each on the finest map and on the pyramid, as one model: exports are slow."""

    def __init__(self, *extractors, num_maps=(1, 3)):
        super().__init__()
        self.extractors = torch.nn.ModuleList(extractors)
        self.num_maps = num_maps

    def forward(self, features, rois):
        return [extractor(features[:n], rois) for extractor in self.extractors for n in self.num_maps]


def export(model, arguments, dynamic_shapes=None):
    return torch.onnx.export(
        model.eval(),
        arguments,
        dynamo=True,
        verbose=False,
        dynamic_shapes=dynamic_shapes,
        custom_translation_table=TRANSLATION_TABLE,
    )


def any_size(maps):
    """Shapes that leave all open but the number of channels."""
    size = [{0: 'images', 2: f'height_{i}', 3: f'width_{i}'} for i in range(len(maps))]
    return {'features': size, 'rois': {0: 'rois'}}


def session(program):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    model = program.model_proto.SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=['CPUExecutionProvider'])


def run(session_, *arguments):
    names = [value.name for value in session_.get_inputs()]
    feed = {name: x.numpy() for name, x in zip(names, arguments, strict=True)}
    return [torch.from_numpy(output) for output in session_.run(None, feed)]


def assert_answers(session_, model, maps, rois, rtol=1e-4, atol=1e-5):
    expected = model(maps, rois)
    answer = run(session_, *maps, rois)
    torch.testing.assert_close(answer, expected, equal_nan=True, rtol=rtol, atol=atol)


def operators(program):
    return {node.op_type for node in program.model_proto.graph.node}


def test_every_extractor_is_tested():
    tested = {*EXPORTABLE.values(), *(extractor for extractor, _ in REFUSED.values())}
    assert {type(extractor) for extractor in tested} == set(EXTRACTORS.values())


@pytest.mark.slow
@pytest.mark.parametrize('name', EXPORTABLE)
def test_onnxruntime_answers_the_same(name):
    model, maps = Together(EXPORTABLE[name]), pyramid()
    program = export(model, (maps, random_rois(7)), any_size(maps))
    session_ = session(program)
    exact = dict(rtol=0, atol=0) if name == 'pool' else {}
    for rois in (random_rois(), WILD, WILD[:1], WILD[:0]):
        assert_answers(session_, model, maps, rois, **exact)
    smaller = [map_[:1, :, 1:, :-2].contiguous() for map_ in maps]
    on_one_image = random_rois() * torch.tensor([0, 1, 1, 1, 1])
    assert_answers(session_, model, smaller, on_one_image, **exact)
    assert ('MaxRoiPool' if name == 'pool' else 'RoiAlign') in operators(program)


def test_one_map_has_a_graph_of_fixed_shapes():
    """What compilers of ONNX graphs handle best: no node whose output's size depends on the data."""
    program = export(EXPORTABLE['align-avg'], (pyramid(1), random_rois()))
    assert not operators(program) & {'NonZero', 'ScatterND', 'GatherND', 'Loop', 'If'}


def test_levels_of_ones_own():
    class Pooler(torch.nn.Module):
        def forward(self, fine, coarse, rois, levels):
            return roi_extract([fine, coarse], rois, SIZE, [1 / 4, 1 / 8], levels=levels)

    maps, rois = pyramid(2), random_rois(9)
    # Outside the pyramid: zeros; a coordinate that is no number is NaN all the same.
    levels = torch.tensor([0, 1, -1, 2, 1, 0, 9, 1, -1], dtype=torch.int32)
    rois[8, 1] = torch.nan
    program = export(Pooler(), (*maps, rois, levels), (None, None, {0: 'rois'}, {0: 'rois'}))
    expected = Pooler()(*maps, rois, levels)
    assert expected[2].eq(0).all() and expected[8].isnan().all()
    (answer,) = run(session(program), *maps, rois, levels)
    torch.testing.assert_close(answer, expected, equal_nan=True, rtol=1e-4, atol=1e-5)


def test_half_maps_and_boxes_of_any_type():
    """Boxes are not cast to half: at 1001.3 px float16 is a fifth of a pixel off."""
    model = Together(AlignAvg(SIZE, [1]), QuantizedPool(SIZE, [1]), RoIWarp(SIZE, [1]), num_maps=[1])
    maps = [torch.randn(1, 2, 90, 1010, generator=generator()).half()]
    rois = torch.tensor([[0, 988.3, 20.7, 1001.3, 80.9]], dtype=torch.float64)
    session_ = session(export(model, (maps, rois)))
    assert_answers(session_, model, maps, rois, rtol=1e-3, atol=1e-3)


def test_a_stride_that_is_no_power_of_two():
    model = Together(AlignAvg(SIZE, [7]), QuantizedPool(SIZE, [7]), RoIWarp(SIZE, [7]), num_maps=[1])
    maps = [torch.randn(2, 2, 40, 50, generator=generator())]
    assert_answers(session(export(model, (maps, random_rois()))), model, maps, random_rois())


def test_an_image_that_is_not_there():
    session_ = session(export(EXPORTABLE['align-avg'], (pyramid(1), torch.ones(1, 5))))
    with pytest.raises(Exception, match='batch_indices value 2'):
        run(session_, *pyramid(1), torch.tensor([[2.0, 1, 1, 9, 9]]))


@pytest.mark.slow
@pytest.mark.parametrize('name', REFUSED)
def test_a_method_that_onnx_has_not_says_why(name):
    extractor, reason = REFUSED[name]
    with pytest.raises(OnnxExporterError, match=f'(?s)no equal among the standard ONNX operators.*{reason}'):
        export(extractor, (pyramid(), random_rois(7)))


def test_float64_is_refused():
    maps = pyramid(1, torch.float64)
    with pytest.raises(OnnxExporterError, match=r'DOUBLE maps.*export the model in float32'):
        export(EXPORTABLE['align-avg'], (maps, random_rois()))


def test_why_a_maximum_is_refused():
    """onnxruntime takes the largest weighted tap; should it change, align-max can be exported."""
    from onnx import TensorProto, helper

    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node('RoiAlign', ['x', 'rois', 'index'], ['y'], mode='max', sampling_ratio=1)],
        'maximum',
        [
            tensor('x', TensorProto.FLOAT, [1, 1, 2, 2]),
            tensor('rois', TensorProto.FLOAT, [1, 4]),
            tensor('index', TensorProto.INT64, [1]),
        ],
        [tensor('y', TensorProto.FLOAT, [1, 1, 1, 1])],
    )
    opset = helper.make_opsetid('', 18)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    runner = onnxruntime.InferenceSession(model.SerializeToString(), options)
    # One sample, in the middle of four cells of value 1: interpolated it is 1, a weighted tap is 1 / 4.
    one = {
        'x': np.ones((1, 1, 2, 2), np.float32),
        'rois': np.array([[0, 0, 2, 2]], np.float32),
        'index': np.zeros(1, np.int64),
    }
    assert runner.run(None, one)[0].item() == 0.25


def test_a_missing_package_names_the_command():
    program = "import sys; sys.modules['onnxscript'] = None; import roi_plugins.onnx"
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert 'ImportError' in done.stderr and 'pip install onnx onnxscript' in done.stderr
