"""What moves the samples: the gradient to boxes and offsets, the jitter, offsets, channel groups, angles."""

import numpy as np
import oracle
import pytest
import torch
from cases import (
    METHODS,
    align,
    fitted,
    generator,
    integral,
    pool,
    position_sensitive,
    random_map,
    random_rois,
    rotated,
    warp,
)

from roi_plugins.ops import reference, roi_extract

DIFFERENTIABLE = {name: method for name, method in METHODS.items() if not name.startswith('rotated-integral')}


@pytest.fixture(params=[roi_extract, reference.roi_extract], ids=['op', 'reference'], scope='module')
def extract(request):
    return request.param


def to_numpy(tensor):
    return tensor.detach().double().cpu().numpy()


# The gradient ------------------------------------------------------------------------------------


def gradients(extract, features, rois, output_size, scale, grad_output, **method):
    """Of `rois` and, where there are any, of the offsets."""
    leaves = {'rois': rois.detach().requires_grad_()}
    if 'offsets' in method:
        leaves['offsets'] = method['offsets'].detach().requires_grad_()
    output = extract(features, output_size=output_size, spatial_scale=scale, **{**method, **leaves})
    return dict(zip(leaves, torch.autograd.grad(output, leaves.values(), grad_output), strict=True))


def slopes(features, rois, output_size, scale, grad_output, name, column, **method):
    """The oracle's change with one number of each RoI, of `rois` or of the offsets, to either side of it."""
    step, values = 1e-6, []
    arguments = {'rois': rois, **method}
    for shift in (-step, 0, step):
        moved = arguments[name].clone()
        moved.reshape(len(rois), -1)[:, column] += shift
        extracted = oracle.roi_extract(
            to_numpy(features),
            output_size=output_size,
            spatial_scale=scale,
            **{
                key: to_numpy(x) if isinstance(x, torch.Tensor) else x
                for key, x in {**arguments, name: moved}.items()
            },
        )
        values.append((extracted.output * to_numpy(grad_output)).sum((1, 2, 3)))
    return np.diff(values, axis=0) / step


@pytest.mark.parametrize('method', DIFFERENTIABLE.values(), ids=DIFFERENTIABLE)
def test_gradient_is_the_change_of_the_oracle(device, extract, method):
    """But where it has two slopes, as where a sample crosses a cell or a box grows by a sample."""
    size, scale = (2, 3), 0.25
    features = random_map(2, 2, 9, 13, dtype=torch.float64, device=device)
    rois = random_rois(8, 2, 36, 52, dtype=torch.float64, device=device)
    features, rois, method = fitted(method, features, rois, size)
    grad_output = torch.randn(8, 2, *size, generator=generator(1), dtype=torch.float64).to(device)
    found = gradients(extract, features, rois, size, scale, grad_output, **method)
    assert not found['rois'][:, 0].any()
    smooth = []
    for name, grad in found.items():
        for column in range(name == 'rois', grad[0].numel()):
            left, right = slopes(features, rois, size, scale, grad_output, name, column, **method)
            sure = np.abs(right - left) < 1e-4
            smooth.append(sure)
            got = to_numpy(grad).reshape(len(rois), -1)[:, column]
            np.testing.assert_allclose(got[sure], right[sure], rtol=1e-4, atol=1e-4)
    assert np.mean(smooth) > 0.95


@pytest.mark.parametrize('name', ['align-avg', 'align-max', 'integral', 'rotated-avg', 'deformable'])
def test_gradcheck(extract, name):
    """Of features, boxes and offsets at once."""
    features = random_map(1, 2, 6, 7, dtype=torch.float64)
    features, rois, method = fitted(
        METHODS[name], features, random_rois(2, 1, 6, 7, dtype=torch.float64), (1, 2)
    )
    index, boxes = rois[:, :1], rois[:, 1:].clone()  # a batch index that is moved is an error
    offsets = [method.pop('offsets')] if 'offsets' in method else []

    def run(features, boxes, *offsets):
        rois = torch.cat([index, boxes], dim=1)
        more = {'offsets': offsets[0]} if offsets else {}
        return extract(features, rois, (1, 2), 1.0, **method, **more)

    leaves = [x.detach().requires_grad_() for x in (features, boxes, *offsets)]
    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize(
    'method',
    [pool('max', 'round'), pool('avg', 'floor'), pool('max', 'bins'), warp('avg'), warp('max', 0)],
    ids=['pool-round', 'pool-floor', 'pool-bins', 'warp-avg', 'warp-max'],
)
def test_quantised_regions_pass_zeros(device, extract, method):
    features = random_map(2, 3, 6, 8, device=device)
    rois = random_rois(4, 2, 6, 8, device=device).requires_grad_()
    extract(features, rois, 2, 1.0, **method).sum().backward()
    assert rois.grad.shape == rois.shape
    assert not rois.grad.any()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize('name', ['align-avg', 'align-max', 'integral', 'rotated-avg', 'deformable'])
def test_gradient_has_the_dtype_of_what_it_is_of(device, extract, name, dtype):
    """It is summed in float32, whatever the features and the RoIs are."""
    features = random_map(2, 20, 9, 13, dtype=dtype, device=device)
    rois = random_rois(6, 2, 36, 52, dtype=torch.bfloat16, device=device).float()
    features, rois, method = fitted(METHODS[name], features, rois, (2, 2))
    grad_output = torch.randn(6, 20, 2, 2, generator=generator(1)).to(device, dtype)
    narrow = {key: x.half() for key, x in method.items() if key == 'offsets'}
    wide = {key: x.half().double() for key, x in method.items() if key == 'offsets'}
    found = gradients(extract, features, rois, 2, 0.25, grad_output, **{**method, **narrow})
    exact = gradients(
        reference.roi_extract, features.double(), rois.double(), 2, 0.25, grad_output.double(),
        **{**method, **wide},
    )  # fmt: skip
    for key, grad in found.items():
        assert grad.dtype == (torch.float16 if key == 'offsets' else torch.float32)
        bound = 1e-4 if key == 'rois' else 2e-3
        torch.testing.assert_close(grad.double(), exact[key], rtol=bound, atol=bound * exact[key].abs().max())


@pytest.mark.parametrize('name', ['align-avg', 'align-max', 'integral', 'rotated-avg', 'deformable'])
@pytest.mark.parametrize('channels_last', [False, True], ids=['nchw', 'channels_last'])
def test_a_pyramid_with_rois_in_all_places(device, extract, name, channels_last):
    """On its levels, on none, and where a coordinate is no number: those get zeros."""
    maps = [random_map(2, 19, n, n + 3, device=device, seed=n) for n in (12, 6)]
    if channels_last:
        maps = [map_.contiguous(memory_format=torch.channels_last) for map_ in maps]
    rois, scales = random_rois(7, 2, 48, 60, device=device), [0.25, 0.125]
    maps, rois, method = fitted(METHODS[name], maps, rois, (2, 2))
    rois[3, 2], rois[4, 4] = torch.nan, torch.inf
    levels = torch.tensor([0, 1, -1, 0, 7, 1, 0], device=device)
    grad_output = torch.randn(7, 19, 2, 2, generator=generator(1)).to(device)
    grad_output[3] = torch.nan  # as the loss sends it back
    found = gradients(extract, maps, rois, 2, scales, grad_output, levels=levels, **method)
    read = [0, 1, 5, 6]
    for grad in found.values():
        assert not grad[[2, 3, 4]].any()
        assert grad[read].any()
    for k in read:
        alone = {key: x[k : k + 1] if key == 'offsets' else x for key, x in method.items()}
        single = gradients(
            extract, maps[levels[k]], rois[k : k + 1], 2, scales[levels[k]], grad_output[k : k + 1], **alone
        )
        for key, grad in single.items():
            torch.testing.assert_close(found[key][k], grad[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', ['align-avg', 'align-max', 'integral', 'rotated-max', 'deformable'])
@pytest.mark.parametrize('channels_last', [False, True], ids=['nchw', 'channels_last'])
def test_threads_change_no_bit(name, channels_last):
    features = random_map(2, 40, 24, 24)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    features, rois, method = fitted(METHODS[name], features, random_rois(50, 2, 96, 96), (7, 7))
    grad_output = random_map(50, 40, 7, 7, seed=5)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(gradients(roi_extract, features, rois, 7, 0.25, grad_output, **method))
    finally:
        torch.set_num_threads(before)
    for found in results[1:]:
        for key, grad in found.items():
            assert torch.equal(grad, results[0][key])


@pytest.mark.parametrize(
    'name', ['align-avg', 'align-max', 'integral', 'rotated-avg', 'deformable', 'ps-align']
)
@pytest.mark.parametrize(
    'view',
    [
        lambda f: f.contiguous(memory_format=torch.channels_last),
        lambda f: f.repeat_interleave(2, 3)[..., ::2],
        lambda f: f.transpose(2, 3).contiguous().transpose(2, 3),
        lambda f: torch.cat([f, f], 1).contiguous(memory_format=torch.channels_last)[:, : f.shape[1]],
    ],
    ids=['channels_last', 'half the cells', 'transposed', 'channel slice'],
)
def test_gradient_from_maps_and_outputs_of_any_layout(device, extract, name, view):
    features = random_map(2, 19, 9, 13, device=device)
    features, rois, method = fitted(METHODS[name], features, random_rois(6, 2, 9, 13, device=device), (2, 2))
    grad_output = torch.randn(6, 19, 2, 2, generator=generator(1)).to(device)
    spread = torch.full((*rois.shape, 2), torch.nan, device=device)
    spread[..., 0] = rois
    method = {
        key: x.transpose(2, 3).contiguous().transpose(2, 3) if key == 'offsets' else x
        for key, x in method.items()
    }
    strided = grad_output.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    found = gradients(extract, view(features), spread[..., 0], 2, 1.0, strided, **method)
    expected = gradients(extract, features, rois, 2, 1.0, grad_output, **method)
    for key, grad in expected.items():
        torch.testing.assert_close(found[key], grad, rtol=1e-4, atol=1e-4)


def test_no_rois(device, extract):
    rois = torch.zeros(0, 5, device=device, requires_grad=True)
    extract(random_map(1, 2, 4, 4, device=device), rois, 2, 1.0).sum().backward()
    assert rois.grad.shape == (0, 5)


@pytest.mark.parametrize('side', [1, 3])
def test_an_integral_that_ends_on_a_cell(device, extract, side):
    """There too, the mean changes with an edge as the oracle's, on either side of it."""
    features = random_map(1, 2, 9, 13, dtype=torch.float64, device=device)
    rois = torch.tensor([[0.0, 2.5, 1.3, 9.5, 7.4], [0, 2.25, 2.5, 10.5, 6.5]], device=device).double()
    grad_output = torch.ones(2, 2, 2, 2, dtype=torch.float64, device=device)
    found = gradients(extract, features, rois, (2, 2), 1.0, grad_output, **integral())['rois']
    for column in (side, side + 1):
        sides = slopes(features, rois, (2, 2), 1.0, grad_output, 'rois', column, **integral())
        for slope in sides:
            np.testing.assert_allclose(to_numpy(found[:, column]), slope, atol=1e-5)


def gradient_at(extract, features, y, x):
    """The gradient, (x, y), of one sample at indices (y, x), with which its box moves as a whole."""
    box = [0, x + 0.5, y + 0.5, x + 0.5, y + 0.5]
    rois = torch.tensor([box], dtype=torch.float64, device=features.device, requires_grad=True)
    extract(features, rois, 1, 1.0, sampling_ratio=1).sum().backward()
    return (rois.grad[0, 1:3] + rois.grad[0, 3:]).tolist()


def test_slope_of_the_surface_at_its_edges(device, extract):
    """To the right of a cell where a sample lies on it; 0 where its coordinate is clamped or off the map."""
    y, x = torch.arange(4.0, dtype=torch.float64), torch.arange(5.0, dtype=torch.float64)
    features = (10 * y[:, None] ** 2 + x**2)[None, None].to(device)
    assert gradient_at(extract, features, 1.5, 2.25) == [5, 30]
    assert gradient_at(extract, features, 1, 2) == [5, 30]
    assert gradient_at(extract, features, 0, 0) == [1, 10]
    assert gradient_at(extract, features, -0.5, 2.25) == [5, 0]
    assert gradient_at(extract, features, 1.5, 4) == gradient_at(extract, features, 1.5, 4.75) == [0, 30]
    assert gradient_at(extract, features, 3, 3.75) == [7, 0]
    assert gradient_at(extract, features, -1.5, 2.25) == gradient_at(extract, features, 1, 5.25) == [0, 0]


def test_slope_of_a_sample_on_a_cell_leaves_the_cell_across_alone(device, extract):
    """It has no part in either slope, and 0 * inf is NaN."""
    y, x = torch.arange(4.0, dtype=torch.float64), torch.arange(5.0, dtype=torch.float64)
    features = (10 * y[:, None] ** 2 + x**2)[None, None].to(device)
    features[0, 0, 2, 3] = torch.inf
    assert gradient_at(extract, features, 1, 2) == [5, 30]


def test_slope_where_a_coordinate_is_clamped_reads_nothing(device, extract):
    """It is 0 in the last corner, and inf - inf is not."""
    features = torch.zeros(1, 1, 4, 5, dtype=torch.float64, device=device)
    features[0, 0, 3, 4] = torch.inf
    assert gradient_at(extract, features, 3, 4) == gradient_at(extract, features, 3.5, 4.5) == [0, 0]


def test_the_sides_of_a_box_move_its_samples(device, extract):
    """On a ramp of slope 1 a sample at the fraction t gives 1 - t to the low side and t to the high one."""
    features = torch.arange(20.0, device=device).expand(1, 1, 20, 20)
    rois = torch.tensor([[0.0, 4, 4, 12, 12]], device=device, requires_grad=True)
    for sampling_ratio, reduction, q, t in ((1, 'avg', 0, 0.25), (2, 'avg', 1, 0.75), (2, 'max', 0, 0.375)):
        output = extract(features, rois, 2, 1.0, sampling_ratio=sampling_ratio, reduction=reduction)
        (grad,) = torch.autograd.grad(output[0, 0, 0, q], rois)
        torch.testing.assert_close(grad[0].cpu(), torch.tensor([0, 1 - t, 0, t, 0]))


def test_a_side_that_is_enlarged_moves_with_the_low_coordinate(device, extract):
    features = torch.arange(20.0, device=device).expand(1, 1, 20, 20)
    rois = torch.tensor([[0.0, 4, 4, 4.5, 12]], device=device, requires_grad=True)
    output = extract(features, rois, 2, 1.0, aligned=False)
    (grad,) = torch.autograd.grad(output[0, 0, 0, 1], rois)
    torch.testing.assert_close(grad[0].cpu(), torch.tensor([0.0, 1, 0, 0, 0]))


def test_an_angle_turns_the_samples(device, extract):
    """About the centre: on a ramp along x, a sample u to the right of it moves by -u * sin a."""
    features = torch.arange(20.0, dtype=torch.float64, device=device).expand(1, 1, 20, 20)
    box = [0, 10, 10, 6, 4, 30]
    rois = torch.tensor([box], dtype=torch.float64, device=device, requires_grad=True)
    output = extract(features, rois, (1, 2), 1.0, sampling_ratio=1)
    (grad,) = torch.autograd.grad(output[0, 0, 0, 1], rois)
    sin, cos = 0.5, 3**0.5 / 2
    expected = [0, 1, 0, cos / 4, 0, -1.5 * sin * np.pi / 180]
    np.testing.assert_allclose(to_numpy(grad)[0], expected, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_gradient_of_a_bin_of_hardly_any_width(device, dtype):
    """A bin so narrow that 1 / width is infinite is the limit of others."""

    def gradient(width):
        features = random_map(1, 2, 6, 6, device=device).to(dtype)
        rois = torch.tensor([[0, 0, 0, width, 2.0]], dtype=dtype, device=device, requires_grad=True)
        roi_extract(features, rois, 1, 1.0, sampling_ratio=None, reduction='integral').sum().backward()
        return rois.grad

    narrow = gradient(torch.finfo(dtype).tiny / 10)
    assert narrow.isfinite().all()
    torch.testing.assert_close(narrow, gradient(1e-30))


def test_a_rotated_integral_has_no_gradient_to_the_boxes(device, extract):
    features, rois, method = fitted(
        METHODS['rotated-integral'],
        random_map(1, 2, 6, 6, device=device),
        random_rois(2, 1, 6, 6, device=device),
        (2, 2),
    )
    with pytest.raises(ValueError, match=r'rois: .*integral.*detach'):
        extract(features, rois.requires_grad_(), 2, 1.0, **method)
    features.requires_grad_()
    extract(features, rois.detach(), 2, 1.0, **method).sum().backward()
    assert features.grad.any()
    if torch.__version__ >= (2, 5):  # before, a derivative is set up where none can be asked for
        with torch.no_grad():
            extract(features, rois, 2, 1.0, **method)


@pytest.mark.parametrize('name', ['align-avg', 'align-max', 'deformable'])
def test_second_derivatives_to_positions_are_refused(device, name):
    features, rois, method = fitted(
        METHODS[name], random_map(1, 2, 6, 6, device=device), random_rois(2, 1, 6, 6, device=device), (2, 2)
    )
    rois.requires_grad_()
    loss = roi_extract(features, rois, 2, 1.0, **method).square().sum()
    (grad,) = torch.autograd.grad(loss, rois, create_graph=True)
    with pytest.raises(RuntimeError, match=r'roi_extract.*second derivative'):
        grad.sum().backward()


@pytest.mark.parametrize('moved', ['nothing', 'rois', 'offsets'])
def test_maps_are_kept_for_the_gradient_to_positions_alone(device, moved):
    features = random_map(1, 2, 6, 6, device=device).requires_grad_()
    rois, offsets = random_rois(2, 1, 6, 6, device=device), torch.zeros(2, 2, 3, 3, device=device)
    {'nothing': features, 'rois': rois, 'offsets': offsets}[moved].requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        roi_extract(features, rois, 3, 1.0, offsets=offsets)
    assert (features.shape in kept) == (moved != 'nothing')


# Random samples ----------------------------------------------------------------------------------


def test_the_generator_is_splitmix64():
    """The first numbers of its stream for the seed 1234567, as published implementations give them."""
    stream = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [oracle.jitter(1234567, 0, 0, i) for i in range(5)] == [(z >> 40) / 2**24 for z in stream]


@pytest.mark.parametrize('seed', [1234567, 0, -1, 2**63 - 1, -(2**63)], ids=str)
@pytest.mark.parametrize('of_tensor', [False, True], ids=['number', 'tensor'])
def test_positions_of_random_samples(device, extract, seed, of_tensor):
    """On a ramp an output is the position that was read, so what the generator gave can be told."""
    ramp = torch.arange(40.0, dtype=torch.float64, device=device)
    features = torch.stack([ramp[:, None].expand(40, 40), ramp.expand(40, 40)])[None]
    rois = torch.tensor([[0.0, 4.5, 4.5, 36.5, 36.5]] * 3, dtype=torch.float64, device=device)
    argument = torch.tensor(seed, device=device) if of_tensor else seed
    output = to_numpy(extract(features, rois, (4, 2), 1.0, sampling_ratio=1, seed=argument))
    for k in range(3):
        y = [4 + 8 * (p + oracle.jitter(seed, k, 0, p)) for p in range(4)]
        x = [4 + 16 * (q + oracle.jitter(seed, k, 1, q)) for q in range(2)]
        np.testing.assert_allclose(output[k, 0], np.repeat(y, 2).reshape(4, 2), rtol=1e-12)
        np.testing.assert_allclose(output[k, 1], np.tile(x, (4, 1)), rtol=1e-12)


def test_positions_of_random_samples_are_told_apart_up_to_the_31st_bit(device, extract):
    """From there on they repeat. Of 4e9 samples on an axis those on the map are numbers 3e9 and on."""
    features = random_map(1, 2, 1, 40, dtype=torch.float64, device=device)
    box = [0, 0.5 - 3e9, 0, 0.5 + 1e9, 1]
    rois = torch.tensor([box], dtype=torch.float64, device=device)
    output = extract(features, rois, (1, 2), 1.0, sampling_ratio=0, seed=1234567, min_samples=1)
    row, total = to_numpy(features)[0, :, 0], np.zeros(2)
    for i in range(-1, 40):
        taps = oracle.bilinear(i + oracle.jitter(1234567, 0, 1, 3 * 10**9 + i), 40)
        total += sum(row[:, cell] * weight for cell, weight in taps or [])
    np.testing.assert_allclose(to_numpy(output)[0, :, 0, 1] * 2e9, total, rtol=1e-5)
    assert not output[..., 0].any()


@pytest.mark.parametrize(
    'name', ['random-avg', 'random-max', 'rotated-random-max', 'ps-random', 'random-warp-avg']
)
def test_a_seed_fixes_the_positions(device, extract, name):
    features = random_map(2, 3, 9, 13, device=device)
    rois = random_rois(9, 2, 36, 52, device=device)
    features, rois, method = fitted(METHODS[name], features, rois, (2, 2))
    one, same = (extract(features, rois, 2, 0.25, **method) for _ in range(2))
    assert torch.equal(one, same)
    other = extract(features, rois, 2, 0.25, **{**method, 'seed': method['seed'] - 1})
    assert not torch.equal(one, other)
    plain = extract(features, rois, 2, 0.25, **{**method, 'seed': None})
    assert not torch.equal(one, plain)


@pytest.mark.parametrize('name', ['random-avg', 'rotated-random-avg', 'ps-random', 'deformable-random'])
@pytest.mark.parametrize('sampling_ratio', [1, 2])
def test_the_mean_of_random_samples_is_that_of_the_bin(device, name, sampling_ratio):
    """2000 RoIs at one place: no two have the same numbers."""
    rois = torch.tensor([[0.0, 5, 6, 25, 20]], dtype=torch.float64, device=device)
    features = random_map(1, 3, 26, 30, dtype=torch.float64, device=device)
    features, rois, method = fitted(METHODS[name], features, rois, (2, 2))
    method['sampling_ratio'] = sampling_ratio
    dense = {**method, 'seed': None, 'sampling_ratio': 200}
    exact = roi_extract(features, rois, 2, 1.0, **dense)[0]
    if 'offsets' in method:
        method['offsets'] = method['offsets'].repeat(2000, 1, 1, 1)
    output = roi_extract(features, rois.repeat(2000, 1), 2, 1.0, **method)
    error = output.std(0) / 2000**0.5
    assert ((output.mean(0) - exact).abs() < 4 * error).all()


# Offsets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('sampling_ratio', [0, 2])
@pytest.mark.parametrize('channels_last', [False, True], ids=['nchw', 'channels_last'])
def test_offsets_of_zero_change_no_bit(device, extract, sampling_ratio, channels_last):
    features = random_map(2, 19, 9, 13, device=device)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    rois = random_rois(9, 2, 36, 52, device=device)
    method = align('avg', sampling_ratio)
    moved = extract(features, rois, (2, 3), 0.25, offsets=torch.zeros(9, 2, 2, 3, device=device), **method)
    plain = extract(features, rois, (2, 3), 0.25, **method)
    torch.testing.assert_close(moved, plain, rtol=1e-6, atol=1e-6)


def test_offsets_are_shares_of_the_box(device, extract):
    """A bin that is moved by a quarter of the width reads what it reads in a box that is."""
    features = random_map(1, 3, 20, 20, dtype=torch.float64, device=device)
    rois = torch.tensor([[0.0, 4, 5, 12, 15]], dtype=torch.float64, device=device)
    offsets = torch.zeros(1, 2, 2, 2, dtype=torch.float64, device=device)
    offsets[0, :, 0, 1] = torch.tensor([0.25, -0.2])
    moved = rois + torch.tensor([0, 2, -2, 2, -2], device=device)
    expected = extract(features, rois, 2, 1.0)
    expected[..., 0, 1] = extract(features, moved, 2, 1.0)[..., 0, 1]
    torch.testing.assert_close(extract(features, rois, 2, 1.0, offsets=offsets), expected)


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), float('-inf')], ids=str)
@pytest.mark.parametrize('axis', [0, 1])
def test_an_offset_that_is_no_number_shows_in_its_bin(device, extract, bad, axis):
    features = random_map(1, 3, 9, 9, device=device).requires_grad_()
    rois = random_rois(2, 1, 9, 9, device=device).requires_grad_()
    offsets = torch.zeros(2, 2, 2, 2, device=device)
    offsets[1, axis, 0, 1] = bad
    offsets.requires_grad_()
    output = extract(features, rois, 2, 1.0, offsets=offsets)
    lost = torch.zeros_like(output, dtype=torch.bool)
    lost[1, :, 0, 1] = True
    assert torch.equal(output.isnan(), lost)
    plain = extract(features, rois, 2, 1.0, offsets=torch.zeros_like(offsets))
    torch.testing.assert_close(output[~lost], plain[~lost])
    grad_output = torch.ones_like(output).masked_fill(lost, torch.nan)
    got = torch.autograd.grad(output, (features, rois, offsets), grad_output)
    expected = torch.autograd.grad(plain, (features, rois), (~lost).float())
    for grad, other in zip(got, expected, strict=False):
        torch.testing.assert_close(grad, other)
    assert not got[2][1, :, 0, 1].any()
    assert got[2].isfinite().all()


def test_a_roi_whose_bins_are_all_moved_to_nowhere(device, extract):
    features = random_map(1, 3, 9, 9, device=device).requires_grad_()
    rois = random_rois(1, 1, 9, 9, device=device)
    offsets = torch.full((1, 2, 2, 2), torch.nan, device=device)
    output = extract(features, rois, 2, 1.0, offsets=offsets)
    assert output.isnan().all()
    assert not torch.autograd.grad(output.sum(), features)[0].any()


def test_an_offset_far_beyond_the_map_reads_zero(device, extract):
    features, rois = torch.ones(1, 2, 6, 6, device=device), torch.tensor([[0.0, 1, 1, 5, 5]], device=device)
    for far in (1e3, 1e30, -1e38):
        offsets = torch.full((1, 2, 2, 2), far, device=device)
        for sampling_ratio in (0, 2):
            assert not extract(features, rois, 2, 1.0, offsets=offsets, sampling_ratio=sampling_ratio).any()


# Channel groups and angles -----------------------------------------------------------------------


@pytest.mark.parametrize('name', ['align-avg', 'adaptive-avg', 'integral', 'random-avg'])
@pytest.mark.parametrize('channels_last', [False, True], ids=['nchw', 'channels_last'])
def test_each_bin_has_its_own_channels(device, extract, name, channels_last):
    size = (3, 2)
    features = position_sensitive(random_map(2, 5, 9, 13, device=device), size)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    rois = random_rois(6, 2, 36, 52, device=device)
    output = extract(features, rois, size, 0.25, position_sensitive=True, **METHODS[name])
    of_all = extract(features, rois, size, 0.25, **METHODS[name]).unflatten(1, (5, *size))
    expected = torch.einsum('kcpqpq->kcpq', of_all)
    torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-6)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert output.is_contiguous(memory_format=layout)


def test_an_rfcn_bin_leaves_the_last_cells_alone(device, extract):
    """A box over all of a 4 x 4 map: bins of two cells, but the last row and column are never read."""
    features = torch.arange(16.0, device=device).reshape(1, 1, 4, 4).repeat(1, 4, 1, 1)
    rois = torch.tensor([[0.0, 0, 0, 4, 4]], device=device)
    output = extract(features, rois, 2, 1.0, **METHODS['ps-pool'])
    assert output.flatten().tolist() == [2.5, 4, 8.5, 10]


@pytest.mark.parametrize(
    'method',
    [align('avg'), align('max', 3), align('avg', 0), align('max', 0, aligned=False), integral(),
     align('avg', seed=4)],
    ids=['avg', 'max', 'adaptive-avg', 'adaptive-legacy-max', 'integral', 'random'],
)  # fmt: skip
def test_an_angle_of_zero_is_an_upright_box(device, extract, method):
    features = random_map(2, 3, 9, 13, dtype=torch.float64, device=device)
    rois = random_rois(9, 2, 36, 52, dtype=torch.float64, device=device)
    rois[:, 3:] += 4  # a cell: smaller boxes grow around their centre, where upright ones keep a corner
    turned = rotated(rois)
    turned[:, 5] = 0
    expected = extract(features, rois, (2, 3), 0.25, **method)
    torch.testing.assert_close(extract(features, turned, (2, 3), 0.25, **method), expected)


@pytest.mark.parametrize('sampling_ratio', [0, 2, 16])
@pytest.mark.parametrize('channels_last', [False, True], ids=['nchw', 'channels_last'])
def test_ties_in_a_rotated_box_go_to_the_first_too(device, extract, sampling_ratio, channels_last):
    """After a ReLU most samples are 0, as is all that lies out of range. All coordinates are short binary
    fractions, so the upright twin has the same ties."""
    features = (random_map(1, 20, 6, 8, seed=3).relu() * 4).round().to(device) / 4
    features[:, 5:8] = 0
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    boxes = [(1, 1, 5, 5), (-3, -3, 1, 1), (-3, 2, 5, 4), (6, 3, 12, 9), (1, -4, 3, 12), (20, 20, 24, 24)]
    rois = torch.tensor([(0, *box) for box in boxes], dtype=torch.float32, device=device)
    turned = rotated(rois)
    turned[:, 5] = 0
    results = []
    for given in (rois, turned):
        leaf = features.detach().requires_grad_()
        output = extract(leaf, given, (2, 2), 1.0, **align('max', sampling_ratio))
        weights = torch.arange(output.numel(), dtype=torch.float32, device=device).reshape(output.shape)
        results.append((output.detach(), torch.autograd.grad(output, leaf, weights)[0]))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize('name', ['rotated-avg', 'rotated-max', 'rotated-integral'])
@pytest.mark.parametrize('bad', [float('nan'), float('inf')], ids=str)
def test_an_angle_that_is_no_number(device, extract, name, bad):
    features, rois, method = fitted(
        METHODS[name], random_map(1, 2, 6, 6, device=device), random_rois(3, 1, 6, 6, device=device), (2, 2)
    )
    rois[1, 5] = bad
    output = extract(features.requires_grad_(), rois, 2, 1.0, **method)
    assert output[1].isnan().all()
    assert output[[0, 2]].isfinite().all()
    output.sum().backward()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize('reduction', ['avg', 'max', 'integral'])
def test_a_quarter_turn_of_the_box_is_one_of_the_image(device, extract, reduction):
    """Counter-clockwise as seen on the image: the top of the box then points to the left."""
    features = random_map(1, 3, 12, 12, dtype=torch.float64, device=device)
    rois = torch.tensor([[0.0, 5, 7, 6, 4, 0]], dtype=torch.float64, device=device)
    method = integral() if reduction == 'integral' else align(reduction)
    turned = torch.tensor([[0.0, 7, 12 - 5, 6, 4, 90]], dtype=torch.float64, device=device)
    image = features.rot90(1, (2, 3))
    torch.testing.assert_close(
        extract(image, turned, (2, 3), 1.0, **method), extract(features, rois, (2, 3), 1.0, **method)
    )


def test_a_rotated_integral_is_the_limit_of_dense_grids(device, extract):
    """Over a map with a margin of zeros, where a grid need not clamp."""
    features = random_map(1, 2, 8, 9, dtype=torch.float64, device=device)
    rois = rotated(random_rois(6, 1, 8, 9, dtype=torch.float64, device=device))
    exact = extract(features, rois, (2, 2), 1.0, **integral())
    padded = torch.nn.functional.pad(features, (12, 12, 12, 12))
    rois[:, 1:3] += 12
    errors = []
    for sampling_ratio in (8, 64):
        dense = extract(padded, rois, (2, 2), 1.0, sampling_ratio=sampling_ratio)
        errors.append((dense - exact).abs().max())
    assert errors[1] < errors[0] / 8
    assert errors[1] < 2e-3


def test_a_rotated_integral_of_a_small_box(device, extract):
    """Down to nothing it is the value there."""
    features = random_map(1, 3, 40, 40, device=device)
    there = torch.einsum('cyx,y,x->c', features[0, :, 30:32, 30:32].cpu(), *[torch.tensor([0.75, 0.25])] * 2)
    for size in (1e-2, 1e-4):
        rois = torch.tensor([[0, 30.25, 30.25, size, size, 33]], device=device)
        output = extract(features, rois, 1, 1.0, **integral(aligned=False))
        torch.testing.assert_close(output[0, :, 0, 0].cpu(), there, rtol=0, atol=10 * size)
    rois = torch.tensor([[0, 30.25, 30.25, 0, 2, 33], [0, 30.25, 30.25, 3, -2, 33]], device=device)
    assert not extract(features, rois, 1, 1.0, **integral(aligned=False)).any()


def test_a_rotated_integral_reads_no_cell_beside_it(device, extract):
    """A long thin bin across the map leaves what lies on either side of it alone."""
    features = torch.full((1, 1, 12, 12), torch.inf, device=device)
    for i in range(12):
        features[0, 0, i, max(11 - i - 2, 0) : 11 - i + 3] = 1
    rois = torch.tensor([[0, 6, 6, 10, 0.5, 45]], device=device)
    output = extract(features, rois, (1, 2), 1.0, **integral())
    torch.testing.assert_close(output, torch.ones_like(output))
