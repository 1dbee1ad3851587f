"""Bins that move: align-avg at the start, then by what a convolution says of each."""

import pytest
import torch
from building import build_extractor

from roi_plugins.extractors import AlignAvg, Deformable
from roi_plugins.ops import reference

STRIDES = [4, 8, 16]
SIZE = (3, 2)
CHANNELS = 5

either = pytest.mark.parametrize('modulated', [False, True], ids=['v1', 'modulated'])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pyramid(dtype=torch.float32, side=64):
    shapes = [(2, CHANNELS, side // s, side * 3 // 2 // s) for s in STRIDES]
    return [torch.randn(shape, generator=generator(), dtype=torch.float64).to(dtype) for shape in shapes]


def wild_rois(num_rois=40):
    """Inside, across the border, beyond it, inverted, without a size."""
    corners = torch.rand(num_rois, 4, generator=generator(1)) * 160 - 40
    rois = torch.cat([torch.arange(num_rois)[:, None] % 2, corners], dim=1)
    rois[::3, 1:3], rois[::3, 3:] = corners[::3].view(-1, 2, 2).amin(1), corners[::3].view(-1, 2, 2).amax(1)
    rois[4, 3:] = rois[4, 1:3]
    rois[7, 1:] = torch.tensor([300.0, 300, 340, 340])
    return rois


def some_levels(rois):
    return torch.arange(len(rois)) % len(STRIDES)


@either
@pytest.mark.parametrize('options', [{}, dict(sampling_ratio=3, aligned=False), dict(sampling_ratio=0)])
def test_is_the_formula(modulated, options):
    """In float64: the reference reads twice, the second time where the first says."""
    extractor = build_extractor('Deformable', SIZE, STRIDES, CHANNELS, modulated=modulated, **options)
    extractor = extractor.double()
    features, rois = pyramid(torch.float64), wild_rois().double()
    levels = some_levels(rois)
    scales = [1 / stride for stride in STRIDES]
    first = reference.roi_extract(features, rois, SIZE, scales, levels=levels, **options)
    weight, bias = extractor.offset.weight.detach().flatten(1), extractor.bias.detach()
    moves = torch.einsum('oc,kcpq->kopq', weight, first) + bias[:, None, None]
    expected = reference.roi_extract(
        features, rois, SIZE, scales, levels=levels, offsets=0.1 * moves[:, :2], **options
    )
    if modulated:
        expected = expected * 2 / (1 + torch.exp(-moves[:, 2:]))
    output = extractor(features, rois, levels)
    torch.testing.assert_close(output, expected)
    assert (output - first).abs().max() > 0.1


@either
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_starts_as_align_avg(device, modulated, dtype, memory_format):
    extractor = Deformable(SIZE, STRIDES, modulated=modulated, channels=CHANNELS).to(device, dtype)
    features = [map_.to(device).contiguous(memory_format=memory_format) for map_ in pyramid(dtype)]
    rois = wild_rois().to(device)
    expected = AlignAvg(SIZE, STRIDES)(features, rois)
    output = extractor(features, rois)
    assert output.dtype == dtype
    # Samples that move are added up one by one, in another order.
    rounding = torch.finfo(dtype).eps * 4
    torch.testing.assert_close(output, expected, rtol=rounding, atol=rounding)


@either
def test_starts_with_the_gradient_of_align_avg(modulated):
    grads = []
    plain = AlignAvg(SIZE, STRIDES)
    for extractor in (Deformable(SIZE, STRIDES, modulated=modulated, channels=CHANNELS), plain):
        features = [map_.requires_grad_() for map_ in pyramid()]
        output = extractor(features, wild_rois())
        output.backward(torch.randn(output.shape, generator=generator(2)))
        grads.append([map_.grad for map_ in features])
        assert all(p.grad.abs().amax(dim=tuple(range(1, p.dim()))).all() for p in extractor.parameters())
    torch.testing.assert_close(*grads)


@either
def test_gradient(modulated):
    """To the maps, the boxes and the convolution, through both readings."""
    extractor = build_extractor('Deformable', SIZE, STRIDES, CHANNELS, modulated=modulated).double()
    maps = [map_[:, :, :6, :7].clone().requires_grad_() for map_ in pyramid(torch.float64)]
    corners = torch.tensor([[1.3, 2.1, 14.7, 19.2], [3.3, 3.1, 31, 42], [90, 90, 99, 99]])
    corners = corners.double().requires_grad_()
    index = torch.tensor([[0.0], [1], [0]]).double()
    parameters = [p.detach().requires_grad_() for p in (extractor.offset.weight, extractor.bias)]

    def run(corners, weight, bias, *maps):
        # Small, so that no sample is as far off as a cell.
        parameters = {'offset.weight': weight * 0.1, 'bias': bias * 0.1}
        arguments = list(maps), torch.cat([index, corners], dim=1), torch.arange(3) % 2
        return torch.func.functional_call(extractor, parameters, arguments)

    assert torch.autograd.gradcheck(run, (corners, *parameters, *maps))


@either
def test_a_bin_without_samples_and_a_roi_that_is_no_number_do_no_harm(modulated):
    extractor = build_extractor('Deformable', SIZE, STRIDES, CHANNELS, modulated=modulated)
    good = wild_rois()
    bad = torch.tensor([[0, torch.nan, 2, 30, 30], [1, 2, 2, torch.inf, 90], [0, 900, 900, 950, 950]])
    results = []
    for rois in (torch.cat([good, bad]), good):
        features = [map_.requires_grad_() for map_ in pyramid()]
        extractor.zero_grad()
        output = extractor(features, rois, torch.zeros(len(rois), dtype=torch.int64))
        output.sum().backward()
        gradients = [parameter.grad.clone() for parameter in extractor.parameters()]
        results.append([output[: len(good)], *gradients, *(map_.grad for map_ in features)])
        if len(rois) > len(good):
            assert output[-3:-1].isnan().all() and not output[-1].any()
    torch.testing.assert_close(*results)


def test_autocast():
    extractor = build_extractor('Deformable', SIZE, STRIDES, CHANNELS, modulated=True)
    features, rois = pyramid(torch.bfloat16), wild_rois()
    with torch.autocast('cpu', torch.bfloat16):
        output = extractor(features, rois)
    assert output.dtype == torch.bfloat16
    with torch.no_grad():
        # What bfloat16 rounds: a sum of five products, hence where a bin reads.
        expected = extractor([map_.float() for map_ in features], rois)
    assert (output - expected).abs().median() < 0.02


def test_rotated_boxes_are_refused():
    extractor = Deformable(SIZE, STRIDES, channels=CHANNELS)
    with pytest.raises(ValueError, match=r'rotated ones.*offsets|offsets: .*K, 6'):
        extractor(pyramid(), torch.tensor([[0, 30.0, 30, 20, 20, 30]]))


@pytest.mark.parametrize('value', [1, None])
def test_a_bad_value_is_named(value):
    with pytest.raises(ValueError, match='modulated: got '):
        Deformable(SIZE, STRIDES, modulated=value, channels=CHANNELS)


def test_learns_to_look_beside_the_box():
    """Something bright lies to the right of each box, and the cells of the box say so."""
    extractor = Deformable((2, 2), [4], channels=2)
    ramp = torch.arange(32.0).expand(1, 1, 32, 32) / 32
    map_ = torch.cat([ramp, torch.ones(1, 1, 32, 32)], dim=1)
    corners = torch.rand(30, 2, generator=generator(1)) * 40
    rois = torch.cat([torch.zeros(30, 1), corners, corners + 36], dim=1)
    with torch.no_grad():
        # 9 cells is the size of a box, 3 a third of it, by which each bin is to move.
        target = AlignAvg((2, 2), [4])([map_], rois)[:, 0] + 3 / 32

    def loss():
        return (extractor([map_], rois)[:, 0] - target).square().mean()

    before = loss().item()
    optimizer = torch.optim.Adam(extractor.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss() < before / 100
    moves = AlignAvg((2, 2), [4])([extractor.offset(map_)], rois) + extractor.bias[:, None, None]
    torch.testing.assert_close(moves[:, 0], torch.full((30, 2, 2), 10 / 3), rtol=0.2, atol=0)


@pytest.mark.parametrize('modulated', [False, True])
def test_an_offset_beyond_float16_is_a_large_one(modulated):
    """The convolution overflows where float32 moves the bin off the map, which reads zeros and not NaN."""
    outputs = []
    for dtype in (torch.float16, torch.float32):
        extractor = Deformable(2, [4], channels=4, modulated=modulated).to(dtype)
        with torch.no_grad():
            extractor.offset.weight.fill_(10)
        map_ = torch.full((1, 4, 16, 16), 5000.0, dtype=dtype)
        map_[:, :, :, 8:] = -5000  # both infinities in one bin
        map_.requires_grad_()
        rois = torch.tensor([[0.0, 2, 2, 60, 60], [0, 2, 2, 10, 10]])
        outputs.append(extractor([map_], rois).float())
        outputs[-1].sum().backward()
        assert map_.grad.isfinite().all() and extractor.offset.weight.grad.isfinite().all()
    assert torch.equal(*outputs)


def test_what_float16_holds_is_not_cut():
    """A box of 0.01 px that moves by 2000 times its size: 20 px, which are 5 cells."""
    extractor = Deformable(1, [4], channels=2)
    with torch.no_grad():
        extractor.offset.weight[0, 1] = 20000  # along x, where the second channel is 1
    column = torch.arange(16.0).expand(1, 1, 16, 16)
    map_ = torch.cat([column, torch.ones_like(column)], dim=1)
    output = extractor([map_], torch.tensor([[0, 10, 10, 10.01, 10.01]]))
    torch.testing.assert_close(output[0, 0], torch.tensor([[7.0]]), rtol=0, atol=0.01)
