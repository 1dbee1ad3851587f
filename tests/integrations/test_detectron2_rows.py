"""Rows of a comparison in Detectron2's configs, YAML and LazyConfig: ``--extractor`` of the tool."""

from pathlib import Path

import pytest

pytest.importorskip('detectron2', reason='Detectron2 is not installed')

from detectron2.config import CfgNode

from roi_plugins.extractors.presets import load_presets
from roi_plugins.integrations.detectron2.arguments import configure, parse_arguments
from roi_plugins.integrations.detectron2.describe import describe
from roi_plugins.integrations.errors import RunError
from roi_plugins.integrations.zoo import find_config

ROOT = Path(__file__).resolve().parents[2]
MASK_YAML = 'COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml'
MASK_LAZY = 'common/models/mask_rcnn_fpn.py'
SMALL = ['MODEL.RESNETS.RES2_OUT_CHANNELS', '16', 'MODEL.FPN.OUT_CHANNELS', '32']


def configured(name, *arguments, options=()):
    path = str(find_config(name))
    return configure(parse_arguments(['--config-file', path, *arguments, *options]))


def poolers(cfg):
    heads = describe(cfg, 'cpu').model().roi_heads
    return {name: getattr(heads, name, None) for name in ('box_pooler', 'mask_pooler', 'pooler')}


@pytest.mark.parametrize('row', [name for name in load_presets() if name != 'position-sensitive'])
def test_every_row_in_yaml(row):
    preset = load_presets()[row]
    found = poolers(configured(MASK_YAML, '--extractor', row, options=SMALL))
    for pooler, size in ((found['box_pooler'], 7), (found['mask_pooler'], 14)):
        assert type(pooler.extractor).__name__ == preset.type
        assert pooler.output_size == (size, size)
        for option, value in preset.options.items():
            if option != 'region':
                assert getattr(pooler.extractor, option) == value, option


@pytest.fixture
def lazy_config(tmp_path):
    path = tmp_path / 'lazy.py'
    path.write_text(
        'from detectron2 import model_zoo\n'
        f"model = model_zoo.get_config('{MASK_LAZY}').model\n"
        'model.backbone.out_channels = 32\n'
        'model.backbone.bottom_up.stem.norm = model.backbone.bottom_up.stages.norm = "BN"\n'
        "train = model_zoo.get_config('common/train.py').train\n"
        "dataloader = model_zoo.get_config('common/data/coco.py').dataloader\n"
    )
    return str(path)


@pytest.mark.parametrize('row', ['align-max', 'align-avg-unaligned', 'roi-warp-max', 'deformable', 'precise'])
def test_rows_in_a_lazy_config(lazy_config, row):
    preset = load_presets()[row]
    cfg = configure(parse_arguments(['--config-file', lazy_config, '--extractor', row, '--heads', 'mask']))
    assert cfg.model.roi_heads.box_pooler.pooler_type == 'ROIAlignV2'
    node = cfg.model.roi_heads.mask_pooler
    assert node.pooler_type == {'roi-warp-max': 'RoIWarpMax'}.get(row, preset.type)
    extractor = poolers(cfg)['mask_pooler'].extractor
    for option, value in preset.options.items():
        assert getattr(extractor, option) == value, option


@pytest.mark.parametrize('row', ['deformable', 'content-adaptive'])
def test_channels_of_a_lazy_config_without_a_neck(row):
    """Its backbone does not say them; the heads do."""
    path = str(ROOT / 'configs/detectron2/shapes/mask-rcnn_r18-c4_shapes.py')
    heads = configure(parse_arguments(['--config-file', path, '--extractor', row])).model.roi_heads
    assert heads.box_pooler.channels == heads.mask_pooler.channels == 128
    # What is said is not looked for.
    options = ['model.roi_heads.mask_pooler.channels=64']
    heads = configure(parse_arguments(['--config-file', path, '--extractor', row, *options])).model.roi_heads
    assert (heads.box_pooler.channels, heads.mask_pooler.channels) == (128, 64)


def test_a_bare_type_keeps_the_sampling_of_the_config():
    found = poolers(configured(MASK_YAML, '--extractor', 'AlignMax', options=SMALL))
    assert found['box_pooler'].extractor.sampling_ratio == 0
    assert found['box_pooler'].extractor.aligned is True


def test_a_row_in_place_for_one_head():
    row = '{name: max-4, type: AlignMax, sampling_ratio: 4}'
    cfg = configured(MASK_YAML, '--extractor', row, '--heads', 'mask')
    assert isinstance(cfg, CfgNode)
    assert cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE == 'ROIAlignV2'
    assert cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE == 'AlignMax'
    assert cfg.MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO == 4
    assert cfg.MODEL.ROI_HEADS.NAME == 'RoIPluginsStandardROIHeads'


def test_stock_is_the_detector_as_it_is():
    assert configured(MASK_YAML, '--extractor', 'stock') == configured(MASK_YAML)


def test_the_pooler_of_res5_heads_is_that_of_the_boxes():
    name = 'COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml'
    cfg = configured(name, '--extractor', 'align-max')
    assert cfg.MODEL.ROI_HEADS.NAME == 'RoIPluginsRes5ROIHeads'
    with pytest.raises(RunError, match='--heads: mask has no pooler of its own; there is bbox'):
        configured(name, '--extractor', 'align-max', '--heads', 'mask')


@pytest.mark.parametrize(
    ('name', 'arguments', 'message'),
    [
        (MASK_YAML, ['--extractor', 'align-mux'], "no extractor is named 'align-mux'; there are the rows"),
        (MASK_YAML, ['--extractor', '{type: AlignMax, gamma: 1}'], "AlignMax has no option 'gamma'"),
        (MASK_YAML, ['--extractor', 'align-max', '--heads', 'keypoint'], r'keypoint has no pooler .* mask$'),
        (MASK_YAML, ['--extractor', 'align-max', 'MODEL.META_ARCHITECTURE', 'RetinaNet'], 'has no RoI heads'),
    ],
)
def test_a_row_that_cannot_be_is_one_line(name, arguments, message):
    with pytest.raises(RunError, match=message) as error:
        configured(name, *arguments)
    assert '\n' not in str(error.value)
