"""Content-adaptive averages: align-avg at the start, then weighted by what the cells hold."""

import pytest
import torch
from building import build_extractor

from roi_plugins.extractors import AlignAvg, ContentAdaptive
from roi_plugins.ops import reference

STRIDES = [4, 8, 16]
SIZE = (3, 2)
CHANNELS = 5


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


def oracle(extractor, features, rois, levels):
    """A bin by the formula, in float64 and a loop: sum(w f) / sum(w) over its samples that are on the map,
    each of four cells, times the share of the samples that are.

    What a cell contributes to a sample, and so to a bin, is the derivative of the average by its value.
    """
    weight = extractor.importance.weight.detach().double().flatten()
    rows = []
    for k in range(len(rois)):
        map_ = features[levels[k]][int(rois[k, 0])].double()
        stride = STRIDES[levels[k]]
        taps = torch.autograd.functional.jacobian(
            lambda cells, k=k, stride=stride: reference.roi_extract(
                cells[None, None],
                rois[k : k + 1].double() * torch.tensor([0.0, 1, 1, 1, 1]),
                SIZE,
                1 / stride,
                sampling_ratio=extractor.sampling_ratio,
                aligned=extractor.aligned,
            )[0, 0],
            torch.zeros_like(map_[0]),
        )  # (height, width, H, W)
        importance = torch.einsum('c,chw->hw', weight, map_)
        w = torch.exp(4 * torch.tanh(importance / 4))
        top = torch.einsum('pqhw,hw,chw->cpq', taps, w, map_)
        bottom = torch.einsum('pqhw,hw->pq', taps, w)
        share = taps.sum((2, 3))
        rows.append(torch.where(bottom > 0, top / bottom * share, 0.0))
    return torch.stack(rows)


@pytest.mark.parametrize('options', [{}, dict(sampling_ratio=3, aligned=False), dict(sampling_ratio=0)])
def test_is_the_formula(options):
    extractor = build_extractor('ContentAdaptive', SIZE, STRIDES, CHANNELS, **options)
    features, rois = pyramid(), wild_rois()
    expected = oracle(extractor, features, rois, some_levels(rois))
    assert (expected == 0).any() and expected.any()
    output = extractor(features, rois, some_levels(rois))
    torch.testing.assert_close(output.double(), expected, rtol=1e-4, atol=1e-4)
    plain = AlignAvg(SIZE, STRIDES, **options)(features, rois, some_levels(rois))
    assert (output - plain).abs().max() > 0.1


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_starts_as_align_avg_bit_for_bit(device, dtype, memory_format):
    extractor = ContentAdaptive(SIZE, STRIDES, channels=CHANNELS).to(device, dtype)
    features = [map_.to(device).contiguous(memory_format=memory_format) for map_ in pyramid(dtype)]
    rois = wild_rois().to(device)
    expected = AlignAvg(SIZE, STRIDES)(features, rois)
    output = extractor(features, rois)
    assert output.dtype == dtype
    assert torch.equal(output, expected)


def test_starts_with_the_gradient_of_align_avg():
    grads = []
    for extractor in (ContentAdaptive(SIZE, STRIDES, channels=CHANNELS), AlignAvg(SIZE, STRIDES)):
        features = [map_.requires_grad_() for map_ in pyramid()]
        output = extractor(features, wild_rois())
        output.backward(torch.randn(output.shape, generator=generator(2)))
        grads.append([map_.grad for map_ in features])
    torch.testing.assert_close(*grads)


def test_gradient():
    """Through what is weighted and through the weights, to the maps and to the convolution."""
    extractor = build_extractor('ContentAdaptive', SIZE, STRIDES, CHANNELS).double()
    maps = [map_[:, :, :4, :5].clone().requires_grad_() for map_ in pyramid(torch.float64)]
    corners = torch.tensor([[1.3, 2.1, 14.7, 19.2], [-6, 3, 9, 30], [4, 4, 4, 4], [90, 90, 99, 99]])
    rois = torch.cat([torch.tensor([[0.0], [1], [0], [1]]), corners], dim=1).double()
    weight = extractor.importance.weight.detach().clone().requires_grad_()

    def run(weight, *maps):
        parameters = {'importance.weight': weight}
        return torch.func.functional_call(extractor, parameters, (list(maps), rois, torch.arange(4) % 3))

    assert torch.autograd.gradcheck(run, (weight, *maps))


def test_a_bin_without_samples_and_a_roi_that_is_no_number_do_no_harm():
    extractor = build_extractor('ContentAdaptive', SIZE, STRIDES, CHANNELS)
    features = [map_.requires_grad_() for map_ in pyramid()]
    good = wild_rois()
    bad = torch.tensor([[0, torch.nan, 2, 30, 30], [1, 2, 2, torch.inf, 90], [0, 900, 900, 950, 950]])
    output = extractor(features, torch.cat([good, bad]), torch.zeros(len(good) + 3, dtype=torch.int64))
    assert output[-3:-1].isnan().all() and not output[-1].any()
    assert torch.equal(output[:-3], extractor(features, good, torch.zeros(len(good), dtype=torch.int64)))
    output.sum().backward()
    gradients = [extractor.importance.weight.grad, *(map_.grad for map_ in features)]
    extractor.zero_grad()
    features = [map_.detach().requires_grad_() for map_ in features]
    extractor(features, good, torch.zeros(len(good), dtype=torch.int64)).sum().backward()
    expected = [extractor.importance.weight.grad, *(map_.grad for map_ in features)]
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_however_sure_the_weights_nothing_overflows(dtype):
    extractor = ContentAdaptive(SIZE, [4], channels=CHANNELS).to(dtype)
    with torch.no_grad():
        extractor.importance.weight.fill_(100)
    (feature, *_) = pyramid(dtype)
    feature = (feature * 300).requires_grad_()
    output = extractor([feature], wild_rois())
    output.float().sum().backward()
    assert output.isfinite().all() and feature.grad.isfinite().all()
    # An average is between the values that it is of.
    assert output.abs().max() <= feature.abs().max() * 1.01


def in_half_and_in_full(weight, value, scale=1.0):
    """Output and gradient of maps of one value, in float16 and in float64, `scale` the output's gradient."""
    results = []
    for dtype in (torch.float16, torch.float64):
        extractor = ContentAdaptive(SIZE, [4], channels=CHANNELS).to(dtype)
        with torch.no_grad():
            extractor.importance.weight.fill_(weight)
        feature = torch.full((2, CHANNELS, 16, 24), value, dtype=dtype, requires_grad=True)
        output = extractor([feature], wild_rois())
        output.backward(torch.full_like(output, scale))
        results.append((output.double(), feature.grad.double()))
    return results


@pytest.mark.parametrize('weight', [-1.0, -1e-4, 0.0, 1e-4, 1.0])
@pytest.mark.parametrize('value', [1300.0, -1300.0, 60000.0, 0.01])
def test_float16_holds_what_it_weighs(weight, value):
    """55 times 1300 is no float16, and 0.01 / 55 is a poor one."""
    half, full = in_half_and_in_full(weight, value)
    assert full[0].abs().max() > abs(value) * 0.99
    torch.testing.assert_close(half[0], full[0], rtol=1e-3, atol=0)
    # A convolution in float16 sums up to a few ulps, which exp() makes more of.
    torch.testing.assert_close(half[1], full[1], rtol=0.02, atol=1e-3)


@pytest.mark.parametrize('weight', [-1.0, 1.0])
def test_float16_holds_the_gradient_that_it_weighs(weight):
    """Under a loss scale: where importance is low, the gradient of what was weighted is 55 times as large."""
    half, full = in_half_and_in_full(weight, 1300.0, scale=3000.0)
    assert full[1].abs().max() < 60000
    torch.testing.assert_close(half[1], full[1], rtol=0.01, atol=1)


def test_autocast():
    extractor = build_extractor('ContentAdaptive', SIZE, STRIDES, CHANNELS)
    features, rois = pyramid(torch.bfloat16), wild_rois()
    with torch.autocast('cpu', torch.bfloat16):
        output = extractor(features, rois)
    assert output.dtype == torch.bfloat16
    expected = extractor([map_.float() for map_ in features], rois)
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)


def test_learns_to_tell_what_matters():
    """Of two kinds of cells, one is noise: the weights find it."""
    extractor = ContentAdaptive((2, 2), [4], channels=2)
    noise = torch.rand(1, 1, 16, 16, generator=generator()) < 0.5
    signal = torch.where(noise, torch.randn(1, 1, 16, 16, generator=generator(3)) * 3, 1.0)
    map_ = torch.cat([signal, noise.float()], dim=1)
    rois = torch.cat([torch.zeros(30, 1), torch.rand(30, 2, generator=generator(1)) * 20], dim=1)
    rois = torch.cat([rois, rois[:, 1:] + 36], dim=1)

    def loss():
        return (extractor([map_], rois)[:, 0] - 1).square().mean()

    before = loss().item()
    optimizer = torch.optim.Adam(extractor.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss() < before / 10
    assert extractor.importance.weight[0, 1] < -1
