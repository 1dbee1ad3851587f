"""The op as PyTorch sees it: tracing, compilation, autocast, TorchScript; its layers; its fallback."""

import copy
import os
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torchvision
from cases import METHODS, align, fitted, integral, pool, random_map, random_rois
from torch._dynamo import compiled_autograd
from torch._dynamo.testing import CompileCounterWithBackend

from roi_plugins.extractors import AlignAvg
from roi_plugins.ops import layers, library, roi_extract

# TorchScript is on its way out, but the peers' layers script, so these do.
pytestmark = pytest.mark.filterwarnings('ignore:.torch.jit:DeprecationWarning')

FORWARD = torch.ops.roi_plugins.roi_extract.default
BACKWARD = torch.ops.roi_plugins.roi_extract_backward.default
BACKWARD_ROIS = torch.ops.roi_plugins.roi_extract_backward_rois.default


def single(device='cpu', dtype=torch.float32, channels_last=False):
    features = random_map(2, 4, 8, 10, dtype=dtype, device=device)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    return [features], random_rois(6, 2, 8, 10, device=device), None, [1.0]


def pyramid(device='cpu', dtype=torch.float32):
    maps = [random_map(2, 4, n, n + 2, dtype=dtype, device=device, seed=n) for n in (8, 4)]
    rois = random_rois(6, 2, 16, 20, device=device)
    return maps, rois, torch.tensor([0, 1, 1, -1, 0, 2], device=device), [0.5, 0.25]


def options(
    region='none',
    sampling_ratio=2,
    reduction='avg',
    aligned=True,
    max_samples=None,
    position_sensitive=False,
):
    return [2, 2], region, sampling_ratio, reduction, aligned, 1, max_samples, position_sensitive


# What is asked of the inputs on top of them: `rotated`, `deformable`, a `seed`.
CONFIGURATIONS = {
    'align-avg': (single, options()),
    'align-max': (single, options(reduction='max')),
    'adaptive-max': (single, options(sampling_ratio=0, reduction='max', aligned=False)),
    'pool': (single, options('round', None, 'max')),
    'warp': (single, options('round', 2, 'max')),
    'integral': (single, options('none', None, 'integral')),
    'random': (single, options(reduction='max'), {'seed': 5}),
    'deformable': (single, options(), {'deformable': True}),
    'ps-align': (single, options(position_sensitive=True)),
    'ps-pool': (single, options('round', None, position_sensitive=True)),
    'rotated-max': (single, options(reduction='max'), {'rotated': True, 'seed': 5}),
    'rotated-integral': (single, options('none', None, 'integral'), {'rotated': True}),
    'pyramid-integral': (pyramid, options('none', None, 'integral', aligned=False)),
    'pyramid-avg': (pyramid, options(sampling_ratio=0, max_samples=4)),
    'pyramid-max': (pyramid, options(reduction='max')),
    'pyramid-pool': (pyramid, options('bins', None, 'max')),
    'pyramid-deformable': (pyramid, options(), {'deformable': True, 'seed': 5}),
    'pyramid-rotated': (pyramid, options(), {'rotated': True}),
}


def arguments(name, device, moved=False):
    """Maps, (RoIs, levels, offsets, seed) and the rest of the op's arguments in a configuration. With `moved`
    the RoIs and offsets require a gradient, where they can have one.
    """
    inputs, method, *extras = CONFIGURATIONS[name]
    maps, rois, levels, scales = inputs(device)
    maps, rois, extras = fitted(extras[0] if extras else {}, maps, rois, method[0])
    seed = torch.tensor([extras['seed']], device=device) if 'seed' in extras else None
    offsets = extras.get('offsets')
    if moved and name != 'rotated-integral':
        rois, offsets = (x if x is None else x.detach().requires_grad_() for x in (rois, offsets))
    return leaves(maps), (rois, levels, offsets, seed), (scales, *method)


configurations = pytest.mark.parametrize('name', CONFIGURATIONS)


def leaves(maps):
    return [m.detach().requires_grad_() for m in maps]


@pytest.mark.parametrize(
    ('wanted', 'ops'),
    [
        (('features',), [BACKWARD]),
        (('rois',), [BACKWARD_ROIS]),
        (('offsets',), [BACKWARD_ROIS]),
        (('features', 'rois', 'offsets'), [BACKWARD, BACKWARD_ROIS]),
    ],
    ids=str,
)
def test_backward_runs_nothing_but_its_ops(wanted, ops):
    # Autograd fills a missing gradient with zeros: for the argmax of a maximum as many as the output has.
    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            ran.append(func)
            return func(*args, **kwargs or {})

    inputs = {
        'features': random_map(1, 4, 6, 8),
        'rois': random_rois(3, 1, 6, 8),
        'offsets': torch.zeros(3, 2, 3, 3),
    }
    asked = [inputs[name].requires_grad_() for name in wanted]
    method = {} if 'offsets' in wanted else {'reduction': 'max'}
    if 'offsets' not in wanted:
        del inputs['offsets']
    output = roi_extract(output_size=3, spatial_scale=1.0, **inputs, **method)
    grad, ran = torch.ones_like(output), []
    with Record():
        torch.autograd.grad(output, asked, grad)
    assert [func for func in ran if 'detach' not in str(func)] == ops


class TestOpcheck:
    @configurations
    @pytest.mark.parametrize('moved', [False, True], ids=['fixed', 'moved'])
    def test_forward(self, device, name, moved):
        maps, table, rest = arguments(name, device, moved)
        torch.library.opcheck(FORWARD, (maps, *table, *rest))

    @pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64], ids=str)
    @pytest.mark.parametrize('channels_last', [False, True], ids=['nchw', 'channels_last'])
    def test_forward_dtypes_and_layouts(self, device, dtype, channels_last):
        maps, rois, levels, scales = single(device, dtype, channels_last)
        table = (rois.requires_grad_(), levels, None, None)
        torch.library.opcheck(FORWARD, (leaves(maps), *table, scales, *options(reduction='max')))

    @configurations
    @pytest.mark.parametrize('channels_last', [False, True], ids=['nchw', 'channels_last'])
    def test_backward(self, device, name, channels_last):
        maps, table, rest = arguments(name, device)
        output, argmax = (x.detach() for x in FORWARD(maps, *table, *rest))
        shapes = [*maps[0].shape[:2]] + [n for m in maps for n in m.shape[2:]]
        grad = torch.ones_like(output)
        torch.library.opcheck(BACKWARD, (grad, argmax, *table, shapes, channels_last, *rest))

    @pytest.mark.parametrize('name', [name for name in CONFIGURATIONS if name != 'rotated-integral'])
    @pytest.mark.parametrize('channels_last', [False, True], ids=['nchw', 'channels_last'])
    def test_backward_rois(self, device, name, channels_last):
        maps, table, rest = arguments(name, device)
        if channels_last:
            maps = [map_.contiguous(memory_format=torch.channels_last) for map_ in maps]
        maps = [map_.detach() for map_ in maps]
        output, argmax = FORWARD(maps, *table, *rest)
        torch.library.opcheck(BACKWARD_ROIS, (torch.ones_like(output), argmax, maps, *table, *rest))


def total(maps, rois, levels, scales, name, offsets=None):
    """A loss of one call, as it stands in a model: Python function, pyramid or map."""
    options = {key: x for key, x in METHODS[name].items() if key not in ('rotated', 'deformable')}
    if levels is None:
        output = roi_extract(maps[0], rois, 3, scales[0], offsets=offsets, **options)
    else:
        output = roi_extract(maps, rois, 3, scales, levels=levels, offsets=offsets, **options)
    return output.square().sum()


def value_and_gradients(function, maps, rois, *rest):
    """Of all maps, and of the RoIs if they want one."""
    maps = leaves(maps)
    value = function(maps, rois, *rest)
    wanted = [*maps, rois] if rois.requires_grad else maps
    return value.detach(), torch.autograd.grad(value, wanted, allow_unused=True)


class TestCompile:
    @pytest.mark.parametrize(
        'name',
        ['align-avg', 'align-max', 'pool-round-max', 'integral', 'random-max', 'rotated-avg', 'deformable',
         'ps-align'],
    )  # fmt: skip
    @pytest.mark.parametrize('inputs', [single, pyramid], ids=['map', 'pyramid'])
    @pytest.mark.parametrize('moved', [False, True], ids=['fixed', 'moved'])
    def test_full_graph(self, device, name, inputs, moved):
        torch._dynamo.reset()
        compiled = torch.compile(total, fullgraph=True, backend='aot_eager')
        maps, rois, levels, scales = inputs(device)
        maps, rois, method = fitted(METHODS[name], maps, rois, (3, 3))
        arguments = (maps, rois.requires_grad_(moved), levels, scales, name, method.get('offsets'))
        torch.testing.assert_close(
            value_and_gradients(compiled, *arguments), value_and_gradients(total, *arguments)
        )

    @pytest.mark.parametrize('moved', [False, True], ids=['fixed', 'moved'])
    def test_a_changing_number_of_rois(self, device, moved):
        torch._dynamo.reset()
        compiler = CompileCounterWithBackend('aot_eager')
        compiled = torch.compile(total, fullgraph=True, backend=compiler, dynamic=True)
        maps, _, _, scales = single(device)
        for num_rois in (5, 9, 7, 0):
            rois = random_rois(num_rois, 2, 8, 10, device=device).requires_grad_(moved)
            arguments = (maps, rois, None, scales)
            torch.testing.assert_close(
                value_and_gradients(compiled, *arguments, 'align-max'),
                value_and_gradients(total, *arguments, 'align-max'),
            )
            if num_rois == 9:
                traces = compiler.frame_count
            elif num_rois == 7:
                assert compiler.frame_count == traces

    def test_inductor(self, device):
        """The default backend; of the op alone, so that no other code has to be compiled."""
        torch._dynamo.reset()
        compiled = torch.compile(roi_extract, fullgraph=True)
        maps, rois, levels, scales = pyramid(device)
        maps = leaves(maps)
        output, expected = (f(maps, rois, 3, scales, levels=levels) for f in (compiled, roi_extract))
        assert torch.equal(output, expected)
        grad = torch.randn_like(output)
        torch.testing.assert_close(
            torch.autograd.grad(output, maps, grad), torch.autograd.grad(expected, maps, grad)
        )

    @pytest.mark.skipif(not hasattr(compiled_autograd, '_enable'), reason='this torch has no such function')
    def test_a_backward_pass_that_is_compiled(self, device):
        maps, rois, levels, scales = pyramid(device)
        arguments = (leaves(maps), rois.requires_grad_(), levels, scales, 'align-avg')
        expected = value_and_gradients(total, *arguments)
        torch._dynamo.reset()
        with compiled_autograd._enable(torch.compile(backend='aot_eager', fullgraph=True)):
            found = value_and_gradients(total, *arguments)
        torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize('name', ['align-avg', 'pool-round-max', 'integral'])
    def test_export(self, device, name):
        class Pooler(torch.nn.Module):
            def forward(self, fine, coarse, rois, levels):
                return roi_extract([fine, coarse], rois, 3, [0.5, 0.25], levels=levels, **METHODS[name])

        maps, rois, levels, _ = pyramid(device)
        num_rois = torch.export.Dim('num_rois', min=2)
        program = torch.export.export(
            Pooler(),
            (*maps, rois, levels),
            dynamic_shapes=(None, None, {0: num_rois}, {0: num_rois}),
        )
        rois, levels = random_rois(11, 2, 16, 20, device=device), torch.arange(11, device=device) % 2
        assert torch.equal(program.module()(*maps, rois, levels), Pooler()(*maps, rois, levels))


class TestAutocast:
    @pytest.mark.parametrize('name', ['align-avg', 'align-max', 'pool-round-max'])
    def test_features_stay_half_and_coordinates_float(self, device, name):
        """A stride-16 map 64 cells wide: bfloat16 would move 1001.3 px to 1000."""
        images = random_map(1, 3, 8, 64, device=device)
        convolution = torch.nn.Conv2d(3, 4, 3, padding=1, device=device)
        rois = torch.tensor([[0, 988.3, 20.7, 1001.3, 100.9]], device=device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            features = convolution(images)
            output = roi_extract(features, rois, 2, 1 / 16, **METHODS[name])
        assert features.dtype == output.dtype == torch.bfloat16
        plain = roi_extract(features, rois, 2, 1 / 16, **METHODS[name])
        assert torch.equal(output, plain)
        output.float().sum().backward()
        assert convolution.weight.grad.isfinite().all()

    def test_float_features_stay_float(self, device):
        (features,), rois, _, _ = single(device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            output = roi_extract(features, rois, 2, 1.0)
        assert torch.equal(output, roi_extract(features, rois, 2, 1.0))


@pytest.mark.parametrize('name', ['align-avg', 'align-max', 'pool-round-max', 'integral'])
def test_second_derivatives_are_refused(device, name):
    (features,), rois, _, _ = single(device)
    features = features.requires_grad_()
    loss = roi_extract(features, rois, 2, 1.0, **METHODS[name]).square().sum()
    (grad,) = torch.autograd.grad(loss, features, create_graph=True)
    with pytest.raises(RuntimeError, match=r'roi_extract.*second derivative'):
        grad.sum().backward()


@pytest.mark.parametrize('name', ['align-avg', 'align-max'])
def test_no_gradient_where_none_is_asked_for(device, name):
    (features,), rois, _, _ = single(device)
    assert not roi_extract(features, rois, 2, 1.0, **METHODS[name]).requires_grad
    with torch.inference_mode():
        roi_extract(features, rois, 2, 1.0, **METHODS[name])


# Layers ------------------------------------------------------------------------------------------

LAYERS = {
    'RoIAlign': (lambda: layers.RoIAlign(3, 0.5, 2), align('avg', aligned=False)),
    'RoIAlign-aligned': (
        lambda: layers.RoIAlign((3, 3), 0.5, sampling_ratio=-1, aligned=True), align('avg', 0),
    ),
    'RoIPool': (lambda: layers.RoIPool(3, 0.5), pool('max', 'round')),
    'MMCVRoIAlign': (lambda: layers.MMCVRoIAlign(3, 0.5), align('avg', 0)),
    'MMCVRoIAlign-max': (
        lambda: layers.MMCVRoIAlign((3, 3), 0.5, 2, 'max', False), align('max', aligned=False),
    ),
    'MMCVRoIPool': (lambda: layers.MMCVRoIPool((3, 3), 0.5), pool('max', 'bins')),
    'PrRoIPool': (lambda: layers.PrRoIPool((3, 3), 0.5), integral(aligned=False)),
    'PSRoIAlign': (lambda: layers.PSRoIAlign(3, 0.5, -1), align('avg', 0, position_sensitive=True)),
    'PSRoIPool': (
        lambda: layers.PSRoIPool((3, 3), 0.5), {**pool('avg', 'round'), 'position_sensitive': True},
    ),
    'RoIAlignRotated': (lambda: layers.RoIAlignRotated(3, 0.5), align('avg', 0, rotated=True)),
    'RoIAlignRotated-clockwise': (
        lambda: layers.RoIAlignRotated((3, 3), 0.5, 2, False, True),
        align('avg', aligned=False, rotated=True),
    ),
    'DeformRoIPool': (lambda: layers.DeformRoIPool(3, 0.5), align('avg', 0)),
}  # fmt: skip
every_layer = pytest.mark.parametrize('name', LAYERS)


def layer_inputs(device):
    features = random_map(2, 4, 8, 10, device=device)
    rois = random_rois(7, 2, 16, 20, device=device)
    rois = rois[rois[:, 0].argsort(stable=True)]
    return features, rois, [rois[rois[:, 0] == i, 1:] for i in range(2)]


def layer_calls(name, device):
    """A layer, the features, every way to give the RoIs, and what is expected."""
    layer, method = LAYERS[name][0](), LAYERS[name][1]
    features, upright, boxes = layer_inputs(device)
    features, rois, options = fitted(method, features, upright, (3, 3))
    expected = roi_extract(features, rois, 3, 0.5, **options)
    if 'rotated' not in method:
        return layer, features, [rois, boxes], expected
    rois[:, 5] = torch.deg2rad(rois[:, 5]) * (-1 if layer.clockwise else 1)
    return layer, features, [rois], expected


@every_layer
class TestLayers:
    def test_is_the_op(self, device, name):
        layer, features, given, expected = layer_calls(name, device)
        for rois in given:
            torch.testing.assert_close(layer(features, rois), expected)

    def test_images_without_boxes(self, device, name):
        layer, features, given, _ = layer_calls(name, device)
        if len(given) == 1:
            pytest.skip('takes no list')
        boxes = given[1]
        none = boxes[0][:0]
        assert torch.equal(layer(features, [none, boxes[1]]), layer(features, boxes)[-len(boxes[1]) :])
        assert layer(features, [none, none]).shape == (0, 4, 3, 3)

    def test_no_rois(self, device, name):
        layer, features, given, _ = layer_calls(name, device)
        assert layer(features, given[0][:0]).shape == (0, 4, 3, 3)

    def test_rois_of_another_kind(self, device, name):
        layer, features, given, _ = layer_calls(name, device)
        width = given[0].shape[1]
        other = torch.zeros(2, 11 - width, device=device)
        with pytest.raises(ValueError, match=rf'rois: got shape .*{11 - width}.*expected \(K, {width}\)'):
            layer(features, other)

    def test_script(self, device, name):
        layer, features, given, _ = layer_calls(name, device)
        scripted = torch.jit.script(layer)
        for rois in given:
            assert torch.equal(scripted(features, rois), layer(features, rois))
        grads = []
        for module in (layer, scripted):
            for _ in range(3):  # TorchScript specialises after the first runs
                leaf = features.detach().requires_grad_()
                module(leaf, given[0]).square().sum().backward()
            grads.append(leaf.grad)
        assert torch.equal(*grads)

    def test_script_survives_a_file(self, device, name, tmp_path):
        layer, features, (rois, *_), _ = layer_calls(name, device)
        torch.jit.script(layer).save(tmp_path / 'layer.pt')
        loaded = torch.jit.load(tmp_path / 'layer.pt')
        assert torch.equal(loaded(features, rois), layer(features, rois))

    def test_pickle_and_copy(self, device, name):
        layer, features, (rois, *_), _ = layer_calls(name, device)
        for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
            assert torch.equal(other(features, rois), layer(features, rois))
            assert repr(other) == repr(layer)

    def test_fx(self, device, name):
        layer, features, given, _ = layer_calls(name, device)
        traced = torch.fx.symbolic_trace(layer)
        for rois in given:
            assert torch.equal(traced(features, rois), layer(features, rois))

    def test_fx_inside_a_model(self, device, name):
        class Head(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.pooler = LAYERS[name][0]()

            def forward(self, features, rois):
                return self.pooler(features, rois).flatten(1)

        _, features, (rois, *_), _ = layer_calls(name, device)
        head = Head()
        assert torch.equal(torch.fx.symbolic_trace(head)(features, rois), head(features, rois))

    def test_has_no_state(self, device, name):
        assert not LAYERS[name][0]().state_dict()


@pytest.mark.parametrize('module', [lambda layer: layer, torch.jit.script], ids=['eager', 'script'])
def test_deform_roi_pool_takes_offsets(device, module):
    features, rois, boxes = layer_inputs(device)
    offset = torch.randn(7, 2, 3, 3, device=device).requires_grad_()
    pool = module(layers.DeformRoIPool(3, 0.5, 2, gamma=0.25))
    expected = roi_extract(features, rois, 3, 0.5, offsets=0.25 * offset)
    for given in (rois, boxes):
        torch.testing.assert_close(pool(features, given, offset), expected)
    pool(features, rois, offset).sum().backward()
    assert offset.grad.any()


def test_rotated_half_boxes_are_widened_before_their_angles_are(device):
    """Beyond 128 degrees bfloat16 has whole ones only."""
    features, rois, _ = layer_inputs(device)
    _, rois, _ = fitted({'rotated': True}, features, rois, (3, 3))
    rois[:, 5] = torch.deg2rad(rois[:, 5])
    half = rois.bfloat16()
    layer = layers.RoIAlignRotated(3, 0.5, 2)
    assert torch.equal(layer(features, half), layer(features, half.float()))


def numbered_images(num_images, channels, dtype, device):
    """A map of one cell for each image, which holds the number of the image."""
    numbers = torch.arange(num_images, device=device, dtype=torch.float32)
    return numbers[:, None, None, None].expand(-1, channels, 2, 2).to(dtype).contiguous()


@pytest.mark.parametrize('module', [lambda layer: layer, torch.jit.script], ids=['eager', 'script'])
@pytest.mark.parametrize(
    ('dtype', 'num_images'), [(torch.bfloat16, 301), (torch.float16, 2051), (torch.float32, 2051)], ids=str
)
def test_a_list_of_boxes_reads_its_own_images(device, module, dtype, num_images):
    """bfloat16 has no 257, and float16 no 2049."""
    box = torch.tensor([[0, 0, 2, 2]], dtype=dtype, device=device)
    features = numbered_images(num_images, 4, torch.float32, device)
    for layer in (layers.RoIAlign(1, 1.0, 1), layers.RoIPool(1, 1.0), layers.DeformRoIPool(1, 1.0)):
        output = module(layer)(features, [box] * num_images)
        assert torch.equal(output[:, 0], features[:, 0, :1, :1])


@pytest.mark.parametrize(('dtype', 'most'), [(torch.bfloat16, 257), (torch.float16, 2049)], ids=str)
@pytest.mark.parametrize('kind', ['op', 'layer', 'script', 'rotated', 'extractor', 'fake'])
def test_rows_that_cannot_name_every_image_are_refused(device, kind, dtype, most):
    """MMDetection's bbox2roi, for one, writes the number of the image in the type of the boxes."""
    rotated = kind == 'rotated'
    rois = torch.tensor([[0, 0, 0, 2, 2, 0][: 6 if rotated else 5]], dtype=dtype, device=device)
    call = {
        'op': lambda features: roi_extract(features, rois, 1, 1.0),
        'layer': lambda features: layers.RoIAlign(1, 1.0, 1)(features, rois),
        'script': lambda features: torch.jit.script(layers.RoIAlign(1, 1.0, 1))(features, rois),
        'rotated': lambda features: layers.RoIAlignRotated(1, 1.0)(features, rois),
        'extractor': lambda features: AlignAvg(1, [1])([features], rois),
        'fake': lambda features: torch.export.export(AlignAvg(1, [1]), ([features], rois)).module()(
            [features], rois
        ),
    }[kind]
    assert call(numbered_images(most, 1, torch.float32, device)).shape == (1, 1, 1, 1)
    with pytest.raises(Exception, match=rf'rois: got dtype .*at most {most} images'):
        call(numbered_images(most + 1, 1, torch.float32, device))


def assert_same_layer(ours, theirs, device, lists=True, **kind):
    features, rois, boxes = layer_inputs(device)
    features, rois, _ = fitted(kind, features, rois, [*ours._size])
    for argument in (rois, boxes) if lists else (rois,):
        torch.testing.assert_close(ours(features, argument), theirs(features, argument))
    for attribute in ('output_size', 'spatial_scale'):
        assert getattr(ours, attribute) == getattr(theirs, attribute)


@pytest.mark.parametrize('output_size', [3, (2, 4)], ids=str)
@pytest.mark.parametrize('sampling_ratio', [-1, 0, 2])
@pytest.mark.parametrize('aligned', [{}, {'aligned': True}], ids=['default', 'aligned'])
def test_torchvision_roi_align_layer(device, output_size, sampling_ratio, aligned):
    arguments = (output_size, 0.5, sampling_ratio)
    ours = layers.RoIAlign(*arguments, **aligned)
    theirs = torchvision.ops.RoIAlign(*arguments, **aligned)
    assert_same_layer(ours, theirs, device)
    assert (ours.sampling_ratio, ours.aligned) == (theirs.sampling_ratio, theirs.aligned)


@pytest.mark.parametrize('output_size', [3, (2, 4)], ids=str)
def test_torchvision_roi_pool_layer(device, output_size):
    arguments = (output_size, 0.5)
    assert_same_layer(layers.RoIPool(*arguments), torchvision.ops.RoIPool(*arguments), device)


@pytest.mark.parametrize(
    'arguments',
    [(3,), (3, 0.5), ((2, 4), 0.5, 2), (3, 0.5, 2, 'max'), (3, 0.5, 0, 'avg', False),
     (3, 0.5, 2, 'avg', True, True)],
    ids=str,
)  # fmt: skip
def test_mmcv_roi_align_layer(device, arguments):
    mmcv_ops = pytest.importorskip('mmcv.ops', exc_type=ImportError)
    ours, theirs = layers.MMCVRoIAlign(*arguments), mmcv_ops.RoIAlign(*arguments)
    assert_same_layer(ours, theirs, device, lists=False)
    for attribute in ('sampling_ratio', 'pool_mode', 'aligned', 'use_torchvision'):
        assert getattr(ours, attribute) == getattr(theirs, attribute)


@pytest.mark.parametrize('name', ['RoIAlign', 'RoIAlignRotated'])
def test_old_names_of_mmcv(name):
    """MMCV takes them with a warning, and so do its stand-ins."""
    mmcv_ops = pytest.importorskip('mmcv.ops', exc_type=ImportError)
    ours = getattr(layers, {'RoIAlign': 'MMCVRoIAlign'}.get(name, name))
    theirs = getattr(mmcv_ops, name)
    for options in (dict(out_size=3, spatial_scale=0.5, sample_num=2), dict(out_size=3, spatial_scale=0.5)):
        built = []
        for layer in (ours, theirs):
            with pytest.warns(DeprecationWarning, match='"out_size" is deprecated'):
                built.append(layer(**options))
        for attribute in ('output_size', 'sampling_ratio', 'aligned'):
            assert getattr(built[0], attribute) == getattr(built[1], attribute)
    with pytest.raises(TypeError, match=r'out_size.*output_size'):
        ours(output_size=3, out_size=3, spatial_scale=0.5)


@pytest.mark.parametrize('sampling_ratio', [-1, -7])
@pytest.mark.parametrize('pool_mode', ['avg', 'max'])
def test_mmcv_takes_a_sampling_ratio_below_zero_for_zero(device, pool_mode, sampling_ratio):
    mmcv_ops = pytest.importorskip('mmcv.ops', exc_type=ImportError)
    arguments = (3, 0.5, sampling_ratio, pool_mode)
    assert_same_layer(layers.MMCVRoIAlign(*arguments), mmcv_ops.RoIAlign(*arguments), device, lists=False)
    if pool_mode == 'avg':
        ours, theirs = (x.RoIAlignRotated(3, 0.5, sampling_ratio) for x in (layers, mmcv_ops))
        assert_same_layer(ours, theirs, device, lists=False, rotated=True)


@pytest.mark.parametrize('output_size', [3, (2, 4)], ids=str)
def test_torchvision_position_sensitive_layers(device, output_size):
    kind = {'position_sensitive': True}
    arguments = (output_size, 0.5)
    assert_same_layer(layers.PSRoIPool(*arguments), torchvision.ops.PSRoIPool(*arguments), device, **kind)
    for sampling_ratio in (-1, 0, 2):
        ours = layers.PSRoIAlign(*arguments, sampling_ratio)
        assert_same_layer(ours, torchvision.ops.PSRoIAlign(*arguments, sampling_ratio), device, **kind)
        assert ours.sampling_ratio == sampling_ratio


@pytest.mark.parametrize(
    'arguments', [(3, 0.5), ((2, 4), 0.5, 2), (3, 0.5, 2, False), (3, 0.5, 0, True, True)], ids=str
)
def test_mmcv_roi_align_rotated_layer(device, arguments):
    mmcv_ops = pytest.importorskip('mmcv.ops', exc_type=ImportError)
    ours, theirs = layers.RoIAlignRotated(*arguments), mmcv_ops.RoIAlignRotated(*arguments)
    assert_same_layer(ours, theirs, device, lists=False, rotated=True)
    for attribute in ('sampling_ratio', 'aligned', 'clockwise'):
        assert getattr(ours, attribute) == getattr(theirs, attribute)


@pytest.mark.parametrize('arguments', [(3,), ((2, 4), 0.5, 2), (3, 0.5, 0, 0.2)], ids=str)
def test_attributes_of_mmcv_deform_roi_pool(arguments):
    """It has no CPU kernel there."""
    mmcv_ops = pytest.importorskip('mmcv.ops', exc_type=ImportError)
    ours, theirs = layers.DeformRoIPool(*arguments), mmcv_ops.DeformRoIPool(*arguments)
    for attribute in ('output_size', 'spatial_scale', 'sampling_ratio', 'gamma'):
        assert getattr(ours, attribute) == getattr(theirs, attribute)


@pytest.mark.parametrize('names', [('MMCVRoIPool', 'RoIPool'), ('PrRoIPool', 'PrRoIPool')], ids=str)
def test_attributes_of_mmcv_layers_without_a_cpu_kernel(names):
    mmcv_ops = pytest.importorskip('mmcv.ops', exc_type=ImportError)
    for arguments in ((3,), ((2, 4), 0.5)):
        ours, theirs = getattr(layers, names[0])(*arguments), getattr(mmcv_ops, names[1])(*arguments)
        assert (ours.output_size, ours.spatial_scale) == (theirs.output_size, theirs.spatial_scale)


# The fallback ------------------------------------------------------------------------------------


def run_without_extension(*arguments):
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env={**os.environ, 'ROI_PLUGINS_DISABLE_EXTENSION': '1', 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )


def test_the_extension_is_what_is_tested():
    """Without it all other tests would hold the reference against itself."""
    assert library.extension_is_loaded(), 'build it: pip install --no-build-isolation -e .'


def test_fallback_warns_once_and_gives_the_same(tmp_path):
    maps, rois, levels, scales = pyramid()
    calls = []
    for method in METHODS.values():
        *inputs, method = fitted(method, maps, rois, (3, 3))
        calls.append(((*inputs, 3, scales), {'levels': levels, **method}))
    expected = [roi_extract(*arguments, **method) for arguments, method in calls]
    torch.save(calls, tmp_path / 'inputs.pt')
    program = f"""
import torch
from roi_plugins.ops import library, roi_extract
assert not library.extension_is_loaded()
calls = torch.load({str(tmp_path / 'inputs.pt')!r}, weights_only=True)
outputs = [roi_extract(*arguments, **method) for arguments, method in calls]
torch.save(outputs, {str(tmp_path / 'outputs.pt')!r})
"""
    run = run_without_extension('-c', program)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count('Warning') == 1, run.stderr
    assert 'ROI_PLUGINS_DISABLE_EXTENSION' in run.stderr
    outputs = torch.load(tmp_path / 'outputs.pt', weights_only=True)
    torch.testing.assert_close(outputs, expected)


@pytest.mark.slow
def test_fallback_passes_the_tests_of_the_op():
    """Its own backward, which `reference.roi_extract`, differentiated by PyTorch, never runs."""
    tests = Path(__file__).parent
    run = run_without_extension(
        '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider',
        *(str(tests / f'test_{name}.py')
          for name in ('roi_extract', 'registration', 'positions', 'transforms')),
        '-k', '(cpu-op and (test_every_method and float32 or every_level or scan_order and nchw'
              ' or half_features and float16 and not adaptive or of_the_oracle and not -max))'
              ' or (TestOpcheck and (pyramid-max or pyramid-deformable)) or test_script or test_transforms',
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:]
    assert int(re.search(r'(\d+) passed', run.stdout)[1]) > 100, run.stdout


def test_an_import_is_silent():
    program = 'import warnings; warnings.simplefilter("error"); import roi_plugins.ops'
    with warnings.catch_warnings():
        run = subprocess.run(
            [sys.executable, '-c', program],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
        )
    assert (run.returncode, run.stderr) == (0, '')
