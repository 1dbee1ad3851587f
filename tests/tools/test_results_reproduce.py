"""The commands of docs/results/README.md on a shortened schedule: the plan, the trunk, both tables."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip('mmdet', reason='MMDetection is not installed')
pytest.importorskip('mmcv.ops', reason="MMCV's compiled ops are not installed")

from roi_plugins.datasets.shapes import ShapesSpec, generate_shapes
from roi_plugins.evaluation.coco import format_points

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PLAN = ROOT / 'configs/ablations/shapes_table2c.yaml'
EXTRACTORS = ['quantized-pool', 'align-avg']


def run(*command, cwd):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f'{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
    return done.stdout


@pytest.fixture(scope='module')
def short_plan(tmp_path_factory):
    """The plan with two of its trials and, where it is run, data and trunk where it looks for them."""
    folder = tmp_path_factory.mktemp('checkout')
    generate_shapes(folder / 'data/shapes', ShapesSpec(num_train=4, num_val=4, image_size=64))
    tree = yaml.safe_load(PLAN.read_text())
    tree.update(extractors=EXTRACTORS, seeds=tree['seeds'][:1])
    for config in tree['configs'].values():
        config['path'] = str(PLAN.parent / config['path'])
    (folder / 'plan.yaml').write_text(yaml.safe_dump(tree))

    trunk = Path(tree['cfg_options']['load_from'])
    config = ROOT / f'configs/mmdet/shapes/{trunk.parent.name}.py'
    steps = ['train_cfg.max_iters=1', 'train_dataloader.batch_size=2', 'train_dataloader.num_workers=0']
    steps += ['train_dataloader.persistent_workers=False']
    run(ROOT / 'tools/mmdet/train.py', config, '--cfg-options', *steps, cwd=folder)
    (folder / trunk).parent.joinpath('iter_1.pth').rename(folder / trunk)
    return folder


def test_the_commands_of_the_results_page(short_plan):
    loaders = ('train_dataloader', 'test_dataloader')
    options = [
        f'{loader}.{option}'
        for loader in loaders
        for option in ('num_workers=0', 'persistent_workers=false', 'batch_size=2')
    ]
    run(
        ROOT / 'tools/ablate.py',
        'plan.yaml',
        '--cfg-options',
        'train_cfg.max_iters=2',
        *options,
        cwd=short_plan,
    )
    work_dir = Path('work_dirs') / PLAN.stem
    for extractor in EXTRACTORS:
        log = short_plan / work_dir / f'stride_16.{extractor}.seed0/trial.log'
        assert 'Load checkpoint from work_dirs/' in log.read_text()

    out = short_plan / 'results'
    table = run(
        ROOT / 'tools/compare.py',
        work_dir,
        '--baseline',
        'align-avg',
        '--bootstrap',
        '20',
        '--output',
        out,
        cwd=short_plan,
    )
    assert all(extractor in table for extractor in EXTRACTORS)
    run(ROOT / 'docs/results/published.py', work_dir, '--bootstrap', '20', '--output', out, cwd=short_plan)

    groups = json.loads((out / 'compare.json').read_text())['groups']
    difference = {
        group['iou_type']: group['difference']['AP']
        for group in groups
        if group['extractor'] == 'quantized-pool'
    }
    page = (out / 'published.md').read_text()
    header, _, *lines = page.partition('### The claims')[2].strip().splitlines()
    header, *lines = ([cell.strip() for cell in line[1:-1].split('|')] for line in (header, *lines))
    judged = [dict(zip(header, line, strict=True)) for line in lines]
    (lead,) = (
        row for row in judged if (row['claim'], row['where']) == ('RoIAlign above RoIPool', 'AP, stride 16')
    )
    for iou_type, name in (('bbox', 'box'), ('segm', 'mask')):
        assert lead[name].startswith(f'{format_points(-difference[iou_type], 1, sign=True)} [')
    # Claims on trials that were not run are not judged.
    others = [row for row in judged if 'stride 32' in row['where']]
    assert {row[f'{name}: verdict'] for row in others for name in ('box', 'mask')} == {'not run'}
    assert '### Stride 16' in page and '+3.4' in page  # the paper's own difference beside ours
