"""The extractors in MMDetection, held against the ``SingleRoIExtractor`` that they stand in for."""

import copy
import functools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet', reason='MMDetection is not installed')
pytest.importorskip('mmcv.ops', reason="MMCV's compiled ops are not installed")

import numpy as np
from building import STARTING_AS_ALIGN_AVG, WITH_WEIGHTS, build_extractor, learned
from mmcv.ops import RoIAlignRotated
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import load_checkpoint

import roi_plugins
from roi_plugins.extractors import EXTRACTORS
from roi_plugins.integrations.mmdet import MMDetRoIExtractor

register_all_modules(init_default_scope=False)

STRIDES = [4, 8, 16, 32]
IMAGE = 512
CHANNELS = 3
TYPES = [f'{name}RoIExtractor' for name in EXTRACTORS]
every_type = pytest.mark.parametrize('type_', TYPES)


def build(type_, strides=STRIDES, output_size=7, **options):
    config = dict(
        type=type_,
        output_size=output_size,
        out_channels=CHANNELS,
        featmap_strides=strides,
        **options,
    )
    return learned(MODELS.build(config))


def align_avg(strides=STRIDES, **options):
    return build('AlignAvgRoIExtractor', strides, sampling_ratio=0, **options)


def stock(strides=STRIDES, **options):
    return MODELS.build(
        dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
            out_channels=CHANNELS,
            featmap_strides=strides,
            **options,
        )
    )


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pyramid(strides=STRIDES):
    shapes = [(2, CHANNELS, IMAGE // stride, IMAGE // stride) for stride in strides]
    return [torch.randn(shape, generator=generator()).requires_grad_() for shape in shapes]


def random_rois(num_rois=60):
    """Boxes of all levels; some reach out of the image."""
    corners = torch.rand(2, num_rois, 2, generator=generator(1)) * 1.2 * IMAGE - 0.1 * IMAGE
    index = torch.arange(num_rois)[:, None] % 2
    return torch.cat([index, corners.amin(0), corners.amax(0)], dim=1)


# ------------------------------------------------------------------- the registry


def test_a_config_finds_them_and_one_of_your_own(tmp_path):
    """In a process of its own, where nothing has imported the integration yet."""
    # What somebody writes who adds an extractor: a class, and a line in the table.
    (tmp_path / 'centre_point.py').write_text(
        'from roi_plugins.extractors import EXTRACTORS, RoIExtractor\n'
        'class CentrePoint(RoIExtractor):\n'
        "    def __init__(self, output_size, featmap_strides, reduction='avg', **kwargs):\n"
        '        super().__init__(output_size, featmap_strides, sampling_ratio=1,\n'
        '                         reduction=reduction, **kwargs)\n'
        "EXTRACTORS['CentrePoint'] = CentrePoint\n"
    )
    types = [*TYPES, 'CentrePointRoIExtractor']
    (tmp_path / 'config.py').write_text(
        "custom_imports = dict(imports=['centre_point', 'roi_plugins.integrations.mmdet'],\n"
        '                      allow_failed_imports=False)\n'
        'extractors = [dict(type=t, output_size=7, out_channels=256,\n'
        '                   featmap_strides=[4, 8, 16, 32], finest_scale=56)\n'
        f'              for t in {types}]\n'
    )
    script = (
        'from mmengine.config import Config\n'
        "cfg = Config.fromfile('config.py')\n"
        'from mmdet.registry import MODELS\n'
        "print(*(type(MODELS.build(e)).__name__ for e in cfg.extractors), sep='\\n')\n"
    )
    package = Path(roi_plugins.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', script],
        cwd=tmp_path,
        env=os.environ | {'PYTHONPATH': os.pathsep.join([str(tmp_path), str(package)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == types


@every_type
def test_has_what_heads_read(type_):
    extractor = build(type_, output_size=(7, 5), finest_scale=28)
    assert extractor.num_inputs == 4
    assert extractor.featmap_strides == STRIDES
    assert extractor.out_channels == CHANNELS
    assert extractor.output_size == (7, 5)
    assert extractor.finest_scale == 28
    assert isinstance(extractor, MMDetRoIExtractor)
    extractor.init_weights()
    assert bool(extractor.state_dict()) == (type_.removesuffix('RoIExtractor') in WITH_WEIGHTS)
    assert extractor(pyramid(), random_rois()).shape == (60, CHANNELS, 7, 5)


@every_type
def test_reads_as_the_extractor_it_is_named_after(type_):
    features, rois = pyramid(), random_rois()
    expected = build_extractor(type_.removesuffix('RoIExtractor'), 7, STRIDES)(features, rois)
    assert torch.equal(build(type_)(features, rois), expected)


@pytest.mark.parametrize(
    ('type_', 'options'),
    [
        ('QuantizedPoolRoIExtractor', dict(region='floor', reduction='avg')),
        ('RoIWarpRoIExtractor', dict(reduction='max', sampling_ratio=3)),
        ('AlignMaxRoIExtractor', dict(sampling_ratio=3, aligned=False)),
        ('AlignAvgRoIExtractor', dict(sampling_ratio=3, aligned=False)),
        (
            'AdaptiveSamplingRoIExtractor',
            dict(reduction='max', min_samples=2, max_samples=4, aligned=False),
        ),
        ('PreciseRoIExtractor', dict(aligned=True)),
        ('RandomSamplingRoIExtractor', dict(sampling_ratio=3, reduction='max', aligned=False)),
        ('DeformableRoIExtractor', dict(sampling_ratio=3, aligned=False, modulated=True)),
        ('ContentAdaptiveRoIExtractor', dict(sampling_ratio=3, aligned=False)),
    ],
)
def test_options_reach_the_extractor(type_, options):
    features, rois = pyramid(), random_rois()
    name = type_.removesuffix('RoIExtractor')
    output = build(type_, **options)(features, rois)
    assert torch.equal(output, build_extractor(name, 7, STRIDES, **options)(features, rois))
    assert not torch.equal(output, build(type_)(features, rois))

    with pytest.raises(TypeError) as error:
        build(type_, smapling_ratio=2, **options)
    message = str(error.value)
    assert f'smapling_ratio: no option of {type_}' in message
    listed = message.split('its options are ')[1].split(', ')
    everyones = ['output_size', 'out_channels', 'featmap_strides', 'finest_scale', 'clockwise']
    assert sorted(listed) == sorted([*everyones, *options])


def test_an_output_of_other_channels_than_the_maps():
    config = dict(
        type='PositionSensitiveRoIExtractor', output_size=7, out_channels=5, featmap_strides=STRIDES
    )
    extractor = MODELS.build(config | dict(in_channels=CHANNELS, mode='pool'))
    assert extractor.extractor.region == 'round'
    assert extractor(pyramid(), random_rois()).shape == (60, 5, 7, 7)
    with pytest.raises(TypeError, match=r'depth: no option of .*mode, sampling_ratio, in_channels$'):
        MODELS.build(config | dict(depth=5))


@pytest.mark.parametrize(
    ('type_', 'option', 'value'),
    [
        ('QuantizedPoolRoIExtractor', 'region', 'nearest'),
        ('RoIWarpRoIExtractor', 'reduction', 'sum'),
        ('AlignMaxRoIExtractor', 'sampling_ratio', '2'),
        ('AlignAvgRoIExtractor', 'sampling_ratio', 2.5),
        ('AlignAvgRoIExtractor', 'output_size', 0),
        ('AlignAvgRoIExtractor', 'featmap_strides', 4),
        ('AlignAvgRoIExtractor', 'finest_scale', 0),
        ('AlignAvgRoIExtractor', 'finest_scale', '56'),
        ('AdaptiveSamplingRoIExtractor', 'max_samples', 0),
    ],
)
def test_a_bad_value_is_named(type_, option, value):
    config = dict(type=type_, output_size=7, out_channels=3, featmap_strides=STRIDES)
    with pytest.raises(ValueError, match=rf'\b{option}\b.*: got '):
        MODELS.build(config | {option: value})


def test_a_missing_option_is_named():
    with pytest.raises(TypeError, match='out_channels'):
        MODELS.build(dict(type='AlignAvgRoIExtractor', output_size=7, featmap_strides=STRIDES))


def test_an_unknown_type_is_named():
    with pytest.raises(KeyError, match='AlignMinRoIExtractor is not in the mmdet::model registry'):
        build('AlignMinRoIExtractor')


def test_channels_that_are_not_those_of_the_maps():
    extractor = MODELS.build(
        dict(type='AlignAvgRoIExtractor', output_size=7, out_channels=256, featmap_strides=STRIDES)
    )
    with pytest.raises(ValueError, match='out_channels: got 256, expected 3'):
        extractor(pyramid(), random_rois())


# --------------------------------------------------- in the place of SingleRoIExtractor


@pytest.mark.parametrize('num_levels', [1, 2, 4])
@pytest.mark.parametrize('finest_scale', [56, 30])
def test_levels_are_those_of_stock(num_levels, finest_scale):
    sides = torch.tensor([finest_scale * 2.0**level for level in range(-1, 5)])
    infinity = torch.tensor(math.inf)
    sides = torch.cat([sides, torch.nextafter(sides, infinity), torch.nextafter(sides, -infinity)])
    zeros = torch.zeros_like(sides)
    squares = torch.stack([zeros, zeros, zeros, sides, sides], dim=1)
    flat = torch.stack([zeros, zeros, zeros, sides, sides / 4], dim=1)
    point = torch.tensor([[0.0, 9.0, 9.0, 9.0, 9.0]])
    for rois in (random_rois(2000), squares, flat, point):
        levels = [
            extractor.map_roi_levels(rois, num_levels)
            for extractor in (align_avg(finest_scale=finest_scale), stock(finest_scale=finest_scale))
        ]
        assert torch.equal(*levels)
    assert set(stock().map_roi_levels(random_rois(), num_levels).tolist()) == set(range(num_levels))


@pytest.mark.parametrize('factor', [None, 1.3, 0.5])
@pytest.mark.parametrize('rois', [random_rois(), torch.zeros(0, 5)], ids=['rois', 'none'])
@pytest.mark.parametrize('strides', [STRIDES, [16]], ids=['pyramid', 'one-map'])
def test_reads_what_stock_reads(strides, rois, factor):
    outputs, gradients = [], []
    for extractor in (align_avg(strides), stock(strides)):
        features = pyramid(strides)
        output = extractor(features, rois, factor)
        if output.requires_grad:  # stock leaves the graph where one map meets no RoI
            output.backward(torch.randn(output.shape, generator=generator(2)))
        outputs.append(output)
        gradients.append([torch.zeros_like(f) if f.grad is None else f.grad for f in features])
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@every_type
@pytest.mark.parametrize('num_rois', [0, 1])
@pytest.mark.parametrize('strides', [STRIDES, [16]], ids=['pyramid', 'one-map'])
def test_every_map_gets_a_gradient(type_, num_rois, strides):
    """Without one, distributed training waits for it for ever."""
    features = pyramid(strides)
    rois = torch.tensor([[0.0, 10, 10, 40, 40]])[:num_rois]
    build(type_, strides)(features, rois).sum().backward()
    read = len(strides) if type_ == 'AllLevelsRoIExtractor' else 1
    expected = [num_rois == 1] * read + [False] * (len(strides) - read)
    assert [bool(f.grad.any()) for f in features] == expected


def test_autocast_does_not_move_rois():
    """SingleRoIExtractor casts them: in bfloat16, 1001.3 px is 1000 px."""
    features = torch.randn(1, CHANNELS, 8, 256, generator=generator())
    rois = torch.tensor([[0, 1001.3, 3.3, 1017.9, 25.7]])
    extractor = build('AlignAvgRoIExtractor', [4])
    with torch.autocast('cpu', torch.bfloat16):
        convolved = torch.nn.functional.conv2d(features, torch.eye(CHANNELS)[:, :, None, None])
        assert convolved.dtype == torch.bfloat16
        output = extractor([convolved], rois)
    assert output.dtype == torch.bfloat16
    expected = extractor([convolved.float()], rois)
    torch.testing.assert_close(output, expected.bfloat16(), rtol=0, atol=0)

    moved = extractor([convolved.float()], rois.bfloat16().float())
    assert (moved - expected).abs().max() > 0.1


# --------------------------------------------------- in the place of GenericRoIExtractor

PRE = dict(type='ConvModule', in_channels=CHANNELS, out_channels=CHANNELS, kernel_size=5, padding=2)


def post(channels):
    return dict(type='NonLocal2d', in_channels=channels, reduction=1, use_scale=False)


def generic(strides, pool_mode='avg', sampling_ratio=2, **options):
    return MODELS.build(
        dict(
            type='GenericRoIExtractor',
            roi_layer=dict(
                type='RoIAlign', output_size=7, sampling_ratio=sampling_ratio, pool_mode=pool_mode
            ),
            featmap_strides=strides,
            **options,
        )
    )


@pytest.mark.parametrize(
    'options',
    [
        dict(aggregation='sum', out_channels=CHANNELS),
        dict(aggregation='sum', out_channels=CHANNELS, pre_cfg=PRE, post_cfg=post(CHANNELS)),
        # Of the batch: by its statistics a map is told from all maps.
        dict(out_channels=CHANNELS, pre_cfg=PRE | dict(norm_cfg=dict(type='BN'))),
        dict(aggregation='concat', out_channels=4 * CHANNELS),
        dict(aggregation='concat', out_channels=4 * CHANNELS, pre_cfg=PRE, post_cfg=post(4 * CHANNELS)),
    ],
    ids=['sum', 'sum-modules', 'sum-norm', 'concat', 'concat-modules'],
)
@pytest.mark.parametrize('factor', [None, 1.3])
def test_reads_all_levels_as_stock(options, factor):
    theirs = learned(generic(STRIDES, **options)).double().train()
    ours = MODELS.build(dict(type='AllLevelsRoIExtractor', output_size=7, featmap_strides=STRIDES, **options))
    ours.double().train()
    ours.init_weights()
    ours.load_state_dict(theirs.state_dict())  # a checkpoint of theirs, strictly
    results = []
    for extractor in (ours, theirs):
        features = [map_.detach().double().requires_grad_() for map_ in pyramid()]
        output = extractor(features, random_rois().double(), factor)
        output.backward(torch.randn(output.shape, generator=generator(2)).double())
        weights = {name.removeprefix('extractor.'): p.grad for name, p in extractor.named_parameters()}
        results.append([output, *(map_.grad for map_ in features), weights])
    assert results[0][0].shape == (60, options['out_channels'], 7, 7)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
    # And one of ours loads too.
    again = MODELS.build(
        dict(type='AllLevelsRoIExtractor', output_size=7, featmap_strides=STRIDES, **options)
    )
    again.load_state_dict(ours.state_dict())


@pytest.mark.parametrize(
    ('layer', 'options'),
    [
        (dict(pool_mode='max', sampling_ratio=3), dict(reduction='max', sampling_ratio=3)),
        (dict(sampling_ratio=0), dict(sampling_ratio=0)),
    ],
)
def test_reads_all_levels_by_any_method(layer, options):
    theirs = generic(STRIDES, out_channels=CHANNELS, **layer)
    ours = build('AllLevelsRoIExtractor', **options)
    features, rois = pyramid(), random_rois()
    torch.testing.assert_close(ours(features, rois), theirs(features, rois), rtol=1e-4, atol=1e-4)


def test_one_map_of_all_is_read_as_stock():
    """Without the modules."""
    options = dict(out_channels=CHANNELS, pre_cfg=PRE, post_cfg=post(CHANNELS))
    theirs = generic([16], **options)
    ours = MODELS.build(dict(type='AllLevelsRoIExtractor', output_size=7, featmap_strides=[16], **options))
    features, rois = pyramid([16]), random_rois()
    torch.testing.assert_close(ours(features, rois), theirs(features, rois), rtol=1e-4, atol=1e-4)


def test_channels_of_all_levels_that_do_not_add_up():
    with pytest.raises(ValueError, match='out_channels: got 3, expected 12'):
        build('AllLevelsRoIExtractor', aggregation='concat')(pyramid(), random_rois())
    with pytest.raises(ValueError, match="aggregation: got 'mean', expected 'sum'"):
        build('AllLevelsRoIExtractor', aggregation='mean')
    with pytest.raises(TypeError, match=r'pre: no option of AllLevelsRoIExtractor.*pre_cfg, post_cfg'):
        build('AllLevelsRoIExtractor', pre=PRE)


# --------------------------------------------------------------------- rotated RoIs


@pytest.mark.parametrize('clockwise', [False, True])
@pytest.mark.parametrize('roi_scale_factor', [None, 1.4])
def test_rotated_rois_are_read_as_by_mmcv(clockwise, roi_scale_factor):
    """In MMCV's convention, level by level: what MMRotate's extractor does with its RoIAlignRotated."""
    unit = torch.rand(60, 5, generator=generator(1))
    sides = 16 * 2 ** (unit[:, 2:4] * 6)
    rois = torch.cat([unit[:, :2] * IMAGE, sides, (unit[:, 4:] - 0.5) * 2 * math.pi], dim=1)
    rois = torch.cat([torch.arange(60)[:, None] % 2, rois], dim=1)
    levels = torch.floor(torch.log2((sides[:, 0] * sides[:, 1]).sqrt() / 56 + 1e-6)).clamp(0, 3)
    assert len(levels.unique()) == 4
    features = pyramid()
    extractor = build('AlignAvgRoIExtractor', clockwise=clockwise)
    output = extractor(features, rois, roi_scale_factor=roi_scale_factor)
    grown = rois.clone()
    grown[:, 3:5] *= roi_scale_factor or 1
    for level, (map_, stride) in enumerate(zip(features, STRIDES, strict=True)):
        layer = RoIAlignRotated(7, 1 / stride, 2, aligned=True, clockwise=clockwise)
        expected = layer(map_, grown[levels == level])
        torch.testing.assert_close(output[levels == level], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('rotated', [False, True])
def test_half_rois_are_computed_with_as_precisely_as_others(dtype, rotated):
    """45 degrees in bfloat16 are off by up to an eighth, a grown corner by pixels."""
    rois = random_rois().to(dtype)
    if rotated:
        rois[:, 3:] = rois[:, 3:].abs() + 1
        angles = (torch.rand(60, 1, generator=generator(2)) - 0.5) * 2 * math.pi
        rois = torch.cat([rois, angles.to(dtype)], dim=1)
    features = [map_.detach() for map_ in pyramid()]
    extractor = build('AlignAvgRoIExtractor', clockwise=True)
    output = extractor(features, rois, roi_scale_factor=1.3)
    torch.testing.assert_close(
        output, extractor(features, rois.double(), roi_scale_factor=1.3), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize('columns', [5, 6])
def test_images_that_half_rois_cannot_number_are_refused(columns):
    features = [torch.zeros(258, CHANNELS, 1, 1)] * 4
    with pytest.raises(ValueError, match=r'got dtype torch\.bfloat16 for 258 images'):
        build('AlignAvgRoIExtractor')(features, torch.ones(1, columns, dtype=torch.bfloat16), 1.5)


# --------------------------------------------------------------------- whole detectors

DETECTORS = {
    'mask': 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'cascade': 'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    'htc': 'htc/htc_r50_fpn_1x_coco.py',
    'double-head': 'double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py',
    'grid': 'grid_rcnn/grid-rcnn_r50_fpn_gn-head_2x_coco.py',
    'point-rend': 'point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py',
}
EVERYWHERE = (
    'bbox_roi_extractor',
    'mask_roi_extractor',
    'grid_roi_extractor',
    'semantic_roi_extractor',
)


def shrink(node):
    """Narrow heads, in place."""
    for child in node.values() if isinstance(node, dict) else node:
        if isinstance(child, (dict, list)):
            shrink(child)
    if isinstance(node, dict) and 'fc_out_channels' in node:
        node['fc_out_channels'] = 32


@functools.cache
def model_config(name):
    """A small model of MMDetection's own config, that detects something untrained."""
    cfg = Config.fromstring(f"_base_ = 'mmdet::{DETECTORS[name]}'", '.py').model
    cfg.backbone.update(depth=18, base_channels=16, init_cfg=None)
    cfg.neck.in_channels = [16, 32, 64, 128]
    shrink(cfg.roi_head)
    cfg.train_cfg.rpn_proposal.update(nms_pre=50, max_per_img=20)
    rcnn = cfg.train_cfg.rcnn
    for stage in rcnn if isinstance(rcnn, list) else [rcnn]:
        stage.sampler.num = 16
    cfg.test_cfg.rpn.update(nms_pre=50, max_per_img=10)
    # Masks as probabilities in 255 steps: a threshold would hide what changes.
    cfg.test_cfg.rcnn.update(score_thr=0.0, max_per_img=8, mask_thr_binary=-1)
    for key in EVERYWHERE:
        if cfg.roi_head.get(key, {}).get('type') == 'SingleRoIExtractor':
            cfg.roi_head[key].finest_scale = 14  # RoIs of all levels in a small image
    return cfg


def swapped(name, type_, heads=EVERYWHERE, **options):
    """The config with other extractors, and nothing else changed."""
    cfg = copy.deepcopy(model_config(name))
    for key in heads:
        stock_config = cfg.roi_head.get(key)
        if stock_config is not None:
            output_size = stock_config.pop('roi_layer').output_size
            stock_config.pop('aggregation', None)  # PointRend's GenericRoIExtractor
            stock_config.update(type=type_, output_size=output_size, **options)
    return cfg


def as_stock(name, heads=EVERYWHERE):
    return swapped(name, 'AlignAvgRoIExtractor', heads, sampling_ratio=0)


@functools.cache
def checkpoint(name):
    """Random weights, large enough that a detection depends on what its RoI holds."""
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(model_config(name)))
    with torch.no_grad():
        for parameter in model.roi_head.parameters():
            if parameter.dim() == 2:
                parameter *= 4
    return model.state_dict()


def load(name, cfg):
    model = MODELS.build(copy.deepcopy(cfg))
    missing, unexpected = model.load_state_dict(checkpoint(name), strict=False)
    assert not unexpected and all('_roi_extractor.extractor.' in key for key in missing)
    return model


def inputs():
    np.random.seed(0)  # the semantic map comes from it
    return demo_mm_inputs(
        batch_size=1,
        image_shapes=[(3, 96, 128)],
        num_items=[3],
        num_classes=80,
        with_mask=True,
        with_semantic=True,
    )


def detect(name, cfg):
    model = load(name, cfg).eval()
    with torch.inference_mode():
        (sample,) = model.test_step(inputs())
    assert len(sample.pred_instances) > 0
    return sample.pred_instances


def losses(name, cfg):
    model = load(name, cfg).train()
    data = model.data_preprocessor(inputs(), training=True)
    torch.manual_seed(0)  # of the samplers
    np.random.seed(0)
    with torch.no_grad():
        return model.parse_losses(model(**data, mode='loss'))[1]


@functools.cache
def stock_results(name):
    return detect(name, model_config(name)), losses(name, model_config(name))


def assert_same_boxes(ours, theirs):
    assert torch.equal(ours.labels, theirs.labels)
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.bboxes, theirs.bboxes, rtol=1e-4, atol=1e-3)


def mask_difference(ours, theirs):
    """The largest, in 255ths."""
    return (ours.masks.int() - theirs.masks.int()).abs().max()


def assert_same_detections(ours, theirs):
    assert_same_boxes(ours, theirs)
    if 'masks' in theirs:
        assert mask_difference(ours, theirs) <= 1


@pytest.mark.parametrize('name', ['mask', 'cascade', 'htc', 'double-head', 'grid'])
def test_align_avg_detects_and_learns_as_stock(name):
    """From the same checkpoint, whatever reads the extractors."""
    cfg = as_stock(name)
    detections, loss = stock_results(name)
    assert_same_detections(detect(name, cfg), detections)
    torch.testing.assert_close(losses(name, cfg), loss, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', STARTING_AS_ALIGN_AVG)
def test_one_with_weights_starts_from_a_checkpoint_of_stock(name, tmp_path):
    """As the runner loads it: with a warning, not an error, and with the detections of align-avg."""
    torch.save(checkpoint('mask'), tmp_path / 'stock.pth')
    model = MODELS.build(swapped('mask', f'{name}RoIExtractor', sampling_ratio=0)).eval()
    load_checkpoint(model, str(tmp_path / 'stock.pth'), map_location='cpu')
    with torch.inference_mode():
        (sample,) = model.test_step(inputs())
    detections, _ = stock_results('mask')
    assert_same_detections(sample.pred_instances, detections)


@pytest.mark.parametrize('name', ['mask', 'cascade', 'htc', 'double-head', 'grid'])
def test_another_extractor_detects_otherwise(name):
    """So the test above can fail."""
    detections, _ = stock_results(name)
    with pytest.raises(AssertionError):
        assert_same_detections(detect(name, swapped(name, 'AlignMaxRoIExtractor')), detections)


@pytest.mark.parametrize('head', ['bbox_roi_extractor', 'mask_roi_extractor'])
def test_one_head_alone_is_swapped(head):
    detections, _ = stock_results('mask')
    assert_same_detections(detect('mask', as_stock('mask', [head])), detections)
    # Another extractor in that head changes what that head says, and it alone.
    other = detect('mask', swapped('mask', 'QuantizedPoolRoIExtractor', [head]))
    if head == 'bbox_roi_extractor':
        assert not torch.allclose(other.scores, detections.scores, rtol=1e-4)
    else:
        assert torch.equal(other.bboxes, detections.bboxes)
        assert mask_difference(other, detections) > 1


def test_point_rend():
    """Its mask extractor reads single points, so the mask losses may differ, and the boxes may not."""
    cfg = as_stock('point-rend')
    assert cfg.roi_head.mask_roi_extractor.featmap_strides == [4]
    detections, loss = stock_results('point-rend')
    ours, our_loss = detect('point-rend', cfg), losses('point-rend', cfg)
    assert ours.masks.shape == detections.masks.shape
    assert_same_boxes(ours, detections)
    assert our_loss.keys() == loss.keys()
    for key in ('loss_cls', 'loss_bbox'):
        torch.testing.assert_close(our_loss[key], loss[key], rtol=1e-4, atol=1e-5)
    assert all(our_loss[key].isfinite() for key in ('loss_mask', 'loss_point'))


@every_type
def test_a_training_step_reaches_every_level(type_):
    cfg = swapped('mask', type_)
    for key in ('bbox_roi_extractor', 'mask_roi_extractor'):
        cfg.roi_head[key].finest_scale = 1000  # every RoI on the finest map
    model = load('mask', cfg).train()
    data = model.data_preprocessor(inputs(), training=True)
    features = [f.detach().requires_grad_() for f in model.extract_feat(data['inputs'])]
    with torch.no_grad():
        proposals = model.rpn_head.predict(features, data['data_samples'], rescale=False)
    loss, _ = model.parse_losses(model.roi_head.loss(features, proposals, data['data_samples']))
    loss.backward()
    read = [bool(map_.grad.any()) for map_ in features[:4]]
    assert read == ([True] * 4 if type_ == 'AllLevelsRoIExtractor' else [True, False, False, False])
