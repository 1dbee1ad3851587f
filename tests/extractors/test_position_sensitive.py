"""Position-sensitive pooling: a convolution, then torchvision's two operators; and R-FCN's vote."""

import pytest
import torch
from torchvision.ops import ps_roi_align, ps_roi_pool

from roi_plugins.extractors import PositionSensitive

STRIDES = [4, 8, 16]
SIZE = 3  # torchvision's channels are those of height and width alike
CHANNELS = 6

every_mode = pytest.mark.parametrize('mode', ['align', 'pool'])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pyramid():
    shapes = [(2, CHANNELS, 128 // stride, 160 // stride) for stride in STRIDES]
    return [torch.randn(shape, generator=generator()).requires_grad_() for shape in shapes]


def some_rois(num_rois=40):
    corners = torch.rand(2, num_rois, 2, generator=generator(1)) * 170 - 15
    index = torch.arange(num_rois)[:, None] % 2
    return torch.cat([index, corners.amin(0), corners.amax(0)], dim=1)


def as_torchvision(extractor, features, rois, levels):
    output = torch.zeros(len(rois), extractor.depth, SIZE, SIZE)
    for level, (map_, stride) in enumerate(zip(features, STRIDES, strict=True)):
        (at,) = torch.nonzero(levels == level, as_tuple=True)
        scores = extractor.score(map_)
        if extractor.region == 'round':
            pooled = ps_roi_pool(scores, rois[at], SIZE, 1 / stride)
        else:
            pooled = ps_roi_align(scores, rois[at], SIZE, 1 / stride, extractor.sampling_ratio)
        output = output.index_put((at,), pooled)
    return output


@every_mode
def test_is_a_convolution_and_torchvisions_operator(mode):
    torch.manual_seed(0)
    extractor = PositionSensitive(SIZE, STRIDES, mode, depth=4, channels=CHANNELS)
    rois, levels, results = some_rois(), torch.arange(40) % 3, []
    for run in (extractor, lambda *arguments: as_torchvision(extractor, *arguments)):
        features = pyramid()
        extractor.zero_grad()
        output = run(features, rois, levels)
        output.backward(torch.randn(output.shape, generator=generator(2)))
        gradients = [parameter.grad.clone() for parameter in extractor.parameters()]
        results.append([output, *gradients, *(map_.grad for map_ in features)])
    assert results[0][0].shape == (40, 4, SIZE, SIZE)
    if mode == 'pool':
        # At the border torchvision's gradient is not that of its output; test_gradient has ours.
        results = [result[:1] for result in results]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_a_linear_layer_behind_the_vote_is_r_fcn():
    """One depth for both, and layers that take their share of it: the paper's maps for the classes, then
    those for the four numbers of a box.
    """
    torch.manual_seed(0)
    num_classes = 3
    extractor = PositionSensitive(SIZE, [8], 'pool', depth=num_classes + 4, channels=CHANNELS)
    classes, boxes = (torch.nn.Linear(num_classes + 4, n, bias=False) for n in (num_classes, 4))
    with torch.no_grad():
        classes.weight.copy_(torch.eye(num_classes + 4)[:num_classes])
        boxes.weight.copy_(torch.eye(num_classes + 4)[num_classes:])
    (map_,), rois = [pyramid()[1]], some_rois()
    vote = extractor([map_], rois).mean((2, 3))
    maps = extractor.score(map_).split([num_classes * SIZE**2, 4 * SIZE**2], dim=1)
    for layer, of_its_own in zip((classes, boxes), maps, strict=True):
        expected = ps_roi_pool(of_its_own, rois, SIZE, 1 / 8).mean((2, 3))
        torch.testing.assert_close(layer(vote), expected, rtol=1e-5, atol=1e-5)


@every_mode
def test_gradient(mode):
    torch.manual_seed(0)
    extractor = PositionSensitive((3, 2), STRIDES, mode, depth=2, channels=CHANNELS).double()
    maps = [map_.detach()[:1, :, :5, :6].double().requires_grad_() for map_ in pyramid()]
    rois = torch.tensor([[0, 1.3, 2.1, 14.7, 19.2], [0, 3.3, 3.1, 31, 42]]).double()
    parameters = [parameter.detach().requires_grad_() for parameter in extractor.parameters()]

    def run(weight, bias, *maps):
        given = {'score.weight': weight, 'score.bias': bias}
        return torch.func.functional_call(extractor, given, (list(maps), rois, torch.arange(2)))

    assert torch.autograd.gradcheck(run, (*parameters, *maps))


@pytest.mark.parametrize(
    ('option', 'value'), [('mode', 'max'), ('depth', 0), ('sampling_ratio', 0.5), ('sampling_ratio', None)]
)
def test_a_bad_value_is_named(option, value):
    with pytest.raises(ValueError, match=rf'^[\w, ]*\b{option}\b.*: '):
        PositionSensitive(SIZE, STRIDES, channels=CHANNELS, **{option: value})


def test_rotated_boxes_are_refused():
    extractor = PositionSensitive(SIZE, STRIDES, channels=CHANNELS)
    with pytest.raises(ValueError, match='rotated ones'):
        extractor(pyramid(), torch.tensor([[0, 30.0, 30, 20, 20, 30]]))
