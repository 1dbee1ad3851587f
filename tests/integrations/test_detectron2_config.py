"""Configs of Detectron2 with options: those that nothing would read are errors."""

from pathlib import Path

import pytest

pytest.importorskip('detectron2', reason='Detectron2 is not installed')

from detectron2.data import DatasetCatalog

from roi_plugins.integrations.detectron2.config import read_config
from roi_plugins.integrations.errors import RunError

ROOT = Path(__file__).resolve().parents[2]
LAZY = ROOT / 'configs/detectron2/shapes/mask-rcnn_r18-c4_shapes.py'
YAML = ROOT / 'configs/detectron2/shapes/mask-rcnn_r50w16-c4_shapes.yaml'


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('train.output_dirr=x', r'no train\.output_dirr; for output_dirr, did you mean output_dir\?'),
        ('train.max_itr=4', r'there is no train\.max_itr; for max_itr, did you mean max_iter'),
        ('train.sed=4', r'did you mean seed\?'),
        ('trian.max_iter=4', r'for trian, did you mean train\?'),
        ('train.ddp.find_unused_parameter=True', r'did you mean find_unused_parameters'),
        ('train.checkpointer.max_to_kep=1', r'did you mean max_to_keep\?'),
        ('model.roi_heads.num_clases=2', r'did you mean num_classes'),
        ('model.roi_heads.box_predictor.test_topk=5', r'did you mean test_topk_per_image\?'),
        ('dataloader.tran.num_workers=0', r'for tran, did you mean train\?'),
        ('dataloader.train.num_worker=0', r'did you mean num_workers\?'),
        ('dataloader.test.mapper.augmentations.3.max_size=9', 'augmentations is a list of 1'),
        ('train.max_iter.more=4', r'train\.max_iter is 500 and has no parts'),
        ('+model.roi_heads.num_clases=2', 'did you mean num_classes'),
        ('train.max_iter', 'expected key=value'),
        ('train.max_iter={', "'train.max_iter={' cannot be read"),
    ],
)
def test_lazy_options_that_nothing_reads(option, message):
    with pytest.raises(RunError, match=message):
        read_config(LAZY, [option])


@pytest.mark.parametrize(
    'option',
    [
        'train.seed=1',  # not in the config, but read
        'train.cudnn_benchmark=True',
        'train.ddp.static_graph=True',
        'train.checkpointer.file_prefix="mine"',
        '+train.note="of mine"',  # meant to be new
        'model.roi_heads.box_pooler.reduction="max"',  # of a callable that takes any
        'model.backbone.freeze_at=2',  # an argument that is left at its default
        'dataloader.test.mapper.augmentations.0.max_size=400',
        'dataloader.train.mapper.use_keypoint=False',
    ],
)
def test_lazy_options_that_are_read(option):
    read_config(LAZY, [option])


def test_yaml_options_name_what_is_near():
    with pytest.raises(RunError, match=r'no SOLVER\.MAX_ITR; for MAX_ITR, did you mean MAX_ITER'):
        read_config(YAML, ['SOLVER.MAX_ITR', '4'])
    with pytest.raises(RunError, match=r'no SEED\.MORE; where MORE stands there are no parts'):
        read_config(YAML, ['SEED.MORE', '4'])


def test_a_lazy_config_that_registers_its_data_is_read_again(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(
        'from detectron2.data.datasets import register_coco_instances\n'
        "register_coco_instances('mine_by_config', {}, 'a.json', 'images')\n"
        'train = dict(max_iter=1)\n'
    )
    for _ in range(2):
        assert read_config(config).train.max_iter == 1
    assert 'mine_by_config' in DatasetCatalog


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('train.max_itr = 4', r'has train\.max_itr: did you mean max_iter'),
        ('train.checkpointer.keep = 4', r'has train\.checkpointer\.keep: .*max_to_keep'),
        ('train.ddp.find_unused = True', r'has train\.ddp\.find_unused: .*find_unused_parameters'),
    ],
)
def test_keys_in_a_lazy_config_that_nothing_reads(tmp_path, line, message):
    config = tmp_path / 'config.py'
    start = "from detectron2 import model_zoo\ntrain = model_zoo.get_config('common/train.py').train\n"
    config.write_text(f'{start}train.mine = dict(any=1)\n')
    read_config(config)  # of a program of the user's own
    config.write_text(f'{start}{line}\n')
    with pytest.raises(RunError, match=message):
        read_config(config)


def test_keys_in_a_yaml_config_that_nothing_reads(tmp_path):
    config = tmp_path / 'config.yaml'
    config.write_text('SOLVER: {MAX_ITR: 4}\n')
    with pytest.raises(RunError, match=r'config\.yaml has SOLVER\.MAX_ITR: did you mean MAX_ITER'):
        read_config(config)
    config.write_text('_BASE_: nowhere.yaml\n')
    with pytest.raises(RunError, match=r'cannot be read: .*nowhere\.yaml'):
        read_config(config)


def test_a_lazy_config_that_is_no_python(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text('train = dict(\n')
    with pytest.raises(RunError, match=r'config\.py cannot be read: .*syntax error'):
        read_config(config)
