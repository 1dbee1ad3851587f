"""One Detectron2 config of each family on real COCO images, from training to metrics.

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

pytest.importorskip('detectron2', reason='Detectron2 is not installed')

VARIABLE = 'ROI_PLUGINS_TINY_COCO'
ROOT = Path(__file__).parents[1]
STEPS = 2
TEST_IMAGES = 4
OPTIONS = {
    'MODEL.WEIGHTS': '',
    # From random weights, without statistics to normalise by, features would grow and grow.
    'MODEL.RESNETS.NORM': 'GN',
    'MODEL.RPN.POST_NMS_TOPK_TRAIN': 100,
    'MODEL.RPN.POST_NMS_TOPK_TEST': 20,
    'MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE': 32,
    'MODEL.ROI_HEADS.SCORE_THRESH_TEST': 0.0,
    'TEST.DETECTIONS_PER_IMAGE': 5,
    'SOLVER.MAX_ITER': STEPS,
    'SOLVER.IMS_PER_BATCH': 1,
    'DATALOADER.NUM_WORKERS': 0,
    'INPUT.MIN_SIZE_TRAIN': '(96,)',
    'INPUT.MIN_SIZE_TEST': 64,
    'SEED': 0,
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        VARIABLE not in os.environ, reason=f'{VARIABLE} does not say where a small COCO 2017 is'
    ),
]


@pytest.fixture(scope='module')
def datasets(tmp_path_factory):
    """What DETECTRON2_DATASETS names: the small COCO, with fewer images to evaluate on."""
    root = tmp_path_factory.mktemp('datasets')
    coco = Path(os.environ[VARIABLE]).resolve()
    (root / 'coco/annotations').mkdir(parents=True)
    for part in ('train2017', 'val2017', 'annotations/instances_train2017.json'):
        (root / 'coco' / part).symlink_to(coco / part)
    name = 'annotations/instances_val2017.json'
    tree = json.loads((coco / name).read_text())
    tree['images'] = tree['images'][:TEST_IMAGES]
    ids = {image['id'] for image in tree['images']}
    tree['annotations'] = [a for a in tree['annotations'] if a['image_id'] in ids]
    (root / 'coco' / name).write_text(json.dumps(tree))
    return root


@pytest.mark.parametrize(
    ('config', 'extractor'),
    [
        ('faster_rcnn/faster-rcnn_r50-fpn_1x_coco.yaml', 'quantized-pool'),
        ('mask_rcnn/mask-rcnn_r50-fpn_1x_coco.yaml', 'align-max'),
        ('cascade_rcnn/cascade-mask-rcnn_r50-fpn_1x_coco.yaml', 'adaptive'),
        ('mask_rcnn/mask-rcnn_r50-c4_1x_coco.yaml', 'roi-warp-avg'),
        ('mask_rcnn/mask-rcnn_r50-c5_1x_coco.yaml', 'align-avg-unaligned'),
    ],
)
def test_trains_and_evaluates(config, extractor, datasets, tmp_path):
    options = OPTIONS | {'OUTPUT_DIR': tmp_path}
    if '-c4_' in config:  # whose head is a stage of the backbone, for each RoI
        options |= {'MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE': 8, 'MODEL.RPN.POST_NMS_TOPK_TEST': 5}
    done = subprocess.run(
        [
            *(sys.executable, ROOT / 'tools/detectron2/train_net.py'),
            *('--config-file', ROOT / 'configs/detectron2' / config, '--extractor', extractor),
            *(str(part) for pair in options.items() for part in pair),
        ],
        env=os.environ | {'DETECTRON2_DATASETS': str(datasets)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f'{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
    (tmp_path / 'model_final.pth').unlink()  # up to 600 MB, and pytest keeps the folders of the last runs
    (line,) = [
        line
        for line in map(json.loads, (tmp_path / 'training.json').read_text().splitlines())
        if 'total_loss' in line
    ]
    assert math.isfinite(line['total_loss'])
    masks = 'mask' in config
    assert ('loss_mask' in line) == masks
    # Zero is what a pipeline that drops the annotations gives.
    roi_losses = [value for name, value in line.items() if name.startswith(('loss_cls', 'loss_mask'))]
    assert all(value > 0 for value in roi_losses)
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    assert metrics['metrics'].keys() == ({'bbox', 'segm'} if masks else {'bbox'})
    assert all((tmp_path / name).exists() for name in metrics['predictions'].values())
