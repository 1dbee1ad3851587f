"""Every Detectron2 config is built and run, with each row of the plans swapped in.

A row changes the poolers alone; a config that changes more has the row's name in its own.
"""

import functools
from pathlib import Path

import pytest
import row_table
import torch

pytest.importorskip('detectron2', reason='Detectron2 is not installed')

from detectron2 import model_zoo
from detectron2.config import CfgNode, instantiate
from detectron2.modeling import build_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf

from roi_plugins.ablation.plan import load_plan
from roi_plugins.extractors.presets import find_preset
from roi_plugins.integrations.detectron2 import RoIPluginsPooler
from roi_plugins.integrations.detectron2.check_model import num_keypoints
from roi_plugins.integrations.detectron2.config import read_config
from roi_plugins.integrations.detectron2.rows import row_options
from roi_plugins.integrations.zoo import find_config

ROOT = Path(__file__).parents[2] / 'configs'
FOLDER = ROOT / 'detectron2'

ROWS = {
    **row_table.ROWS,
    'stock': ('ROIAlignV2', {}),
    'roi-warp-max': ('RoIWarpMax', row_table.ROWS['roi-warp-max'][1]),
    'roi-warp-avg': ('RoIWarpAvg', row_table.ROWS['roi-warp-avg'][1]),
}
OF_ONE_MAP = ROWS.keys() - {'all-levels'}  # it is align-avg
KEYPOINT_ROWS = {'stock', 'quantized-pool', 'align-max', 'align-avg'}
# The LazyConfig of Mask R-CNN R-50-FPN is the model zoo's.
LAZY_FPN = 'COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py'
DETECTORS = {
    'faster_rcnn/faster-rcnn_r50-fpn_1x_coco.yaml': row_table.FPN_ROWS,
    'cascade_rcnn/cascade-rcnn_r50-fpn_1x_coco.yaml': row_table.FPN_ROWS,
    'cascade_rcnn/cascade-mask-rcnn_r50-fpn_1x_coco.yaml': row_table.FPN_ROWS,
    'mask_rcnn/mask-rcnn_r50-fpn_1x_coco.yaml': ROWS.keys(),
    LAZY_FPN: ROWS.keys(),
    'mask_rcnn/mask-rcnn_r50-c4_1x_coco.yaml': row_table.TABLE_ROWS,
    'mask_rcnn/mask-rcnn_r50-c5_1x_coco.yaml': row_table.TABLE_ROWS,
    'keypoint_rcnn/keypoint-rcnn_r50-fpn_1x_coco.yaml': KEYPOINT_ROWS,
    'shapes/mask-rcnn_r50w16-c4_shapes.yaml': OF_ONE_MAP,
    'shapes/mask-rcnn_r18-c4_shapes.py': OF_ONE_MAP,
    'shapes/mask-rcnn_r18-c4_trunk_shapes.py': row_table.DEMO_ROWS,
    'shapes/keypoint-rcnn_r18-c4_trunk_shapes.py': KEYPOINT_ROWS,
}
SWAPS = [(detector, row) for detector in DETECTORS for row in ROWS if row in DETECTORS[detector]]
# Each a variant of a stock config. R-FCN: test_r_fcn_configs.py; rotated: test_detectron2_rotated.py.
EXAMPLE = 'mask_rcnn/mask-rcnn_r50-fpn_1x_align-max_coco.yaml'
POSITION_SENSITIVE = (
    'faster_rcnn/faster-rcnn_r50-fpn_1x_position-sensitive_coco.yaml',
    'shapes/mask-rcnn_r18-c4_position-sensitive_shapes.py',
)
ZOO = {
    'faster-rcnn_r50-fpn_1x': 'COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml',
    'mask-rcnn_r50-fpn_1x': 'COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml',
    'mask-rcnn_r50-c4_1x': 'COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml',
    'keypoint-rcnn_r50-fpn_1x': 'COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml',
    'cascade-mask-rcnn_r50-fpn_1x': 'Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml',
}


@functools.cache
def load(path, row=None):
    """A config, with a row swapped in as the tool does it. Shared by the tests: copy before changing it."""
    file = FOLDER / path if (FOLDER / path).exists() else find_config(path)
    return read_config(file, row_options(read_config(file), find_preset(row)) if row else ())


def flatten(node, prefix=''):
    if not isinstance(node, dict):
        return {prefix: node}
    return {
        key: value
        for name, child in node.items()
        for key, value in flatten(child, f'{prefix}.{name}' if prefix else name).items()
    }


def settings(path, row=None):
    cfg = load(path, row)
    return flatten(cfg if isinstance(cfg, CfgNode) else OmegaConf.to_container(cfg))


def changed_keys(a, b):
    return {key for key in a.keys() | b.keys() if a.get(key, ...) != b.get(key, ...)}


def used_heads(cfg):
    """Those whose pooler the model has."""
    masks = cfg.MODEL.MASK_ON and 'Res5' not in cfg.MODEL.ROI_HEADS.NAME
    keypoints = cfg.MODEL.KEYPOINT_ON
    return ['ROI_BOX_HEAD', *['ROI_MASK_HEAD'] * masks, *['ROI_KEYPOINT_HEAD'] * keypoints]


def build(path, row=None):
    """The detector of a config, with random weights, few RoIs and, in YAML, few channels."""
    torch.manual_seed(0)
    model = _build(path, row)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'stem' in name or name.endswith('conv3.weight'):
                parameter /= 16  # without statistics to normalise by, features would grow and grow
    return model


def _build(path, row, device='cpu'):
    cfg = load(path, row)
    if not isinstance(cfg, CfgNode):
        model = cfg.copy().model
        model.proposal_generator.post_nms_topk = (20, 8)
        model.roi_heads.batch_size_per_image = 16
        model.roi_heads.box_predictor.test_score_thresh = 0.0
        model.roi_heads.box_predictor.test_topk_per_image = 4
        return instantiate(model)
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = device
    if 'shapes' not in path:
        cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
        cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 32
        cfg.MODEL.FPN.OUT_CHANNELS = 32
        cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 64
        cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
        cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS = [32]
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 20
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 8
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    # An untrained classifier is sure of nothing: keep what it finds, so that masks are predicted.
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 4
    return build_model(cfg)


@functools.cache
def poolers(path, row=None):
    with torch.device('meta'):  # no weights are looked at
        heads = _build(path, row, 'meta').roi_heads
    found = [getattr(heads, name, None) for name in POOLERS]
    return [pooler for pooler in found if pooler is not None]


def image():
    return {'image': torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0)) * 255}


POOLERS = ('pooler', 'box_pooler', 'mask_pooler', 'keypoint_pooler')

by_swap = pytest.mark.parametrize(('path', 'row'), SWAPS)


def stems(paths):
    return {path.stem.replace('-caffe', '') for path in paths}


def test_every_config_is_tested():
    found = {str(path.relative_to(FOLDER)) for path in FOLDER.glob('*/*rcnn_*.*')}
    rotated = {'rotated/faster-rcnn_r50w16-c4_align-avg_rotated.yaml'}
    assert found - {'_base_/rcnn_r50-fpn.yaml'} == {
        *(DETECTORS.keys() - {LAZY_FPN}),
        EXAMPLE,
        *POSITION_SENSITIVE,
        *rotated,
    }
    # MMDetection 3 has no keypoint head.
    both = [path for path in FOLDER.glob('*rcnn/*_coco.yaml') if path.parent.name != 'keypoint_rcnn']
    assert stems(both) == stems((ROOT / 'mmdet').glob('*rcnn/*_coco.py'))


@by_swap
def test_poolers_are_those_of_the_row(path, row):
    type_, options = ROWS[row]
    cfg = load(path, row)
    if isinstance(cfg, CfgNode):
        assert [cfg.MODEL[head].POOLER_TYPE for head in used_heads(cfg)] == [type_] * len(used_heads(cfg))
    else:
        heads = cfg.model.roi_heads
        assert [heads[name].pooler_type for name in POOLERS if name in heads] == [type_] * 2
    found = poolers(path, row)
    assert found
    assert {type(pooler) for pooler in found} == {ROIPooler if row == 'stock' else RoIPluginsPooler}
    for pooler in found:
        assert {name: getattr(pooler.extractor, name) for name in options} == options


@pytest.mark.parametrize(('path', 'row'), [swap for swap in SWAPS if swap[1] != 'stock'])
def test_a_row_changes_the_poolers_alone(path, row):
    a, b = settings(path, row), settings(path)
    changed = changed_keys(a, b)
    assert changed
    allowed = tuple(f'model.roi_heads.{name}.' for name in POOLERS)
    if path.endswith('.yaml'):
        allowed = tuple(f'MODEL.{head}.POOLER_' for head in used_heads(load(path)))
        # Of the same layers, with poolers of all types.
        changed.remove('MODEL.ROI_HEADS.NAME')
        assert a['MODEL.ROI_HEADS.NAME'] == 'RoIPlugins' + b['MODEL.ROI_HEADS.NAME']
    assert all(key.startswith(allowed) for key in changed)
    for ours, theirs in zip(poolers(path, row), poolers(path, 'stock'), strict=True):
        assert ours.output_size == theirs.output_size
        scales = [level.spatial_scale for level in theirs.level_poolers]
        assert ours.extractor.spatial_scales == scales
        for name in ('min_level', 'max_level', 'canonical_level', 'canonical_box_size'):
            assert getattr(ours, name) == getattr(theirs, name)


def test_the_example_is_the_row_that_it_is_named_after():
    stock = 'mask_rcnn/mask-rcnn_r50-fpn_1x_coco.yaml'
    changed = changed_keys(settings(EXAMPLE), settings(stock, 'align-max'))
    # The row says what the example inherits too.
    assert changed == {f'MODEL.ROI_{head}_HEAD.POOLER_OPTIONS.ALIGNED' for head in ('BOX', 'MASK')}
    for pooler in poolers(EXAMPLE):
        assert type(pooler.extractor).__name__ == 'AlignMax'
        assert (pooler.extractor.sampling_ratio, pooler.extractor.aligned) == (2, True)


@pytest.mark.parametrize('path', POSITION_SENSITIVE)
def test_position_sensitive_changes_the_box_head_too(path):
    changed = changed_keys(settings(path), settings(path.replace('_position-sensitive', '')))
    if path.endswith('.yaml'):
        allowed = ('MODEL.ROI_BOX_HEAD.POOLER_', 'MODEL.ROI_HEADS.NAME')
    else:
        heads = load(path).model.roi_heads
        assert heads.box_head.input_shape.channels == heads.box_pooler.depth
        allowed = ('model.roi_heads.box_pooler.', 'model.roi_heads.mask_pooler.')
        allowed += ('model.roi_heads.box_head.input_shape.channels',)
    assert changed and all(key.startswith(allowed) for key in changed)
    box, *masks = poolers(path)
    assert type(box.extractor).__name__ == 'PositionSensitive'
    assert (box.extractor.depth, box.extractor.sampling_ratio, box.output_size) == (10, 2, (7, 7))
    for mask in masks:
        type_, options = ROWS['align-avg']
        assert mask.pooler_type == type_
        assert {name: getattr(mask.extractor, name) for name in options} == options


@pytest.mark.parametrize('detector', ZOO)
def test_stock_is_the_model_zoos(detector):
    (path,) = (path for path in DETECTORS if path.endswith(f'/{detector}_coco.yaml'))
    ours = settings(path)
    theirs = flatten(model_zoo.get_config(ZOO[detector]))
    assert {key for key in theirs if theirs[key] != ours[key]} == set()


@pytest.mark.slow
@pytest.mark.parametrize(('path', 'row'), [*SWAPS, *((path, None) for path in POSITION_SENSITIVE)])
def test_predicts(path, row):
    model = build(path, row).eval()
    with torch.inference_mode():
        (output,) = model([image()])
    found = output['instances']
    assert 0 < len(found) <= 4
    assert found.pred_boxes.tensor.isfinite().all() and found.scores.isfinite().all()
    if model.roi_heads.mask_on:
        assert found.pred_masks.shape == (len(found), 96, 128)
    if num_keypoints(model) is not None:
        assert found.pred_keypoints.shape == (len(found), num_keypoints(model), 3)


@pytest.mark.parametrize(
    ('path', 'row'),
    [
        # The trunk of the demo is frozen.
        *(swap for swap in SWAPS if swap[1] in row_table.LEARNING and 'trunk' not in swap[0]),
        *((path, None) for path in POSITION_SENSITIVE),
    ],
)
def test_learns(path, row):
    model = build(path, row).train()
    target = Instances((96, 128))
    target.gt_boxes = Boxes(torch.tensor([[8.0, 8, 60, 50], [70, 20, 120, 90]]))
    target.gt_classes = torch.tensor([0, 1])
    target.gt_masks = BitMasks(torch.ones(2, 96, 128, dtype=torch.bool))
    target.gt_keypoints = Keypoints(torch.tensor([30.0, 30, 2]).expand(2, num_keypoints(model) or 1, 3))
    with EventStorage():
        losses = model([image() | {'instances': target}])
    # Proposals are detached: what the RoI heads teach the backbone comes through their poolers.
    roi_losses = {key: loss for key, loss in losses.items() if 'rpn' not in key}
    assert ('loss_mask' in roi_losses) == model.roi_heads.mask_on
    assert ('loss_keypoint' in roi_losses) == (num_keypoints(model) is not None)
    sum(roi_losses.values()).backward()
    backbone = getattr(model.backbone, 'bottom_up', model.backbone)
    gradient = backbone.res4[-1].conv2.weight.grad
    assert gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize('name', ['shapes_table6_detectron2', 'keypoint-rcnn_table6_detectron2'])
def test_a_plan_of_keypoints_is_about_their_ap(name):
    plan = load_plan(ROOT / f'ablations/{name}.yaml')
    trials = {
        (str(trial.config.relative_to(FOLDER)), trial.inputs.extractor or 'stock') for trial in plan.trials
    }
    assert trials <= {*SWAPS}
    assert {trial.seed for trial in plan.trials} == {0, 1, 2}
    assert (plan.name, plan.primary_metric) == (name, 'keypoints/AP')


@pytest.mark.parametrize('name', ['demo', 'embedded', 'fpn', 'mask-rcnn_table2c', 'mask-rcnn_table2d'])
def test_a_plan_is_the_one_of_mmdetection(name):
    plan, twin = (load_plan(ROOT / f'ablations/{name}{suffix}.yaml') for suffix in ('_detectron2', ''))
    trials = {(str(trial.config.relative_to(FOLDER)), trial.inputs.extractor) for trial in plan.trials}
    assert trials <= {*SWAPS, *((path, None) for path in POSITION_SENSITIVE)}
    assert [trial.name for trial in plan.trials] == [trial.name for trial in twin.trials]
    assert (plan.name, plan.baseline) == (f'{twin.name}_detectron2', twin.baseline)
    assert {trial.framework for trial in plan.trials} == {'detectron2'}
