"""All levels: every RoI from every map in one call of the op, added up or one behind the other."""

import functools

import pytest
import torch
from building import learned
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from roi_plugins.extractors import AllLevels
from roi_plugins.ops import reference

STRIDES = [4, 8, 16]
SIZE = (3, 2)
CHANNELS = 3
OP = torch.ops.roi_plugins.roi_extract.default

METHODS = [
    {},
    dict(sampling_ratio=3, reduction='max', aligned=False),
    dict(sampling_ratio=0, min_samples=2, max_samples=4),
    dict(region='round', sampling_ratio=None, reduction='max'),
    dict(region='round', sampling_ratio=1),
    dict(sampling_ratio=None, reduction='integral'),
]
methods = pytest.mark.parametrize('method', METHODS, ids=lambda m: '-'.join(map(str, m.values())))
aggregations = pytest.mark.parametrize('aggregation', ['sum', 'max', 'concat'])


def pyramid(dtype=torch.float64, side=64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, CHANNELS, side // s, side * 3 // 2 // s) for s in STRIDES]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def rois(num_rois=30):
    """Of all sizes; some inverted on one axis or both, some beyond the border, one that is no number."""
    corners = torch.rand(num_rois, 4, generator=torch.Generator().manual_seed(1)) * 130 - 20
    boxes = torch.cat([torch.arange(num_rois)[:, None] % 2, corners], dim=1)
    boxes[3, 2] = torch.nan
    return boxes


def oracle(features, boxes, aggregation, **method):
    """A loop over the maps of the plain reference in float64."""
    parts = [
        reference.roi_extract(map_.double(), boxes.double(), SIZE, 1 / stride, **method)
        for map_, stride in zip(features, STRIDES, strict=True)
    ]
    return aggregate(parts, aggregation)


def aggregate(parts, aggregation):
    """Of what is read from each map."""
    if aggregation == 'concat':
        return torch.cat(parts, dim=1)
    return functools.reduce({'sum': torch.add, 'max': torch.maximum}[aggregation], parts)


class CountOfCalls(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is OP
        return func(*args, **(kwargs or {}))


@methods
@aggregations
def test_reads_every_map_in_one_call(method, aggregation):
    extractor = AllLevels(SIZE, STRIDES, aggregation, **method)
    with CountOfCalls() as calls:
        output = extractor(pyramid(), rois())
    assert calls.count == 1
    assert output.shape[1] == extractor.out_channels(CHANNELS, len(STRIDES))
    torch.testing.assert_close(output, oracle(pyramid(), rois(), aggregation, **method), equal_nan=True)


@aggregations
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half(dtype, aggregation):
    features = pyramid(dtype)
    output = AllLevels(SIZE, STRIDES, aggregation)(features, rois())
    assert output.dtype == dtype
    expected = oracle(features, rois(), aggregation)
    torch.testing.assert_close(output.double(), expected, equal_nan=True, rtol=0.02, atol=0.02)


@aggregations
def test_autocast(aggregation):
    """The modules are convolutions in bfloat16; boxes stay what they are."""
    channels = CHANNELS * (3 if aggregation == 'concat' else 1)
    modules = dict(
        pre_module=nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), post_module=nn.Conv2d(channels, 4, 1)
    )
    extractor = learned(AllLevels(SIZE, STRIDES, aggregation, **modules))
    features, boxes = pyramid(torch.float32), rois()[4:]
    with torch.autocast('cpu', torch.bfloat16):
        output = extractor(features, boxes)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), extractor(features, boxes), rtol=0.05, atol=0.5)


@aggregations
def test_gradient(aggregation):
    extractor = AllLevels(SIZE, STRIDES, aggregation)
    maps = [map_[:, :, :4, :4].clone().requires_grad_() for map_ in pyramid()]
    boxes = torch.tensor([[0, 1.3, 2.1, 14.7, 19.2], [1, -6, 3, 9, 30], [0, 4, 4, 4, 4]]).double()
    assert torch.autograd.gradcheck(lambda *maps: extractor(list(maps), boxes), maps)


@aggregations
@pytest.mark.parametrize('num_rois', [30, 0])
def test_modules_see_each_map_and_then_all(aggregation, num_rois):
    """A normalisation by the statistics of the batch tells a map from all maps."""
    channels = CHANNELS * (3 if aggregation == 'concat' else 1)
    before, after = nn.BatchNorm2d(CHANNELS).double(), nn.Conv2d(channels, 4, 1).double()
    extractor = AllLevels(SIZE, STRIDES, aggregation, pre_module=before, post_module=after)
    boxes = rois()[4:][:num_rois]
    output = extractor(pyramid(), boxes)
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in extractor.parameters())
    parts = [
        before(reference.roi_extract(map_, boxes.double(), SIZE, 1 / stride))
        for map_, stride in zip(pyramid(), STRIDES, strict=True)
    ]
    expected = after(aggregate(parts, aggregation))
    assert output.shape == (len(boxes), 4, *SIZE)
    torch.testing.assert_close(output, expected)


@aggregations
def test_one_map_is_the_plain_extractor(aggregation):
    modules = dict(pre_module=nn.Conv2d(1, 1, 1), post_module=nn.Conv2d(1, 1, 1))
    output = AllLevels(SIZE, STRIDES, aggregation, **modules)(pyramid()[:1], rois())
    expected = reference.roi_extract(pyramid()[0], rois().double(), SIZE, 1 / 4)
    torch.testing.assert_close(output, expected, equal_nan=True)


def test_an_aggregation_that_does_not_exist():
    with pytest.raises(ValueError, match=r"aggregation: got 'mean', expected 'sum', 'max' or 'concat'"):
        AllLevels(SIZE, STRIDES, 'mean')
