"""Every tool in a folder whose name a terminal cannot show: ``PYTHONIOENCODING=ascii``."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ROOT / 'configs/{}/shapes/mask-rcnn_r18-c4_shapes.py'
FOLDER = 'größe'


def needs(framework):
    return pytest.mark.skipif(find_spec(framework) is None, reason=f'{framework} is not installed')


@pytest.fixture
def tool(tmp_path):
    folder = tmp_path / FOLDER
    folder.mkdir()

    def run(name, *arguments):
        result = subprocess.run(
            [sys.executable, ROOT / 'tools' / name, *map(str, arguments)],
            cwd=folder,
            env={
                **os.environ,
                'PYTHONIOENCODING': 'ascii',
                'OMP_NUM_THREADS': '1',
                'ROI_PLUGINS_SHAPES': str(folder / 'shapes'),
            },
            capture_output=True,
        )
        assert result.returncode == 0, result.stderr.decode()
        assert b'Error' not in result.stderr, result.stderr.decode()
        return result.stdout.decode('ascii')

    run.folder = folder
    return run


@pytest.fixture
def shapes(tool):
    sizes = ('--num-train', 2, '--num-val', 2, '--image-size', 64)
    assert 'gr??e' in tool('make_shapes.py', tool.folder / 'shapes', *sizes)
    return tool.folder / 'shapes'


def test_make_shapes(shapes):
    assert shapes.is_dir()


def test_benchmark(tool):
    record = json.loads((ROOT / 'docs/benchmarks/xeon-1-thread/benchmark.json').read_text(encoding='utf-8'))
    record['machine']['cpu'] = FOLDER.title()
    (tool.folder / 'benchmark.json').write_text(json.dumps(record), encoding='utf-8')
    assert 'Gr??e' in tool('benchmark.py', '--render', tool.folder)


@needs('mmdet')
def test_ablate_and_visualize(tool, shapes):
    config = str(SHAPES).format('mmdet')
    plan = {
        'name': FOLDER,
        'work_dir': str(tool.folder / 'runs'),
        'baseline': 'stock',
        'configs': {'tiny': {'framework': 'mmdet', 'path': config}},
        'extractors': ['stock'],
        'seeds': [0],
        'train_data': ['shapes/annotations/instances_train.json', 'shapes/train'],
        'test_data': ['shapes/annotations/instances_val.json', 'shapes/val'],
    }
    (tool.folder / 'plan.yaml').write_text(json.dumps(plan))
    assert 'gr??e' in tool('ablate.py', 'plan.yaml', '--dry-run')
    Image.new('RGB', (64, 64)).save(tool.folder / 'image.png')
    arguments = (config, 'image.png', '--box=8,8,50,50', '--output', f'{FOLDER}.png')
    assert 'gr??e.png' in tool('visualize.py', *arguments)


@needs('mmdet')
def test_train_and_test_with_mmdetection(tool, shapes):
    config = str(SHAPES).format('mmdet')
    options = ['--cfg-options', 'train_cfg.max_iters=1', 'default_hooks.checkpoint.interval=1']
    options += [f'test_evaluator.ann_file={shapes}/annotations/instances_val.json']
    for loader in ('train_dataloader', 'test_dataloader'):
        options += [f'{loader}.dataset.data_root={shapes}/', f'{loader}.batch_size=1']
        options += [f'{loader}.num_workers=0', f'{loader}.persistent_workers=False']
    run = tool.folder / 'run'
    tool('mmdet/train.py', config, '--work-dir', run, *options)
    assert 'gr??e' in tool('mmdet/train.py', config, '--work-dir', run, '--resume', *options)
    assert 'bbox  AP' in tool('mmdet/test.py', config, run, '--work-dir', run, *options)


@needs('detectron2')
def test_train_with_detectron2(tool, shapes):
    options = ['train.max_iter=1', f'train.output_dir="{tool.folder}/run"', 'dataloader.test.num_workers=0']
    options += ['dataloader.train.total_batch_size=1', 'dataloader.train.num_workers=0']
    output = tool('detectron2/train_net.py', '--config-file', str(SHAPES).format('detectron2'), *options)
    assert 'gr??e/run/config.yaml' in output and 'bbox  AP' in output
