"""The op and its pure-PyTorch twin against the float64 oracle, forward and backward."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import oracle
import pytest
import torch
from cases import METHODS, align, fitted, generator, integral, pool, random_map, random_rois, warp
from hypothesis import given, settings
from hypothesis import strategies as st

from roi_plugins.ops import reference, roi_extract

every_method = pytest.mark.parametrize('method', METHODS.values(), ids=METHODS)


@pytest.fixture(params=[roi_extract, reference.roi_extract], ids=['op', 'reference'], scope='module')
def extract(request):
    return request.param


def to_numpy(tensor):
    return tensor.detach().double().cpu().numpy()


def check(
    extract,
    features,
    rois,
    output_size,
    spatial_scale,
    *,
    levels=None,
    gradient_at_ties=False,
    **method,
):
    """Holds output and gradient of `extract` against the oracle's; returns the output. The maps have as many
    channels as the output and the RoIs are upright: a method that wants other ones gets them.

    Where rounding alone decides which cells are read, a RoI is left out, and so is the gradient of
    a maximum that leads by no more than rounding: unless ties are exact (`gradient_at_ties`).
    """
    features, rois, method = fitted(method, features, rois, output_size)
    single = isinstance(features, torch.Tensor)
    leaves = [f.detach().requires_grad_() for f in ([features] if single else features)]
    dtype = leaves[0].dtype
    output = extract(
        leaves[0] if single else leaves, rois, output_size, spatial_scale, levels=levels, **method
    )
    coord = np.float64 if dtype == torch.float64 else np.float32
    maps = [to_numpy(f) for f in leaves]
    expected = oracle.roi_extract(
        maps[0] if single else maps,
        to_numpy(rois),
        output_size,
        spatial_scale,
        levels=None if levels is None else levels.cpu().numpy(),
        coord=coord,
        **{name: to_numpy(x) if isinstance(x, torch.Tensor) else x for name, x in method.items()},
    )
    assert output.dtype == dtype
    assert output.device == leaves[0].device
    assert output.shape == expected.output.shape

    # A position is off by some roundings of the largest coordinate, a value by that times a slope.
    scale = spatial_scale if single else max(spatial_scale)
    reach = 1 + np.nan_to_num(np.abs(to_numpy(rois)), posinf=0).max(initial=0) * scale
    position_error = 16 * np.finfo(coord).eps * reach
    value_error = position_error * max(np.abs(m).max() for m in maps)
    rounding = torch.finfo(dtype).eps

    certain = expected.clearance > position_error
    np.testing.assert_allclose(
        to_numpy(output)[certain], expected.output[certain], rtol=2 * rounding, atol=value_error
    )

    grad_output = torch.randn(output.shape, generator=generator(1)).to(dtype)
    decided = np.broadcast_to(certain[:, None, None, None], output.shape)
    if method['reduction'] == 'max' and not gradient_at_ties:
        decided = decided & (expected.lead > 2 * value_error)
    grad_output[torch.from_numpy(~decided)] = 0
    output.backward(grad_output.to(output.device))
    taken = expected.backward(np.abs(to_numpy(grad_output)))
    for leaf, grad, total in zip(leaves, expected.backward(to_numpy(grad_output)), taken, strict=True):
        assert leaf.grad.dtype == dtype
        np.testing.assert_allclose(
            to_numpy(leaf.grad),
            grad,
            rtol=rounding,
            atol=2 * position_error * max(total.max(), 1),
        )
    return output.detach()


@every_method
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_every_method(device, extract, method, dtype):
    features = random_map(2, 3, 9, 13, dtype=dtype, device=device)
    rois = random_rois(10, 2, 36, 52, dtype=dtype, device=device)
    check(extract, features, rois, (3, 2), 0.25, **method)


@every_method
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_half_features(device, extract, method, dtype):
    """Accumulation is float32: output and gradient are off by one rounding at the end."""
    features = random_map(2, 3, 9, 13, dtype=dtype, device=device)
    rois = random_rois(10, 2, 36, 52, device=device)
    check(extract, features, rois, (2, 2), 0.25, **method)


@pytest.mark.parametrize('reduction', ['avg', 'max'])
@pytest.mark.parametrize('output_size', [(1, 1), (1, 5), (7, 7), (14, 14)], ids=str)
def test_output_sizes(device, extract, reduction, output_size):
    features = random_map(1, 2, 8, 8, device=device)
    rois = random_rois(3, 1, 64, 64, device=device)
    check(extract, features, rois, output_size, 0.125, **align(reduction, 0))
    check(extract, features, rois, output_size, 0.125, **pool(reduction, 'round'))


@pytest.mark.parametrize('output_size', [(1, 1), (1, 5), (14, 14)], ids=str)
def test_output_sizes_of_an_integral(device, extract, output_size):
    features = random_map(1, 2, 8, 8, device=device)
    rois = random_rois(3, 1, 64, 64, device=device)
    check(extract, features, rois, output_size, 0.125, **integral())


@pytest.mark.parametrize('map_size', [(1, 1), (1, 6), (6, 1)], ids=str)
@pytest.mark.parametrize('method', ['align-avg', 'align-max', 'pool-round-max', 'pool-bins-avg', 'integral'])
def test_maps_of_one_row_or_column(device, extract, map_size, method):
    features = random_map(1, 2, *map_size, device=device)
    rois = random_rois(6, 1, *map_size, device=device)
    check(extract, features, rois, (2, 2), 1.0, **METHODS[method])


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('reduction', ['avg', 'max'])
def test_large_maps_are_alike_in_both_layouts(device, reduction, dtype):
    """In NCHW the CPU copies a map that RoIs share: of this one, 16 of 40 channels at once."""
    features = random_map(1, 40, 260, 250, dtype=dtype, device=device)
    rois = random_rois(12, 1, 260, 250, dtype=torch.promote_types(dtype, torch.float32), device=device)
    found = []
    for format in (torch.contiguous_format, torch.channels_last):
        map_ = features.contiguous(memory_format=format).requires_grad_()
        output = roi_extract(map_, rois, 9, 1.0, **align(reduction, 2))
        grad_output = random_map(*output.shape, dtype=dtype, device=device, seed=1)
        found.append((output.detach(), *torch.autograd.grad(output, map_, grad_output)))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])


@pytest.mark.parametrize('channels', [1, 2, 7, 16, 33])
@pytest.mark.parametrize('channels_last', [False, True], ids=['nchw', 'channels_last'])
def test_any_number_of_channels(device, extract, channels, channels_last):
    """Whatever the width of a vector register or a load, the remainder is right too."""
    features = random_map(1, channels, 5, 6, device=device)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    rois = random_rois(2, 1, 5, 6, device=device)
    for method in (align('avg'), align('max'), pool('max', 'round'), integral()):
        check(extract, features, rois, (2, 2), 1.0, **method)


class TestLayout:
    rois = random_rois(6, 2, 9, 13)

    @every_method
    def test_channels_last_in_and_out(self, device, extract, method):
        features = random_map(2, 5, 9, 13, device=device)
        features = features.contiguous(memory_format=torch.channels_last)
        output = check(extract, features, self.rois.to(device), (2, 3), 1.0, **method)
        assert output.is_contiguous(memory_format=torch.channels_last)

    @pytest.mark.parametrize('method', ['align-avg', 'align-max', 'pool-round-max', 'integral'])
    def test_nchw_in_and_out(self, device, extract, method):
        features = random_map(2, 5, 9, 13, device=device)
        output = check(extract, features, self.rois.to(device), (2, 3), 1.0, **METHODS[method])
        assert output.is_contiguous()

    @pytest.mark.parametrize('method', ['align-avg', 'align-max', 'pool-round-max', 'integral'])
    @pytest.mark.parametrize(
        'view',
        [
            lambda f: random_map(2, 5, 18, 26).to(f)[:, :, ::2, ::2],
            lambda f: random_map(4, 10, 9, 13).to(f)[::2, ::2],
            lambda f: f.transpose(2, 3).contiguous().transpose(2, 3),
            lambda f: f[:1, :1].expand(2, 5, -1, -1),
            lambda f: f.contiguous(memory_format=torch.channels_last)[:, 1:4],
        ],
        ids=[
            'half the cells',
            'half the channels',
            'transposed',
            'expanded',
            'channel slice',
        ],
    )
    def test_non_contiguous(self, device, extract, method, view):
        features = view(random_map(2, 5, 9, 13, device=device))
        check(extract, features, self.rois.to(device), (2, 3), 1.0, **METHODS[method])

    def test_non_contiguous_rois_and_gradient(self, device, extract):
        features = random_map(2, 5, 9, 13, device=device).requires_grad_()
        spread = torch.full((6, 10), torch.nan)
        spread[:, ::2] = self.rois
        output = extract(features, spread.to(device)[:, ::2], (2, 3), 1.0)
        assert torch.equal(output, extract(features, self.rois.to(device), (2, 3), 1.0))
        # The gradient of a sum is an expanded scalar, that of a permuted output is strided.
        one, two = torch.autograd.grad(
            [output.sum(), (output.permute(3, 2, 1, 0) * 2).sum()], features, retain_graph=True
        ), torch.autograd.grad(output, features, torch.full_like(output, 3))  # fmt: skip
        torch.testing.assert_close(one, two)

    @pytest.mark.parametrize('method', ['align-avg', 'align-max', 'pool-round-max', 'integral'])
    def test_layouts_agree(self, device, method):
        features = random_map(2, 5, 9, 13, device=device)
        rois = self.rois.to(device)
        nchw = roi_extract(features, rois, (2, 3), 1.0, **METHODS[method])
        nhwc = roi_extract(
            features.contiguous(memory_format=torch.channels_last),
            rois, (2, 3), 1.0, **METHODS[method],
        )  # fmt: skip
        torch.testing.assert_close(nhwc, nchw, rtol=1e-6, atol=1e-6)


class TestPyramid:
    scales = [0.25, 0.125, 0.0625]

    def pyramid(self, device, dtype=torch.float32):
        return [
            random_map(2, 3, 16 // 2**i, 20 // 2**i, dtype=dtype, device=device, seed=i) for i in range(3)
        ]

    @every_method
    def test_every_level_and_none(self, device, extract, method):
        rois = random_rois(9, 2, 64, 80, device=device)
        levels = torch.tensor([2, 0, 1, -1, 2, 0, 3, 2**40, -(2**63)], device=device)
        output = check(extract, self.pyramid(device), rois, (2, 2), self.scales, levels=levels, **method)
        assert not output[(levels < 0) | (levels > 2)].any()

    @pytest.mark.parametrize('method', ['align-avg', 'align-max', 'pool-round-max', 'integral'])
    def test_levels_are_single_maps_in_the_order_of_the_rois(self, device, extract, method):
        pyramid, rois = self.pyramid(device), random_rois(12, 2, 64, 80, device=device)
        levels = torch.arange(12, device=device) % 3
        output = extract(pyramid, rois, (2, 2), self.scales, levels=levels, **METHODS[method])
        for i, (features, scale) in enumerate(zip(pyramid, self.scales, strict=True)):
            alone = extract(features, rois[levels == i], (2, 2), scale, **METHODS[method])
            assert torch.equal(output[levels == i], alone)

    def test_no_box_on_a_level(self, device, extract):
        """Every map gets a gradient, if only of zeros: distributed training waits for it."""
        leaves = [f.requires_grad_() for f in self.pyramid(device)]
        rois = random_rois(4, 2, 64, 80, device=device)
        levels = torch.ones(4, dtype=torch.int64, device=device)
        extract(leaves, rois, 2, self.scales, levels=levels).sum().backward()
        assert not leaves[0].grad.any()
        assert leaves[1].grad.any()
        assert not leaves[2].grad.any()

    def test_some_maps_need_no_gradient(self, device, extract):
        leaves = self.pyramid(device)
        leaves[1].requires_grad_()
        rois = random_rois(4, 2, 64, 80, device=device)
        levels = torch.tensor([0, 1, 2, 1], device=device)
        extract(leaves, rois, 2, self.scales, levels=levels).sum().backward()
        assert leaves[1].grad.any()
        assert leaves[0].grad is None

    def test_a_pyramid_of_one(self, device, extract):
        features, rois = (
            random_map(2, 3, 8, 8, device=device),
            random_rois(4, 2, 8, 8, device=device),
        )
        levels = torch.tensor([0, -1, 0, 1], device=device)
        output = extract([features], rois, 2, [1.0], levels=levels)
        alone = extract(features, rois, 2, 1.0)
        assert torch.equal(output[[0, 2]], alone[[0, 2]])
        assert not output[[1, 3]].any()

    @pytest.mark.parametrize('dtype', [torch.float16, torch.float64], ids=str)
    def test_dtypes(self, device, extract, dtype):
        rois = random_rois(6, 2, 64, 80, device=device)
        levels = torch.arange(6, device=device) % 3
        check(
            extract, self.pyramid(device, dtype), rois, (2, 2), self.scales,
            levels=levels, **align('max'),
        )  # fmt: skip

    def test_maps_of_mixed_layouts(self, device, extract):
        pyramid, rois = self.pyramid(device), random_rois(6, 2, 64, 80, device=device)
        levels = torch.arange(6, device=device) % 3
        mixed = [pyramid[0], pyramid[1].contiguous(memory_format=torch.channels_last), pyramid[2]]
        check(extract, mixed, rois, (2, 2), self.scales, levels=levels, **align('avg'))


# Wild boxes --------------------------------------------------------------------------------------

CELLS_WITH_PARITY = 2.0**20  # beyond, float32 has no cells left
anything = st.one_of(
    st.integers(-40, 80).map(lambda i: i / 8),  # on the lattice of an 8 x 6 map, and around it
    st.floats(-20, 30, width=32),
    st.floats(-1e4, 1e4, width=32),
    st.floats(-(2.0**99), 2.0**99, width=32),
    st.sampled_from([1e30, -1e30, 3.4e38, -3.4e38, 0.0, -0.0, -1.0, 6.0, 8.0, 1e-38]),
    st.sampled_from([float('nan'), float('inf'), float('-inf')]),
)
near = st.one_of(st.integers(-24, 80).map(lambda i: i / 8), st.floats(-3, 12, width=32))
box = st.one_of(
    st.tuples(near, near, near, near),
    st.tuples(near, near, near, near).map(lambda b: (b[0], b[1], b[0], b[3])),  # no width
    st.tuples(anything, anything, anything, anything),
)


def as_rois(boxes, dtype=torch.float32, device='cpu'):
    return torch.tensor([(i % 2, *b) for i, b in enumerate(boxes)], dtype=dtype, device=device)


def wild_boxes(one_in):
    """Drawn boxes around a map of 6 x 8 cells and far away from it; one in so many of the profile's
    number of examples.
    """

    def decorate(test):
        test = given(
            boxes=st.lists(box, min_size=1, max_size=4),
            scale=st.sampled_from([1.0, 0.5, 0.3]),
            bins=st.sampled_from([1, 2, 3]),
        )(test)
        return every_method(settings(max_examples=settings().max_examples // one_in)(test))

    return decorate


@wild_boxes(one_in=4)
def test_wild_boxes(device, method, boxes, scale, bins):
    check_wild_boxes(roi_extract, device, method, boxes, scale, bins)


@wild_boxes(one_in=16)
def test_wild_boxes_in_the_reference(device, method, boxes, scale, bins):
    check_wild_boxes(reference.roi_extract, device, method, boxes, scale, bins)


def moving(rois, options):
    """What of a method's arguments has a gradient besides the features."""
    if rois.shape[1] == 6 and options['reduction'] == 'integral':
        return []
    return [rois, *(options[name] for name in ('offsets',) if name in options)]


def check_wild_boxes(extract, device, method, boxes, scale, bins):
    """Any box gives a finite answer and gradient in bounded time, a sane one the right one."""
    for dtype in (torch.float32, torch.float64):
        maps = random_map(2, 2, 6, 8, dtype=dtype, device=device)
        features, rois, options = fitted(method, maps, as_rois(boxes, dtype, device), (2, bins))
        moved = moving(rois, options)
        for leaf in (features, *moved):
            leaf.requires_grad_()
        output = extract(features, rois, (2, bins), scale, **options)
        output.sum().backward()
        finite = rois[:, 1:].isfinite().all(dim=1)
        assert output[finite].isfinite().all()
        assert output[~finite].isnan().all()
        assert features.grad.isfinite().all()
        for leaf in moved:
            assert leaf.grad.isfinite().all()
            assert not leaf.grad[~finite].any()

    # The oracle visits every sample, so it is asked about boxes of moderate size only.
    rois = as_rois(boxes, dtype, device)
    finite = rois[:, 1:].isfinite().all(dim=1)
    size = (rois[:, 3:] - rois[:, 1:3]).abs().amax(dim=1)
    small = ~finite | ((size < 60) & (rois[:, 1:].abs().amax(dim=1) < CELLS_WITH_PARITY))
    check(extract, maps, rois[small], (2, bins), scale, **method)


@pytest.mark.parametrize('reduction', ['avg', 'max'])
@pytest.mark.parametrize('region', ['none', 'round'])
@pytest.mark.parametrize('size', [1000.3, 99999.7, 2.0**20 - 2.6])
def test_enormous_adaptive_grids(device, extract, region, reduction, size):
    """Millions of samples a bin, of which a few lie on the map: all count, few cost."""
    features = torch.ones(1, 1, 6, 8, dtype=torch.float64, device=device)
    box = [-size / 4, -size / 8, size * 3 / 4, size * 7 / 8]
    rois = torch.tensor([[0.0, *box]], dtype=torch.float64, device=device)
    method = {'region': region, 'sampling_ratio': 0, 'reduction': reduction}
    output = extract(features, rois, (1, 1), 1.0, **method)
    if reduction == 'max':
        assert output.item() == 1
        return
    shares = []
    for low, high, extent in ((box[1], box[3], 6), (box[0], box[2], 8)):
        start, length = low - 0.5, high - low
        if region == 'round':
            start = oracle.round_half_away(low)
            length = oracle.round_half_away(high) - start + 1
            start -= 0.5
        samples = np.ceil(length)
        positions = start + (np.arange(samples) + 0.5) * (length / samples)
        shares.append(np.mean((positions >= -1) & (positions <= extent)))
    np.testing.assert_allclose(output.item(), shares[0] * shares[1], rtol=1e-9)


@every_method
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_work_is_bounded_by_the_map(device, extract, method, dtype):
    """These boxes hold up to 1e77 cells, of which float32 knows no number: visiting them would never end."""
    far = [1e6, 1e12, 1e30, 1e38]
    boxes = [box for f in far for box in ((-f, -f, f, f), (2, 2, f, f), (f, f, -f, 3))]
    maps = random_map(2, 2, 6, 8, dtype=dtype, device=device)
    features, rois, options = fitted(method, maps, as_rois(boxes, dtype, device), (2, 2))
    leaves = [features, *moving(rois, options)]
    for leaf in leaves:
        leaf.requires_grad_()
    output = extract(features, rois, 2, 4.0, **options)
    output.sum().backward()
    assert output.isfinite().all()
    for leaf in leaves:
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), float('-inf')], ids=str)
@pytest.mark.parametrize('column', [1, 2, 3, 4])
@pytest.mark.parametrize(
    'method',
    ['align-avg', 'adaptive-max', 'pool-bins-avg', 'integral', 'rotated-max', 'rotated-integral', 'ps-pool'],
)
def test_non_finite_coordinates_show_and_pass_no_gradient(device, extract, method, bad, column):
    features, rois, method = fitted(
        METHODS[method],
        random_map(2, 2, 6, 8, device=device),
        random_rois(5, 2, 6, 8, device=device),
        (2, 2),
    )
    features.requires_grad_()
    rois[1, column] = bad
    rois[3, column] = bad
    levels = torch.tensor([0, 0, 0, -1, 0], device=device)
    output = extract([features], rois, 2, [1.0], levels=levels, **method)
    assert output[[1, 3]].isnan().all()
    assert output[[0, 2, 4]].isfinite().all()
    (grad,) = torch.autograd.grad(output, features, torch.ones_like(output), retain_graph=True)
    without = torch.ones_like(output)
    without[[1, 3]] = torch.nan  # as the loss sends it back
    (grad_of_nan,) = torch.autograd.grad(output, features, without)
    assert torch.equal(grad_of_nan, grad)
    good = rois[[0, 2, 4]]
    alone = extract(features, good, 2, 1.0, **method)
    torch.testing.assert_close(grad, torch.autograd.grad(alone.sum(), features)[0])


def test_borders_of_the_range(device, extract):
    """A point at -1 or at H still reads the border cell; the next float beyond reads 0."""
    features = torch.full((1, 1, 4, 4), 3.0, dtype=torch.float64, device=device)

    def read_at(y, x, *size):  # a box without a size has its points where it is
        corners = [x + 0.5, y + 0.5, *(size or (x + 0.5, y + 0.5))]
        rois = torch.tensor([[0, *corners]], dtype=torch.float64, device=device)
        return extract(features, rois, 1, 1.0, sampling_ratio=1).item()

    for rotated in ((), (0, 0, 0)):
        for border, beyond in ((-1.0, -1 - 2.0**-30), (4.0, 4 + 2.0**-30)):
            assert read_at(border, 1, *rotated) == read_at(1, border, *rotated) == 3
            assert read_at(beyond, 1, *rotated) == read_at(1, beyond, *rotated) == 0


def test_border_of_the_range_for_many_rotated_samples(device, extract):
    """The last of 11 rows lies at -1, or the first at H, by numbers that float32 has: so it is read."""
    features = torch.full((1, 1, 4, 4), 3.0, device=device)
    for middle in (-16, 19):  # a row every 3 cells, of 11 samples a cell apart: from -4 to 6
        along, across = [[0, 1.5, middle + 0.5, 11, 33, 0]], [[0, middle + 0.5, 1.5, 33, 11, 0]]
        for box in (along, across):
            output = extract(features, torch.tensor(box, device=device), 1, 1.0, sampling_ratio=11)
            np.testing.assert_allclose(output.item(), 3 * 6 / 121, rtol=1e-6)


# The last one has no size where MMCV's RoIPool has added its pixel, and ends within a cell.
@pytest.mark.parametrize(
    'box', [(3, 3, 3, 3), (4, 2, 4, 6), (5, 5, 2, 2), (5, 1, 2, 4), (4.5, 1, 3.5, 4)], ids=str
)
def test_boxes_without_a_positive_size(device, extract, box):
    rois = as_rois([box, box], torch.float64, device)
    features = random_map(2, 2, 6, 8, dtype=torch.float64, device=device)
    for method in METHODS.values():
        check(extract, features, rois, (2, 2), 1.0, **method)
    for reduction in ('avg', 'max'):  # no samples at all, however many are asked for at least
        method = align(reduction, 0, min_samples=2)
        assert not extract(features, rois, 2, 1.0, **method).any()


def test_many_random_samples_of_a_rotated_bin(device, extract):
    """They reach its edges, further than samples in the middles of their strata."""
    features = random_map(2, 3, 20, 24, dtype=torch.float64, device=device)
    rois = random_rois(20, 2, 20, 24, dtype=torch.float64, device=device)
    check(extract, features, rois, (3, 2), 1.0, **align('avg', 5, rotated=True, seed=3))


def test_rotated_bins_of_a_cell_more_than_before():
    """What a new thread keeps for one grows by as little: `make sanitize` sees the last cell."""
    features = random_map(1, 2, 1, 40, dtype=torch.float64)
    boxes = [[0, 2.75 + width / 2, 0.5, width, 1, 0] for width in range(1, 30)]
    rois = torch.tensor(boxes, dtype=torch.float64)
    with ThreadPoolExecutor(1) as thread:
        outputs = thread.map(lambda roi: roi_extract(features, roi[None], 1, 1.0, **integral()), rois)
    expected = reference.roi_extract(features, rois, 1, 1.0, **integral())
    torch.testing.assert_close(torch.cat(list(outputs)), expected)


# The integral ------------------------------------------------------------------------------------


@pytest.mark.parametrize('aligned', [True, False], ids=['aligned', 'legacy'])
def test_integral_is_the_limit_of_dense_grids(device, extract, aligned):
    """Away from the border, where a grid clamps and the integral does not."""
    features = random_map(1, 3, 12, 14, dtype=torch.float64, device=device)
    rois = random_rois(8, 1, 10, 12, dtype=torch.float64, device=device)
    rois[:, 1:] = rois[:, 1:].clamp(min=0) * 0.8 + 1
    rois[:, 3:] += 1  # no smaller than what a legacy grid makes of it
    exact = extract(features, rois, (3, 2), 1.0, **integral(aligned=aligned))
    errors = []
    for sampling_ratio in (8, 64):
        dense = extract(features, rois, (3, 2), 1.0, **align('avg', sampling_ratio, aligned=aligned))
        errors.append((dense - exact).abs().max())
    assert errors[1] < errors[0] / 16  # an error of the midpoint rule falls with the square
    assert errors[1] < 5e-3


@pytest.mark.parametrize('channels_last', [False, True], ids=['nchw', 'channels_last'])
def test_integral_of_a_small_box(device, extract, channels_last):
    """Down to where float32 has no position between its sides it is the value there; then it is 0."""
    features = random_map(1, 9, 40, 40, device=device)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    rois = torch.tensor([[0, 30.25, 30.25, 30.25 + size, 30.25 + size] for size in (1e-2, 1e-4, 1e-7, 0)])
    output = extract(features, rois.to(device), 1, 1.0, **integral(aligned=False))
    around = features[0, :, 30:32, 30:32]
    weights = torch.tensor([0.75, 0.25], device=device)
    there = torch.einsum('cyx,y,x->c', around, weights, weights)
    for row, error in zip(output[:2, :, 0, 0], (1e-1, 1e-3), strict=True):
        torch.testing.assert_close(row, there, rtol=0, atol=error)
    assert not output[2:].any()


def test_integral_reads_no_cell_without_weight(device, extract):
    """Bins that end on a cell, or next to it, leave an infinite neighbour alone."""
    features = torch.ones(1, 3, 6, 6, device=device)
    features[..., 0] = features[..., 5] = torch.inf
    below, above = np.nextafter(np.float32([5, 1]), np.float32([0, 9]))
    rois = torch.tensor([[0, 1, 1, 4, 4], [0, above, 1, 4, 4], [0, 1, 1, below - 1, 4]], device=device)
    output = extract(features, rois, 2, 1.0, **integral(aligned=False))
    torch.testing.assert_close(output, torch.ones_like(output))


# The maximum -------------------------------------------------------------------------------------

MAX_METHODS = {name: method for name, method in METHODS.items() if method['reduction'] == 'max'}


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize('channels_last', [False, True], ids=['nchw', 'channels_last'])
@pytest.mark.parametrize(
    'method',
    [align('max'), align('max', 4), align('max', 2, aligned=False), warp('max'),
     pool('max', 'round'), pool('max', 'floor'), pool('max', 'bins')],
    ids=['align', 'align-4', 'align-legacy', 'warp', 'pool-round', 'pool-floor', 'pool-bins'],
)  # fmt: skip
def test_ties_go_to_the_first_in_scan_order(device, extract, method, channels_last, dtype):
    """After a ReLU most readings are 0, as is all that lies out of range; one gets the gradient.

    All coordinates are short binary fractions, so ties are exact in every dtype.
    """
    features = random_map(1, 20, 6, 8, seed=3).relu()
    features = ((features * 4).round() / 4).to(device, dtype)
    features[:, 5:8] = 0
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    boxes = [(1, 1, 5, 5), (-3, -3, 1, 1), (-3, 2, 5, 4), (6, 3, 12, 9), (1, -4, 3, 12),
             (-8, -8, 16, 16), (2, 2, 2, 2), (4.5, 1.25, 7.75, 5.5), (20, 20, 24, 24)]  # fmt: skip
    rois = torch.tensor([(0, *box) for box in boxes], dtype=torch.float32, device=device)
    check(extract, features, rois, (2, 2), 1.0, gradient_at_ties=True, **method)


def test_zero_out_of_range_competes(device, extract):
    """On a negative map a point out of range wins, and its gradient goes nowhere."""
    features = torch.full((1, 1, 4, 4), -2.0, device=device, requires_grad=True)
    rois = torch.tensor([[0.0, -4, 0, 4, 4], [0, 0, 0, 8, 4], [0, 0, 0, 4, 4]], device=device)
    output = extract(features, rois, 1, 1.0, sampling_ratio=2, reduction='max')
    assert output.flatten().tolist() == [0, 0, -2]
    output[:2].sum().backward()
    assert not features.grad.any()


def test_zero_out_of_range_comes_in_its_turn(device, extract):
    """Of two zeros the first in scan order wins, be it on the map or beside it."""
    features = torch.zeros(1, 1, 4, 4, device=device, requires_grad=True)
    leaves_on_the_left = torch.tensor([[0.0, -4, 0, 4, 4]], device=device)
    leaves_on_the_right = torch.tensor([[0.0, 0, 0, 8, 4]], device=device)
    for rois, received in ((leaves_on_the_left, 0), (leaves_on_the_right, 1)):
        for sampling_ratio in (2, 0):
            output = extract(features, rois, 1, 1.0, sampling_ratio=sampling_ratio, reduction='max')
            (grad,) = torch.autograd.grad(output.sum(), features)
            assert grad.sum() == received
    with torch.no_grad():
        features[:, :, :2] = -1  # the zero beside these rows comes before those on the map
    for ratio in (2, 0):
        output = extract(features, leaves_on_the_right, 1, 1.0, sampling_ratio=ratio, reduction='max')
        (grad,) = torch.autograd.grad(output.sum(), features)
        assert output.item() == 0 and not grad.any()


@pytest.mark.parametrize('method', MAX_METHODS.values(), ids=MAX_METHODS)
@pytest.mark.parametrize('channels_last', [False, True], ids=['nchw', 'channels_last'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16], ids=str)
def test_nan_features_propagate(device, extract, method, channels_last, dtype):
    features = random_map(1, 19, 8, 8, dtype=dtype, device=device)
    features[:, ::3, 3, 4] = torch.nan
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    # Off the lattice, so that no tap has the weight 0: whether 0 * NaN is read is nobody's business.
    rois = torch.tensor([[0.0, 0.1, 0.1, 8.2, 8.2]], device=device)
    _, rois, method = fitted(method, features, rois, (4, 4))
    output = extract(features, rois, 4, 1.0, **method)
    expected = oracle.roi_extract(to_numpy(features), to_numpy(rois), (4, 4), 1.0, coord=np.float32, **method)
    assert np.isnan(expected.output).any()
    assert not np.isnan(expected.output[:, 1]).any()
    np.testing.assert_array_equal(np.isnan(to_numpy(output)), np.isnan(expected.output))


@pytest.mark.parametrize(
    'method',
    [pool('max', 'round'), pool('max', 'floor'), align('max', 6), align('max', 6, rotated=True)],
    ids=['pool-round', 'pool-floor', 'align', 'rotated'],
)
@pytest.mark.parametrize('channels_last', [False, True], ids=['nchw', 'channels_last'])
def test_of_several_nans_the_last_wins(device, extract, method, channels_last):
    features = random_map(1, 20, 6, 6, device=device)
    for y, x in ((1, 1), (3, 2), (2, 4)):
        features[:, ::2, y, x] = torch.nan
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    rois = torch.tensor([[0.0, 0, 0, 6, 6]], device=device)
    _, rois, method = fitted(method, features, rois, (1, 1))
    rois[:, 5:] = 0  # every sample lies on a cell
    output = extract(features.requires_grad_(), rois, 1, 1.0, **method)
    output.sum().backward()
    last = torch.zeros(6, 6, device=device)
    last[3, 2] = 1
    assert torch.equal(features.grad[0, ::2], last.expand(10, -1, -1))
    assert output[0, 1::2].isfinite().all()


@pytest.mark.parametrize('region', ['round', 'floor', 'bins'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16], ids=str)
def test_maximum_of_the_lowest_values(device, extract, region, dtype):
    """Nothing is clipped from below: not at -10000, not at the lowest float."""
    lowest = [-20000.0, torch.finfo(dtype).min, -torch.inf]
    features = torch.tensor(lowest, dtype=dtype, device=device)[None, :, None, None]
    features = features.repeat(1, 1, 4, 4).requires_grad_()
    rois = torch.tensor([[0.0, 0, 0, 3, 3]], device=device)
    output = extract(features, rois, 1, 1.0, **pool('max', region))
    assert torch.equal(output.flatten(), features[0, :, 0, 0])
    output.sum().backward()
    first = torch.zeros(3, 4, 4, dtype=dtype, device=device)
    first[:, 0, 0] = 1
    assert torch.equal(features.grad[0], first)


@pytest.mark.parametrize(
    'method',
    [align('max', 15), align('max', 16), align('max', 17), align('max', 0, max_samples=15),
     align('max', 0, max_samples=16), align('max', 0), warp('max', 16), pool('max', 'round'),
     pool('max', 'floor'), pool('max', 'bins')],
    ids=['15x15', '16x16', '17x17', 'at most 15', 'at most 16', 'unbounded', 'warp 16x16',
         'pool-round', 'pool-floor', 'pool-bins'],
)  # fmt: skip
@pytest.mark.parametrize('channels_last', [False, True], ids=['nchw', 'channels_last'])
def test_argmax_in_large_grids(device, extract, method, channels_last):
    """An argmax is kept in one byte where 255 are enough: all the way to the last sample and on."""
    extent = 40
    boxes = [(0, 0, 40, 40), (0.5, 0.5, 20.25, 38.75), (-10, -10, 30, 30), (9.9, 19.9, 60, 60)]
    rois = torch.tensor([(0, *box) for box in boxes], dtype=torch.float32, device=device)
    for rising in (1, -1):  # the last sample on the map wins, then the first; and noise decides
        steps = torch.arange(extent, dtype=torch.float32)
        slope = rising * (3 * steps[:, None] + 2 * steps) + 500
        features = torch.stack([slope, random_map(extent, extent)])[None].to(device)
        if channels_last:
            features = features.contiguous(memory_format=torch.channels_last)
        check(extract, features, rois, (1, 1), 1.0, **method)


# Emptiness, dtypes, gradients, determinism -------------------------------------------------------


@every_method
@pytest.mark.parametrize('shape', [(2, 3, 5, 6), (2, 0, 5, 6), (0, 3, 5, 6), (0, 0, 5, 6)], ids=str)
def test_nothing_to_read(device, extract, method, shape):
    num_rois = 4 if shape == (2, 0, 5, 6) else 0
    rois = random_rois(num_rois, 2, 5, 6, device=device)
    features, rois, method = fitted(method, torch.zeros(shape, device=device), rois, (3, 2))
    features.requires_grad_()
    output = extract(features, rois, (3, 2), 1.0, **method)
    assert output.shape == (num_rois, shape[1], 3, 2)
    output.sum().backward()
    assert features.grad.shape == features.shape
    assert not features.grad.any()


def test_no_rois_on_a_pyramid(device, extract):
    pyramid = [torch.ones(2, 3, n, n, device=device, requires_grad=True) for n in (8, 4)]
    levels = torch.zeros(0, dtype=torch.int64, device=device)
    output = extract(pyramid, torch.zeros(0, 5, device=device), 7, [1.0, 0.5], levels=levels)
    assert output.shape == (0, 3, 7, 7)
    output.sum().backward()
    assert not any(f.grad.any() for f in pyramid)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize('method', ['align-avg', 'align-max', 'pool-round-max', 'pool-bins-avg'])
def test_rois_of_any_floating_type(device, extract, dtype, method):
    """Rounded coordinates are worth what they are worth: widened, they give the same."""
    features = random_map(2, 3, 9, 13, device=device)
    rois = random_rois(8, 2, 36, 52, dtype=torch.bfloat16, device=device).to(dtype)
    output = extract(features, rois, 3, 0.25, **METHODS[method])
    assert output.dtype == torch.float32
    assert torch.equal(output, extract(features, rois.float(), 3, 0.25, **METHODS[method]))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('method', ['align-avg', 'align-max', 'warp-avg', 'integral'])
def test_coordinates_are_never_cast_to_half(device, extract, dtype, method):
    """1001.3 px is 1001.5 in float16 and 1000 in bfloat16: on a steep map that would show."""
    columns = torch.tensor([64.0, -64.0]).repeat(32)  # slope 128 a cell
    features = columns.expand(1, 1, 8, 64).to(device, dtype)
    rois = torch.tensor([[0, 988.3, 20.7, 1001.3, 100.9]], device=device)
    options = {'output_size': (2, 1), 'spatial_scale': 1 / 16, **METHODS[method]}
    check(extract, features, rois, **options)

    if options.get('region') != 'round':  # the test would notice a cast
        half = rois.to(dtype).float()
        assert not torch.equal(half, rois)
        exact = extract(features.float(), rois, **options)
        cast = extract(features.float(), half, **options)
        assert (exact - cast).abs().max() > 2 * 64 * torch.finfo(dtype).eps


@every_method
def test_gradcheck(extract, method):
    features = random_map(2, 2, 5, 6, dtype=torch.float64)
    rois = random_rois(3, 2, 10, 12, dtype=torch.float64)
    features, rois, method = fitted(method, features, rois, (2, 2))
    assert torch.autograd.gradcheck(
        lambda f: extract(f, rois, (2, 2), 0.5, **method), features.requires_grad_(), fast_mode=True
    )


def test_gradcheck_of_a_pyramid(extract):
    pyramid = [random_map(2, 2, n, n, dtype=torch.float64, seed=n).requires_grad_() for n in (8, 4)]
    rois = random_rois(4, 2, 16, 16, dtype=torch.float64)
    levels = torch.tensor([1, 0, -1, 1])
    assert torch.autograd.gradcheck(
        lambda *maps: extract(list(maps), rois, (2, 2), [0.5, 0.25], levels=levels),
        pyramid,
        fast_mode=True,
    )


def test_output_size_may_be_an_int(extract):
    features, rois = random_map(1, 2, 6, 6), random_rois(3, 1, 6, 6)
    assert torch.equal(extract(features, rois, 3, 1.0), extract(features, rois, (3, 3), 1.0))


@every_method
@pytest.mark.parametrize('channels_last', [False, True], ids=['nchw', 'channels_last'])
def test_threads_change_no_bit(method, channels_last):
    features = random_map(2, 5 if method.get('position_sensitive') else 40, 24, 24)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    features, rois, method = fitted(method, features, random_rois(50, 2, 96, 96), (7, 7))
    grad_output = random_map(50, 5 if 'position_sensitive' in method else 40, 7, 7, seed=5)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaf = features.detach().requires_grad_()
            output = roi_extract(leaf, rois, 7, 0.25, **method)
            results.append((output.detach(), *torch.autograd.grad(output, leaf, grad_output)))
    finally:
        torch.set_num_threads(before)
    for output, grad in results[1:]:
        assert torch.equal(output, results[0][0])
        assert torch.equal(grad, results[0][1])


@pytest.mark.parametrize('name', [name for name, method in METHODS.items() if 'seed' not in method])
@pytest.mark.parametrize('channels_last', [False, True], ids=['nchw', 'channels_last'])
def test_company_changes_nothing(name, channels_last):
    """RoIs of one image may share work, but not what they read: inf and NaN elsewhere do not show. Of random
    samples none are where they are alone."""
    channels = 5 if name.startswith('ps-') else 40
    features = random_map(2, channels, 30, 33)
    features[0, :, 3, 4], features[1, :, 20, 20] = torch.inf, torch.nan
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    features, rois, method = fitted(METHODS[name], features, random_rois(40, 2, 120, 120), (7, 7))
    features.requires_grad_()
    grad = random_map(40, channels, 7, 7, seed=5)
    output = roi_extract(features, rois, 7, 0.25, **method)
    offsets = method.pop('offsets', None)
    alone = [
        roi_extract(features, rois[one], 7, 0.25, offsets=None if offsets is None else offsets[one], **method)
        for one in (slice(k, k + 1) for k in range(len(rois)))
    ]
    torch.testing.assert_close(output, torch.cat(alone), rtol=0, atol=0, equal_nan=True)
    together = torch.autograd.grad(output, features, grad)[0]
    one_by_one = sum(torch.autograd.grad(one, features, grad[k : k + 1])[0] for k, one in enumerate(alone))
    torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-4)


def test_images_leave_each_other_alone(extract):
    """RoIs in the last corner of one share a widened patch; the other begins where it ends."""
    features = random_map(2, 300, 6, 20)
    boxes = [[0.0, 10.3, 1, 20, 6], [0, 9.6, 0.4, 20, 6], [0, 11, 2, 20, 6], [1, 0, 0, 3, 2], [1, 0, 0, 4, 3]]
    check(extract, features, torch.tensor(boxes), (1, 1), 1.0, **integral())


def test_nobody_wins_where_nothing_is_read():
    """Beside the map, of no level, of no size: the compiled op says so as the reference does."""
    rois = torch.tensor([[0.0, 1, 1, 3, 3], [0, 20, 20, 30, 30], [0, 1, 1, 3, 3], [0, 3, 3, 1, 1]])
    levels = torch.tensor([0, 0, 7, 0])
    for channels_last in (False, True):
        features = torch.ones(1, 9, 4, 4)
        if channels_last:
            features = features.contiguous(memory_format=torch.channels_last)
        options = [1.0], [2, 2], 'none', 0, 'max', True, 1, None, False
        arguments = [features], rois, levels, None, None, *options
        torch.use_deterministic_algorithms(True)  # no memory is -1 by chance
        try:
            _, argmax = torch.ops.roi_plugins.roi_extract(*arguments)
        finally:
            torch.use_deterministic_algorithms(False)
        assert (argmax[0] == 0).all() and (argmax[1:] == -1).all()
        assert torch.equal(argmax, reference.extract(*arguments)[1])


def test_an_output_that_gets_no_gradient():
    class Skip(torch.autograd.Function):
        @staticmethod
        def forward(ctx, unused, used):
            return used.clone()

        @staticmethod
        def backward(ctx, grad):
            return None, grad

    features, used = random_map(1, 4, 6, 6).requires_grad_(), torch.ones(3, requires_grad=True)
    output = roi_extract(features, random_rois(2, 1, 6, 6), 2, 1.0)
    Skip.apply(output, used).sum().backward()
    assert features.grad is None and torch.equal(used.grad, torch.ones(3))


def test_cells_beyond_the_integers_of_float32():
    """2**24 + 3 rounds up to 2**24 + 4: one cell more is another image's, or nobody's."""
    side = 2**24 + 3
    features = torch.zeros(2, 1, 1, side, dtype=torch.float16)
    features[1, 0, 0, 0] = 60000
    rois = torch.tensor([[0.0, 0, 0, 3e7, 0]])
    assert roi_extract(features, rois, 1, 1.0, **pool('max', 'round')).item() == 0
    features = torch.cat([features, features], dim=1).contiguous(memory_format=torch.channels_last)
    rois = torch.tensor([[0.0, 2**24 - 8, 0, 2**24 + 24, 1]])
    assert not roi_extract(features, rois, 1, 1.0, **integral(aligned=False)).any()


def test_a_large_result():
    """Large enough to come from the system: output and gradient of over 32 MB."""
    features = random_map(1, 512, 150, 150).requires_grad_()
    rois = random_rois(400, 1, 150, 150)
    output = roi_extract(features, rois, 7, 1.0)
    halves = [roi_extract(features, part, 7, 1.0) for part in rois.split(200)]
    assert torch.equal(output, torch.cat(halves))
    grad = torch.ones_like(output)
    whole = torch.autograd.grad(output, features, grad)[0]
    parts = [torch.autograd.grad(half, features, grad[:200])[0] for half in halves]
    torch.testing.assert_close(whole, sum(parts), rtol=1e-4, atol=1e-4)


def test_offsets_beyond_32_bits(device):
    """The third image lies 2**31 elements after the first."""
    side = 2**15
    if device.type == 'cpu':  # pages that nobody touches cost nothing
        features = torch.from_numpy(np.zeros((3, 1, side, side), np.float16))
    else:
        if torch.cuda.mem_get_info()[0] < 8 * 2**30:
            pytest.skip('needs 8 GiB of free GPU memory')
        features = torch.zeros(3, 1, side, side, dtype=torch.float16, device=device)
    features[2, 0, 7, 5] = 3
    rois = torch.tensor([[2.0, 5.5, 7.5, 5.5, 7.5]], device=device)
    assert roi_extract(features, rois, 1, 1.0, sampling_ratio=1).item() == 3


def test_offsets_of_channels_beyond_32_bits():
    """The last of the channels that a thread takes at a time begin 2**31 elements after the first."""
    features = torch.from_numpy(np.zeros((1, 1000, 1550, 1550), np.float16))  # never touched, as above
    features[0, 999, 7, 5] = 3
    rois = torch.tensor([[0.0, 5.5, 7.5, 5.5, 7.5]])
    output = roi_extract(features, rois, 1, 1.0, sampling_ratio=1)
    assert output[0, 999].item() == 3 and output.sum() == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason='determinism of the CUDA backward')
@pytest.mark.parametrize('method', ['align-avg', 'align-max', 'pool-round-max', 'integral'])
def test_deterministic_backward_on_cuda(method):
    features = random_map(1, 32, 20, 20, device='cuda').requires_grad_()
    rois = random_rois(300, 1, 20, 20, device='cuda')
    torch.use_deterministic_algorithms(True)
    try:
        grads = [
            torch.autograd.grad(
                roi_extract(features, rois, 7, 1.0, **METHODS[method]).square().sum(), features
            )[0]
            for _ in range(3)
        ]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(grad, grads[0]) for grad in grads)
