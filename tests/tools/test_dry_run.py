"""``ablate.py --dry-run`` names what the trials lack, as the tools of both frameworks see it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip('mmdet')
pytest.importorskip('mmcv.ops')
pytest.importorskip('detectron2', reason='Detectron2 is not installed')

from roi_plugins.datasets.shapes import ShapesSpec, generate_shapes

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def dry_run(tmp_path):
    """A dry run of a plan of both frameworks; returns the exit code, the output and what is missing."""

    def run(**changes):
        plan = {
            'name': 'both',
            'work_dir': 'work',
            'baseline': 'align-avg',
            'configs': {
                'mm': {
                    'framework': 'mmdet',
                    'path': f'{ROOT}/configs/mmdet/shapes/mask-rcnn_r18-c4_shapes.py',
                },
                'd2': {
                    'framework': 'detectron2',
                    'path': f'{ROOT}/configs/detectron2/shapes/mask-rcnn_r18-c4_shapes.py',
                },
            },
            'extractors': ['align-avg'],
            'seeds': [0, 1],
            **changes,
        }
        (tmp_path / 'plan.yaml').write_text(yaml.safe_dump(plan))
        command = [sys.executable, str(ROOT / 'tools/ablate.py'), 'plan.yaml', '--dry-run']
        process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert 'Traceback' not in process.stderr
        trials, _, missing = process.stdout.partition('\nmissing:\n')
        for trial in ('mm', 'd2'):
            assert f'{trial}.align-avg.seed1: to run' in trials
        found = dict(line.strip().split(': ', 1) for line in missing.splitlines())
        assert process.returncode == bool(found)
        assert not (tmp_path / 'work').exists()
        return found

    return run


def test_nothing_is_there_and_then_all_is(dry_run, tmp_path):
    missing = dry_run()
    assert missing.keys() == {f'{trial}.align-avg.seed{seed}' for trial in ('mm', 'd2') for seed in (0, 1)}
    assert 'the dataset is not there: data/shapes/' in missing['mm.align-avg.seed1']
    assert 'shapes_train is not there' in missing['d2.align-avg.seed1']

    generate_shapes(tmp_path / 'data/shapes', ShapesSpec(num_train=2, num_val=2, image_size=96))
    assert dry_run() == {}


def test_data_of_ones_own_that_a_test_could_not_use(dry_run, tmp_path):
    generate_shapes(tmp_path / 'own', ShapesSpec(num_train=2, num_val=2, image_size=96))
    annotations = tmp_path / 'own/annotations/instances_val.json'
    damaged = json.loads(annotations.read_text())
    damaged['annotations'][0]['segmentation'] = [[10, 10, 60, 50]]
    annotations.write_text(json.dumps(damaged))
    missing = dry_run(
        train_data=['own/annotations/instances_train.json', 'own/train'],
        test_data=['own/annotations/instances_val.json', 'own/val'],
        seeds=[1],
    )
    assert set(missing) == {'mm.align-avg.seed1', 'd2.align-avg.seed1'}
    assert all('has the segmentation [[10, 10, 60, 50]]' in problem for problem in missing.values())


def test_a_limit_of_detections_above_the_models(dry_run, tmp_path):
    generate_shapes(tmp_path / 'data/shapes', ShapesSpec(num_train=2, num_val=2, image_size=96))
    missing = dry_run(max_dets=300, seeds=[1])
    assert len(missing) == 2
    assert all('300, but the model gives at most' in problem for problem in missing.values())


def test_each_row_over_one_config_is_looked_at(dry_run, tmp_path):
    generate_shapes(tmp_path / 'data/shapes', ShapesSpec(num_train=2, num_val=2, image_size=96))
    config = {'path': f'{ROOT}/configs/mmdet/shapes/mask-rcnn_r18-c4_shapes.py'}
    wrong = {'name': 'wrong', 'type': 'AlignMax', 'sampling_ratio': 'many'}
    configs = {'mm': config, 'd2': {'path': config['path'].replace('mmdet', 'detectron2')}}
    missing = dry_run(configs=configs, extractors=['align-avg', wrong], seeds=[1])
    assert set(missing) == {'mm.wrong.seed1', 'd2.wrong.seed1'}
    assert all("sampling_ratio: got 'many'" in problem for problem in missing.values())
