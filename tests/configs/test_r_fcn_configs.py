"""R-FCN in both frameworks: the box head is the vote, and it learns."""

import copy
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet', reason='MMDetection is not installed')
pytest.importorskip('detectron2', reason='Detectron2 is not installed')
pytest.importorskip('mmcv.ops', reason="MMCV's compiled ops are not installed")

from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config

from roi_plugins.extractors import PositionSensitive
from roi_plugins.integrations.detectron2.config import read_config

ROOT = Path(__file__).parents[2] / 'configs'
MMDET = ROOT / 'mmdet/r_fcn/r-fcn_r18-c4_shapes.py'
DETECTRON2 = ROOT / 'detectron2/r_fcn/r-fcn_r50w16-c4_shapes.yaml'


def assert_learns(model, loss_of, weights):
    """A few steps on one image; what they teach reaches the maps of the bins."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(8):
        torch.manual_seed(step)
        loss = loss_of(model)
        optimizer.zero_grad()
        loss.backward()
        assert weights.grad.isfinite().all() and weights.grad.any()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < sum(losses[:3])


def test_mmdetection():
    register_all_modules(init_default_scope=False)
    cfg = copy.deepcopy(Config.fromfile(MMDET).model)
    cfg.test_cfg.rcnn.score_thr = 0.0
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    model.init_weights()
    extractor = model.roi_head.bbox_roi_extractor.extractor
    assert isinstance(extractor, PositionSensitive) and extractor.region == 'round'
    layers = [type(layer).__name__ for layer in model.roi_head.bbox_head.children()]
    assert not [name for name in layers if name not in ('AvgPool2d', 'Linear') and 'Loss' not in name]
    inputs = demo_mm_inputs(1, [(3, 128, 160)], num_items=[2], num_classes=5, with_mask=True, device='cpu')
    with torch.inference_mode():
        (sample,) = model.eval().test_step(inputs)
    assert len(sample.pred_instances) > 0 and sample.pred_instances.bboxes.isfinite().all()

    def loss_of(model):
        data = model.data_preprocessor(inputs, training=True)
        return model.parse_losses(model(**data, mode='loss'))[0]

    assert_learns(model.train(), loss_of, extractor.score.weight)


def test_detectron2():
    cfg = read_config(DETECTRON2)
    cfg.MODEL.DEVICE = 'cpu'
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    model = build_model(cfg)
    extractor = model.roi_heads.box_pooler.extractor
    assert isinstance(extractor, PositionSensitive) and extractor.region == 'round'
    assert not list(model.roi_heads.box_head.parameters())
    target = Instances((128, 160))
    target.gt_boxes = Boxes(torch.tensor([[8.0, 8, 60, 50], [70, 20, 120, 90]]))
    target.gt_classes = torch.tensor([0, 1])
    target.gt_masks = BitMasks(torch.ones(2, 128, 160, dtype=torch.bool))
    image = torch.rand(3, 128, 160, generator=torch.Generator().manual_seed(0)) * 255
    inputs = [{'image': image, 'instances': target}]
    with torch.inference_mode():
        (output,) = model.eval()(inputs)
    assert len(output['instances']) > 0 and output['instances'].pred_boxes.tensor.isfinite().all()

    def loss_of(model):
        with EventStorage():
            return sum(model(inputs).values())

    assert_learns(model.train(), loss_of, extractor.score.weight)
