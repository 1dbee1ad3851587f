"""README's own lines that swap an extractor are run, in each framework."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from roi_plugins.integrations.zoo import find_config

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')
MMDET_ZOO = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
DETECTRON2_ZOO = 'COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x'


def the_block(language, part):
    """The one fenced block of a language that holds a text."""
    blocks = re.findall(rf'^```{language}\n(.*?)^```$', README, flags=re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if part in block]
    return block


def the_match(pattern):
    (found,) = set(re.findall(pattern, README))
    return found


def test_every_config_that_the_pages_name_is_there():
    pages = [ROOT / 'README.md', *(ROOT / 'docs').rglob('*.md')]
    ours = r'configs/(?:ablations|detectron2|mmdet)/[\w./-]+\.(?:py|yaml)'
    named = {path for page in pages for path in re.findall(ours, page.read_text(encoding='utf-8'))}
    assert len(named) > 10
    assert {path for path in named if not (ROOT / path).is_file()} == set()


# MMDetection

BUILD = """
import sys
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
cfg = Config.fromfile(sys.argv[1])
if sys.argv[2:]:
    cfg.merge_from_dict({'model.roi_head.bbox_roi_extractor.type': sys.argv[2]})
    assert 'custom_imports' not in cfg and 'roi_plugins' not in sys.modules
register_all_modules()
head = MODELS.build(cfg.model).roi_head
print(type(head.bbox_roi_extractor).__name__, type(head.mask_roi_extractor).__name__)
"""
ONE_HEAD = ['AlignMaxRoIExtractor', 'SingleRoIExtractor']
needs_mmdet = pytest.mark.skipif(find_config(MMDET_ZOO) is None, reason='MMDetection is not installed')


def build_in_mmdetection(folder, *arguments):
    """The types of both heads' extractors, in a process where nothing of ours is imported first."""
    command = [sys.executable, '-W', 'ignore', '-c', BUILD, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1].split()


def types_of(cfg):
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    with torch.device('meta'):
        head = MODELS.build({**cfg.model, '_scope_': 'mmdet'}).roi_head
    return [type(extractor).__name__ for extractor in (head.bbox_roi_extractor, head.mask_roi_extractor)]


@needs_mmdet
def test_the_config_of_mmdetection(tmp_path):
    pytest.importorskip('mmcv.ops')
    (tmp_path / 'my_config.py').write_text(the_block('python', "_base_ = 'mmdet::"))
    assert build_in_mmdetection(tmp_path, 'my_config.py') == ONE_HEAD


@needs_mmdet
def test_the_full_path_of_mmdetection(tmp_path):
    pytest.importorskip('mmcv.ops')
    type_ = the_match(r"type='(roi_plugins\.[\w.]+)'")
    assert build_in_mmdetection(tmp_path, find_config(MMDET_ZOO), type_) == ONE_HEAD


@needs_mmdet
def test_the_options_of_our_tool_for_mmdetection():
    pytest.importorskip('mmcv.ops')
    from mmengine.config import DictAction

    from roi_plugins.integrations.mmdet.config import read_config

    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    option = the_match(r'(--cfg-options model\.roi_head\.\S+)')
    options = parser.parse_args(option.split()).cfg_options
    assert types_of(read_config(find_config(MMDET_ZOO), options)) == ONE_HEAD
    row = the_match(r'--extractor ([\w-]+)')
    cfg = read_config(find_config(MMDET_ZOO), extractor=row)
    assert types_of(cfg) == ['AlignMaxRoIExtractor'] * 2


# Detectron2

needs_detectron2 = pytest.mark.skipif(
    find_config(f'{DETECTRON2_ZOO}.yaml') is None, reason='Detectron2 is not installed'
)


def assert_one_head(cfg):
    """Its box pooler takes maxima; that of the masks is Detectron2's."""
    from detectron2.config import CfgNode, instantiate
    from detectron2.modeling import build_model

    with torch.device('meta'):
        if isinstance(cfg, CfgNode):
            cfg.MODEL.DEVICE = 'meta'
            heads = build_model(cfg).roi_heads
        else:
            heads = instantiate(cfg.model).roi_heads
    assert type(heads.box_pooler.extractor).__name__ == 'AlignMax'
    assert type(heads.mask_pooler).__name__ == 'ROIPooler'


@needs_detectron2
@pytest.mark.parametrize('suffix', ['yaml', 'py'])
def test_the_options_of_our_tool_for_detectron2(suffix):
    from roi_plugins.integrations.detectron2.config import read_config

    start = f'python tools/detectron2/train_net.py --config-file CONFIG.{suffix} '
    (line,) = [line for line in README.splitlines() if line.startswith(start)]
    cfg = read_config(find_config(f'{DETECTRON2_ZOO}.{suffix}'), line.removeprefix(start).split())
    assert_one_head(cfg)


@needs_detectron2
def test_the_script_of_ones_own():
    from detectron2.config import get_cfg

    names = {'get_cfg': get_cfg, 'path': str(find_config(f'{DETECTRON2_ZOO}.yaml'))}
    exec(the_block('python', 'add_roi_plugins_config(cfg)'), names)
    assert_one_head(names['cfg'])
