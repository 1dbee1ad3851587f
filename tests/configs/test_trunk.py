"""The trunk of the demo is one: both frameworks start from the same weights and compute the same map."""

import importlib.util
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet', reason='MMDetection is not installed')
pytest.importorskip('mmcv.ops', reason="MMCV's compiled ops are not installed")
pytest.importorskip('detectron2', reason='Detectron2 is not installed')

from detectron2.config import instantiate
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules

from roi_plugins.ablation.plan import load_plan
from roi_plugins.integrations.checkpoints import is_whole
from roi_plugins.integrations.detectron2.checkpoints import DataCheckpointer
from roi_plugins.integrations.detectron2.config import read_config as read_detectron2
from roi_plugins.integrations.mmdet.config import read_config as read_mmdet
from roi_plugins.integrations.zoo import configs_folder, find_config

ROOT = Path(__file__).parents[2]
TRUNK = configs_folder() / 'trunks/r18-c4_shapes.pth'


def config_of(plan):
    """The config that all trials of a plan have."""
    (path,) = {trial.config for trial in load_plan(find_config(f'ablations/{plan}.yaml')).trials}
    return path


@pytest.fixture(scope='module')
def trunk():
    return torch.load(TRUNK, weights_only=True)


@pytest.fixture(scope='module')
def mmdet():
    """The detector of the demo as a training starts it, and the path that its config gives of the trunk."""
    register_all_modules(init_default_scope=False)
    cfg = read_mmdet(config_of('demo'))
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model.eval(), cfg.model.backbone.init_cfg.checkpoint


@pytest.fixture(scope='module')
def detectron2():
    cfg = read_detectron2(config_of('demo_detectron2'))
    model = instantiate(cfg.model)
    DataCheckpointer(model).load(cfg.train.init_checkpoint)
    return model.eval(), cfg.train.init_checkpoint


def is_of_the_backbone(model, trunk):
    """Whether the weights of a model's backbone are those of the trunk, no more and no less."""
    state = model.backbone.state_dict()
    # Batch normalisation counts batches, but does not read the count.
    names = {name for name in state if not name.endswith('num_batches_tracked')}
    return names == trunk.keys() and all(torch.equal(state[name], trunk[name].float()) for name in names)


def test_the_file_is_small_and_plain_data(trunk):
    assert trunk.keys() == {'state_dict', 'model'}
    assert is_whole(TRUNK) and TRUNK.stat().st_size < 1_500_000


def test_both_demos_start_from_the_file(mmdet, detectron2):
    for _, path in (mmdet, detectron2):
        assert Path(path).samefile(TRUNK)


def test_both_take_every_weight(trunk, mmdet, detectron2):
    assert is_of_the_backbone(mmdet[0], trunk['state_dict'])
    names = {name.removeprefix('backbone.'): value for name, value in trunk['model'].items()}
    assert len(names) == len(trunk['state_dict']) and is_of_the_backbone(detectron2[0], names)


def test_nothing_of_the_trunk_learns(mmdet, detectron2):
    for model, _ in (mmdet, detectron2):
        before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
        assert not any(weight.requires_grad for weight in model.backbone.parameters())
        model.train().backbone(torch.rand(2, 3, 64, 64))
        model.eval()
        assert all(torch.equal(before[name], value) for name, value in model.backbone.state_dict().items())


def test_both_compute_the_same_map(mmdet, detectron2):
    # As it is read from a file: BGR in both frameworks.
    image = torch.randint(256, (3, 96, 128), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        inputs = mmdet[0].data_preprocessor({'inputs': [image], 'data_samples': None})['inputs']
        (ours,) = mmdet[0].backbone(inputs)
        theirs = detectron2[0].backbone(detectron2[0].preprocess_image([{'image': image}]).tensor)['res4']
    assert ours.abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_the_command_writes_what_both_take(trunk, tmp_path):
    spec = importlib.util.spec_from_file_location('make_trunk', ROOT / 'tools/make_trunk.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    detector = {f'backbone.{name}': value.float() for name, value in trunk['state_dict'].items()}
    counts = {
        'backbone.bn1.num_batches_tracked': torch.tensor(1),
        'bbox_head.retina_cls.bias': torch.zeros(9),
    }
    tool.write_trunk(detector | counts, tmp_path / 'trunk.pth')
    written = torch.load(tmp_path / 'trunk.pth', weights_only=True)
    for part in trunk:
        assert written[part].keys() == trunk[part].keys()
        assert all(torch.equal(written[part][name], value) for name, value in trunk[part].items())
