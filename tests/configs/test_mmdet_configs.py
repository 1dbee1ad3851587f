"""Every MMDetection config is built and run, with each row of the plans swapped in.

A row changes the extractors alone; a config that changes more has the row's name in its own.
"""

import copy
import functools
from pathlib import Path

import pytest
import row_table
import torch

pytest.importorskip('mmdet', reason='MMDetection is not installed')
pytest.importorskip('mmcv.ops', reason="MMCV's compiled ops are not installed")

from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules

from roi_plugins.ablation.plan import load_plan
from roi_plugins.datasets import CLASSES
from roi_plugins.integrations.mmdet.config import read_config

ROOT = Path(__file__).parents[2] / 'configs'
PLANS = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / 'ablations').glob('*.yaml')
    if not path.stem.endswith('_detectron2')  # see test_detectron2_configs.py
    and not path.stem.startswith('real_')  # see test_real_configs.py
)

ROWS = {**row_table.ROWS, 'stock': ('SingleRoIExtractor', {})}
DETECTORS = {
    'mmdet/faster_rcnn/faster-rcnn_r50-fpn_1x_coco.py': row_table.FPN_ROWS,
    'mmdet/cascade_rcnn/cascade-rcnn_r50-fpn_1x_coco.py': row_table.FPN_ROWS,
    'mmdet/cascade_rcnn/cascade-mask-rcnn_r50-fpn_1x_coco.py': row_table.FPN_ROWS,
    'mmdet/mask_rcnn/mask-rcnn_r50-fpn_1x_coco.py': ROWS.keys(),
    'mmdet/mask_rcnn/mask-rcnn_r50-caffe-c4_1x_coco.py': row_table.TABLE_ROWS,
    'mmdet/mask_rcnn/mask-rcnn_r50-caffe-c5_1x_coco.py': row_table.TABLE_ROWS,
    'mmdet/shapes/mask-rcnn_r18-c4_shapes.py': ROWS.keys() - {'all-levels'},  # one map: it is align-avg
    'mmdet/shapes/mask-rcnn_r18-c4_trunk_shapes.py': row_table.DEMO_ROWS,
    'mmdet/shapes/mask-rcnn_r18-c5_shapes.py': (
        *row_table.TABLE_ROWS,
        'adaptive',
        'precise-aligned',
        'content-adaptive',
    ),
}
SWAPS = [(detector, row) for detector in DETECTORS for row in ROWS if row in DETECTORS[detector]]
# Each with the stock config that it is a variant of; R-FCN: test_r_fcn_configs.py.
EXAMPLE = 'mmdet/mask_rcnn/mask-rcnn_r50-fpn_1x_align-max_coco.py'
POSITION_SENSITIVE = (
    'mmdet/faster_rcnn/faster-rcnn_r50-fpn_1x_position-sensitive_coco.py',
    'mmdet/shapes/mask-rcnn_r18-c4_position-sensitive_shapes.py',
)


@functools.cache
def load(path, row=None):
    """A config, with a row swapped in. Shared by the tests: copy before changing it."""
    return read_config(ROOT / path, extractor=row)


def roi_extractors(roi_head):
    heads = ('bbox_roi_extractor', 'mask_roi_extractor')
    return {head: roi_head[head] for head in heads if roi_head.get(head) is not None}


def built_extractors(path, row=None):
    """Those of each head, which a cascade has one of for each stage."""
    register_all_modules(init_default_scope=False)
    found = roi_extractors(load(path, row).model.roi_head)
    return {head: MODELS.build({**config, '_scope_': 'mmdet'}) for head, config in found.items()}


def flatten(node, prefix=''):
    if not isinstance(node, dict):
        return {prefix: node}
    return {
        key: value
        for name, child in node.items()
        for key, value in flatten(child, f'{prefix}.{name}' if prefix else name).items()
    }


def changed_keys(a, b):
    a, b = (flatten(cfg.to_dict()) for cfg in (a, b))
    return {key for key in a.keys() | b.keys() if a.get(key, ...) != b.get(key, ...)}


def build(path, row=None):
    """The detector of a config, with random weights and few RoIs."""
    model_cfg = copy.deepcopy(load(path, row).model)
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


by_swap = pytest.mark.parametrize(('path', 'row'), SWAPS)


def test_every_config_is_tested():
    found = {str(path.relative_to(ROOT)) for path in (ROOT / 'mmdet').glob('*/*.py')}
    trunks = {f'mmdet/shapes/retinanet_r18-{name}.py' for name in ('c4', 'c5')}
    r_fcn = {'mmdet/r_fcn/r-fcn_r18-c4_shapes.py'}
    real = {path for path in found if path.split('/')[1] in ('_base_', 'apples', 'nuclei')}
    assert found == {*DETECTORS, EXAMPLE, *POSITION_SENSITIVE} | trunks | r_fcn | real  # test_real_configs.py
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


@by_swap
def test_extractors_are_those_of_the_row(path, row):
    type_, options = ROWS[row]
    for extractor in built_extractors(path, row).values():
        ours = extractor if row == 'stock' else extractor.extractor
        assert type(ours).__name__ == type_
        assert {name: getattr(ours, name) for name in options} == options


@pytest.mark.parametrize(('path', 'row'), [swap for swap in SWAPS if swap[1] != 'stock'])
def test_a_row_changes_the_extractors_alone(path, row):
    variant, stock = load(path, row), load(path)
    heads = roi_extractors(stock.model.roi_head)
    changed = changed_keys(variant, stock)
    prefixes = tuple(f'model.roi_head.{head}.' for head in heads)
    assert changed and all(key.startswith(prefixes) for key in changed)
    ours, theirs = built_extractors(path, row), built_extractors(path)
    assert ours.keys() == theirs.keys() == heads.keys()
    for head, extractor in ours.items():
        layer = heads[head].roi_layer
        assert (layer.type, layer.sampling_ratio) == ('RoIAlign', 0)
        assert extractor.output_size == (layer.output_size,) * 2
        for name in ('out_channels', 'featmap_strides', 'finest_scale'):
            assert getattr(extractor, name) == getattr(theirs[head], name)


def test_the_example_is_the_row_that_it_is_named_after():
    stock = 'mmdet/mask_rcnn/mask-rcnn_r50-fpn_1x_coco.py'
    changed = changed_keys(load(EXAMPLE), load(stock, 'align-max'))
    # The row says what the example inherits too.
    assert changed == {f'model.roi_head.{head}_roi_extractor.aligned' for head in ('bbox', 'mask')}
    for head, extractor in built_extractors(EXAMPLE).items():
        row = built_extractors(stock, 'align-max')[head]
        assert (type(extractor), extractor.extractor.method) == (type(row), row.extractor.method)


@pytest.mark.parametrize('path', POSITION_SENSITIVE)
def test_position_sensitive_changes_the_box_head_too(path):
    variant, stock = load(path), load(path.replace('_position-sensitive', ''))
    head = variant.model.roi_head
    assert head.bbox_head.in_channels == head.bbox_roi_extractor.out_channels == 10
    assert head.bbox_roi_extractor.in_channels == stock.model.roi_head.bbox_roi_extractor.out_channels
    prefixes = tuple(f'model.roi_head.{head}.' for head in roi_extractors(head))
    prefixes += ('model.roi_head.bbox_head.in_channels',)
    assert all(key.startswith(prefixes) for key in changed_keys(variant, stock))
    box, *masks = built_extractors(path).values()
    assert type(box.extractor).__name__ == 'PositionSensitive' and box.extractor.sampling_ratio == 2
    assert box.output_size == (7, 7)
    for mask in masks:
        type_, options = ROWS['align-avg']
        assert type(mask.extractor).__name__ == type_
        assert {name: getattr(mask.extractor, name) for name in options} == options


@pytest.mark.slow
@pytest.mark.parametrize(('path', 'row'), [*SWAPS, *((path, None) for path in POSITION_SENSITIVE)])
def test_predicts(path, row):
    model = build(path, row).eval()
    with torch.inference_mode():
        (sample,) = model.test_step(inputs(model))
    predicted = sample.pred_instances
    assert 0 < len(predicted) <= 4
    assert predicted.bboxes.isfinite().all() and predicted.scores.isfinite().all()
    if model.with_mask:
        assert predicted.masks.shape == (len(predicted), 128, 160)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('path', 'row'),
    [
        # The trunk of the demo is frozen.
        *(swap for swap in SWAPS if swap[1] in row_table.LEARNING and 'trunk' not in swap[0]),
        *((path, None) for path in POSITION_SENSITIVE),
    ],
)
def test_learns(path, row):
    model = build(path, row)
    data = model.data_preprocessor(inputs(model), training=True)
    losses = {k: v for k, v in model(**data, mode='loss').items() if 'loss' in k}
    # Proposals are detached: what the RoI head teaches the backbone comes through its extractors.
    roi_losses = {k: v for k, v in losses.items() if 'rpn' not in k}
    assert any('mask' in k for k in roi_losses) == model.with_mask
    sum(roi_losses.values()).backward()
    gradient = next(model.backbone.layer3[-1].conv2.parameters()).grad
    assert gradient.isfinite().all() and gradient.any()


def test_shapes_classes_are_the_generators():
    cfg = load('mmdet/shapes/mask-rcnn_r18-c4_shapes.py')
    assert cfg.classes == CLASSES
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        assert loader.dataset.metainfo.classes == CLASSES


@pytest.mark.parametrize('name', ['shapes_table2c', 'shapes_table2d', 'shapes_family'])
def test_the_trunk_fits_the_trials_that_start_from_it(name):
    trials = load_plan(ROOT / f'ablations/{name}.yaml').trials
    (start,) = {Path(trial.cfg_options['load_from']) for trial in trials}
    trunk = load(Path(f'mmdet/shapes/{start.parent.name}.py'))
    assert start.name == f'iter_{trunk.train_cfg.max_iters}.pth'
    register_all_modules(init_default_scope=False)
    # The scope is that of the runner, where there is one.
    weights = MODELS.build({**copy.deepcopy(trunk.model), '_scope_': 'mmdet'}).state_dict()
    missing, _ = build(trials[0].config, trials[0].extractor).load_state_dict(weights, strict=False)
    assert missing and not any(key.startswith('backbone.') for key in missing)


@pytest.mark.parametrize('path', PLANS, ids=str)
def test_every_trial_of_a_plan_is_tested_here(path):
    plan = load_plan(ROOT / path)  # fails where a config is missing
    assert plan.name == path.stem
    trials = {(str(trial.config.relative_to(ROOT)), trial.inputs.extractor) for trial in plan.trials}
    assert trials <= {*SWAPS, *((path, None) for path in POSITION_SENSITIVE)}
