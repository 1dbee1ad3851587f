"""One plan with a config of each framework: one run, one table."""

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tracker_files import read_run

pytest.importorskip('detectron2', reason='Detectron2 is not installed')
pytest.importorskip('mmdet', reason='MMDetection is not installed')
pytest.importorskip('mmcv.ops', reason="MMCV's compiled ops are not installed")

from roi_plugins.datasets.shapes import ShapesSpec, generate_shapes

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
EXTRACTORS = ['align-avg']
STEPS = 2
TRACKER = 'tensorboard'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes')
    generate_shapes(root, ShapesSpec(num_train=4, num_val=3, image_size=64))
    return root


def mmdet_options(data):
    options = {
        'train_cfg.max_iters': STEPS,
        'default_hooks.checkpoint.interval': STEPS,
        'default_hooks.logger.interval': 1,
        'test_evaluator.ann_file': str(data / 'annotations/instances_val.json'),
    }
    for loader in ('train_dataloader', 'test_dataloader'):
        options[f'{loader}.dataset.data_root'] = f'{data}/'
        options[f'{loader}.batch_size'] = 2
        options[f'{loader}.num_workers'] = 0
        options[f'{loader}.persistent_workers'] = False
    return options


DETECTRON2_OPTIONS = {
    'train.max_iter': STEPS,
    'dataloader.train.total_batch_size': 2,
    'dataloader.train.num_workers': 0,
    'dataloader.test.num_workers': 0,
    'model.proposal_generator.post_nms_topk': [150, 20],
}


def run(tool, *arguments, data):
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools' / tool), *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {'OMP_NUM_THREADS': '1', 'ROI_PLUGINS_SHAPES': str(data)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f'{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
    return done.stdout


def test_both_frameworks_side_by_side(data, tmp_path):
    configs = {
        framework: {
            'framework': framework,
            'path': str(ROOT / f'configs/{framework}/shapes/mask-rcnn_r18-c4_shapes.py'),
            'cfg_options': options,
        }
        for framework, options in (('mmdet', mmdet_options(data)), ('detectron2', DETECTRON2_OPTIONS))
    }
    plan = {
        'name': 'mixed',
        'work_dir': str(tmp_path / 'runs'),
        'baseline': 'align-avg',
        'configs': configs,
        'extractors': EXTRACTORS,
        'seeds': [0],
    }
    path = tmp_path / 'plan.yaml'
    path.write_text(json.dumps(plan))
    run('ablate.py', path, '--track', TRACKER, data=data)
    for framework, loss in (('mmdet', 'loss'), ('detectron2', 'total_loss')):
        run_dir = tmp_path / 'runs' / f'{framework}.align-avg.seed0'
        metrics = json.loads((run_dir / 'metrics.json').read_text())['metrics']
        tracked = read_run(TRACKER, run_dir)
        assert len(tracked.ids) == 1
        assert len(tracked.scalars[loss]) == {'mmdet': STEPS, 'detectron2': 1}[framework]
        assert tracked.scalars['segm/AP'] == [(0, pytest.approx(metrics['segm']['AP']))]
        assert tracked.parameters['extractor'] == 'align-avg'
    assert {'mmdet/align-avg/bbox/AP', 'detectron2/align-avg/bbox/AP'} <= read_run(
        TRACKER, tmp_path / 'runs/compare'
    ).scalars.keys()
    check_swapped(plan, tmp_path, data)
    runs = [tmp_path / f'runs/{f}.{e}.seed0' for f in configs for e in EXTRACTORS]
    for run_dir in runs:
        metrics = json.loads((run_dir / 'metrics.json').read_text())
        assert metrics['framework'] == run_dir.name.partition('.')[0]
        assert metrics['metrics'].keys() == {'bbox', 'segm'}
        check_no_line_comes_twice(run_dir / 'trial.log')

    results = tmp_path / 'results'
    table = run('compare.py', *runs, '--baseline', 'align-avg', '--output', results, data=data)
    rows = [line for line in table.splitlines() if any(e in line for e in EXTRACTORS)]
    for framework in configs:
        for extractor in EXTRACTORS:
            assert any(framework in row and extractor in row for row in rows), table


def check_no_line_comes_twice(log):
    """As where two handlers of a logger write to one file, or a logger hands on to its parent."""
    lines = [line for line in log.read_text().splitlines() if re.match(r'\[?\d\d/\d\d \d\d:\d\d', line)]
    assert len(lines) > 5
    assert [line for line, next_ in pairwise(lines) if line == next_] == []
    steps = [line for line in lines if re.search(r'Iter\(train\)|iter: ', line)]
    assert len(steps) == len(set(steps)) > 0


def check_swapped(plan, folder, data):
    """The trained weights of both frameworks, tested with another extractor, by two processes each."""
    swapped = {
        **plan,
        'work_dir': str(folder / 'swapped'),
        'baseline': 'quantized-pool',
        'configs': {
            name: {**config, 'checkpoints': {'align-avg': f'../runs/{name}.align-avg.seed{{seed}}'}}
            for name, config in plan['configs'].items()
        },
        'extractors': ['quantized-pool'],
        'num_gpus': 2 if torch.cuda.device_count() in (0, 2) else 1,
    }
    path = folder / 'swapped.yaml'
    path.write_text(json.dumps(swapped))
    table = run('ablate.py', path, data=data)
    for name in plan['configs']:
        assert f'{name}, trained with align-avg' in table
        trained = folder / f'runs/{name}.align-avg.seed0'
        run_dir = folder / f'swapped/{name}.align-avg.quantized-pool.seed0'
        of_trained, metrics = (json.loads((path / 'metrics.json').read_text()) for path in (trained, run_dir))
        assert metrics['checkpoint'] == of_trained['checkpoint']
        assert 'quantized-pool' in metrics['command']
        assert not list(run_dir.glob('*.pth'))
        # Other features from the same weights: other scores.
        found = [(path / 'predictions.bbox.json').read_text() for path in (trained, run_dir)]
        assert found[0] != found[1]
    assert '2 of 2 trials are finished already' in run('ablate.py', path, data=data)
