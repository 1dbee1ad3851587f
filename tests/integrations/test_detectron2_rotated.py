"""Rotated boxes in Detectron2: the poolers held against its rule and MMCV's kernel, and the rotated heads."""

import contextlib
from pathlib import Path

import pytest
import torch

pytest.importorskip('detectron2', reason='Detectron2 is not installed')
pytest.importorskip('mmcv.ops', reason="MMCV's compiled ops are not installed")

from building import learned
from detectron2.modeling import build_model
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes, Instances, RotatedBoxes
from detectron2.utils.events import EventStorage
from mmcv import ops as mmcv_ops

from roi_plugins.integrations.detectron2 import RoIPluginsPooler
from roi_plugins.integrations.detectron2.config import read_config

CONFIG = Path(__file__).parents[2] / 'configs/detectron2/rotated/faster-rcnn_r50w16-c4_align-avg_rotated.yaml'
SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
IMAGE = 512
TAKING = [
    'AlignAvg',
    'AlignMax',
    'AdaptiveSampling',
    'Precise',
    'RandomSampling',
    'ContentAdaptive',
    'AllLevels',
]


@pytest.fixture(scope='module', autouse=True)
def compiled_ops():
    """Detectron2's compiled ops of rotated boxes, where it is installed without them, are MMCV's."""
    with contextlib.ExitStack() as stack:
        if not hasattr(torch.ops.detectron2, 'nms_rotated'):
            library = stack.enter_context(torch.library._scoped_library('detectron2', 'FRAGMENT'))
            library.define('nms_rotated(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor')
            library.define('box_iou_rotated(Tensor boxes1, Tensor boxes2) -> Tensor')
            library.impl(
                'nms_rotated',
                lambda boxes, scores, threshold: mmcv_ops.nms_rotated(radians(boxes), scores, threshold)[1],
                'CompositeImplicitAutograd',
            )
            library.impl(
                'box_iou_rotated',
                lambda a, b: mmcv_ops.box_iou_rotated(radians(a), radians(b), clockwise=False),
                'CompositeImplicitAutograd',
            )
        yield


def radians(boxes):
    return torch.cat([boxes[:, :4], torch.deg2rad(boxes[:, 4:])], dim=1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def maps():
    shapes = [(2, 3, round(IMAGE * scale), round(IMAGE * scale)) for scale in SCALES]
    return [torch.randn(shape, generator=generator()).requires_grad_() for shape in shapes]


def boxes(seed, num_boxes=30):
    unit = torch.rand(num_boxes, 5, generator=generator(seed))
    sides = 32 * 2 ** (unit[:, 2:4] * 5)
    return RotatedBoxes(torch.cat([unit[:, :2] * IMAGE, sides, unit[:, 4:] * 720 - 360], dim=1))


def rois(box_lists):
    rows = [torch.nn.functional.pad(b.tensor, (1, 0), value=i) for i, b in enumerate(box_lists)]
    return torch.cat(rows)


def as_detectron2(features, box_lists, sampling_ratio):
    """What its ROIPooler does, with MMCV's kernel, which was Detectron2's, in place of its own."""
    levels = assign_boxes_to_levels(box_lists, 2, 5, 224, 4)
    assert len(levels.unique()) == 4
    rows = rois(box_lists)
    rows = torch.cat([rows[:, :5], torch.deg2rad(rows[:, 5:])], dim=1)
    output = features[0].new_zeros(len(rows), 3, 7, 7)
    for level, (map_, scale) in enumerate(zip(features, SCALES, strict=True)):
        (at,) = torch.nonzero(levels == level, as_tuple=True)
        pooled = mmcv_ops.roi_align_rotated(map_, rows[at], 7, scale, sampling_ratio, True, False)
        output = output.index_put((at,), pooled)
    return output


@pytest.mark.parametrize('sampling_ratio', [0, 2])
def test_pools_as_detectron2(sampling_ratio):
    box_lists = [boxes(1), boxes(2, 50)]
    results = []
    for pool in (
        RoIPluginsPooler(7, SCALES, sampling_ratio, 'AlignAvg'),
        lambda features, box_lists: as_detectron2(features, box_lists, sampling_ratio),
    ):
        features = maps()
        output = pool(features, box_lists)
        output.backward(torch.randn(output.shape, generator=generator(3)))
        results.append([output, *(map_.grad for map_ in features)])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('type_', TAKING)
def test_upright_ones_are_read_as_such(type_):
    """Of no angle, or of a whole turn; by every type that takes rotated boxes."""
    options = {'channels': 3} if type_ == 'ContentAdaptive' else {}
    pool = learned(RoIPluginsPooler(7, SCALES, 2, type_, **options))
    rotated = boxes(1).tensor
    rotated[:, 4] = torch.tensor([0.0, 360.0]).repeat(15)
    half = rotated[:, 2:4] / 2
    upright = Boxes(torch.cat([rotated[:, :2] - half, rotated[:, :2] + half], dim=1))
    expected = pool(maps(), [upright, upright])
    output = pool(maps(), [RotatedBoxes(rotated)] * 2)
    torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-3)
    turned = rotated.clone()
    turned[:, 4] = 30
    assert (pool(maps(), [RotatedBoxes(turned)] * 2) - expected).abs().max() > 0.1


@pytest.mark.parametrize('type_', ['QuantizedPool', 'RoIWarpAvg', 'Deformable', 'PositionSensitive'])
def test_types_that_read_no_rotated_boxes_say_so(type_):
    options = {'channels': 3} if type_ in ('Deformable', 'PositionSensitive') else {}
    with pytest.raises(ValueError, match=r'rotated ones|K, 6'):
        RoIPluginsPooler(7, SCALES, 2, type_, **options)(maps(), [boxes(1), boxes(2)])


def model(type_):
    cfg = read_config(CONFIG)
    cfg.MODEL.DEVICE = 'cpu'
    cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = type_
    if type_ == 'ROIAlignRotated':
        cfg.MODEL.ROI_HEADS.NAME = 'RROIHeads'
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    return build_model(cfg)


def sample():
    image = torch.rand(3, 160, 192, generator=generator()) * 255
    target = Instances((160, 192))
    target.gt_boxes = RotatedBoxes(torch.tensor([[60.0, 60, 70, 40, 30], [130, 90, 30, 80, -50]]))
    target.gt_classes = torch.tensor([0, 3])
    return {'image': image, 'instances': target}


def test_the_weights_are_those_of_detectron2():
    stock, ours = (model(type_).state_dict() for type_ in ('ROIAlignRotated', 'AlignAvg'))
    assert stock.keys() == ours.keys()
    assert all(torch.equal(stock[name], ours[name]) for name in stock)


@pytest.mark.slow
@pytest.mark.parametrize('type_', TAKING)
def test_a_detector_of_rotated_boxes_detects_and_learns(type_):
    detector = model(type_)
    assert isinstance(detector.roi_heads.box_pooler, RoIPluginsPooler)
    with torch.inference_mode():
        (output,) = detector.eval()([sample()])
    found = output['instances'].pred_boxes
    assert isinstance(found, RotatedBoxes) and len(found) > 0 and found.tensor.isfinite().all()
    detector.train()
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.005)
    losses = []
    for step in range(8):
        torch.manual_seed(step)
        with EventStorage():
            loss = sum(detector([sample()]).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 5)
        optimizer.step()
        losses.append(loss.item())
    gradient = detector.backbone.res4[-1].conv2.weight.grad
    assert gradient.isfinite().all() and gradient.any()
    assert sum(losses[-3:]) < sum(losses[:3])
