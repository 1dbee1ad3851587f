"""The extractors in Detectron2, held against the poolers and RoI heads that they stand in for."""

import copy
import functools

import pytest
import torch

pytest.importorskip('detectron2', reason='Detectron2 is not installed')

from building import STARTING_AS_ALIGN_AVG, WITH_WEIGHTS, learned
from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall as L
from detectron2.config import get_cfg, instantiate
from detectron2.export import TracingAdapter
from detectron2.export.torchscript_patch import freeze_training_mode, patch_instances
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.modeling.roi_heads import StandardROIHeads, build_roi_heads
from detectron2.structures import BitMasks, Boxes, ImageList, Instances, Keypoints, RotatedBoxes
from detectron2.utils.events import EventStorage
from detectron2.utils.testing import assert_instances_allclose

from roi_plugins.extractors import EXTRACTORS
from roi_plugins.integrations.detectron2 import (
    POOLER_TYPES,
    RoIPluginsPooler,
    RoIPluginsStandardROIHeads,
    add_roi_plugins_config,
    build_pooler,
)
from roi_plugins.ops import assign_levels_detectron2

PYRAMID = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
ONE_MAP = [1 / 16]
IMAGE = 512
CHANNELS = 3

every_type = pytest.mark.parametrize('type_', POOLER_TYPES)
every_scales = pytest.mark.parametrize('scales', [PYRAMID, ONE_MAP], ids=['pyramid', 'one-map'])
# Detectron2's own, and what is the same method here.
every_peer = pytest.mark.parametrize(
    ('type_', 'peer', 'options'),
    [
        ('AlignAvg', 'ROIAlignV2', {}),
        ('AlignAvg', 'ROIAlign', {'aligned': False}),
        ('AdaptiveSampling', 'ROIAlignV2', {}),
        ('QuantizedPool', 'ROIPool', {}),
    ],
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def maps(scales=PYRAMID, images=2):
    shapes = [(images, CHANNELS, round(IMAGE * s), round(IMAGE * s)) for s in scales]
    return [torch.randn(shape, generator=generator()).requires_grad_() for shape in shapes]


def random_boxes(num_boxes=40, seed=1, image=IMAGE):
    """Boxes of all levels; some reach out of the image."""
    corners = torch.rand(2, num_boxes, 2, generator=generator(seed)) * 1.2 * image - 0.1 * image
    return Boxes(torch.cat([corners.amin(0), corners.amax(0)], dim=1))


def no_boxes():
    return Boxes(torch.zeros(0, 4))


def outside():
    """Around an image, beside it, and far away from it."""
    return Boxes(
        torch.tensor(
            [
                [-50.0, -60, IMAGE + 70, IMAGE + 40],
                [-90, 20, -10, 60],
                [IMAGE + 5, 5, IMAGE + 80, 40],
                [3000, 3000, 3100, 3100],
            ]
        )
    )


BOX_LISTS = {
    'boxes': [random_boxes(), random_boxes(25, seed=2)],
    'one-image-without': [no_boxes(), random_boxes()],
    'none': [no_boxes(), no_boxes()],
    'outside': [outside(), outside()],
}


def pooler(type_, scales=PYRAMID, sampling_ratio=0, output_size=7, **options):
    if type_ in WITH_WEIGHTS:
        options['channels'] = CHANNELS
    return learned(RoIPluginsPooler(output_size, scales, sampling_ratio, type_, **options))


def pooled_with_gradients(pool, scales, boxes):
    features = maps(scales, len(boxes))
    output = pool(features, boxes)
    if output.requires_grad:
        output.backward(torch.randn(output.shape, generator=generator(3)))
    # Where no box is, Detectron2 leaves a map without a gradient.
    return output, [torch.zeros_like(f) if f.grad is None else f.grad for f in features]


# ------------------------------------------------------------------- the pooler


@pytest.mark.parametrize('type_', POOLER_TYPES)
def test_boxes_get_no_gradient_that_detectron2s_pooler_does_not_give(type_):
    """Boxes that are weights, as Sparse R-CNN's: another gradient would be another training."""
    boxes = random_boxes()
    boxes.tensor.requires_grad_()
    pooler(type_)(maps(images=1), [boxes]).sum().backward()
    # PrRoIPool is made for boxes that are optimised.
    assert (boxes.tensor.grad is not None) == (type_ == 'Precise')


@every_peer
@every_scales
@pytest.mark.parametrize('sampling_ratio', [0, 2])
@pytest.mark.parametrize('case', BOX_LISTS)
def test_pools_as_detectron2(type_, peer, options, scales, sampling_ratio, case):
    if type_ == 'AdaptiveSampling' and sampling_ratio:
        pytest.skip('it has no sampling_ratio')
    ours = pooler(type_, scales, sampling_ratio, **options)
    theirs = ROIPooler(7, scales, sampling_ratio, peer)
    output, gradients = pooled_with_gradients(ours, scales, BOX_LISTS[case])
    expected, expected_gradients = pooled_with_gradients(theirs, scales, BOX_LISTS[case])
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-4)


@every_type
@every_scales
def test_an_empty_batch(type_, scales):
    features = maps(scales, images=0)
    output = pooler(type_, scales)(features, [])
    assert output.shape == (0, CHANNELS, 7, 7)
    assert ROIPooler(7, scales, 0, 'ROIAlignV2')(features, []).shape == output.shape
    output.sum().backward()
    assert all(f.grad.shape == f.shape for f in features)


@every_type
@pytest.mark.parametrize('num_boxes', [0, 1])
def test_every_map_gets_a_gradient(type_, num_boxes):
    """Without one, distributed training waits for it for ever."""
    features = maps(images=1)
    boxes = Boxes(torch.tensor([[10.0, 10, 40, 40]])[:num_boxes])
    pooler(type_)(features, [boxes]).sum().backward()
    read = 4 if type_ == 'AllLevels' else 1
    assert [bool(f.grad.any()) for f in features] == [num_boxes == 1] * read + [False] * (4 - read)


@every_type
def test_output_need_not_be_square(type_):
    """Nor is it the transpose of what it should be: where a square one reads is no guide."""
    output = pooler(type_, output_size=(3, 5))(maps(), BOX_LISTS['boxes'])
    assert output.shape == (65, CHANNELS, 3, 5)
    other = pooler(type_, output_size=(5, 3))
    if type_ == 'Deformable':  # x and y change places
        for parameter in other.extractor.parameters():
            parameter.data = parameter.data[[1, 0]]
    if type_ == 'PositionSensitive':  # so do the maps of the bins
        for parameter in other.extractor.score.parameters():
            bins = parameter.data.unflatten(0, (CHANNELS, 3, 5))
            parameter.data = bins.transpose(1, 2).flatten(0, 2)
    turned = other(
        [f.transpose(2, 3) for f in maps()],
        [Boxes(boxes.tensor[:, [1, 0, 3, 2]]) for boxes in BOX_LISTS['boxes']],
    )
    torch.testing.assert_close(output, turned.transpose(2, 3), rtol=1e-5, atol=1e-5)


def boxes_on_thresholds(canonical_box_size=224):
    sides = torch.tensor([canonical_box_size * 2.0**level for level in range(-5, 5)])
    infinity = torch.tensor(float('inf'))
    sides = torch.cat([sides, torch.nextafter(sides, infinity), torch.nextafter(sides, -infinity)])
    zeros = torch.zeros_like(sides)
    square = torch.stack([zeros, zeros, sides, sides], dim=1)
    flat = torch.stack([zeros, zeros, sides * 4, sides / 4], dim=1)
    return torch.cat([square, flat, torch.full((1, 4), 9.0), random_boxes(2000).tensor])


@pytest.mark.parametrize('levels', [(2, 5), (2, 3), (3, 6)])
@pytest.mark.parametrize('canonical', [(224, 4), (100, 3)])
def test_levels_are_detectron2s(levels, canonical):
    boxes = boxes_on_thresholds(canonical[0])
    ours = assign_levels_detectron2(boxes, levels[1] - levels[0] + 1, *canonical, levels[0])
    assert torch.equal(ours, assign_boxes_to_levels([Boxes(boxes)], *levels, *canonical))
    assert len(ours.unique()) == levels[1] - levels[0] + 1


def test_the_pooler_reads_the_level_of_the_rule():
    boxes = boxes_on_thresholds()
    constant = [torch.full((1, 1, 2, 2), float(level)) for level in range(4)]
    for canonical in ({}, {'canonical_box_size': 100, 'canonical_level': 3}):
        ours = pooler('QuantizedPool', **canonical)(constant, [Boxes(boxes)]).amax(dim=(1, 2, 3))
        theirs = ROIPooler(7, PYRAMID, 0, 'ROIPool', **canonical)(constant, [Boxes(boxes)])
        assert torch.equal(ours, theirs.amax(dim=(1, 2, 3)))
        assert len(ours.unique()) == 4


@pytest.mark.parametrize('sampling_ratio', [0, 2])
@every_type
def test_pools_as_the_extractor_in_mmdetection(type_, sampling_ratio):
    pytest.importorskip('mmdet', reason='MMDetection is not installed')
    from roi_plugins.integrations import mmdet

    options = {}
    if type_.startswith('RoIWarp'):
        options['reduction'] = type_.removeprefix('RoIWarp').lower()
        type_name = 'RoIWarp'
    else:
        type_name = type_
    if type_ not in ('QuantizedPool', 'AdaptiveSampling', 'Precise'):
        options['sampling_ratio'] = sampling_ratio
    extractor = getattr(mmdet, f'{type_name}RoIExtractor')(
        output_size=(7, 5), out_channels=CHANNELS, featmap_strides=[4, 8, 16, 32], **options
    )
    learned(extractor).extractor.level_rule = assign_levels_detectron2
    boxes = BOX_LISTS['boxes']
    rois = torch.cat([torch.nn.functional.pad(b.tensor, (1, 0), value=i) for i, b in enumerate(boxes)])
    rule = extractor.extractor.level_rule
    extractor.map_roi_levels = rule
    output = pooler(type_, PYRAMID, sampling_ratio, (7, 5))(maps(), boxes)
    assert torch.equal(output, extractor(maps(), rois))


def test_every_extractor_has_a_type():
    names = {name for name in POOLER_TYPES if not name.startswith('RoIWarp')}
    assert names == EXTRACTORS.keys() - {'RoIWarp'}
    assert {'RoIWarpMax', 'RoIWarpAvg'} <= POOLER_TYPES.keys()
    # In training, for in evaluation RandomSampling is AlignAvg.
    poolers = [pooler(name, sampling_ratio=2).train() for name in POOLER_TYPES]
    outputs = [pool(maps(), BOX_LISTS['boxes']) for pool in poolers]
    for i, output in enumerate(outputs):
        assert not any(torch.allclose(output, other) for other in outputs[:i])


# What Detectron2's own tests of ROIAlign assert.


def test_half_a_cell():
    features = [torch.arange(25.0).reshape(1, 1, 5, 5)]
    boxes = [Boxes(torch.tensor([[1.0, 1, 3, 3]]))]
    for aligned, first in ((True, 4.5), (False, 7.5)):
        output = pooler('AlignAvg', [1.0], output_size=4, aligned=aligned)(features, boxes)
        rows = first + 2.5 * torch.arange(4.0)[:, None] + 0.5 * torch.arange(4.0)
        torch.testing.assert_close(output[0, 0], rows)


def test_a_box_without_area_is_zero():
    features = torch.randn(1, 1, 5, 5, generator=generator()).requires_grad_()
    output = pooler('AlignAvg', [1.0])([features], [Boxes(torch.tensor([[3.0, 4, 5, 4]]))])
    assert not output.any()
    output.sum().backward()
    assert not features.grad.any()


def test_a_smaller_image_pools_the_same():
    image = torch.rand(1, 1, 30, 30, generator=generator())
    smaller = torch.nn.functional.interpolate(image, (15, 15), mode='bilinear')
    pool = pooler('AlignAvg', [1.0], output_size=5)
    output = pool([image], [Boxes(torch.tensor([[10.0, 10, 20, 20]]))])
    torch.testing.assert_close(pool([smaller], [Boxes(torch.tensor([[5.0, 5, 10, 10]]))]), output)


@pytest.mark.parametrize('sampling_ratio', [1, 2, 3])
def test_aligns_as_an_average_of_grid_sample(sampling_ratio):
    side, size = 30, 5
    image = torch.rand(1, 2, side, side, generator=generator())
    box = torch.tensor([4.3, 10.0, 20.1, 22.6])
    steps = (torch.arange(size * sampling_ratio) + 0.5) / (size * sampling_ratio)
    xs, ys = (box[i] + steps * (box[i + 2] - box[i]) for i in (0, 1))
    grid = torch.stack(torch.meshgrid(xs, ys, indexing='xy'), dim=-1) / side * 2 - 1
    samples = torch.nn.functional.grid_sample(image, grid[None], align_corners=False)
    expected = torch.nn.functional.avg_pool2d(samples, sampling_ratio)
    output = pooler('AlignAvg', [1.0], sampling_ratio, size)([image], [Boxes(box[None])])
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('type_', ['AlignAvg', 'AlignMax', 'RandomSampling'])
@pytest.mark.parametrize('sampling_ratio', [-1, -1.0])
def test_a_sampling_ratio_below_0_is_the_adaptive_grid(type_, sampling_ratio):
    """Of ROIAlign any number that is not positive is; MMCV's and torchvision's -1 came from there."""
    given, zero = (pooler(type_, sampling_ratio=ratio).eval() for ratio in (sampling_ratio, 0))
    boxes = [Boxes(torch.tensor([[10.0, 20.0, 190.0, 150.0]]))] * 2
    assert torch.equal(given(maps(), boxes), zero(maps(), boxes))
    if type_ == 'AlignAvg':
        theirs = ROIPooler(7, PYRAMID, -1, 'ROIAlignV2')
        torch.testing.assert_close(given(maps(), boxes), theirs(maps(), boxes))


def test_a_whole_sampling_ratio_may_be_a_float():
    """As in Detectron2's test of a batch without images."""
    output = build_pooler(14, (1.0,), 0.0, 'AlignAvg')([torch.rand(0, 32, 32, 32)], [])
    assert output.shape == (0, 32, 14, 14)
    boxes = BOX_LISTS['boxes']
    assert torch.equal(
        pooler('AlignMax', sampling_ratio=2.0)(maps(), boxes),
        pooler('AlignMax', sampling_ratio=2)(maps(), boxes),
    )


# ------------------------------------------------------------------- errors


def test_an_unknown_type_is_named():
    for build in (build_pooler, RoIPluginsPooler):
        with pytest.raises(ValueError, match="pooler_type: got 'AlignMin'") as error:
            build(7, PYRAMID, 0, 'AlignMin')
        for type_ in (*POOLER_TYPES, 'ROIAlign', 'ROIAlignV2', 'ROIPool', 'ROIAlignRotated'):
            assert type_ in str(error.value)


@pytest.mark.parametrize(
    ('type_', 'known'),
    [
        ('QuantizedPool', 'region, reduction'),
        ('RoIWarpMax', 'none'),
        ('AlignMax', 'aligned'),
        ('AdaptiveSampling', 'reduction, min_samples, max_samples, aligned'),
        ('Precise', 'aligned'),
        ('RandomSampling', 'reduction, aligned'),
        ('Deformable', 'aligned, modulated, channels'),
        ('PositionSensitive', 'mode, depth, channels'),
        ('ContentAdaptive', 'aligned, channels'),
        (
            'AllLevels',
            'aggregation, region, reduction, aligned, min_samples, max_samples, pre_module, post_module',
        ),
        ('ROIAlignV2', 'none'),
    ],
)
def test_an_unknown_option_is_named(type_, known):
    with pytest.raises(TypeError, match=f'^algined: no option of {type_}; its options are {known}$'):
        build_pooler(7, PYRAMID, 0, type_, algined=True)


@pytest.mark.parametrize(
    ('argument', 'value'),
    [
        ('sampling_ratio', '2'),
        ('sampling_ratio', 0.5),
        ('output_size', 0),
        ('scales', [1 / 4, 1 / 16]),
        ('scales', [1 / 8, 1 / 4]),
        ('scales', [1 / 3]),
        ('scales', [2.0]),
        ('canonical_box_size', 0),
        ('aligned', 'yes'),
    ],
)
def test_a_bad_value_is_named(argument, value):
    arguments = dict(output_size=7, scales=PYRAMID, sampling_ratio=0, pooler_type='AlignMax')
    with pytest.raises(ValueError, match=f'{argument}: got '):
        RoIPluginsPooler(**arguments | {argument: value})


def test_maps_and_boxes_that_do_not_fit():
    pool = pooler('AlignAvg')
    with pytest.raises(ValueError, match='x: got 3 maps, expected 4'):
        pool(maps()[:3], BOX_LISTS['boxes'])
    with pytest.raises(ValueError, match='box_lists: got 1 lists of boxes, expected 2'):
        pool(maps(), BOX_LISTS['boxes'][:1])
    rotated = RotatedBoxes(torch.zeros(2, 5))
    with pytest.raises(
        ValueError, match=r'box_lists\[1\]: got boxes of 5 coordinates, expected .*in all images'
    ):
        pool(maps(), [no_boxes(), rotated])


# ------------------------------------------------------------------- RoI heads

SHAPES = {f'p{level}': ShapeSpec(channels=8, stride=2**level) for level in range(2, 6)}
C4 = {'res4': ShapeSpec(channels=16, stride=16)}
HEADS = {
    'standard': 'RoIPluginsStandardROIHeads',
    'cascade': 'RoIPluginsCascadeROIHeads',
    'res5': 'RoIPluginsRes5ROIHeads',
}
ZOO = {
    'standard': 'COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml',
    'cascade': 'Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml',
    'res5': 'COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml',
}
NODES = ('ROI_BOX_HEAD', 'ROI_MASK_HEAD', 'ROI_KEYPOINT_HEAD')


def config(kind, plugin=True, type_=None, **options):
    """The model zoo's config, made small, with our heads or Detectron2's."""
    cfg = get_cfg()
    if plugin:
        add_roi_plugins_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file(ZOO[kind]))
    if plugin:
        cfg.MODEL.ROI_HEADS.NAME = HEADS[kind]
    if kind == 'standard':
        cfg.MODEL.MASK_ON = True
    cfg.MODEL.DEVICE = 'cpu'
    cfg.MODEL.WEIGHTS = ''
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS = (16,)
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 50
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    # An untrained classifier is sure of nothing.
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.TEST.DETECTIONS_PER_IMAGE = 8
    for node in NODES:
        if type_:
            cfg.MODEL[node].POOLER_TYPE = type_
        if plugin:
            cfg.MODEL[node].POOLER_OPTIONS.update(options)
    return cfg


@functools.cache
def checkpoint(kind):
    """A stock model's random weights, by which a detection depends on what its RoI holds."""
    torch.manual_seed(0)
    model = build_model(config(kind, plugin=False))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'stem' in name or name.endswith('conv3.weight'):
                parameter /= 16  # without statistics to normalise by, features would grow and grow
            elif 'cls_score' in name or 'bbox_pred' in name:
                parameter *= 30
    return model.state_dict()


def load(cfg, kind):
    model = build_model(cfg)
    missing = model.load_state_dict(checkpoint(kind), strict=True)
    assert not missing.missing_keys and not missing.unexpected_keys
    return model


def image():
    return {'image': torch.rand(3, 96, 128, generator=generator()) * 255}


def detect(cfg, kind):
    with torch.inference_mode():
        (output,) = load(cfg, kind).eval()([image()])
    assert len(output['instances']) > 0
    return output['instances']


def same(ours, theirs):
    if not torch.equal(ours.pred_classes, theirs.pred_classes):
        return False
    pairs = [(ours.scores, theirs.scores), (ours.pred_boxes.tensor, theirs.pred_boxes.tensor)]
    if theirs.has('pred_keypoints'):
        pairs.append((ours.pred_keypoints, theirs.pred_keypoints))
    if theirs.has('pred_masks'):
        differ = (ours.pred_masks != theirs.pred_masks).float().mean()
        pairs.append((differ, torch.zeros(())))
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-3) for a, b in pairs)


every_kind = pytest.mark.parametrize('kind', HEADS)


@every_kind
def test_a_stock_checkpoint_detects_the_same(kind):
    expected = detect(config(kind, plugin=False), kind)
    assert same(detect(config(kind), kind), expected)  # ROIAlignV2, through our heads
    assert same(detect(config(kind, type_='AlignAvg'), kind), expected)
    # So that this can fail:
    assert not same(detect(config(kind, type_='QuantizedPool'), kind), expected)


@every_kind
@pytest.mark.parametrize('type_', STARTING_AS_ALIGN_AVG)
def test_one_with_weights_starts_from_a_checkpoint_of_stock(kind, type_, tmp_path):
    """As the trainer loads it: with a warning, not an error, and with the detections of align-avg."""
    torch.save({'model': checkpoint(kind)}, tmp_path / 'stock.pth')
    model = build_model(config(kind, type_=type_)).eval()
    DetectionCheckpointer(model).load(str(tmp_path / 'stock.pth'))
    assert all('pooler.extractor.' in name for name in model.state_dict().keys() - checkpoint(kind).keys())
    with torch.inference_mode():
        (output,) = model([image()])
    assert same(output['instances'], detect(config(kind, plugin=False), kind))


def test_a_config_without_our_node_works():
    cfg = config('standard', plugin=False, type_='AlignMax')
    cfg.MODEL.ROI_HEADS.NAME = HEADS['standard']
    assert same(detect(cfg, 'standard'), detect(config('standard', type_='AlignMax'), 'standard'))


@pytest.mark.parametrize('node', NODES)
def test_one_head_alone_is_swapped(node):
    cfg = config('standard')
    cfg.MODEL[node].POOLER_TYPE = 'QuantizedPool'
    heads = build_roi_heads(cfg, SHAPES)
    poolers = {
        'ROI_BOX_HEAD': heads.box_pooler,
        'ROI_MASK_HEAD': heads.mask_pooler,
        'ROI_KEYPOINT_HEAD': heads.keypoint_pooler,
    }
    for name, found in poolers.items():
        assert isinstance(found, RoIPluginsPooler if name == node else ROIPooler)
    assert poolers[node].output_size == (cfg.MODEL[node].POOLER_RESOLUTION,) * 2


@every_kind
@every_type
def test_every_type_learns(kind, type_):
    model = build_model(config(kind, type_=type_)).train()
    target = Instances((96, 128))
    target.gt_boxes = Boxes(torch.tensor([[8.0, 8, 60, 50], [70, 20, 120, 90]]))
    target.gt_classes = torch.tensor([0, 0])
    target.gt_masks = BitMasks(torch.ones(2, 96, 128, dtype=torch.bool))
    if kind == 'standard':
        target.gt_keypoints = Keypoints(torch.tensor([30.0, 30, 2]).expand(2, 17, 3))
    with EventStorage():
        losses = model([image() | {'instances': target}])
    assert {'loss_mask'} <= losses.keys()
    sum(v for k, v in losses.items() if 'rpn' not in k).backward()
    # Proposals are detached: what the heads teach the backbone comes through the poolers.
    backbone = getattr(model.backbone, 'bottom_up', model.backbone)
    gradient = backbone.res4[-1].conv2.weight.grad
    assert gradient.isfinite().all() and gradient.any()


def losses_and_gradients(cfg, kind):
    """Of a training step from one checkpoint, with the same proposals sampled."""
    model = load(cfg, kind).train()
    target = Instances((96, 128))
    target.gt_boxes = Boxes(torch.tensor([[8.0, 8, 60, 50], [70, 20, 120, 90]]))
    target.gt_classes = torch.tensor([0, 0])
    target.gt_masks = BitMasks(torch.ones(2, 96, 128, dtype=torch.bool))
    target.gt_keypoints = Keypoints(torch.tensor([30.0, 30, 2]).expand(2, 17, 3))
    torch.manual_seed(0)
    with EventStorage():
        losses = model([image() | {'instances': target}])
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


@every_kind
def test_learns_as_stock(kind):
    expected, expected_gradients = losses_and_gradients(config(kind, plugin=False), kind)
    losses, gradients = losses_and_gradients(config(kind, type_='AlignAvg'), kind)
    assert 'loss_mask' in losses
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        error = (gradient - expected_gradients[name]).norm()
        assert error <= 1e-3 * expected_gradients[name].norm() + 1e-6, name


def test_a_mask_head_that_reads_the_maps_itself():
    """PointRend has no mask pooler; that of its boxes may still be ours."""
    from detectron2.projects.point_rend import PointRendMaskHead, add_pointrend_config

    cfg = config('standard', type_='AlignMax')
    add_pointrend_config(cfg)
    cfg.MODEL.KEYPOINT_ON = False
    cfg.MODEL.ROI_MASK_HEAD.NAME = 'PointRendMaskHead'
    cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE = ''
    heads = build_roi_heads(cfg, SHAPES)
    assert isinstance(heads.box_pooler, RoIPluginsPooler)
    assert isinstance(heads.mask_head, PointRendMaskHead) and heads.mask_pooler is None


def test_options_of_the_node_reach_the_pooler():
    cfg = config('standard', type_='AlignAvg')
    cfg.MODEL.ROI_BOX_HEAD.POOLER_OPTIONS.ALIGNED = False
    cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = 3
    heads = build_roi_heads(cfg, SHAPES)
    expected = ROIPooler(7, PYRAMID, 3, 'ROIAlign')(maps(), BOX_LISTS['boxes'])
    output = heads.box_pooler(maps(), BOX_LISTS['boxes'])
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=2e-5)
    assert not torch.allclose(heads.mask_pooler(maps(), BOX_LISTS['boxes'])[..., :7, :7], output)


@every_kind
def test_a_wrong_type_or_option_in_a_config_is_named(kind):
    shapes = C4 if kind == 'res5' else SHAPES
    with pytest.raises(ValueError, match=r"MODEL\.ROI_BOX_HEAD\.POOLER_TYPE: got 'AlignMin'.*AlignMax"):
        build_roi_heads(config(kind, type_='AlignMin'), shapes)
    cfg = config(kind, type_='AlignMax')
    cfg.MODEL.ROI_BOX_HEAD.POOLER_OPTIONS.REGION = 'floor'
    with pytest.raises(
        TypeError, match=r'^MODEL\.ROI_BOX_HEAD\.POOLER_OPTIONS: region: no option of AlignMax.*aligned'
    ):
        build_roi_heads(cfg, shapes)
    cfg = config(kind, type_='QuantizedPool')
    cfg.MODEL.ROI_BOX_HEAD.POOLER_OPTIONS.REGION = 'ceil'
    with pytest.raises(ValueError, match=r"MODEL\.ROI_BOX_HEAD\.POOLER_OPTIONS: region: got 'ceil'"):
        build_roi_heads(cfg, shapes)
    cfg = config(kind, type_='AlignMax')
    cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = '2'
    with pytest.raises(ValueError, match=r"^MODEL\.ROI_BOX_HEAD\.POOLER_SAMPLING_RATIO: got '2'"):
        build_roi_heads(cfg, shapes)


@pytest.mark.parametrize('kind', ['standard', 'cascade'])
@pytest.mark.parametrize(
    ('type_', 'option', 'value', 'channels'),
    [('AllLevels', 'AGGREGATION', 'concat', 32), ('PositionSensitive', 'DEPTH', 5, 5)],
)
def test_a_head_is_built_for_the_channels_that_its_pooler_gives(kind, type_, option, value, channels):
    cfg = config(kind)
    cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = type_
    cfg.MODEL.ROI_BOX_HEAD.POOLER_OPTIONS[option] = value
    heads = build_roi_heads(cfg, SHAPES)
    features = [torch.randn(1, 8, 128 // spec.stride, 128 // spec.stride) for spec in SHAPES.values()]
    pooled = heads.box_pooler(features, [random_boxes(image=128)])
    assert pooled.shape == (40, channels, 7, 7)
    box_head = heads.box_head[0] if kind == 'cascade' else heads.box_head
    assert box_head(pooled).shape == (40, 32)
    assert heads.mask_head.mask_fcn1.in_channels == 8


def test_a_head_of_fixed_channels_says_so():
    cfg = config('res5', type_='PositionSensitive')
    cfg.MODEL.ROI_BOX_HEAD.POOLER_OPTIONS.DEPTH = 5
    with pytest.raises(ValueError, match='would give 5 channels, but the head of RoIPluginsRes5ROIHeads'):
        build_roi_heads(cfg, C4)


def test_a_misspelt_option_in_a_file_is_named(tmp_path):
    path = tmp_path / 'config.yaml'
    path.write_text(
        'MODEL:\n  ROI_BOX_HEAD:\n    POOLER_TYPE: AlignMax\n    POOLER_OPTIONS: {ALGINED: False}\n'
    )
    cfg = config('standard')
    cfg.merge_from_file(str(path))
    with pytest.raises(TypeError, match='algined: no option of AlignMax; its options are aligned'):
        build_roi_heads(cfg, SHAPES)


def test_lazy_pieces():
    model = model_zoo.get_config('COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py').model
    for type_, made in (('AlignMax', RoIPluginsPooler), ('ROIAlignV2', ROIPooler)):
        piece = L(build_pooler)(output_size=(7, 7), scales=PYRAMID, sampling_ratio=2, pooler_type=type_)
        model.roi_heads.box_pooler = model.roi_heads.mask_pooler = copy.deepcopy(piece)
        assert isinstance(instantiate(model.roi_heads.box_pooler), made)
    assert isinstance(instantiate(model.roi_heads), StandardROIHeads)


def test_modules_of_all_levels_in_a_lazy_config():
    features, boxes = maps(), BOX_LISTS['boxes']
    pool = instantiate(
        L(build_pooler)(
            output_size=7,
            scales=PYRAMID,
            sampling_ratio=2,
            pooler_type='AllLevels',
            aggregation='concat',
            pre_module=L(torch.nn.GroupNorm)(num_groups=1, num_channels=CHANNELS),
            post_module=L(torch.nn.Conv2d)(in_channels=4 * CHANNELS, out_channels=5, kernel_size=1),
        )
    )
    found = pool(features, boxes)
    assert found.shape == (65, 5, 7, 7)
    each = [
        pool.extractor.pre_module(ROIPooler(7, [scale], 2, 'ROIAlignV2')([map_], boxes))
        for map_, scale in zip(features, PYRAMID, strict=True)
    ]
    expected = pool.extractor.post_module(torch.cat(each, dim=1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------- script, trace, export


@every_type
@every_scales
def test_scripts(type_, scales):
    pool = pooler(type_, scales, output_size=(7, 5))
    scripted = torch.jit.script(pool)
    for boxes in BOX_LISTS.values():
        assert torch.equal(scripted(maps(scales), boxes), pool(maps(scales), boxes))
    with pytest.raises(torch.jit.Error, match='x: got 0 maps'):
        scripted([], [])


class OnTensors(torch.nn.Module):
    """Boxes go in as tensors, as in every trace."""

    def __init__(self, pool):
        super().__init__()
        self.pool = pool

    def forward(self, features, first, second):
        return self.pool(features, [Boxes(first), Boxes(second)])


@every_type
@every_scales
def test_traces(type_, scales):
    model = OnTensors(pooler(type_, scales))
    features = [f.detach() for f in maps(scales)]
    boxes = [b.tensor for b in BOX_LISTS['boxes']]
    traced = torch.jit.trace(model, (features, *boxes))
    # Other numbers of boxes, none among them.
    for others in BOX_LISTS.values():
        others = [b.tensor for b in others]
        assert torch.equal(traced(features, *others), model(features, *others))


@every_type
@every_scales
def test_exports(type_, scales):
    model = OnTensors(pooler(type_, scales))
    features = [f.detach() for f in maps(scales)]
    boxes = [b.tensor for b in BOX_LISTS['boxes']]
    number = [torch.export.Dim(name, min=0, max=1000) for name in ('first', 'second')]
    exported = torch.export.export(
        model,
        (features, *boxes),
        dynamic_shapes=([{}] * len(scales), {0: number[0]}, {0: number[1]}),
    ).module()
    for others in BOX_LISTS.values():
        others = [b.tensor for b in others]
        assert torch.equal(exported(features, *others), model(features, *others))


@pytest.mark.slow
@pytest.mark.parametrize(
    ('type_', 'dynamic'), [('AlignMax', False), *((type_, True) for type_ in POOLER_TYPES)]
)
def test_compiles_without_a_graph_break(type_, dynamic):
    torch.compiler.reset()
    model = OnTensors(pooler(type_))
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend='aot_eager')
    cases = ('boxes', 'one-image-without') if dynamic else ('boxes',)
    for boxes in (BOX_LISTS[case] for case in cases):
        runs = []
        for run in (compiled, model):
            features = maps()
            output = run(features, *(b.tensor for b in boxes))
            output.square().sum().backward()
            runs.append([output, *(f.grad for f in features)])
        torch.testing.assert_close(*runs)


class BoxAndMaskBranch(torch.nn.Module):
    """RoI heads between their proposals and their NMS.

    What is around it reads values of tensors (`if not valid_mask.all()`), which torch.export refuses:
    no detector of Detectron2's goes through it as a whole.
    """

    def __init__(self, heads):
        super().__init__()
        self.heads = heads

    def forward(self, features, boxes):
        heads = self.heads
        pooled = heads.box_head(heads.box_pooler(features, [Boxes(boxes)]))
        masks = heads.mask_head.layers(heads.mask_pooler(features, [Boxes(boxes)]))
        return (*heads.box_predictor(pooled), masks)


@every_type
def test_roi_heads_export_for_any_number_of_boxes(type_):
    cfg = config('standard', type_=type_)
    model = BoxAndMaskBranch(build_roi_heads(cfg, SHAPES).eval())
    features = [
        torch.rand(1, 8, 128 // spec.stride, 128 // spec.stride, generator=generator())
        for spec in SHAPES.values()
    ]
    number = torch.export.Dim('number', min=2, max=1000)
    with torch.no_grad():
        exported = torch.export.export(
            model,
            (features, random_boxes(10, image=128).tensor),
            dynamic_shapes=([{}] * len(features), {0: number}),
        ).module()
        for count in (2, 10, 33):
            boxes = random_boxes(count, seed=count, image=128).tensor
            for found, wanted in zip(exported(features, boxes), model(features, boxes), strict=True):
                torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize('type_', ['ROIAlignV2', 'AlignMax'])
def test_a_whole_model_traces(type_):
    """As Detectron2 exports its models; its own type shows what of it is Detectron2's."""
    cfg = config('cascade', type_=type_)
    model = load(cfg, 'cascade').eval()
    picture = image()['image']
    adapter = TracingAdapter(
        model, [{'image': picture}], lambda m, x: [m.inference(x, do_postprocess=False)[0]]
    )
    with torch.no_grad():
        traced = torch.jit.trace(adapter, (picture,), check_trace=False)
        other = picture.flip(2)
        expected = adapter(other)
        for found, wanted in zip(traced(other), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_roi_heads_script():
    """What Detectron2's own test of its heads does, with a pooler of ours in both."""
    heads = build_roi_heads(config('standard', type_='AlignMax'), SHAPES).eval()
    assert isinstance(heads, RoIPluginsStandardROIHeads)
    heads.keypoint_on = False
    features = {
        name: torch.rand(1, 8, 128 // spec.stride, 128 // spec.stride, generator=generator())
        for name, spec in SHAPES.items()
    }
    proposal = Instances((128, 128))
    proposal.proposal_boxes = random_boxes(10, image=128)
    proposal.objectness_logits = torch.rand(10, generator=generator())
    fields = {
        'objectness_logits': torch.Tensor,
        'proposal_boxes': Boxes,
        'pred_classes': torch.Tensor,
        'scores': torch.Tensor,
        'pred_masks': torch.Tensor,
        'pred_boxes': Boxes,
        'pred_keypoints': torch.Tensor,
        'pred_keypoint_heatmaps': torch.Tensor,
    }
    images = ImageList(torch.zeros(1, 3, 128, 128), [(128, 128)])
    with torch.no_grad():
        (expected,), _ = heads(images, features, [proposal])
        with freeze_training_mode(heads), patch_instances(fields) as new_instances:
            scripted = torch.jit.script(heads)
            (found,), _ = scripted(images, features, [new_instances.from_instances(proposal)])
            assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
            assert torch.equal(found.pred_masks, expected.pred_masks)


def test_roi_heads_script_for_several_images_and_one_map():
    """Also where every head reads the one map of a stride."""
    shapes = {'res4': ShapeSpec(channels=8, stride=16)}
    cfg = config('standard', type_='AlignAvg')
    cfg.MODEL.KEYPOINT_ON = False
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ['res4']
    heads = build_roi_heads(cfg, shapes).eval()
    features = {'res4': torch.rand(2, 8, 4, 8, generator=generator())}
    sizes = [(40, 100), (64, 128)]
    images = ImageList(torch.zeros(2, 3, 64, 128), sizes)
    proposals = []
    for i, size in enumerate(sizes):
        proposal = Instances(size)
        proposal.proposal_boxes = random_boxes(5 + i, seed=i, image=60)
        proposal.objectness_logits = torch.rand(5 + i, generator=generator(i))
        proposals.append(proposal)
    fields = {
        'objectness_logits': torch.Tensor,
        'proposal_boxes': Boxes,
        'pred_classes': torch.Tensor,
        'scores': torch.Tensor,
        'pred_masks': torch.Tensor,
        'pred_boxes': Boxes,
    }
    with torch.no_grad():
        expected, _ = heads(images, features, proposals)
        with freeze_training_mode(heads), patch_instances(fields) as new_instances:
            scripted = torch.jit.script(heads)
            converted = [new_instances.from_instances(proposal) for proposal in proposals]
            found, _ = scripted(images, features, converted)
            for ours, eager in zip(found, expected, strict=True):
                assert len(eager) > 0
                assert_instances_allclose(eager, ours, rtol=0)
