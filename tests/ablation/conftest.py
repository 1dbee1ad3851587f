import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from fake_framework import FAKE
from sweeps import Sweep

from roi_plugins.commands.ablate import main
from roi_plugins.files import write_json
from roi_plugins.integrations.registry import FRAMEWORKS
from roi_plugins.run_record import write_run

LABELS = {'config_name': 'mask_rcnn', 'extractor': 'align-avg', 'seed': 0}


@pytest.fixture
def make_run(tmp_path):
    """Makes finished runs on ten objects of which none is large; a higher error is a lower AP."""
    images = [{'id': i, 'height': 100, 'width': 100} for i in range(1, 6)]
    annotations = [
        {
            'id': i + 1,
            'image_id': 1 + i // 2,
            'category_id': 1,
            'bbox': [50 * (i % 2), 0, 40, 20 + 5 * i],
            'area': 40 * (20 + 5 * i),
            'iscrowd': 0,
        }
        for i in range(10)
    ]
    ann_file = tmp_path / 'annotations.json'
    categories = [{'id': 1, 'name': 'thing'}]
    write_json(ann_file, {'images': images, 'annotations': annotations, 'categories': categories})

    def make(name, error=0.1, max_dets=100, **trial):
        rng = np.random.default_rng(trial.get('seed', 0))
        run_dir = tmp_path / name
        run_dir.mkdir(parents=True)
        shift = rng.normal(0, error, 10) * 40
        predictions = [
            {
                'image_id': annotation['image_id'],
                'category_id': 1,
                'score': float(rng.random()),
                'bbox': [annotation['bbox'][0] + float(dx), *annotation['bbox'][1:]],
            }
            for annotation, dx in zip(annotations, shift, strict=True)
        ]
        write_json(run_dir / 'predictions.bbox.json', predictions)
        if trial:
            record = {'format': 1, **LABELS, 'state': 'finished', 'started': '', **trial}
            write_json(run_dir / 'trial.json', record)
        write_run(
            run_dir,
            framework='mmdet',
            config='c',
            checkpoint='x',
            ann_file=ann_file,
            command=[],
            max_dets=max_dets,
        )
        return run_dir

    return make


@pytest.fixture
def sweep(tmp_path):
    sweep = Sweep(tmp_path)
    yield sweep
    sweep.end()


@pytest.fixture
def load_tool():
    """The module of a program in tools/."""

    def load(name):
        path = Path(__file__).resolve().parents[2] / 'tools' / f'{name}.py'
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def ablate(monkeypatch):
    """The command, which knows the framework that takes milliseconds."""
    monkeypatch.setitem(FRAMEWORKS, 'fake', FAKE)
    return main


@pytest.fixture
def write_plan(tmp_path, monkeypatch):
    """Writes plan.yaml, of one trial of that framework for each extractor, where the test then stands.

    The first extractor finds the one box exactly, the second with an IoU of 0.8, and so on.
    """
    monkeypatch.chdir(tmp_path)
    box = [4.0, 4.0, 20.0, 20.0]
    annotation = {'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': box, 'area': 400, 'iscrowd': 0}
    annotations = {
        'images': [{'id': 1, 'width': 32, 'height': 32}],
        'categories': [{'id': 1, 'name': 'thing'}],
        'annotations': [annotation],
    }
    (tmp_path / 'annotations.json').write_text(json.dumps(annotations))

    def write(extractors=('avg', 'max'), **options):
        """`options`: of the framework for all trials, or a dict of them for the extractor of that name."""
        common = {name: value for name, value in options.items() if name not in extractors}
        for i, extractor in enumerate(extractors):
            found = {'image_id': 1, 'category_id': 1, 'bbox': [4, 4, 20 - 4 * i, 20], 'score': 0.9}
            config = {
                'steps': 1,
                'ann_file': str(tmp_path / 'annotations.json'),
                'predictions': [found],
                **common,
                **options.get(extractor, {}),
            }
            (tmp_path / f'{extractor}.json').write_text(json.dumps(config))
        plan = {
            'name': 'small',
            'work_dir': 'work',
            'baseline': extractors[0],
            'configs': {'tiny': {'framework': 'fake', 'path': '{extractor}.json'}},
            'extractors': list(extractors),
            'seeds': [0],
        }
        (tmp_path / 'plan.yaml').write_text(yaml.safe_dump(plan, sort_keys=False))
        return 'plan.yaml'

    return write
