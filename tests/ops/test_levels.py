"""The level rules within a few ulps of every threshold, against the frameworks' own functions."""

import pytest
import torch

from roi_plugins.ops import assign_levels_detectron2, assign_levels_mmdet, roi_extract

ULPS = 24  # on either side of a threshold; MMDetection's 1e-6 is 8 of them below its first


def boxes_near(sizes, dtype=torch.float32):
    """Upright boxes whose sqrt(area) is within some ulps of each size: squares, flat, tall and moved ones."""
    sides = torch.tensor(sizes, dtype=dtype)
    below, above, near = sides, sides, [sides]
    for _ in range(ULPS):
        below = torch.nextafter(below, torch.full_like(below, -torch.inf))
        above = torch.nextafter(above, torch.full_like(above, torch.inf))
        near += [below, above]
    sides = torch.cat(near)
    zeros = torch.zeros_like(sides)
    square = torch.stack([zeros, zeros, sides, sides], dim=1)
    flat = torch.stack([zeros, zeros, sides * 2, sides / 2], dim=1)
    tall = torch.stack([zeros, zeros, sides * 0.75, sides / 0.75], dim=1)
    moved = torch.stack([zeros - 32, zeros + 16, sides - 32, sides + 16], dim=1)
    return torch.cat([square, flat, tall, moved])


def as_rois(boxes):
    return torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)


# (number of levels, finest scale)
MMDET_RULES = [(4, 56), (5, 56), (6, 14), (3, 100), (4, 56.5)]
# (min_level, max_level, canonical_box_size, canonical_level); those with fine maps are where 1e-8 tells.
DETECTRON2_RULES = [(2, 5, 224, 4), (0, 6, 224, 4), (0, 7, 512, 6), (3, 7, 224, 4), (0, 5, 100, 3)]


def near_mmdet(num_levels, finest_scale, dtype=torch.float32):
    return as_rois(boxes_near([finest_scale * 2.0**level for level in range(num_levels + 1)], dtype))


def near_detectron2(min_level, max_level, size, canonical_level, dtype=torch.float32):
    levels = range(min_level, max_level + 2)
    return boxes_near([size * 2.0 ** (level - canonical_level) for level in levels], dtype)


def mmdet_peer(num_levels, finest_scale):
    pytest.importorskip('mmcv.ops', exc_type=ImportError)
    extractors = pytest.importorskip('mmdet.models.roi_heads.roi_extractors')
    peer = extractors.SingleRoIExtractor(
        roi_layer={'type': 'RoIAlign', 'output_size': 7},
        out_channels=256,
        featmap_strides=[4, 8, 16, 32, 64, 128][:num_levels],
        finest_scale=finest_scale,
    )
    return lambda rois: peer.map_roi_levels(rois, num_levels)


def ours_as_detectron2(boxes, min_level, max_level, size, canonical_level):
    num_levels = max_level - min_level + 1
    return assign_levels_detectron2(boxes, num_levels, size, canonical_level, min_level)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('rule', MMDET_RULES, ids=str)
def test_mmdet_at_its_thresholds(device, rule, dtype):
    """Boxes of any type are taken as float32, which MMDetection's are when nothing was cast before."""
    boxes_dtype = torch.float32 if dtype == torch.float64 else dtype
    rois = near_mmdet(*rule, dtype=boxes_dtype).to(device, dtype)
    levels = assign_levels_mmdet(rois, *rule)
    assert torch.equal(levels, mmdet_peer(*rule)(rois.float()))
    assert len(levels.unique()) == rule[0]


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('rule', DETECTRON2_RULES, ids=str)
def test_detectron2_at_its_thresholds(device, rule, dtype):
    """Whatever their type, Boxes are float32."""
    poolers = pytest.importorskip('detectron2.modeling.poolers')
    structures = pytest.importorskip('detectron2.structures')
    boxes = near_detectron2(*rule, dtype=dtype).to(device)
    levels = ours_as_detectron2(boxes, *rule)
    assert torch.equal(levels, poolers.assign_boxes_to_levels([structures.Boxes(boxes)], *rule))
    assert len(levels.unique()) == rule[1] - rule[0] + 1


@pytest.mark.parametrize('epsilon', [0, 5e-7, 2e-6, 1e-5])
@pytest.mark.parametrize('rule', MMDET_RULES[:3], ids=str)
def test_another_epsilon_is_not_mmdets(rule, epsilon):
    """The boxes above tell it apart, without MMDetection too."""
    num_levels, finest_scale = rule
    rois = near_mmdet(*rule)
    size = torch.sqrt((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2]))
    for other, same in ((epsilon, False), (1e-6, True)):
        levels = torch.floor(torch.log2(size / finest_scale + other)).clamp(0, num_levels - 1).long()
        assert torch.equal(levels, assign_levels_mmdet(rois, *rule)) == same


@pytest.mark.parametrize('epsilon', [0, 3e-9, 3e-8, 1e-6])
def test_another_epsilon_is_not_detectron2s(epsilon):
    rule = 0, 7, 512, 6
    boxes = near_detectron2(*rule)
    size = torch.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    for other, same in ((epsilon, False), (1e-8, True)):
        levels = torch.floor(6 + torch.log2(size / 512 + other)).clamp(0, 7).long()
        assert torch.equal(levels, ours_as_detectron2(boxes, *rule)) == same


def test_rotated_boxes_have_the_levels_of_their_sides(device):
    """Detectron2's RotatedBoxes and upright boxes of the same sides, at the thresholds."""
    structures = pytest.importorskip('detectron2.structures')
    poolers = pytest.importorskip('detectron2.modeling.poolers')
    rule = DETECTRON2_RULES[1]
    corners = near_detectron2(*rule).to(device)
    sides = corners[:, 2:] - corners[:, :2]
    rotated = torch.cat([corners[:, :2], sides, torch.full_like(sides[:, :1], 30)], dim=1)
    levels = ours_as_detectron2(as_rois(rotated), *rule)
    assert torch.equal(levels, poolers.assign_boxes_to_levels([structures.RotatedBoxes(rotated)], *rule))
    rule = MMDET_RULES[2]
    rois = near_mmdet(*rule).to(device)
    sides = rois[:, 3:] - rois[:, 1:3]
    rotated = torch.cat([rois[:, :3], sides, torch.full_like(sides[:, :1], 30)], dim=1)
    assert torch.equal(assign_levels_mmdet(rotated, *rule), assign_levels_mmdet(rois, *rule))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_rotated_half_boxes_are_widened_first(device, dtype):
    """The area of a box of 256 px is infinite in float16."""
    sides = torch.arange(1.0, 1000, 7, device=device)
    rotated = torch.stack([sides * 0, sides, sides, sides, sides / 2, sides * 0], dim=1).to(dtype)
    for rule in (assign_levels_mmdet, assign_levels_detectron2):
        levels = rule(rotated, 4)
        assert torch.equal(levels, rule(rotated.float(), 4))
        assert len(levels.unique()) == 4


def test_levels_in_floating_point_are_whole_ones_or_none(device):
    """A fraction, NaN or a number outside the pyramid is no level: zeros."""
    given = [0.0, 1.0, 0.5, float('nan'), -1.0, -0.5, -9.0, 2.0, 1e30, float('inf'), -float('inf')]
    levels = torch.tensor(given, device=device)
    rois = torch.tensor([[0.0, 0, 0, 2, 2]], device=device).expand(len(levels), 5)
    maps = [torch.full((1, 1, 4, 4), value, device=device) for value in (3.0, 5.0)]
    output = roi_extract(maps, rois, 1, [1.0, 0.5], levels=levels)
    assert output.flatten().tolist() == [3, 5] + [0] * (len(given) - 2)
