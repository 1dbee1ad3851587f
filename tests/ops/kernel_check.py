"""Every CUDA kernel in every dtype and layout, held against another implementation: on a GPU against the CPU
kernels; on the host, where the same source has taken their place (`host_kernels.py`), against the reference.

    python tests/ops/kernel_check.py --device cuda
    python tests/ops/kernel_check.py --device cuda --every 7    fewer calls, for compute-sanitizer
"""

import argparse
import functools
import itertools
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from roi_plugins.ops import extension_is_loaded, reference

OPS = torch.ops.roi_plugins
IMAGES, SHAPES, SCALES = 2, [(20, 23), (10, 12)], [1 / 8, 1 / 16]
# Channels in whole vectors and not, fewer than one, more than a block's; bins in one tile and in two.
SIZES = [(16, (3, 4)), (5, (3, 4)), (2, (1, 2)), (40, (17, 5)), (9, (2, 18))]
REGIONS = [('none', 2), ('none', 0), ('round', None), ('round', 2), ('floor', None), ('bins', None)]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LAYOUTS = (torch.contiguous_format, torch.channels_last)


@dataclass(frozen=True)
class Method:
    region: str
    sampling_ratio: int | None
    reduction: str
    seeded: bool = False
    rotated: bool = False
    deformable: bool = False
    position_sensitive: bool = False


def methods() -> Iterator[Method]:
    for seeded in (False, True):
        for (region, ratio), reduction in itertools.product(REGIONS, ('avg', 'max')):
            if not seeded or ratio is not None:
                yield Method(region, ratio, reduction, seeded)
        for ratio, reduction in itertools.product((2, 3, 0), ('avg', 'max')):
            yield Method('none', ratio, reduction, seeded, rotated=True)
        for ratio in (2, 0):
            yield Method('none', ratio, 'avg', seeded, deformable=True)
    yield Method('none', None, 'integral')
    yield Method('none', None, 'integral', rotated=True)
    for region, ratio, reduction in (('none', 2, 'avg'), ('none', None, 'integral'), ('round', None, 'avg')):
        yield Method(region, ratio, reduction, position_sensitive=True)


class Boxes:
    """Some of every kind, and bad ones; the first is beyond all claims, the third on kinks."""

    def __init__(self, count=20):
        corner, extent = torch.rand(count, 2) * 200 - 40, torch.rand(count, 2) * 150 - 10
        image = torch.randint(0, IMAGES, (count, 1)).float()
        self.upright = torch.cat([image, corner, corner + extent], 1)
        self.upright[0, 1:] = torch.tensor([-1e30, -1e30, 1e30, 1e30])
        self.upright[1, 3] = torch.nan
        self.upright[2] = torch.tensor([1, 0, 0, 184, 160])  # a bin of more cells than a block keeps
        self.upright[4] = torch.tensor([0, 0, 0, 120, 127])  # ... and one of as many
        angles = torch.rand(count, 1) * 720 - 360
        self.rotated = torch.cat([image, corner + extent / 2, extent.abs(), angles], 1)
        self.rotated[0, 1:5] = torch.tensor([90, 70, 1e30, 1e30])
        self.rotated[1, 5] = torch.nan
        self.levels = torch.randint(-1, len(SHAPES) + 1, (count,))
        self.levels[[2, 4]] = 0


KERNELS = (OPS.roi_extract, OPS.roi_extract_backward, OPS.roi_extract_backward_rois)
REFERENCE = (reference.extract, reference.extract_backward, reference.extract_backward_rois)


class Implementation:
    """The op on a device, its kernels or the reference."""

    def __init__(self, device, functions):
        self.device = device
        self.extract, self.backward, self.backward_rois = functions

    def there(self, value):
        """A tensor, or a list or tuple of what may be one, on this device."""
        if isinstance(value, torch.Tensor):
            return value.to(self.device)
        return type(value)(map(self.there, value)) if isinstance(value, (list, tuple)) else value

    def run(self, function, *arguments):
        result = getattr(self, function)(*map(self.there, arguments))
        return [tensor.cpu() for tensor in result]


def check(
    got: Implementation, expected: Implementation, boxes: Boxes, method: Method, dtype, layout, deterministic,
    channels, size, aligned,
):  # fmt: skip
    """One method forward and backward."""
    torch.use_deterministic_algorithms(deterministic)
    on_gpu, half = got.device == 'cuda', dtype.itemsize == 2
    options = (SCALES, list(size), method.region, method.sampling_ratio, method.reduction, aligned, 1, None,
               method.position_sensitive)  # fmt: skip
    rois = boxes.rotated if method.rotated else boxes.upright
    offsets = None
    if method.deformable:
        offsets = torch.randn(len(rois), 2, *size) * 0.2
        offsets[3, 0, 0, 0] = torch.inf
    where = (rois, boxes.levels, offsets, torch.tensor([7]) if method.seeded else None)
    if method.position_sensitive:
        channels = min(channels, 2) * size[0] * size[1]
    features = [torch.randn(IMAGES, channels, *shape).to(dtype).relu() for shape in SHAPES]
    features = [map_.contiguous(memory_format=layout) for map_ in features]

    # The host's sines are its own, and so are the reference's. A GPU has others.
    exact = 1e-4 if on_gpu else 1e-5
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 3e-3}.get(dtype, exact)
    tolerance = {'rtol': tolerance, 'atol': tolerance}
    output, argmax = got.run('extract', features, *where, *options)
    want, want_argmax = expected.run('extract', features, *where, *options)
    torch.testing.assert_close(output, want, equal_nan=True, **tolerance)
    assert output.stride() == want.stride()
    # Few digits make near ties, which rounding decides; so do sines.
    if not half and not (on_gpu and method.rotated):
        assert torch.equal(argmax, want_argmax)

    grad = torch.randn_like(output)
    shapes = [IMAGES, channels, *itertools.chain(*SHAPES)]
    backward = (argmax, *where, shapes, layout == torch.channels_last, *options)
    grads = got.run('backward', grad, *backward)
    for mine, want in zip(grads, expected.run('backward', grad, *backward), strict=True):
        torch.testing.assert_close(mine, want, **tolerance)
        assert mine.stride() == want.stride()
    if deterministic:
        again = got.run('backward', grad, *backward)
        assert all(map(torch.equal, grads, again))
        broken = grad.clone()
        broken[2, 0, 0, 0] = torch.inf
        assert all(map_.isnan().all() for map_ in got.run('backward', broken, *backward))
        assert all((map_ == 0).all() for map_ in got.run('backward', grad * 0, *backward))
    elif not (method.rotated and method.reduction == 'integral'):
        arguments = (grad, argmax, features, *where, *options)
        of_boxes, of_offsets = got.run('backward_rois', *arguments)
        want_boxes, want_offsets = expected.run('backward_rois', *arguments)
        # Of half precision some sums are large.
        tolerance = {'rtol': 5e-2, 'atol': 5e-1} if half else {'rtol': 1e-3, 'atol': 1e-3}
        sound = [1, *range(3, len(rois))]
        torch.testing.assert_close(of_boxes[sound], want_boxes[sound], **tolerance)
        torch.testing.assert_close(of_offsets[3:], want_offsets[3:], **tolerance)


ONE_SAMPLE = ([1.0], [2, 2], 'none', 1, 'avg', True, 1, None, False)  # in each bin
NO_ARGMAX = torch.empty(0, dtype=torch.uint8)


def check_large_gradients(got: Implementation):
    """Near float64's largest number: the number of outputs times the largest gradient overflows."""
    torch.use_deterministic_algorithms(True)
    where = (torch.tensor([[0.0, 0, 0, 8, 8]]).double(), None, None, None)
    grad = torch.full((1, 1, 2, 2), 1e308, dtype=torch.float64)
    (map_,) = got.run('backward', grad, NO_ARGMAX, *where, [1, 1, 8, 8], False, *ONE_SAMPLE)
    # A sample lies between four cells, which get a quarter each.
    assert map_.count_nonzero() == 16 and (map_[map_ != 0] == 0.25e308).all()


def check_a_crowded_cell(got: Implementation):
    """All outputs read one cell: the sum is as large as the largest gradient lets it be."""
    torch.use_deterministic_algorithms(True)
    count = 1 << 6
    where = (torch.tensor([[0.0, 2, 2, 2, 2]]).repeat(count, 1), None, None, None)
    options = ([1.0], [1, 1], 'round', None, 'avg', True, 1, None, False)
    grad = torch.ones(count, 1, 1, 1)
    (map_,) = got.run('backward', grad, NO_ARGMAX, *where, [1, 1, 4, 4], False, *options)
    assert map_[0, 0, 2, 2] == count and map_.count_nonzero() == 1


def check_fills(got: Implementation):
    """Under deterministic algorithms torch fills fresh memory: not what is zeroed or written whole anyway.

    The map is large enough for ``zero_``; the CPU zeroes a small one by itself.
    """
    torch.use_deterministic_algorithms(True)
    where = (torch.tensor([[0.0, 0, 0, 8, 8]]), None, None, None)
    arguments = got.there([torch.ones(1, 1, 2, 2), NO_ARGMAX, *where, [1, 1, 160, 160], False, *ONE_SAMPLE])
    with torch.profiler.profile(record_shapes=True) as profile:
        got.backward(*arguments)
    sweeps = [
        event.name for event in profile.events()
        if event.name in ('aten::fill_', 'aten::zero_') and [1, 1, 160, 160] in event.input_shapes
    ]  # fmt: skip
    assert sweeps == ['aten::zero_'], sweeps


def check_bad_features(got: Implementation, expected: Implementation):
    """NaN wins a maximum, the last one of several; so does the zero beyond the map, over what is below it. An
    infinite cell that weighs nothing is not read.
    """
    torch.use_deterministic_algorithms(False)
    upright = torch.tensor([[0.0, 1, 1, 7, 5], [0, -3, -2, 4, 9], [0, 1, 4, 5, 10], [0, 4, 1, 10, 5]])
    turned = [[0.0, 4, 3, 6, 4, 30], [0, 0, 4, 7, 9, -75], [0, 4, 7, 6, 6, 3], [0, 7, 4, 6, 6, 3]]
    turned = torch.tensor(turned)
    on_cells = torch.tensor([[0.0, 1, 1, 3, 3]]), torch.tensor([[0.0, 2, 2, 2, 2, 0]])
    for layout, channels in itertools.product(LAYOUTS, (4, 5)):
        below = -torch.rand(1, channels, 8, 8)
        holed = below.where(torch.rand_like(below) > 0.1, torch.nan)
        options = ([1.0], [2, 2], 'none', 3, 'max', True, 1, None, False)
        for map_, rois in itertools.product((below, holed), (upright, turned)):
            there = torch.zeros(len(rois), dtype=torch.int64)
            arguments = ([map_.contiguous(memory_format=layout)], rois, there, None, None, *options)
            output, argmax = got.run('extract', *arguments)
            want, want_argmax = expected.run('extract', *arguments)
            torch.testing.assert_close(output, want, equal_nan=True)
            assert (output.isnan() if map_ is holed else output == 0).any() and (output < 0).any()
            assert torch.equal(argmax, want_argmax)
        map_ = torch.full((1, channels, 8, 8), torch.inf)
        map_[..., 1:3, 1:3] = 1
        map_ = map_.contiguous(memory_format=layout)
        options = ([1.0], [2, 2], 'none', 1)
        for rois, offsets, reduction in (
            *itertools.product(on_cells, [None], ('avg', 'max')),
            (on_cells[0], torch.zeros(1, 2, 2, 2), 'avg'),
        ):
            where = (rois, torch.zeros(1, dtype=torch.int64), offsets, None)
            output, _ = got.run('extract', [map_], *where, *options, reduction, True, 1, None, False)
            assert (output == 1).all()


def check_launches(got: Implementation):
    """More RoIs than a card takes blocks along y, and no blocks at all. Only a GPU can say."""
    torch.use_deterministic_algorithms(True)
    count = 70_000
    where = (torch.tensor([[0.0, 0, 0, 1, 1]]).repeat(count, 1), None, None, None)
    output, argmax = got.run('extract', [torch.ones(1, 1, 1, 1)], *where, *ONE_SAMPLE)
    assert (output == 1).all()
    (grad,) = got.run('backward', output, argmax, *where, [1, 1, 1, 1], False, *ONE_SAMPLE)
    assert grad.item() == 4 * count
    (grad,) = got.run('backward', output, argmax, *where, [0, 1, 1, 1], False, *ONE_SAMPLE)
    assert grad.shape == (0, 1, 1, 1)


def check_bad_index(got: Implementation):
    """An image that is not there: NaN, and no gradient. On the CPU it is an error."""
    torch.use_deterministic_algorithms(False)
    where = (torch.tensor([[0.0, 1, 1, 6, 6], [3, 1, 1, 6, 6], [-1, 1, 1, 6, 6]]), None, None, None)
    output, argmax = got.run('extract', [torch.ones(2, 1, 8, 8)], *where, *ONE_SAMPLE)
    assert (output[0] == 1).all() and output[1:].isnan().all()
    grads = got.run('backward', torch.ones_like(output), argmax, *where, [2, 1, 8, 8], False, *ONE_SAMPLE)
    assert grads[0][0].sum() == 4 and grads[0][1].sum() == 0


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda', help='default: %(default)s')
    parser.add_argument(
        '--every', type=int, default=1, metavar='N',
        help='one call of N; a number that has no divisor of 80 still meets every dtype, layout and size',
    )  # fmt: skip
    args = parser.parse_args(argv)
    if not extension_is_loaded():
        sys.exit('kernel_check: the compiled op is not loaded; there is nothing to check')
    if args.device == 'cuda' and not torch._C._dispatch_has_kernel_for_dispatch_key(
        'roi_plugins::roi_extract', 'CUDA'
    ):
        sys.exit('kernel_check: the op was built without CUDA kernels; build with ROI_PLUGINS_CUDA=1')
    torch.manual_seed(0)
    got = Implementation(args.device, KERNELS)
    expected = Implementation('cpu', KERNELS if args.device == 'cuda' else REFERENCE)
    boxes = Boxes()
    aligned = itertools.cycle((True, False, False, True, True))
    cases = itertools.product(methods(), DTYPES, LAYOUTS, (False, True))
    cases = zip(cases, itertools.cycle(SIZES), aligned, strict=False)
    checks = [
        functools.partial(check, got, expected, boxes, *case, *size, is_aligned)
        for case, size, is_aligned in itertools.islice(cases, 0, None, args.every)
    ]
    checks += [functools.partial(check_large_gradients, got), functools.partial(check_fills, got)]
    checks.append(functools.partial(check_a_crowded_cell, got))
    checks.append(functools.partial(check_bad_features, got, expected))
    if args.device == 'cuda':
        checks += [functools.partial(check_launches, got), functools.partial(check_bad_index, got)]
    failed = 0
    for one in checks:
        try:
            one()
        except AssertionError:
            failed += 1
            print('FAILED', one.func.__name__, *one.args[3:], file=sys.stderr)
            traceback.print_exc(limit=-1)
    count = len(checks)
    print(f'{count - failed} of {count} cases agree')
    sys.exit(failed > 0)


if __name__ == '__main__':
    main()
