"""Every MMDetection config is built and run; a variant differs from `stock` in its extractor alone.

File names are `{detector}_{extractor}_{dataset}.py`, which is what the plans rely on.
"""

import copy
import functools
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet', reason='MMDetection is not installed')
pytest.importorskip('mmcv.ops', reason="MMCV's compiled ops are not installed")

from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config

from roi_plugins.ablation.plan import load_plan
from roi_plugins.datasets import CLASSES

ROOT = Path(__file__).parents[2] / 'configs'
CONFIGS = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / 'mmdet').glob('*/*_*_*.py')
    if path.parent.name != 'r_fcn'  # test_r_fcn_configs.py
)
PLANS = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / 'ablations').glob('*.yaml')
    if not path.stem.endswith('_detectron2')  # see test_detectron2_configs.py
)

EXTRACTORS = {
    'stock': dict(type='SingleRoIExtractor'),
    'quantized-pool': dict(type='QuantizedPoolRoIExtractor'),
    'roi-warp-max': dict(type='RoIWarpRoIExtractor', reduction='max', sampling_ratio=2),
    'roi-warp-avg': dict(type='RoIWarpRoIExtractor', reduction='avg', sampling_ratio=2),
    'align-max': dict(type='AlignMaxRoIExtractor', sampling_ratio=2),
    'align-avg': dict(type='AlignAvgRoIExtractor', sampling_ratio=2),
    'align-avg-unaligned': dict(type='AlignAvgRoIExtractor', sampling_ratio=2, aligned=False),
    'adaptive': dict(type='AdaptiveSamplingRoIExtractor'),
    'precise': dict(type='PreciseRoIExtractor', aligned=True),
    'random-sampling': dict(type='RandomSamplingRoIExtractor', sampling_ratio=2),
    'deformable': dict(type='DeformableRoIExtractor', sampling_ratio=2),
    'position-sensitive': dict(type='PositionSensitiveRoIExtractor', sampling_ratio=2),
    'content-adaptive': dict(type='ContentAdaptiveRoIExtractor', sampling_ratio=2),
    'all-levels': dict(type='AllLevelsRoIExtractor', sampling_ratio=2),
}

# Those of which every config is trained a step; the others differ from them in options of the op alone.
LEARNING = (
    'stock', 'align-max', 'precise', 'random-sampling', 'deformable', 'position-sensitive',
    'content-adaptive', 'all-levels',
)

GEOMETRY = {'output_size', 'out_channels', 'in_channels', 'featmap_strides'}


def extractor_name(path):
    return path.stem.split('_')[-2]


def stock_sibling(path):
    *detector, _, dataset = path.stem.split('_')
    return path.with_name('_'.join([*detector, 'stock', dataset]) + '.py')


@functools.cache
def load(path):
    """The config at ``path``. Shared by the tests: copy before changing it."""
    return Config.fromfile(ROOT / path)


def roi_extractors(roi_head):
    heads = ('bbox_roi_extractor', 'mask_roi_extractor')
    return {head: roi_head[head] for head in heads if roi_head.get(head) is not None}


def flatten(node, prefix=''):
    if not isinstance(node, dict):
        return {prefix: node}
    return {
        key: value
        for name, child in node.items()
        for key, value in flatten(child, f'{prefix}.{name}' if prefix else name).items()
    }


def build(path):
    """The detector of a config, with random weights and few RoIs."""
    model_cfg = copy.deepcopy(load(path).model)
    model_cfg.backbone.init_cfg = None
    model_cfg.train_cfg.rpn_proposal.update(nms_pre=50, max_per_img=20)
    rcnn = model_cfg.train_cfg.rcnn
    for stage in rcnn if isinstance(rcnn, list) else [rcnn]:
        stage.sampler.num = 16
    model_cfg.test_cfg.rpn.update(nms_pre=50, max_per_img=8)
    # An untrained classifier is sure of nothing: keep what it finds, so that masks are predicted.
    model_cfg.test_cfg.rcnn.update(score_thr=0.0, max_per_img=4)
    register_all_modules(init_default_scope=False)
    torch.manual_seed(0)
    return MODELS.build(model_cfg)


def inputs(model):
    return demo_mm_inputs(
        batch_size=1,
        image_shapes=[(3, 128, 160)],
        num_items=[2],
        num_classes=len(CLASSES),
        with_mask=model.with_mask,
        device='cpu',
    )


def by_path(paths):
    return pytest.mark.parametrize('path', paths, ids=str)


def test_there_are_configs_and_plans():
    assert len({stock_sibling(path) for path in CONFIGS}) == 8
    assert {path.stem for path in PLANS} == {
        'demo',
        'embedded',
        'fpn',
        'mask-rcnn_table2c',
        'mask-rcnn_table2d',
        'shapes_content-adaptive',
        'shapes_family',
        'shapes_table2c',
        'shapes_table2d',
        'test_only_shapes',
    }


@by_path(CONFIGS)
def test_extractor_is_the_one_the_name_says(path):
    wanted = EXTRACTORS[extractor_name(path)]
    for head, config in roi_extractors(load(path).model.roi_head).items():
        if extractor_name(path) == 'position-sensitive' and head == 'mask_roi_extractor':
            wanted = EXTRACTORS['align-avg']
        options = {k: v for k, v in config.items() if k not in GEOMETRY | {'roi_layer'}}
        assert options == wanted


@by_path(path for path in CONFIGS if extractor_name(path) != 'stock')
def test_variant_differs_from_stock_in_its_extractor_alone(path):
    variant, stock = load(path), load(stock_sibling(path))
    roi_heads = [roi_extractors(cfg.model.roi_head) for cfg in (variant, stock)]
    assert roi_heads[0].keys() == roi_heads[1].keys()
    for ours, theirs in zip(*(heads.values() for heads in roi_heads), strict=True):
        layer = theirs.roi_layer
        assert (layer.type, layer.sampling_ratio) == ('RoIAlign', 0)
        assert ours.output_size == layer.output_size
        assert ours.get('in_channels', ours.out_channels) == theirs.out_channels
        assert ours.featmap_strides == theirs.featmap_strides

    a, b = (flatten(cfg.to_dict()) for cfg in (variant, stock))
    changed = {key for key in a.keys() | b.keys() if a.get(key, ...) != b.get(key, ...)}
    prefixes = tuple(f'model.roi_head.{head}.' for head in roi_heads[0])
    if extractor_name(path) == 'position-sensitive':
        head = variant.model.roi_head
        assert head.bbox_head.in_channels == head.bbox_roi_extractor.out_channels
        prefixes += ('model.roi_head.bbox_head.in_channels',)
    assert all(key.startswith(prefixes) for key in changed)


@by_path(CONFIGS)
def test_predicts(path):
    model = build(path).eval()
    with torch.inference_mode():
        (sample,) = model.test_step(inputs(model))
    predicted = sample.pred_instances
    assert 0 < len(predicted) <= 4
    assert predicted.bboxes.isfinite().all() and predicted.scores.isfinite().all()
    if model.with_mask:
        assert predicted.masks.shape == (len(predicted), 128, 160)


@by_path(path for path in CONFIGS if extractor_name(path) in LEARNING)
def test_learns(path):
    model = build(path)
    data = model.data_preprocessor(inputs(model), training=True)
    losses = {k: v for k, v in model(**data, mode='loss').items() if 'loss' in k}
    # Proposals are detached: what the RoI head teaches the backbone comes through its extractors.
    roi_losses = {k: v for k, v in losses.items() if 'rpn' not in k}
    assert any('mask' in k for k in roi_losses) == model.with_mask
    sum(roi_losses.values()).backward()
    gradient = next(model.backbone.layer3[-1].conv2.parameters()).grad
    assert gradient.isfinite().all() and gradient.any()


def test_shapes_classes_are_the_generators():
    cfg = load(Path('mmdet/shapes/mask-rcnn_r18-c4_stock_shapes.py'))
    assert cfg.classes == CLASSES
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        assert loader.dataset.metainfo.classes == CLASSES


@pytest.mark.parametrize('name', ['shapes_table2c', 'shapes_table2d', 'shapes_family'])
def test_the_trunk_fits_the_cells_that_start_from_it(name):
    cells = load_plan(ROOT / f'ablations/{name}.yaml').cells
    (start,) = {Path(cell.cfg_options['load_from']) for cell in cells}
    trunk = load(Path(f'mmdet/shapes/{start.parent.name}.py'))
    assert start.name == f'iter_{trunk.train_cfg.max_iters}.pth'
    register_all_modules(init_default_scope=False)
    # The scope is that of the runner, where there is one.
    weights = MODELS.build({**copy.deepcopy(trunk.model), '_scope_': 'mmdet'}).state_dict()
    missing, _ = build(cells[0].config).load_state_dict(weights, strict=False)
    assert missing and not any(key.startswith('backbone.') for key in missing)


@by_path(PLANS)
def test_every_cell_of_a_plan_has_a_config(path):
    plan = load_plan(ROOT / path)  # fails where a config is missing
    assert plan.name == path.stem
    assert {cell.config.relative_to(ROOT) for cell in plan.cells} <= set(CONFIGS)
