"""Every Detectron2 config is built and run; a variant differs from `stock` in its poolers alone.

File names are `{detector}_{extractor}_{dataset}`, `.yaml` or `.py`, which is what the plans rely on.
"""

import functools
from pathlib import Path

import pytest
import torch

pytest.importorskip('detectron2', reason='Detectron2 is not installed')

from detectron2 import model_zoo
from detectron2.config import CfgNode, instantiate
from detectron2.modeling import build_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf

from roi_plugins.ablation.plan import load_plan
from roi_plugins.integrations.detectron2 import RoIPluginsPooler
from roi_plugins.integrations.detectron2.runs import read_config

ROOT = Path(__file__).parents[2] / 'configs'
FOLDER = ROOT / 'detectron2'
CONFIGS = sorted(
    path.relative_to(FOLDER)
    for path in FOLDER.glob('*/*-rcnn_*.*')
    if path.suffix in ('.yaml', '.py') and path.parent.name != 'rotated'  # test_detectron2_rotated.py
)

EXTRACTORS = {
    'stock': ('ROIAlignV2', 0, {}),
    'quantized-pool': ('QuantizedPool', 0, {}),
    'roi-warp-max': ('RoIWarpMax', 2, {}),
    'roi-warp-avg': ('RoIWarpAvg', 2, {}),
    'align-max': ('AlignMax', 2, {}),
    'align-avg': ('AlignAvg', 2, {}),
    'align-avg-unaligned': ('AlignAvg', 2, {'ALIGNED': False}),
    'adaptive': ('AdaptiveSampling', 0, {}),
    'precise': ('Precise', 0, {'ALIGNED': True}),
    'random-sampling': ('RandomSampling', 2, {}),
    'deformable': ('Deformable', 2, {}),
    'position-sensitive': ('PositionSensitive', 2, {'DEPTH': 10}),
    'content-adaptive': ('ContentAdaptive', 2, {}),
    'all-levels': ('AllLevels', 2, {}),
}
# Those of which every config is trained a step; the others differ from them in options of the op alone.
LEARNING = (
    'stock', 'align-max', 'precise', 'random-sampling', 'deformable', 'position-sensitive',
    'content-adaptive', 'all-levels',
)
ZOO = {
    'faster-rcnn_r50-fpn_1x': 'COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml',
    'mask-rcnn_r50-fpn_1x': 'COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml',
    'mask-rcnn_r50-c4_1x': 'COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml',
    'cascade-mask-rcnn_r50-fpn_1x': 'Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml',
}


def extractor_name(path):
    return path.stem.split('_')[-2]


def stock_sibling(path):
    *detector, _, dataset = path.stem.split('_')
    return path.with_name('_'.join([*detector, 'stock', dataset]) + path.suffix)


@functools.cache
def load(path):
    """The config at ``path``. Shared by the tests: copy before changing it."""
    return read_config(FOLDER / path)


def flatten(node, prefix=''):
    if not isinstance(node, dict):
        return {prefix: node}
    return {
        key: value
        for name, child in node.items()
        for key, value in flatten(child, f'{prefix}.{name}' if prefix else name).items()
    }


def settings(path):
    cfg = load(path)
    return flatten(cfg if isinstance(cfg, CfgNode) else OmegaConf.to_container(cfg))


def used_heads(cfg):
    """Those whose pooler the model has."""
    masks = cfg.MODEL.MASK_ON and 'Res5' not in cfg.MODEL.ROI_HEADS.NAME
    return ['ROI_BOX_HEAD', 'ROI_MASK_HEAD'] if masks else ['ROI_BOX_HEAD']


def build(path):
    """The detector of a config, with random weights, few RoIs and, in YAML, few channels."""
    torch.manual_seed(0)
    model = _build(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'stem' in name or name.endswith('conv3.weight'):
                parameter /= 16  # without statistics to normalise by, features would grow and grow
    return model


def _build(path):
    cfg = load(path)
    if not isinstance(cfg, CfgNode):
        model = cfg.copy().model
        model.proposal_generator.post_nms_topk = (20, 8)
        model.roi_heads.batch_size_per_image = 16
        model.roi_heads.box_predictor.test_score_thresh = 0.0
        model.roi_heads.box_predictor.test_topk_per_image = 4
        return instantiate(model)
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = 'cpu'
    if 'shapes' not in str(path):
        cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
        cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 32
        cfg.MODEL.FPN.OUT_CHANNELS = 32
        cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 64
        cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 20
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 8
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    # An untrained classifier is sure of nothing: keep what it finds, so that masks are predicted.
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 4
    return build_model(cfg)


def poolers(model):
    heads = model.roi_heads
    found = [getattr(heads, name, None) for name in ('pooler', 'box_pooler', 'mask_pooler')]
    return [pooler for pooler in found if pooler is not None]


def image():
    return {'image': torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0)) * 255}


def by_path(paths):
    return pytest.mark.parametrize('path', paths, ids=str)


def test_there_are_configs():
    assert len({stock_sibling(path) for path in CONFIGS}) == 9
    mmdet = {
        (extractor_name(path), path.stem.replace('-caffe', '').rpartition('_1x')[0])
        for path in (ROOT / 'mmdet').glob('*rcnn*/*.py')
    }
    ours = {
        (extractor_name(path), path.stem.rpartition('_1x')[0])
        for path in CONFIGS
        if path.suffix == '.yaml' and 'shapes' not in str(path)
    }
    assert ours == mmdet


@by_path(CONFIGS)
def test_poolers_are_those_the_name_says(path):
    cfg = load(path)
    of_box = EXTRACTORS[extractor_name(path)]
    of_mask = EXTRACTORS['align-avg'] if of_box[0] == 'PositionSensitive' else of_box
    if not isinstance(cfg, CfgNode):
        for name, wanted in (('box_pooler', of_box), ('mask_pooler', of_mask)):
            type_, ratio, options = wanted
            pooler = cfg.model.roi_heads[name]
            assert (type_, ratio) == (pooler.pooler_type, pooler.sampling_ratio)
            given = pooler.keys() - {'_target_', 'output_size', 'scales', 'channels'}
            assert given == {'pooler_type', 'sampling_ratio', *map(str.lower, options)}
            assert all(pooler[name.lower()] == value for name, value in options.items())
        return
    for head in used_heads(cfg):
        type_, ratio, options = of_mask if head == 'ROI_MASK_HEAD' else of_box
        node = cfg.MODEL[head]
        assert (type_, ratio) == (node.POOLER_TYPE, node.POOLER_SAMPLING_RATIO)
        assert {k: v for k, v in node.POOLER_OPTIONS.items() if v is not None} == options


@by_path(path for path in CONFIGS if extractor_name(path) != 'stock')
def test_variant_differs_from_stock_in_its_poolers_alone(path):
    a, b = settings(path), settings(stock_sibling(path))
    changed = {key for key in a.keys() | b.keys() if a.get(key, ...) != b.get(key, ...)}
    assert changed
    if path.suffix == '.py':
        allowed = ('model.roi_heads.box_pooler.', 'model.roi_heads.mask_pooler.')
        if extractor_name(path) == 'position-sensitive':
            heads = load(path).model.roi_heads
            assert heads.box_head.input_shape.channels == heads.box_pooler.depth
            allowed += ('model.roi_heads.box_head.input_shape.channels',)
    else:
        allowed = tuple(f'MODEL.{head}.POOLER_' for head in used_heads(load(path)))
    assert all(key.startswith(allowed) for key in changed)


@pytest.mark.parametrize('detector', ZOO)
def test_stock_is_the_model_zoos(detector):
    (path,) = (p for p in CONFIGS if p.name == f'{detector}_stock_coco.yaml')
    ours = settings(path)
    theirs = flatten(model_zoo.get_config(ZOO[detector]))
    changed = {key for key in theirs if theirs[key] != ours[key]}
    assert changed == {'MODEL.ROI_HEADS.NAME'}
    assert ours['MODEL.ROI_HEADS.NAME'] == 'RoIPlugins' + theirs['MODEL.ROI_HEADS.NAME']


@by_path(CONFIGS)
def test_predicts(path):
    model = build(path).eval()
    wanted = ROIPooler if extractor_name(path) == 'stock' else RoIPluginsPooler
    assert all(isinstance(pooler, wanted) for pooler in poolers(model))
    with torch.inference_mode():
        (output,) = model([image()])
    found = output['instances']
    assert 0 < len(found) <= 4
    assert found.pred_boxes.tensor.isfinite().all() and found.scores.isfinite().all()
    if model.roi_heads.mask_on:
        assert found.pred_masks.shape == (len(found), 96, 128)


@by_path(path for path in CONFIGS if extractor_name(path) in LEARNING)
def test_learns(path):
    model = build(path).train()
    target = Instances((96, 128))
    target.gt_boxes = Boxes(torch.tensor([[8.0, 8, 60, 50], [70, 20, 120, 90]]))
    target.gt_classes = torch.tensor([0, 1])
    target.gt_masks = BitMasks(torch.ones(2, 96, 128, dtype=torch.bool))
    with EventStorage():
        losses = model([image() | {'instances': target}])
    # Proposals are detached: what the RoI heads teach the backbone comes through their poolers.
    roi_losses = {key: loss for key, loss in losses.items() if 'rpn' not in key}
    assert ('loss_mask' in roi_losses) == model.roi_heads.mask_on
    sum(roi_losses.values()).backward()
    backbone = getattr(model.backbone, 'bottom_up', model.backbone)
    gradient = backbone.res4[-1].conv2.weight.grad
    assert gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize('name', ['demo', 'embedded', 'fpn', 'mask-rcnn_table2c', 'mask-rcnn_table2d'])
def test_a_plan_is_the_one_of_mmdetection(name):
    plan, twin = (load_plan(ROOT / f'ablations/{name}{suffix}.yaml') for suffix in ('_detectron2', ''))
    assert {cell.config.relative_to(FOLDER) for cell in plan.cells} <= set(CONFIGS)
    assert [cell.name for cell in plan.cells] == [cell.name for cell in twin.cells]
    assert (plan.name, plan.baseline) == (f'{twin.name}_detectron2', twin.baseline)
    assert {cell.framework for cell in plan.cells} == {'detectron2'}
