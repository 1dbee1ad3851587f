"""Training steps of both frameworks, with small models and images. How fast anything is, is no test."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from roi_plugins.benchmark import train_step
from roi_plugins.benchmark.measure import Effort

ONCE = Effort(seconds=0, min_rounds=2)
CPU = torch.device('cpu')
SMALL = (128, 192)
NARROW = {
    'MODEL.RESNETS.STEM_OUT_CHANNELS': '8',
    'MODEL.RESNETS.WIDTH_PER_GROUP': '8',
    'MODEL.RESNETS.RES2_OUT_CHANNELS': '16',
    'MODEL.FPN.OUT_CHANNELS': '16',
    'MODEL.ROI_BOX_HEAD.FC_DIM': '32',
    'MODEL.ROI_MASK_HEAD.CONV_DIM': '16',
    'MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE': '32',
    'MODEL.RPN.PRE_NMS_TOPK_TRAIN': '100',
}
OPTIONS = [text for pair in NARROW.items() for text in pair]
CONTENDERS = [
    (name, dtype)
    for dtype in ('float32', 'autocast float16')
    for name in ('roi_plugins', 'detectron2 ROIPooler')
]
needs_detectron2 = pytest.mark.skipif(find_spec('detectron2') is None, reason='Detectron2 is not installed')


@pytest.mark.slow
@needs_detectron2
def test_detectron2_step_is_measured_in_float32_and_under_autocast():
    record = train_step.measure_detectron2_step(CPU, ONCE, SMALL, OPTIONS)
    assert record['left_out'] == {}
    assert [(m['name'], m['dtype']) for m in record['measurements']] == CONTENDERS
    assert all(min(m['seconds']) > 0 for m in record['measurements'])


@needs_detectron2
def test_detectron2_step_does_the_same_work_with_either_pooler():
    losses = []
    for contender in train_step._detectron2_contenders(CPU, SMALL, OPTIONS):
        torch.manual_seed(0)  # of the sampled anchors and proposals
        losses.append([contender.call().item() for _ in range(2)])
    assert np.isfinite(losses).all()
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    np.testing.assert_allclose(losses[2:], losses[:2], rtol=1e-2)


@pytest.mark.parametrize(
    'measure, framework',
    [(train_step.measure_mmdet_step, 'mmengine'), (train_step.measure_detectron2_step, 'detectron2')],
)
def test_without_its_framework_a_step_is_left_out(monkeypatch, measure, framework):
    monkeypatch.setitem(sys.modules, framework, None)
    monkeypatch.setitem(sys.modules, f'{framework}.config', None)
    record = measure(CPU, ONCE)
    assert record['measurements'] == []
    (reason,) = record['left_out'].values()
    assert 'cannot be imported' in reason and framework in reason


@pytest.mark.skipif(not torch.cuda.is_available(), reason='torch sees no CUDA GPU here')
@needs_detectron2
def test_detectron2_step_on_a_gpu():
    record = train_step.measure_detectron2_step(torch.device('cuda'), ONCE, SMALL, OPTIONS)
    assert [(m['name'], m['dtype']) for m in record['measurements']] == CONTENDERS
