"""tools/zoo_swap.py: some kinds of both model zoos are run, and its page has all that there are today."""

import dataclasses
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'tools'))

import zoo_swap
from zoo_kinds import Kind, detections_apart, losses_apart

# It has folders that are called as the frameworks are, which other tests must not find in their place.
TOOLS = sys.path.pop(0)
PAGE = (Path(TOOLS).parent / 'docs/zoo.md').read_text()


@pytest.fixture
def zoo(monkeypatch):
    """Imports what knows the model zoo of a framework, if that is installed."""
    installed = {name: find_spec(name) is not None for name in zoo_swap.FRAMEWORKS}
    monkeypatch.syspath_prepend(TOOLS)

    def load(framework):
        if not installed[framework]:
            pytest.skip(f'{framework} is not installed')
        if framework == 'mmdet':
            pytest.importorskip('mmcv.ops', reason="MMCV's compiled ops are not installed")
        return zoo_swap.zoo(framework)

    return load


@pytest.mark.parametrize(
    ('framework', 'config'),
    [
        ('mmdet', 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'),
        ('mmdet', 'groie/faste-rcnn_r50_fpn_groie_1x_coco.py'),
        ('mmdet', 'qdtrack/qdtrack_faster-rcnn_r50_fpn_4e_base.py'),
        ('detectron2', 'COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml'),
        ('detectron2', 'COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.py'),
        ('detectron2', 'Detectron1-Comparisons/faster_rcnn_R_50_FPN_noaug_1x.yaml'),
    ],
)
def test_a_kind(zoo, framework, config):
    (kind,) = zoo(framework).find_kinds(config)
    assert (kind.framework, kind.config, kind.alike, kind.is_exact) == (framework, config, 1, True)
    row = zoo_swap.prove(kind)
    assert row['failure'] == ''
    assert row['losses'] <= 1e-5 and row['number'] > 0


def test_what_does_not_hold_is_a_failure(zoo):
    (kind,) = zoo('mmdet').find_kinds('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
    kind.same, kind.different = kind.different, kind.same
    failure = zoo_swap.prove(kind)['failure']
    assert 'the losses differ by' in failure and 'the losses of the maximum differ by' in failure
    kind.same = {'model.roi_head.bbox_roi_extractor.type': 'AlignMux'}
    assert 'AlignMux' in zoo_swap.prove(kind)['failure']


def test_a_layer_without_a_cpu(zoo):
    (kind,) = zoo('mmdet').find_kinds('dcn/faster-rcnn_r50_fpn_dpool_1x_coco.py')
    assert not kind.is_exact
    row = zoo_swap.prove(kind)
    assert 'implementation for device cpu not found' in row['reason'] and row['ours'] and not row['failure']


@pytest.mark.parametrize('framework', zoo_swap.FRAMEWORKS)
def test_the_page_has_every_kind(zoo, framework):
    module = zoo(framework)
    versions = next(line for line in PAGE.splitlines() if line.startswith('| versions'))
    here = f'{framework} {sys.modules[framework].__version__}'
    if here not in versions:
        pytest.skip(f'the page is of other versions than {here}')
    _, _, section = PAGE.partition(f'## {zoo_swap.FRAMEWORKS[framework]}\n')
    lines = [line.split('|') for line in section.partition('\n## ')[0].splitlines() if line.startswith('| `')]
    there = [(line[1].strip(' `'), int(line[2]), line[3].strip(), line[4].strip()) for line in lines]
    kinds = module.find_kinds()
    assert sorted(there) == sorted((kind.config, kind.alike, kind.heads, kind.stock) for kind in kinds)
    assert 'FAILED' not in section


class FakeZoo:
    """Of three configs, of which one cannot be read and one ends its process."""

    names = ('good', 'unreadable', 'deadly')

    def find_kinds(self):
        return [Kind('mmdet', name, problem='no such file' * (name == 'unreadable')) for name in self.names]


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch, capsys):
    ran = tmp_path / 'ran'

    def prove(kind):
        with ran.open('a') as file:
            file.write(f'{kind.config}\n')
        if kind.config == 'deadly':
            os._exit(3)
        return {'losses': 0, 'gradient': 0, 'detections': 0, 'different': 1, 'failure': ''}

    monkeypatch.setattr(zoo_swap, 'zoo', lambda framework: FakeZoo())
    monkeypatch.setattr(zoo_swap, 'prove', prove)
    results = tmp_path / 'results.jsonl'
    monkeypatch.setattr(sys, 'argv', ['zoo_swap.py', '--framework', 'mmdet', '--results', str(results)])
    assert zoo_swap.main() == 1
    assert 'deadly: FAILED: its process ended with 3' in capsys.readouterr().out
    assert zoo_swap.main() == 1
    assert ran.read_text().split() == ['good', 'unreadable', 'deadly', 'deadly']
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [row['kind']['config'] for row in rows] == ['good', 'unreadable', 'deadly', 'deadly']
    FakeZoo.names = ('good',)
    assert zoo_swap.main() == 0


def test_the_page_of_rows():
    kind = dataclasses.asdict(Kind('mmdet', 'a.py', alike=2, same={'a.type': 'AlignAvgRoIExtractor'}))
    other = {**kind, 'config': 'b.py', 'framework': 'detectron2', 'is_exact': False}
    numbers = {'losses': 1e-7, 'gradient': 0, 'detections': 0, 'different': 0.1}
    good = {'kind': kind, **numbers, 'failure': '', 'seconds': 60}
    rows = [
        good,
        {**good, 'kind': other, 'failure': 'it is broken'},
        {'kind': other, 'reason': 'no CPU', 'ours': True, 'failure': '', 'seconds': 60},
    ]
    page = zoo_swap.page(rows)
    assert '| time | 3 min |' in page
    assert '2 configs are of 1 kinds: 1 were run, 0 failed.' in page
    assert 'AlignAvg' in page and '1e-07' in page and 'FAILED: it is broken' in page
    assert 'no CPU' in page and 'trains and predicts' in page


def test_how_far_two_models_are_apart():
    assert losses_apart({'a': 1.0, 'b': 2.2}, {'a': 1.0, 'b': 2.0}) == pytest.approx(0.1)
    assert losses_apart({'a': 1.0}, {'b': 1.0}) == float('inf')
    assert losses_apart({'a': float('nan')}, {'a': float('nan')}) == float('inf')
    found = torch.tensor([[1.0, 0.5], [2.0, 0.5]])
    assert detections_apart(found, found.flip(0)) == 0
    assert detections_apart(found, found[:1]) == 1
    assert detections_apart(found, found[:0]) == float('inf')
