"""A Keypoint R-CNN from training to its AP, by the tools, and pycocotools on the files that it leaves."""

import contextlib
import io
import json
from pathlib import Path

import detectron2_options
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

pytest.importorskip('detectron2', reason='Detectron2 is not installed')

from roi_plugins.datasets.shapes import ShapesSpec, generate_shapes
from roi_plugins.integrations.detectron2.command_line import main
from roi_plugins.integrations.detectron2.datasets import register_shapes

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/detectron2/shapes/keypoint-rcnn_r18-c4_trunk_shapes.py'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes')
    generate_shapes(root, ShapesSpec(num_train=8, num_val=6, image_size=64))
    register_shapes(str(root))
    return root


@pytest.mark.slow
def test_a_keypoint_rcnn_is_trained_and_evaluated(data, tmp_path):
    detectron2_options.forget_loggers()
    options = {
        'train.max_iter': 30,
        'train.seed': 0,
        'train.output_dir': f'"{tmp_path}"',
        'dataloader.evaluator.kpt_oks_sigmas': [0.5] * 4,  # so wide that so short a training hits
        **detectron2_options.LAZY_OPTIONS,
        'dataloader.train.mapper.augmentations.0.short_edge_length': 64,
        'dataloader.test.mapper.augmentations.0.short_edge_length': 64,
    }
    pairs = [f'{key}={value}' for key, value in options.items()]
    assert main(['--config-file', str(CONFIG), '--extractor', 'align-max', *pairs]) == 0

    record = json.loads((tmp_path / 'metrics.json').read_text())
    places = record['extractors'].items()
    assert {place.rpartition('.')[2]: found['type'] for place, found in places} == {
        'box_pooler': 'AlignMax',
        'keypoint_pooler': 'AlignMax',
    }
    assert record['predictions'].keys() == record['metrics'].keys() == {'bbox', 'keypoints'}
    assert record['oks_sigmas'] == [0.5] * 4
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(data / 'annotations/instances_val.json')
        found = coco.loadRes(str(tmp_path / 'predictions.keypoints.json'))
        evaluation = COCOeval(coco, found, 'keypoints')
        evaluation.params.kpt_oks_sigmas = np.full(4, 0.5)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ('AP', 'AP50', 'AP75', 'APm', 'APl', 'AR')
    assert {name: record['metrics']['keypoints'][name] for name in names} == dict(
        zip(names, evaluation.stats[:6].tolist(), strict=True)
    )
    assert 0 < record['metrics']['keypoints']['AP'] < 1
