"""Random calls of the op and its two backward ops, held against the reference: `make fuzz` makes 100,000 on
kernels with sanitizers, `test_fuzz.py` some hundreds on the kernels in use.

A call is told by one number, its seed. What it draws: any method of `cases.METHODS` with other numbers, or
options put together blindly, which most often do not go together; maps of all layouts, types and odd sizes, a
pyramid of them; boxes around the map and far from it, inverted, empty, NaN; indices and levels that do not
exist. Where the reference refuses a call the op has to, and elsewhere:

- Both compute where to read in the same type, but not all in the same order. So a position may be off by some
  roundings of the largest coordinate, and a value by that times a slope: as in `test_roi_extract.py`.
  Of an integral it is that over the size of a bin.
- Where that decides (a sample at the border, one more sample, a slope that changes at a cell, a bin too small
  for its type) no such bound holds. So a disagreement is only one if the op is further from the reference
  than the reference itself moves where its boxes move by that much. Those that were not are counted.
- Of a maximum the op's own argmax is followed; it has to be the largest but for rounding.
- Beyond 2**20 cells the contract claims no parity, and in bins narrower than the smallest normal number the
  reference has no slopes: the answer has to be finite.
"""

import argparse
import math
import multiprocessing
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace

import torch
from cases import METHODS, generator, rotated

import roi_plugins.ops
from roi_plugins.ops import reference

OPS = torch.ops.roi_plugins
REFUSALS = (ValueError, TypeError, IndexError)
DTYPES = [torch.float32] * 3 + [torch.float64, torch.float16, torch.bfloat16]
EXTENTS = [1, 1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 25, 40]
CHANNELS = [0, 1, 1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 20, 32, 33, 40, 64, 130]
BINS = [1, 1, 2, 2, 3, 4, 5, 7, 14]
WILD = [0.0, -0.0, 5.0, 1e-38, -1e5, 1e6, 1e9, -1e9, 1e20, -1e30, 1e30, 3.4e38, -3.4e38]
CELLS_WITH_PARITY = 2.0**20
READINGS = 200_000  # of one call: channels x bins x samples of all RoIs, about


@dataclass
class Call:
    """The arguments of the op, as its schema has them, and what is sent back."""

    maps: list
    rois: torch.Tensor
    levels: torch.Tensor | None
    offsets: torch.Tensor | None
    seed: torch.Tensor | None
    options: dict
    grad: torch.Tensor  # (K, C, PH, PW), of any layout
    is_special: bool  # the maps hold NaN and infinities
    checks_rois: bool  # and offsets: their gradient
    threads: int

    @property
    def table(self):
        return self.rois, self.levels, self.offsets, self.seed

    @property
    def reduction(self):
        return self.options['reduction']

    @property
    def memory_format(self):
        return reference.memory_format(reference.is_channels_last(self.maps[0]))

    def forward(self, extract):
        return extract(self.maps, *self.table, *self.options.values())

    def backward(self, extract_backward, argmax, grad):
        shapes = [*self.maps[0].shape[:2], *(size for map_ in self.maps for size in map_.shape[2:])]
        channels_last = reference.is_channels_last(self.maps[0])
        return extract_backward(grad, argmax, *self.table, shapes, channels_last, *self.options.values())

    def backward_rois(self, extract_backward_rois, argmax, grad):
        return extract_backward_rois(grad, argmax, self.maps, *self.table, *self.options.values())


# Drawing -----------------------------------------------------------------------------------------


def draw(seed):
    """The call of a seed."""
    rng = random.Random(seed)
    g = generator(rng.getrandbits(60))
    options, features = draw_method(rng)
    images, dtype = rng.choice([1, 1, 2, 3]), rng.choice(DTYPES)
    sizes = [(rng.choice(EXTENTS), rng.choice(EXTENTS)) for _ in range(rng.choice([1, 1, 2, 3]))]
    scales = [rng.choice([1.0, 0.5, 0.3, 1 / 16]) for _ in sizes]
    pooled = rng.choice(BINS), rng.choice(BINS)
    rois = [draw_box(rng, *rng.choice(list(zip(sizes, scales, strict=True)))) for _ in range(draw_count(rng))]
    rois = torch.tensor([[rng.randrange(images), *box] for box in rois], dtype=torch.float64).reshape(-1, 5)
    if features['rotated']:
        rois = rotated(rois)
        for k in range(len(rois)):
            angle = rng.choice([rng.uniform(-400, 400), rng.randrange(-8, 9) * 45, rng.choice(WILD)])
            rois[k, 5] = angle if rng.random() < 0.97 else rng.choice([math.nan, math.inf])
    if len(rois) and rng.random() < 0.02:
        rois[rng.randrange(len(rois)), 0] = rng.choice([-1, images, 0.5, math.nan, math.inf, -1e30])
    rois = rois.to(rng.choice([torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    if rng.random() < 0.1:
        rois = torch.stack([rois, rois + 1], dim=2)[..., 0]
    levels = None
    if len(sizes) > 1 or rng.random() < 0.2:
        some = [*range(len(sizes))] * 5 + [-1, len(sizes), 2**40]
        levels = torch.tensor([rng.choice(some) for _ in range(len(rois))], dtype=torch.int64)
        if rng.random() < 0.3:
            levels = levels.clamp(-1, 99).int()
    offsets = None
    if features['deformable']:
        offsets = torch.randn(len(rois), 2, *pooled, generator=g) / rng.choice([2, 8, 64])
        for _ in range(rng.choice([0, 0, 1]) * offsets.numel() // 4):
            bad = [math.nan, math.inf, -math.inf, 1e9, -1e30, 0.0]
            offsets.view(-1)[rng.randrange(offsets.numel())] = rng.choice(bad)
        offsets = offsets.to(rng.choice([torch.float32, torch.float32, torch.float64, torch.float16]))
    options = {'spatial_scale': scales, 'output_size': list(pooled), **options}
    groups = math.prod(pooled) if options['position_sensitive'] else 1
    samples = (options['sampling_ratio'] or max(options['min_samples'], 3)) ** 2
    room = READINGS // (max(len(rois), 1) * samples * math.prod(pooled))
    channels = min(rng.choice(CHANNELS), max(room, 1))
    is_special = rng.random() < 0.05 and not (features['rotated'] or features['deformable'])
    values = rng.choice(['normal', 'normal', 'relu', 'steps', 'constant'])
    layouts = ['nchw', 'channels_last', 'nchw', 'channels_last', 'sliced', 'transposed', 'group', 'expanded']
    layout = rng.choice(layouts)
    maps = []
    for size in sizes:
        map_ = draw_map(rng, g, (images, channels * groups, *size), values, is_special).to(dtype)
        maps.append(laid_out(map_, layout if rng.random() < 0.9 else rng.choice(layouts)))
    seed = None
    if features['jittered']:
        seed = torch.tensor([rng.choice([0, 7, -(2**63), 2**63 - 1, rng.getrandbits(62)])])
    grad = torch.randn(len(rois), channels, *pooled, generator=g).to(dtype)
    grad = laid_out(grad, rng.choice(layouts[:-1]))
    has_gradient = not (features['rotated'] and options['reduction'] == 'integral') and not is_special
    checks_rois = has_gradient and rng.random() < 0.5  # the reference takes long over it
    threads = rng.choice([1, 1, 1, 1, 1, 1, 2, 3])
    return Call(maps, rois, levels, offsets, seed, options, grad, is_special, checks_rois, threads)


def draw_method(rng):
    """Options of the op that make a method, and what belongs to it besides: often no method at all."""
    if rng.random() < 0.03:
        options = {
            'region': rng.choice(['none', 'round', 'floor', 'bins']),
            'sampling_ratio': rng.choice([None, 0, 2]),
            'reduction': rng.choice(['avg', 'max', 'integral']),
            'position_sensitive': rng.random() < 0.3,
        }
        features = {name: rng.random() < 0.3 for name in ('rotated', 'deformable', 'jittered')}
    else:
        options = dict(METHODS[rng.choice(list(METHODS))])
        features = {name: options.pop(name, False) for name in ('rotated', 'deformable')}
        features['jittered'] = options.pop('seed', None) is not None
        if options['sampling_ratio'] and rng.random() < 0.3:
            options['sampling_ratio'] = rng.choice([1, 2, 3, 4, 5, 8, 15, 16, 17])
    least = rng.choice([1, 1, 1, 2, 5])
    options = {
        'region': options.get('region', 'none'),
        'sampling_ratio': options['sampling_ratio'],
        'reduction': options['reduction'],
        'aligned': options.get('aligned', rng.random() < 0.5),
        'min_samples': least,
        'max_samples': rng.choice([None, None, least, least + 1, 15, 16]),
        'position_sensitive': options.get('position_sensitive', False),
    }
    return options, features


def draw_count(rng):
    return rng.choice([1, 1, 1, 1, 2, 2, 3, 5]) if rng.random() < 0.97 else rng.choice([0, 12, 30])


def draw_box(rng, size, scale):
    """(x1, y1, x2, y2) for a map of `size` cells."""
    kind = rng.random()
    if kind < 0.03:
        return [rng.choice([math.nan, math.inf, -math.inf, 3.0]) for _ in range(4)]
    if kind < 0.08:
        return [rng.choice(WILD) for _ in range(4)]
    if kind < 0.25:  # on the lattice: decisions and ties are exact, or nearly so
        ends = [[rng.randint(-8, 8 * extent + 8) / rng.choice([1, 2, 8]) for _ in 'ab'] for extent in size]
    elif kind < 0.35:
        ends = [[rng.uniform(-1, 1) * rng.choice([100, 1e3, 1e4, 1e5]) for _ in 'ab'] for _ in size]
    else:
        ends = [[rng.uniform(-0.3, 1.3) * extent for _ in 'ab'] for extent in size]
    for axis in ends:
        shape = rng.random()
        if shape < 0.03:
            axis[1] = axis[0]
        elif shape < 0.08:
            axis[1] = axis[0] + rng.choice([1e-7, 1e-4, 1e-2, 0.5])
        elif shape < 0.95:
            axis.sort()
    (top, bottom), (left, right) = ends
    return [side / scale for side in (left, top, right, bottom)]


def draw_map(rng, g, shape, values, is_special):
    map_ = torch.randn(shape, generator=g)
    if values == 'relu':
        map_ = map_.relu()
    elif values == 'steps':
        map_ = (map_ * 2).round() / 2
    elif values == 'constant':
        map_ = torch.full(shape, rng.choice([-2.0, 0.0, 1.0]))
    if is_special:
        share = torch.rand(shape, generator=g)
        for at, number in enumerate([math.inf, -math.inf, math.nan][: rng.choice([1, 2, 3])]):
            map_[(share > at / 50) & (share < (at + 1) / 50)] = number
    return map_


def laid_out(tensor, layout):
    """The same numbers, or for 'expanded' those of the first image and channel, otherwise in memory."""
    if layout == 'channels_last':
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == 'sliced':
        return tensor.repeat_interleave(2, 3)[..., ::2]
    if layout == 'transposed':
        return tensor.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == 'group':
        wide = torch.cat([tensor, tensor], 1).contiguous(memory_format=torch.channels_last)
        return wide[:, tensor.shape[1] :]
    if layout == 'expanded':
        return tensor[:1, :1].expand_as(tensor) if tensor.numel() else tensor
    return tensor


# Checking ----------------------------------------------------------------------------------------


def check(seed):
    """Makes the call of a seed, forward and backward, by the op and by the reference.

    Returns 'refused', 'agreed' or, where rounding decided, 'decided by rounding'; AssertionError otherwise.
    """
    call = draw(seed)
    before = torch.get_num_threads()
    torch.set_num_threads(call.threads)
    try:
        return Check(call).run()
    finally:
        torch.set_num_threads(before)


class Check:
    """One call by both, and how far they may be apart."""

    def __init__(self, call):
        self.call = call
        self.moves = None
        self.verdict = 'agreed'

    def run(self):
        call = self.call
        try:
            want, want_argmax = call.forward(reference.extract)
        except REFUSALS as error:
            try:
                call.forward(OPS.roi_extract)
            except type(error):
                return 'refused'
            raise AssertionError(f'the op takes what the reference refuses: {error}') from None
        output, argmax = call.forward(OPS.roi_extract)
        assert (output.shape, output.dtype) == (want.shape, want.dtype)
        assert output.is_contiguous(memory_format=call.memory_format), 'output: not in the layout of the maps'
        assert (argmax.shape, argmax.dtype) == (want_argmax.shape, want_argmax.dtype)

        self.measure()
        self.compare('output', output, want, self.value_error[:, None, None, None], 2)

        grad = torch.where(self.has_parity[:, None, None, None], call.grad, 0)
        differs = torch.zeros_like(want, dtype=torch.bool)
        if call.reduction == 'max':
            differs = (argmax != want_argmax) & self.has_parity[:, None, None, None]
            self.check_argmax(want, argmax, differs)
        self.check_gradient_of_maps(grad, argmax)
        if call.checks_rois:
            self.check_gradient_of_rois(torch.where(differs, 0, grad), argmax)
        if not bool(self.has_parity.all()) and not call.is_special:
            self.check_finite(output, argmax)
        return self.verdict

    def measure(self):
        """What rounding may do: the contract's numbers, per RoI."""
        call = self.call
        dtype = call.maps[0].dtype
        coord = torch.float64 if dtype == torch.float64 else torch.float32
        rois = call.rois.to(coord).double()
        scales = torch.tensor(call.options['spatial_scale'], dtype=torch.float64)
        levels = torch.zeros(len(rois), dtype=torch.int64) if call.levels is None else call.levels.long()
        self.scale = scales[levels.clamp(0, len(scales) - 1)]
        self.finite = rois.isfinite().all(1)
        box = torch.where(rois.isfinite(), rois, 0)[:, 1:5]
        reach = 1 + box.abs().amax(1) * self.scale
        self.has_parity = reach < CELLS_WITH_PARITY
        if call.rois.shape[1] == 6:  # and the arguments of a sine are not known any better
            turn = torch.where(rois.isfinite(), rois, 0)[:, 5].abs() / 180
            self.has_parity &= turn < 2.0**20
            reach = reach * (1 + turn)
        if call.offsets is not None:
            moved = torch.where(call.offsets.isfinite(), call.offsets, 0).double().abs().flatten(1).amax(1)
            reach = reach * (1 + 2 * moved)
            self.has_parity &= reach < CELLS_WITH_PARITY
        reach = torch.where(self.has_parity, reach, 1)
        self.rounding = torch.finfo(coord).eps
        self.reach, self.position_error = reach, 16 * self.rounding * reach
        values = [torch.where(map_.isfinite(), map_, 0).abs().max() for map_ in call.maps if map_.numel()]
        self.highest = float(max(values, default=0))
        self.weight_error = self.position_error
        if call.reduction == 'integral':  # a mean is divided by the size of its bin
            sides = box[:, 2:4] if rois.shape[1] == 6 else box[:, 2:4] - box[:, :2]
            bins = sides.abs() * self.scale[:, None] / torch.tensor(call.options['output_size'][::-1])
            self.weight_error = self.position_error * (1 + 1 / torch.where(bins > 0, bins, 1).amin(1))
            # The reference divides by the size of a bin twice for its slopes.
            self.has_parity &= ((bins <= 0) | (bins >= torch.finfo(coord).tiny)).all(1)
        self.value_error = self.weight_error * self.highest

    def compare(self, name, got, want, error, roundings):
        """Holds (K, ...) results against the reference's, where they have parity."""
        error = torch.where(self.has_parity.reshape(-1, *[1] * (got.dim() - 1)), error, math.inf)
        self.compare_all(name, got, want, error, roundings)

    def compare_all(self, name, got, want, error, roundings):
        if self.is_close(got, want, error, roundings).all():
            return
        # Further apart than rounding of values explains: does rounding of positions?
        moved = torch.stack([results[name] for results in self.moved()]).double()
        low, high = (end.clamp(-1e300, 1e300) for end in (moved.amin(0), moved.amax(0)))
        spread = 2 * (high - low)
        if self.is_close(got, want, error + spread, roundings).all():
            self.verdict = 'decided by rounding'
            return
        wrong = ~self.is_close(got, want, error + spread, roundings)
        at = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f'{name}{list(at)}: the op has {float(got[at])!r}, the reference {float(want[at])!r}; '
            f'{int(wrong.sum())} of {wrong.numel()} differ'
        )

    def is_close(self, got, want, error, roundings):
        got, rounding = got.double(), torch.finfo(want.dtype).eps
        want = want.double()
        near = (got - want).abs() <= roundings * rounding * want.abs() + error
        return near | (got == want) | (got.isnan() & want.isnan()) | (error == math.inf)

    def moved(self):
        """Results of the reference where positions move by their error, by name."""
        if self.moves is None:
            self.moves = [self.results(self.moved_call(i)) for i in range(24)]
        return self.moves

    def moved_call(self, i):
        call, g = self.call, generator(i)

        def noise(tensor):
            return torch.rand(tensor.shape, generator=g, dtype=torch.float64) * 2 - 1

        coord = torch.float64 if call.maps[0].dtype == torch.float64 else torch.float32
        rois = call.rois.to(coord).double()
        by = (self.position_error / self.scale)[:, None] * noise(rois)
        by[:, 0] = 0
        if rois.shape[1] == 6:
            by[:, 5] = 16 * self.rounding * (60 + rois[:, 5].abs()) * noise(rois[:, 5])
        offsets = call.offsets
        if offsets is not None:
            offsets = offsets.to(coord).double()
            offsets = (offsets + 16 * self.rounding * (1 + offsets.abs()) * noise(offsets)).to(coord)
        return replace(call, rois=(rois + by).to(coord), offsets=offsets)

    def results(self, call):
        """Everything that is compared, of the reference."""
        output, argmax = call.forward(reference.extract)
        grad = torch.where(self.has_parity[:, None, None, None], call.grad, 0)
        results = {'output': output}
        for i, of_map in enumerate(call.backward(reference.extract_backward, argmax, grad)):
            results[f'gradient of map {i}'] = of_map
        if call.checks_rois:
            of_rois, of_offsets = call.backward_rois(reference.extract_backward_rois, argmax, grad)
            results['gradient of rois'], results['gradient of offsets'] = of_rois, of_offsets
        return results

    def check_argmax(self, want, argmax, differs):
        """An argmax that is not the reference's leads as far as rounding can tell: by the reference's weights
        the maps are worth as much there."""
        if self.call.is_special or not differs.any():
            return
        of_maps = self.call.backward(reference.extract_backward, argmax, differs.to(want.dtype))
        pairs = zip(of_maps, self.call.maps, strict=True)
        worth = sum(float((of_map.double() * map_.double()).sum()) for of_map, map_ in pairs)
        best = float(torch.where(differs, want, 0).double().sum())
        counts = differs.flatten(1).sum(1)
        # A weight and a product of the reference's gradient are rounded to the type of the maps.
        rounding = 4 * torch.finfo(want.dtype).eps * self.highest
        allowed = float((counts * (self.value_error + rounding)).sum())
        if best - worth > allowed:
            # Perhaps another sample is the first on the map: then indices are counted from there.
            outputs = torch.stack([results['output'] for results in self.moved()]).double()
            spread = (outputs.amax(0) - outputs.amin(0))[differs].sum()
            moved = [self.moved_call(i).forward(reference.extract)[1] for i in range(8)]
            same = any(bool((other == argmax)[differs].all()) for other in moved)
            assert same or best - worth <= allowed + 2 * float(spread), (
                f'argmax: {int(differs.sum())} of them are worth {worth!r}, those of the reference {best!r}'
            )
            self.verdict = 'decided by rounding'

    def check_gradient_of_maps(self, grad, argmax):
        call = self.call
        got = call.backward(OPS.roi_extract_backward, argmax, grad)
        want = call.backward(reference.extract_backward, argmax, grad)
        error = 2 * self.weight_error.max() if len(call.rois) else torch.tensor(0.0)
        for i, (of_op, of_reference) in enumerate(zip(got, want, strict=True)):
            assert (of_op.shape, of_op.dtype) == (of_reference.shape, of_reference.dtype)
            if self.is_close(of_op, of_reference, error, 1).all():
                continue
            total = call.backward(reference.extract_backward, argmax, grad.double().abs())[i]
            # Of a long sum the reference, which adds one by one, loses more than the op: then float64 tells,
            # and may itself lose a rounding for each reading.
            exact = call.backward(reference.extract_backward, argmax, grad.double())[i].to(of_op.dtype)
            lost = READINGS * torch.finfo(torch.float64).eps * total
            if self.is_close(of_op, exact, error + lost, 1).all():
                continue
            self.compare_all(f'gradient of map {i}', of_op, of_reference, error * max(total.max(), 1), 1)

    def check_gradient_of_rois(self, grad, argmax):
        """A slope is off by the position on the other axis, and is multiplied by what a position moves by."""
        call = self.call
        got = call.backward_rois(OPS.roi_extract_backward_rois, argmax, grad)
        want = call.backward_rois(reference.extract_backward_rois, argmax, grad)
        slope_error = 8 * self.value_error[:, None]
        total = grad.double().abs().flatten(1).sum(1, keepdim=True)
        levers = self.scale[:, None].expand(got[0].shape).clone()
        levers[:, 5:] = self.reach[:, None] / 57
        self.compare('gradient of rois', got[0], want[0], slope_error * total * levers, 2)
        assert got[1].shape == want[1].shape
        if call.offsets is not None:
            total = grad.double().abs().sum(1, keepdim=True)
            error = (slope_error * 2 * self.reach[:, None])[..., None, None] * total
            self.compare('gradient of offsets', got[1], want[1], error, 2)

    def check_finite(self, output, argmax):
        """Wild RoIs: finite, and bounded work; NaN and without a gradient where a coordinate is none."""
        call = self.call
        assert output[~self.finite].isnan().all(), 'output: a number for a RoI that is none'
        if call.offsets is None:
            assert output[self.finite].isfinite().all(), 'output: not finite'
        for of_map in call.backward(OPS.roi_extract_backward, argmax, call.grad):
            assert of_map.isfinite().all(), 'gradient of maps: not finite'
        if call.checks_rois:
            of_rois, _ = call.backward_rois(OPS.roi_extract_backward_rois, argmax, call.grad)
            assert not of_rois[~self.finite].any(), 'gradient of rois: of a RoI that is none'
            if of_rois.dtype in (torch.float32, torch.float64):
                assert of_rois.isfinite().all(), 'gradient of rois: not finite'


# Running -----------------------------------------------------------------------------------------


def repeat(seed):
    """The line that makes the call of a seed again."""
    return f'PYTHONPATH=.:tests/ops python -c "import fuzzing; print(fuzzing.check({seed}))"'


def run(seeds, at=None):
    """Checks the calls of some seeds; returns how many ended how, and the seeds that failed."""
    counts, failed = Counter(), []
    for seed in seeds:
        if at is not None:
            at.value = seed
        try:
            counts[check(seed)] += 1
        except Exception as error:
            print(f'{error.__class__.__name__}: {error}\n  {repeat(seed)}', file=sys.stderr, flush=True)
            counts['failed'] += 1
            failed.append(seed)
        if at is not None and sum(counts.values()) % 1000 == 0:
            print(f'{seed}: {dict(counts)}', flush=True)
    return counts, failed


def work(seeds, at, results):
    torch.set_num_threads(1)
    results.put(run(seeds, at)[0])


def main():
    parser = argparse.ArgumentParser(description='Random calls of the op against the reference.')
    parser.add_argument('--calls', type=int, default=100_000, metavar='N')
    parser.add_argument('--seed', type=int, default=0, help='of the first call; the others count on from it')
    parser.add_argument('--processes', type=int, default=2, metavar='N')
    args = parser.parse_args()
    assert roi_plugins.ops.extension_is_loaded(), 'there is no compiled op to try'
    started = time.monotonic()
    context = multiprocessing.get_context('spawn')
    results = context.Queue()
    workers = []
    for i in range(args.processes):
        seeds = range(args.seed + i, args.seed + args.calls, args.processes)
        at = context.Value('q', -1)
        workers.append((context.Process(target=work, args=(seeds, at, results)), at))
        workers[-1][0].start()
    crashed = False
    counts = Counter()
    for worker, at in workers:
        worker.join()
        if worker.exitcode:
            crashed = True
            print(f'a process ended with {worker.exitcode} in\n  {repeat(at.value)}', file=sys.stderr)
        else:
            counts += results.get()
    print(f'{counts.total()} calls in {time.monotonic() - started:.0f} s: {dict(counts)}')
    return int(crashed or counts['failed'] > 0)


if __name__ == '__main__':
    sys.exit(main())
