"""One option over a stock config in Detectron2's tool: it is said once, and what is saved is read alike."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import detectron2_options
import pytest
import torch
import yaml
from PIL import Image

pytest.importorskip('detectron2', reason='Detectron2 is not installed')

from detectron2.config import LazyConfig

from roi_plugins.datasets.shapes import ShapesSpec, generate_shapes
from roi_plugins.integrations.detectron2.command_line import main
from roi_plugins.integrations.detectron2.config import read_config
from roi_plugins.integrations.detectron2.datasets import register_shapes
from roi_plugins.integrations.detectron2.poolers import RoIPluginsPooler
from roi_plugins.integrations.detectron2.train_step import load_step

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools/detectron2/train_net.py'
YAML = ROOT / 'configs/detectron2/shapes/mask-rcnn_r50w16-c4_shapes.yaml'
LAZY = ROOT / 'configs/detectron2/shapes/mask-rcnn_r18-c4_shapes.py'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes')
    generate_shapes(root, ShapesSpec(num_train=4, num_val=3, image_size=64))
    register_shapes(str(root))
    return root


@pytest.fixture(autouse=True)
def no_loggers():
    detectron2_options.forget_loggers()


def yaml_options(output_dir, **changes):
    options = {'SOLVER.MAX_ITER': 1, **detectron2_options.YAML_OPTIONS, 'OUTPUT_DIR': output_dir, **changes}
    return [str(part) for pair in options.items() for part in pair]


def metrics(folder):
    return json.loads((folder / 'metrics.json').read_text())['metrics']


def drawn(config, tmp_path, capsys):
    """The names of what tools/visualize.py draws of a config."""
    Image.new('RGB', (128, 128)).save(tmp_path / 'image.png')
    tool = runpy.run_path(str(ROOT / 'tools/visualize.py'))['main']
    output = f'--output={tmp_path / "reads.png"}'
    assert tool([str(config), str(tmp_path / 'image.png'), '--box=9,9,99,99', output]) == 0
    table = capsys.readouterr().out
    return [name for name in ('box_pooler', 'mask_pooler') if f'roi_heads.{name}' in table]


def test_yaml(data, tmp_path, capfd):
    stock = tmp_path / 'stock.yaml'
    stock.write_text(f'_BASE_: {YAML}\nMODEL: {{ROI_HEADS: {{NAME: StandardROIHeads}}}}\n')
    out, again = tmp_path / 'out', tmp_path / 'again'
    argv = ['--config-file', str(stock), '--num-gpus', '2']
    argv += yaml_options(out, **{'MODEL.ROI_BOX_HEAD.POOLER_TYPE': 'AlignMax'})
    environment = {'ROI_PLUGINS_SHAPES': str(data), 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        [sys.executable, TOOL, *argv], env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    line = (
        'MODEL.ROI_BOX_HEAD.POOLER_TYPE AlignMax: MODEL.ROI_HEADS.NAME is RoIPluginsStandardROIHeads in '
        'place of StandardROIHeads'
    )
    assert done.stderr.splitlines().count(line) == 1 and line not in done.stdout

    saved = out / 'config.yaml'
    assert yaml.safe_load(saved.read_text())['MODEL']['ROI_HEADS']['NAME'] == 'RoIPluginsStandardROIHeads'
    argv = ['--config-file', str(saved), '--eval-only']
    assert main([*argv, *yaml_options(again, **{'MODEL.WEIGHTS': out / 'model_final.pth'})]) == 0
    assert metrics(again) == metrics(out)
    assert 'in place of' not in capfd.readouterr().err
    model, step = load_step(saved, out / 'model_final.pth', torch.device('cpu'))
    step()
    assert model.roi_heads.box_pooler.pooler_type == 'AlignMax'


def test_lazy(data, tmp_path, capfd):
    stock = tmp_path / 'stock.py'
    stock.write_text(
        'from detectron2.config import LazyConfig\n'
        'from detectron2.modeling.poolers import ROIPooler\n'
        f'_base = LazyConfig.load({str(LAZY)!r})\n'
        'globals().update({name: _base[name] for name in _base})\n'
        'for _head in (model.roi_heads.box_pooler, model.roi_heads.mask_pooler):\n'
        '    _head._target_ = ROIPooler\n'
    )
    out = tmp_path / 'out'
    options = {'train.max_iter': 1, 'train.output_dir': f'"{out}"', **detectron2_options.LAZY_OPTIONS}
    options['model.roi_heads.box_pooler.pooler_type'] = 'AlignMax'
    options['model.roi_heads.box_pooler.aligned'] = 'False'  # an option of the type alone
    assert main(['--config-file', str(stock), *(f'{k}={v}' for k, v in options.items())]) == 0
    line = 'model.roi_heads.box_pooler.pooler_type=AlignMax: build_pooler in place of ROIPooler'
    assert capfd.readouterr().err.splitlines().count(line) == 1
    model, step = load_step(out / 'config.yaml', out / 'model_final.pth', torch.device('cpu'))
    step()
    assert isinstance(model.roi_heads.box_pooler, RoIPluginsPooler)
    assert model.roi_heads.box_pooler.extractor.aligned is False


@pytest.mark.parametrize('language', ['yaml', 'lazy'])
def test_what_is_saved_is_drawn(data, tmp_path, capsys, language):
    saved = tmp_path / 'config.yaml'
    if language == 'yaml':
        names = ['MODEL.ROI_HEADS.NAME', 'StandardROIHeads', 'MODEL.ROI_BOX_HEAD.POOLER_TYPE', 'AlignMax']
        saved.write_text(read_config(YAML, names).dump())
    else:
        LazyConfig.save(read_config(LAZY, ['model.roi_heads.box_pooler.pooler_type=AlignMax']), str(saved))
    assert drawn(saved, tmp_path, capsys) == ['box_pooler', 'mask_pooler']
