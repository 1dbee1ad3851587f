"""The op and the level rules against the peers' own code, forward and backward."""

import numpy as np
import pytest
import torch
import torchvision
from cases import generator, random_map, random_rois, rotated

from roi_plugins.extractors import QuantizedPool
from roi_plugins.ops import assign_levels_detectron2, assign_levels_mmdet, roi_extract

SCALE = 0.25
OUTPUT_SIZE = (5, 3)
both_conventions = pytest.mark.parametrize('aligned', [True, False], ids=['aligned', 'legacy'])
grids = pytest.mark.parametrize('sampling_ratio', [0, 1, 2, 3])
inputs = pytest.mark.parametrize('rois', ['random', 'degenerate'])


def rois_of(kind, device):
    if kind == 'random':
        return random_rois(60, 2, 80, 120, device=device)
    # What every peer survives: no inverted box (torchvision raises on some, MMCV asserts), no NaN,
    # and no point exactly at row -1, which MMCV's maximum keeps as its mark for "nobody won".
    boxes = [
        (0, 0, 120, 80),  # the whole image
        (-43, -41, 190, 165),  # more than that
        (-60, 10, 20, 60),  # half outside
        (100, 60, 180, 140),
        (300, 300, 360, 340),  # outside
        (-90, -70, -50, -30),
        (30, 20, 30, 20),  # a point
        (30, 20, 70, 20),  # a line
        (30, 20, 30, 60),
        (30.5, 20.25, 30.75, 20.5),  # less than a cell
        (-4, -4, 124, 84),  # starts at -1 in the legacy convention
        (0, 0, 4, 4),
        (116, 76, 120, 80),  # the last cell
    ]
    return torch.tensor([(i % 2, *box) for i, box in enumerate(boxes)], device=device).float()


def assert_parity(peer, rois, atol=2e-5, channels=4, peer_rois=None, **method):
    """Same output, same gradient for a random one; for a maximum wherever the argmax is clear."""
    features = random_map(2, channels, 20, 30, device=rois.device)
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    output = roi_extract(ours, rois, OUTPUT_SIZE, SCALE, **method)
    expected = peer(theirs, rois if peer_rois is None else peer_rois)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=atol)
    grad = torch.randn(output.shape, generator=generator(2)).to(rois.device)
    output.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


@inputs
@both_conventions
@grids
def test_torchvision_roi_align(device, rois, sampling_ratio, aligned):
    assert_parity(
        lambda f, r: torchvision.ops.roi_align(f, r, OUTPUT_SIZE, SCALE, sampling_ratio, aligned),
        rois_of(rois, device),
        sampling_ratio=sampling_ratio,
        aligned=aligned,
    )


@inputs
def test_torchvision_roi_pool(device, rois):
    assert_parity(
        lambda f, r: torchvision.ops.roi_pool(f, r, OUTPUT_SIZE, SCALE),
        rois_of(rois, device),
        region='round',
        sampling_ratio=None,
        reduction='max',
        atol=0,
    )


def test_torchvision_roi_pool_on_the_half_cell(device):
    """Halves round away from zero, not to even, on both sides of it."""
    corners = torch.arange(-14, 30, 4.0)  # in cells: -3.5, -2.5, ... 6.5
    rois = torch.stack([torch.zeros(11), corners, corners, corners + 30, corners + 26], dim=1)
    assert_parity(
        lambda f, r: torchvision.ops.roi_pool(f, r, OUTPUT_SIZE, SCALE),
        rois.to(device),
        region='round',
        sampling_ratio=None,
        reduction='max',
        atol=0,
    )


@inputs
@both_conventions
@grids
@pytest.mark.parametrize('reduction', ['avg', 'max'])
def test_mmcv_roi_align(device, rois, reduction, sampling_ratio, aligned):
    mmcv_ops = pytest.importorskip('mmcv.ops', exc_type=ImportError)
    layer = mmcv_ops.RoIAlign(OUTPUT_SIZE, SCALE, sampling_ratio, reduction, aligned)
    rois = rois_of(rois, device)
    if reduction == 'max' and sampling_ratio == 0 and aligned:
        # The maximum of no samples is 0 here; MMCV's CPU kernel gives its -10000.
        rois = rois[(rois[:, 3:] > rois[:, 1:3]).all(dim=1)]
    assert_parity(
        layer,
        rois,
        sampling_ratio=sampling_ratio,
        reduction=reduction,
        aligned=aligned,
    )


@inputs
def test_mmcv_roi_pool_on_cuda(device, rois):
    """MMCV has no CPU kernel for it."""
    mmcv_ops = pytest.importorskip('mmcv.ops', exc_type=ImportError)
    if device.type == 'cpu':
        pytest.skip('MMCV has no CPU kernel of RoIPool')
    assert_parity(
        mmcv_ops.RoIPool(OUTPUT_SIZE, SCALE),
        rois_of(rois, device),
        region='bins',
        sampling_ratio=None,
        reduction='max',
    )


@inputs
def test_mmcv_prroi_pool_on_cuda(device, rois):
    """MMCV has no CPU kernel for it either."""
    mmcv_ops = pytest.importorskip('mmcv.ops', exc_type=ImportError)
    if device.type == 'cpu':
        pytest.skip('MMCV has no CPU kernel of PrRoIPool')
    assert_parity(
        mmcv_ops.PrRoIPool(OUTPUT_SIZE, SCALE),
        rois_of(rois, device),
        sampling_ratio=None,
        reduction='integral',
        aligned=False,
    )


@inputs
@grids
def test_torchvision_ps_roi_align(device, rois, sampling_ratio):
    rois = rois_of(rois, device)
    if sampling_ratio == 0:  # the average of no samples is 0 here, and NaN there
        rois = rois[(rois[:, 3:] > rois[:, 1:3]).all(dim=1)]
    assert_parity(
        lambda f, r: torchvision.ops.ps_roi_align(f, r, OUTPUT_SIZE, SCALE, sampling_ratio),
        rois,
        channels=2 * 15,
        sampling_ratio=sampling_ratio,
        position_sensitive=True,
    )


RFCN = {'region': 'round', 'sampling_ratio': None, 'position_sensitive': True}


def test_torchvision_ps_roi_pool(device):
    """Of boxes that end before the last row and column: beyond them torchvision's backward goes where its
    forward does not read, into that row and column."""
    rois = rois_of('random', device)
    rois[:, 1::2] = rois[:, 1::2].clamp(max=108)
    rois[:, 2::2] = rois[:, 2::2].clamp(max=68)
    assert_parity(
        lambda f, r: torchvision.ops.ps_roi_pool(f, r, OUTPUT_SIZE, SCALE), rois, channels=2 * 15, **RFCN
    )


@inputs
def test_torchvision_ps_roi_pool_forward(device, rois):
    rois, features = rois_of(rois, device), random_map(2, 2 * 15, 20, 30, device=device)
    expected = torchvision.ops.ps_roi_pool(features, rois, OUTPUT_SIZE, SCALE)
    torch.testing.assert_close(roi_extract(features, rois, OUTPUT_SIZE, SCALE, **RFCN), expected)


def rotated_rois(device):
    """All sizes and angles, multiples of a right angle among them, and boxes without a size."""
    rois = rotated(random_rois(60, 2, 80, 120, device=device))
    rois[:6, 5] = torch.tensor([0.0, 90, 180, -90, 270, 360])
    rois[6:8, 3:5] = 0
    return rois


@both_conventions
@grids
@pytest.mark.parametrize('clockwise', [False, True], ids=['counter-clockwise', 'clockwise'])
def test_mmcv_roi_align_rotated(device, sampling_ratio, aligned, clockwise):
    """Angles in radians there, and in the other direction if asked for."""
    mmcv_ops = pytest.importorskip('mmcv.ops', exc_type=ImportError)
    rois = rotated_rois(device)
    theirs = rois.clone()
    theirs[:, 5] = torch.deg2rad(rois[:, 5]) * (-1 if clockwise else 1)
    assert_parity(
        mmcv_ops.RoIAlignRotated(OUTPUT_SIZE, SCALE, sampling_ratio, aligned, clockwise),
        rois,
        peer_rois=theirs,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
        atol=1e-4,  # of angles in other units
    )


@grids
def test_detectron2_roi_align_rotated(device, sampling_ratio):
    layer = pytest.importorskip('detectron2.layers.roi_align_rotated')
    if not hasattr(torch.ops.detectron2, 'roi_align_rotated_forward'):
        pytest.skip('Detectron2 was built without its C++ here')
    assert_parity(
        layer.ROIAlignRotated(OUTPUT_SIZE, SCALE, sampling_ratio),
        rotated_rois(device),
        sampling_ratio=sampling_ratio,
    )


@inputs
@grids
def test_mmcv_deform_roi_pool_on_cuda(device, rois, sampling_ratio):
    """MMCV has no CPU kernel for it. Its offsets are shares of the box times gamma."""
    mmcv_ops = pytest.importorskip('mmcv.ops', exc_type=ImportError)
    if device.type == 'cpu':
        pytest.skip('MMCV has no CPU kernel of DeformRoIPool')
    rois = rois_of(rois, device)
    offsets = torch.randn(len(rois), 2, *OUTPUT_SIZE, generator=generator(3)).to(device)
    layer = mmcv_ops.DeformRoIPool(OUTPUT_SIZE, SCALE, sampling_ratio, gamma=0.1)
    assert_parity(
        lambda f, r: layer(f, r, offsets), rois, sampling_ratio=sampling_ratio, offsets=0.1 * offsets
    )


# Level rules -------------------------------------------------------------------------------------


def one_step(value, direction):
    return np.nextafter(np.float32(value), np.float32(direction * np.inf))


def boxes_at_thresholds():
    """Squares, and other boxes of the same area, on each side of every size where a level starts."""
    boxes = []
    for size in (28, 56, 112, 224, 448, 896, 1792):
        for side in (one_step(size, -1), size, one_step(size, 1), size - 0.01, size + 0.01):
            boxes += [(0, 0, side, side), (0, 0, side * 2, size / 2), (16, 32, 16 + side, 32 + side)]
    return torch.tensor(np.array(boxes, np.float32))


def boxes_for_levels():
    random = random_rois(3000, 1, 1500, 1500, seed=7)[:, 1:]
    degenerate = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 9], [9, 9, 5, 5], [0, 0, 1e20, 1e20]])
    return torch.cat([random, boxes_at_thresholds(), degenerate])


NO_SIZE = [[9.0, 5, 5, 9], [5, 9, 9, 5], [float('nan'), 0, 9, 9], [0, 0, 9, float('nan')]]


def with_index(boxes):
    return torch.cat([torch.zeros(len(boxes), 1), boxes], dim=1)


@pytest.mark.parametrize(('num_levels', 'finest_scale'), [(4, 56), (5, 56), (3, 28), (1, 56)])
def test_mmdet_rule(device, num_levels, finest_scale):
    pytest.importorskip('mmcv.ops', exc_type=ImportError)
    extractors = pytest.importorskip('mmdet.models.roi_heads.roi_extractors')
    peer = extractors.SingleRoIExtractor(
        roi_layer={'type': 'RoIAlign', 'output_size': 7},
        out_channels=256,
        featmap_strides=[4, 8, 16, 32, 64][:num_levels],
        finest_scale=finest_scale,
    )
    rois = with_index(boxes_for_levels()).to(device)
    levels = assign_levels_mmdet(rois, num_levels, finest_scale=finest_scale)
    assert levels.dtype == torch.int64
    assert torch.equal(levels, peer.map_roi_levels(rois, num_levels))
    assert torch.equal(levels, assign_levels_mmdet(rois[:, 1:], num_levels, finest_scale))


def detectron2_rule(boxes, min_level, max_level, canonical_box_size, canonical_level):
    """detectron2.modeling.poolers.assign_boxes_to_levels, where Detectron2 is not installed."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    box_sizes = torch.sqrt(area)
    levels = torch.floor(canonical_level + torch.log2(box_sizes / canonical_box_size + 1e-8))
    return torch.clamp(levels, min=min_level, max=max_level).to(torch.int64) - min_level


@pytest.mark.parametrize('rule', [(2, 5, 224, 4), (3, 7, 224, 4), (4, 4, 224, 4), (2, 6, 112, 3)], ids=str)
def test_detectron2_rule(device, rule):
    min_level, max_level, canonical_box_size, canonical_level = rule
    try:
        from detectron2.modeling.poolers import assign_boxes_to_levels
        from detectron2.structures import Boxes
    except ImportError:
        peer = detectron2_rule
    else:

        def peer(boxes, *rule):
            return assign_boxes_to_levels([Boxes(boxes)], *rule)

    boxes = boxes_for_levels().to(device)
    num_levels = max_level - min_level + 1
    levels = assign_levels_detectron2(boxes, num_levels, canonical_box_size, canonical_level, min_level)
    assert levels.dtype == torch.int64
    assert torch.equal(levels, peer(boxes, *rule))
    rois = with_index(boxes.cpu()).to(device)
    options = dict(
        canonical_box_size=canonical_box_size, canonical_level=canonical_level, min_level=min_level
    )
    assert torch.equal(levels, assign_levels_detectron2(rois, num_levels=num_levels, **options))


@pytest.mark.parametrize('module', [lambda module: module, torch.jit.script], ids=['eager', 'script'])
@pytest.mark.filterwarnings('ignore:.torch.jit:DeprecationWarning')
def test_the_rules_stand_in_for_each_other(device, module):
    """By hand and in an extractor, for the usual pyramid of strides 4 to 32."""
    sides = torch.tensor([20.0, 111, 113, 223, 225, 447, 449, 5000], device=device)
    rois = torch.stack([sides * 0, sides * 0, sides * 0, sides, sides], dim=1)
    features = [torch.full((1, 1, 8, 8), float(level), device=device) for level in range(4)]
    for rule in (assign_levels_mmdet, assign_levels_detectron2):
        levels = rule(rois, num_levels=4)
        assert levels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        extractor = module(QuantizedPool(1, [4, 8, 16, 32], level_rule=rule))
        assert torch.equal(extractor(features, rois).flatten(), levels.float())


def test_published_thresholds(device):
    """FPN's equation 1: 224 is level 4 of 2 to 5; MMDetection's finest level ends below 112."""
    sides = torch.tensor([1.0, 111, 112.1, 223, 224.1, 447, 448.1, 5000])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], dim=1).to(device)
    expected = [0, 0, 1, 1, 2, 2, 3, 3]
    assert assign_levels_mmdet(boxes, 4).tolist() == expected
    assert assign_levels_detectron2(boxes, 4).tolist() == expected


def test_a_box_without_a_size_has_no_level(device):
    """The peers cast NaN to an integer, which is any integer; here it is always -1."""
    boxes = torch.tensor(NO_SIZE, device=device)
    assert assign_levels_mmdet(boxes, 4).tolist() == [-1] * 4
    assert assign_levels_detectron2(boxes, 4).tolist() == [-1] * 4
    assert assign_levels_mmdet(boxes[:0], 4).shape == (0,)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_half_boxes_are_widened_first(device, dtype):
    """In float16 the area of a box of 256 px overflows, and each such box would move up a level."""
    boxes = random_rois(200, 1, 1000, 1000, dtype=dtype, device=device)[:, 1:]
    assert torch.equal(assign_levels_mmdet(boxes, 4), assign_levels_mmdet(boxes.float(), 4))
    assert torch.equal(assign_levels_detectron2(boxes, 4), assign_levels_detectron2(boxes.float(), 4))
