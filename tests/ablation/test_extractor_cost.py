"""The cost of the extractors of tiny runs of both frameworks. How dear anything is, is no test."""

import functools
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip('pycocotools')  # a bare machine with a GPU collects these tests too
pytest.importorskip('tabulate')

from roi_plugins.ablation.extractor_cost import _count_heads, measure_costs, to_markdown, write_costs
from roi_plugins.ablation.results import find_runs
from roi_plugins.benchmark.measure import Effort
from roi_plugins.datasets import ShapesSpec, generate_shapes
from roi_plugins.files import write_json

CONFIGS = Path(__file__).parents[2] / 'configs'
ONCE = Effort(seconds=0, min_rounds=2)
CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes')
    return generate_shapes(root, ShapesSpec(num_train=4, num_val=1, image_size=64))


@pytest.fixture
def make_run(tmp_path, data):
    def make(name, framework, config):
        run_dir = tmp_path / name
        run_dir.mkdir()
        write_json(run_dir / 'predictions.bbox.json', [])
        write_json(
            run_dir / 'metrics.json',
            {
                'format': 1,
                'framework': framework,
                'config': config,
                'checkpoint': 'elsewhere/last.pth',
                'ann_file': str(data / 'annotations/instances_val.json'),
                'predictions': {'bbox': 'predictions.bbox.json'},
            },
        )
        return run_dir

    return make


@pytest.fixture
def mmdet_run(make_mmdet_run):
    return make_mmdet_run('align-max')


@pytest.fixture
def make_mmdet_run(make_run, data):
    return functools.partial(_make_mmdet_run, make_run, data)


def _make_mmdet_run(make_run, data, extractor):
    if find_spec('mmdet') is None:
        pytest.skip('mmdet is not installed')
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    from roi_plugins.integrations.mmdet.config import read_config

    run_dir = make_run(extractor, 'mmdet', 'configs/tiny.py')
    options = {'train_dataloader.dataset.data_root': f'{data}/', 'train_dataloader.batch_size': 1}
    config = CONFIGS / 'mmdet/shapes/mask-rcnn_r18-c4_shapes.py'
    cfg = read_config(config, options, extractor=extractor)
    cfg.dump(run_dir / 'tiny.py')
    init_default_scope('mmdet')
    torch.save({'state_dict': MODELS.build(cfg.model).state_dict()}, run_dir / 'last.pth')
    return run_dir


@pytest.fixture(params=['yaml', 'lazy'])
def detectron2_run(request, make_run, data):
    if find_spec('detectron2') is None:
        pytest.skip('Detectron2 is not installed')
    from detectron2.config import LazyConfig

    from roi_plugins.integrations.detectron2.config import read_config
    from roi_plugins.integrations.detectron2.datasets import register_shapes
    from roi_plugins.integrations.detectron2.describe import describe

    register_shapes(str(data))
    run_dir = make_run('align-max', 'detectron2', 'configs/tiny')
    if request.param == 'lazy':
        config = CONFIGS / 'detectron2/shapes/mask-rcnn_r18-c4_shapes.py'
        types = [f'model.roi_heads.{head}_pooler.pooler_type=AlignMax' for head in ('box', 'mask')]
        cfg = read_config(config, [*types, 'dataloader.train.total_batch_size=1'])
        LazyConfig.save(cfg, str(run_dir / 'config.yaml'))
    else:
        config = CONFIGS / 'detectron2/shapes/mask-rcnn_r50w16-c4_shapes.yaml'
        types = [f'MODEL.ROI_{head}_HEAD.POOLER_TYPE AlignMax' for head in ('BOX', 'MASK')]
        cfg = read_config(config, [*' '.join(types).split(), 'SOLVER.IMS_PER_BATCH', '1'])
        (run_dir / 'config.yaml').write_text(cfg.dump())
    torch.save({'model': describe(cfg).model().state_dict()}, run_dir / 'last.pth')
    yield run_dir
    register_shapes('data/shapes')


def check(run_dir, output, extractor='align-max', num_parameters=0):
    before = torch.load(run_dir / 'last.pth', weights_only=True)
    costs = measure_costs(find_runs([run_dir]).runs, CPU, ONCE)
    assert costs.problems == []
    (cost,) = costs.rows
    assert cost.extractor == extractor
    assert 0 < cost.num_rois <= 2 * 512  # of the box head and of the mask head
    assert 0 < cost.forward_seconds < cost.step_seconds
    assert 0 < cost.backward_seconds < cost.step_seconds
    assert 0 < cost.share < 1
    assert cost.num_parameters == num_parameters
    assert cost.head_parameters > num_parameters
    # What a fully connected layer does to a RoI is two operations for each weight.
    assert cost.head_flops > 2 * cost.num_rois * 1e3
    assert torch.load(run_dir / 'last.pth', weights_only=True).keys() == before.keys()

    write_costs(costs, output)
    kept = json.loads((output / 'cost.json').read_text())
    assert kept['costs'][0]['step_seconds'] == cost.step_seconds
    row = (output / 'cost.md').read_text().splitlines()[-1]
    assert [cell.strip() for cell in row.split('|')][1:3] == [extractor, str(cost.num_rois)]


def test_cost_of_a_run_of_mmdetection(mmdet_run, tmp_path):
    check(mmdet_run, tmp_path / 'out')


def test_the_heads_are_counted_and_nothing_else():
    model = nn.ModuleDict({'backbone': nn.Linear(50, 10), 'roi_head': nn.Sequential(nn.Linear(10, 3))})
    shared = model['roi_head'][0]

    def step():
        features = model['backbone'](torch.ones(7, 50))
        (model['roi_head'](features) + shared(features)).sum().backward()

    assert _count_heads(model, step) == (10 * 3 + 3, 2 * (2 * 7 * 10 * 3))
    assert _count_heads(model['backbone'], step) == (None, None)
    assert not shared._forward_hooks


@pytest.mark.slow
def test_cost_of_an_extractor_with_weights(make_mmdet_run, tmp_path):
    """Which the optimiser writes in the steps between two measurements."""
    check(make_mmdet_run('content-adaptive'), tmp_path / 'out', 'content-adaptive', 2 * 128)


@pytest.mark.slow
def test_cost_of_a_run_of_detectron2(detectron2_run, tmp_path):
    check(detectron2_run, tmp_path / 'out')


def test_what_cannot_be_measured_is_said_and_does_not_stop_the_others(mmdet_run, make_run, tmp_path):
    no_config = make_run('no-config', 'mmdet', 'gone.py')
    no_weights = make_run('no-weights', 'mmdet', 'tiny.py')
    (no_weights / 'tiny.py').write_text('')
    no_data = make_run('no-data', 'mmdet', 'tiny.py')
    config = (mmdet_run / 'tiny.py').read_text()
    (no_data / 'tiny.py').write_text(config + "train_dataloader['dataset']['data_root'] = 'nowhere/'\n")
    (no_data / 'last.pth').write_bytes((mmdet_run / 'last.pth').read_bytes())
    (tmp_path / 'alone.bbox.json').write_text('[]')
    ann_file = json.loads((mmdet_run / 'metrics.json').read_text())['ann_file']
    runs = find_runs([no_config, no_weights, no_data, tmp_path / 'alone.bbox.json', mmdet_run], ann_file)
    costs = measure_costs(runs.runs, CPU, ONCE)
    assert [cost.extractor for cost in costs.rows] == ['align-max']
    assert len(costs.problems) == 4
    for problem, cause in zip(
        costs.problems,
        ('config is not in the run', 'checkpoint is not in the run', 'nowhere', 'give the run directory'),
        strict=True,
    ):
        assert cause in problem
    assert 'no-config' not in to_markdown(costs)
