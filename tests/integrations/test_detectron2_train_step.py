"""The training step that ``compare.py --cost`` measures, of runs whose data the user registered."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('detectron2', reason='Detectron2 is not installed')

from detectron2.config import LazyConfig
from detectron2.data import DatasetCatalog
from detectron2.modeling.backbone.resnet import BasicBlock

from roi_plugins.datasets.shapes import ShapesSpec, generate_shapes
from roi_plugins.integrations.detectron2.saved_config import read_saved_config
from roi_plugins.integrations.detectron2.train_step import load_step
from roi_plugins.integrations.errors import RunError

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools/detectron2/train_net.py'
YAML = ROOT / 'configs/detectron2/shapes/mask-rcnn_r50w16-c4_shapes.yaml'
LAZY = ROOT / 'configs/detectron2/shapes/mask-rcnn_r18-c4_shapes.py'
REGISTER = """
from detectron2.data.datasets import register_coco_instances
for half in ('train', 'val'):
    annotations = f'{root}/annotations/instances_{{half}}.json'
    register_coco_instances(f'{name}_{{half}}', {{}}, annotations, f'{root}/{{half}}')
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes')
    generate_shapes(root, ShapesSpec(num_train=4, num_val=2, image_size=64))
    return root


def train(folder, *argv):
    environment = {'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'}
    subprocess.run(
        [sys.executable, TOOL, *map(str, argv)], cwd=folder, env=os.environ | environment, check=True
    )


def yaml_argv(*flags, **changes):
    options = {
        'SOLVER.MAX_ITER': 1,
        'SOLVER.IMS_PER_BATCH': 2,
        'OUTPUT_DIR': 'out',
        'INPUT.MIN_SIZE_TEST': 64,
    }
    options |= {'INPUT.MIN_SIZE_TRAIN': '(64,)', 'DATALOADER.NUM_WORKERS': 0, **changes}
    swap = ('--extractor', 'align-max')
    return '--config-file', YAML, *swap, *flags, *(part for pair in options.items() for part in pair)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('given', 'module'),
    [('data_by_name', 'command_line'), ('data_by_file.py', 'runs')],  # runs: of an earlier version
)
def test_data_of_an_imported_module(data, tmp_path, monkeypatch, given, module):
    name = given.removesuffix('.py')
    (tmp_path / f'{name}.py').write_text(REGISTER.format(root=data, name=name))
    names = {'DATASETS.TRAIN': f"('{name}_train',)", 'DATASETS.TEST': f"('{name}_val',)"}
    train(tmp_path, *yaml_argv('--import', given, **names))
    record = json.loads((tmp_path / 'out/metrics.json').read_text())
    record['command'][2] = f'roi_plugins.integrations.detectron2.{module}'
    (tmp_path / 'out/metrics.json').write_text(json.dumps(record))
    run = tmp_path / 'out/config.yaml', tmp_path / 'out/model_final.pth', torch.device('cpu')
    assert f'{name}_train' not in DatasetCatalog
    if given == name:  # a file is found from anywhere
        with pytest.raises(RunError, match='--import: data_by_name cannot be imported'):
            load_step(*run)
        monkeypatch.chdir(tmp_path)
    _, step = load_step(*run)
    step()


def test_data_by_its_files(data, tmp_path):
    annotations = data / 'annotations'
    flags = ['--train-data', annotations / 'instances_train.json', data / 'train']
    flags += ['--test-data', annotations / 'instances_val.json', data / 'val']
    train(tmp_path, *yaml_argv(*flags))
    _, step = load_step(tmp_path / 'out/config.yaml', tmp_path / 'out/model_final.pth', torch.device('cpu'))
    step()


@pytest.mark.slow
def test_data_that_a_lazy_config_registers(data, tmp_path):
    config = tmp_path / 'config.py'
    names = ('model', 'dataloader', 'optimizer', 'lr_multiplier', 'train')
    config.write_text(
        REGISTER.format(root=data, name='of_a_config')
        + f'from detectron2.config import LazyConfig\n_base = LazyConfig.load({str(LAZY)!r})\n'
        + ''.join(f'{name} = _base.{name}\n' for name in names)
        + "dataloader.train.dataset.names = 'of_a_config_train'\n"
        + "dataloader.test.dataset.names = 'of_a_config_val'\n"
        + 'dataloader.train.update(total_batch_size=2, num_workers=0)\n'
        + f'train.update(max_iter=1, output_dir={str(tmp_path / "out")!r})\n'
    )
    train(tmp_path, '--config-file', config)
    assert 'of_a_config_train' not in DatasetCatalog
    for _ in range(2):  # as of two runs that are compared
        _, step = load_step(
            tmp_path / 'out/config.yaml', tmp_path / 'out/model_final.pth', torch.device('cpu')
        )
        step()
    # Moved away, what registered it is not to be found any more, which is said.
    config.unlink()
    DatasetCatalog.remove('of_a_config_train')
    with pytest.raises(RunError, match="'of_a_config_train' is not registered"):
        load_step(tmp_path / 'out/config.yaml', tmp_path / 'out/model_final.pth', torch.device('cpu'))


GOOD = """
model:
  _target_: detectron2.modeling.ResNet
  block: &id001 !!python/name:detectron2.modeling.backbone.resnet.BasicBlock ''
  again: *id001
  shape: !!python/object:detectron2.layers.shape_spec.ShapeSpec {channels: 8, height: 7, stride: 1, width: 7}
  pair: !!python/tuple [1, [2, 3]]
  number: ${.shape.channels}
"""


def test_what_detectron2_saves_of_a_lazy_config_is_read(tmp_path):
    path = tmp_path / 'config.yaml'
    path.write_text(GOOD)
    found, expected = read_saved_config(path), LazyConfig.load(str(path))
    assert found == expected
    assert found.model.block is BasicBlock and found.model.number == 8


@pytest.mark.parametrize(
    'attack',
    [
        '!!python/object/apply:os.system ["touch {trap}"]',
        '!!python/object/new:os.system ["touch {trap}"]',
        '!!python/module:attack',
        "!!python/name:os.system ''",
        "!!python/name:attack.anything ''",
        "!!python/name:detectron2.attack ''",
        '!!python/object:attack.Anything {{}}',
        '!!python/object:detectron2.structures.Boxes {{tensor: 1}}',
        '{{_target_: os.system, command: touch {trap}}}',
        '[{{_target_: builtins.exec, source: "import attack"}}]',
        '{{_target_: "${{train.name}}"}}',
        '&loop [*loop]',
        '{{a: 1',
    ],
)
def test_a_saved_config_that_runs_code_is_refused(tmp_path, monkeypatch, attack):
    trap = tmp_path / 'attacked'
    (tmp_path / 'attack.py').write_text(f'open({str(trap)!r}, "w")')
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / 'config.yaml'
    path.write_text(f'{GOOD}  more: {attack.format(trap=trap)}\n')
    with pytest.raises(RunError, match=r'the config \S+/config.yaml cannot be read: ') as found:
        load_step(path, tmp_path / 'last.pth', torch.device('cpu'))
    assert len(str(found.value).splitlines()) == 1
    assert not trap.exists()
