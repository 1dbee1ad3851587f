"""The R-50-FPN Mask R-CNN configs on real COCO images, through the command lines, up to the table.

``ROI_PLUGINS_TINY_COCO`` says where a small COCO 2017 is, in COCO's own layout. A few steps from
random weights at a low resolution: what is tested is that the whole path works, not an AP.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('mmdet', reason='MMDetection is not installed')
pytest.importorskip('mmcv.ops', reason="MMCV's compiled ops are not installed")

VARIABLE = 'ROI_PLUGINS_TINY_COCO'
ROOT = Path(__file__).parents[1]
EXTRACTORS = ('stock', 'align-avg')
STEPS = 2
TEST_IMAGES = 5

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        VARIABLE not in os.environ, reason=f'{VARIABLE} does not say where a small COCO 2017 is'
    ),
]


def run(tool, *arguments):
    command = [sys.executable, str(ROOT / 'tools' / tool), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f'{" ".join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
    return done.stdout


def cfg_options(coco):
    options = {
        'randomness.seed': 0,
        'model.backbone.init_cfg': None,
        'model.train_cfg.rpn_proposal.max_per_img': 100,
        'model.train_cfg.rcnn.sampler.num': 64,
        'model.test_cfg.rpn.max_per_img': 50,
        # Untrained, the classifier is sure of nothing.
        'model.test_cfg.rcnn.score_thr': 0.0,
        'model.test_cfg.rcnn.max_per_img': 10,
        'train_cfg.max_epochs': 1,
        'train_dataloader.batch_size': 2,
        'train_dataloader.dataset.indices': 2 * STEPS,
        'train_dataloader.dataset.pipeline.2.scale': '(256,160)',
        'test_dataloader.dataset.indices': TEST_IMAGES,
        'test_dataloader.dataset.pipeline.1.scale': '(256,160)',
        'test_evaluator.ann_file': coco / 'annotations/instances_val2017.json',
        'default_hooks.logger.interval': 1,
        'default_hooks.checkpoint.save_optimizer': False,
    }
    for loader in ('train_dataloader', 'test_dataloader'):
        options[f'{loader}.dataset.data_root'] = f'{coco}/'
        options[f'{loader}.num_workers'] = 0
        options[f'{loader}.persistent_workers'] = False
    # tools/mmdet/test.py evaluates.
    options |= dict.fromkeys(('val_cfg', 'val_dataloader', 'val_evaluator'))
    return ['--cfg-options', *(f'{key}={value}' for key, value in options.items())]


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """A finished run for each extractor, by its name."""
    coco = Path(os.environ[VARIABLE]).resolve()
    options = cfg_options(coco)
    root = tmp_path_factory.mktemp('runs')
    runs = {}
    for extractor in EXTRACTORS:
        swap = ['configs/mmdet/mask_rcnn/mask-rcnn_r50-fpn_1x_coco.py', '--extractor', extractor]
        runs[extractor] = work_dir = root / extractor
        run('mmdet/train.py', *swap, '--work-dir', work_dir, *options)
        run('mmdet/test.py', *swap, work_dir, '--work-dir', work_dir, *options)
        for checkpoint in work_dir.glob('*.pth'):
            checkpoint.unlink()  # 180 MB each, and pytest keeps the folders of the last runs
    return runs


@pytest.mark.parametrize('extractor', EXTRACTORS)
def test_training_has_finite_losses_of_boxes_and_masks(runs, extractor):
    (log,) = runs[extractor].glob('*/vis_data/scalars.json')
    steps = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(steps) == STEPS
    for losses in steps:
        # Zero is what a pipeline that drops the annotations gives.
        assert all(losses[name] > 0 for name in ('loss_cls', 'loss_bbox', 'loss_mask'))
        assert math.isfinite(losses['loss'])


@pytest.mark.parametrize('extractor', EXTRACTORS)
def test_evaluation_leaves_predictions_and_metrics(runs, extractor):
    metrics = json.loads((runs[extractor] / 'metrics.json').read_text())
    assert metrics['metrics'].keys() == metrics['predictions'].keys() == {'bbox', 'segm'}
    for name in metrics['predictions'].values():
        predictions = json.loads((runs[extractor] / name).read_text())
        assert len({p['image_id'] for p in predictions}) == TEST_IMAGES


def test_table_has_every_extractor(runs):
    table = run('compare.py', *runs.values())
    for extractor in EXTRACTORS:
        assert extractor in table
