import re
import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from PIL import Image

from roi_plugins.integrations.zoo import find_config
from roi_plugins.visualization import METHODS, method_name

ROOT = Path(__file__).parents[2]
MMDET = ROOT / 'configs/mmdet/mask_rcnn'
DETECTRON2 = ROOT / 'configs/detectron2/mask_rcnn'
LAZY = find_config('COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py')


def needs(framework):
    return pytest.mark.skipif(find_spec(framework) is None, reason=f'{framework} is not installed')


@pytest.fixture
def visualize(tmp_path, monkeypatch, capsys):
    Image.new('RGB', (800, 800)).save(tmp_path / 'image.png')
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(ROOT / 'tools/visualize.py'))['main']

    def run(config, *arguments, image='image.png', box='64,64,729,729'):
        try:
            status = main([str(config), image, f'--box={box}', *arguments])
        except SystemExit as exit_:
            status = exit_.code
        return status, *capsys.readouterr()

    return run


def rows(stdout):
    """Name, stride and the eight misalignments of each row of the table."""
    lines = [line.split() for line in stdout.splitlines()]
    return {name: [*map(float, rest)] for name, *rest in lines if len(rest) == 9 and rest[0].isdigit()}


QUANTIZED = {
    'quantized.py': f"""
_base_ = '{MMDET / 'mask-rcnn_r50-fpn_1x_coco.py'}'
pool = dict(type='QuantizedPoolRoIExtractor')
model = dict(roi_head=dict(bbox_roi_extractor=pool, mask_roi_extractor=pool))
""",
    'quantized.yaml': f"""
_BASE_: {DETECTRON2 / 'mask-rcnn_r50-fpn_1x_coco.yaml'}
MODEL: {{ROI_BOX_HEAD: {{POOLER_TYPE: QuantizedPool}}, ROI_MASK_HEAD: {{POOLER_TYPE: QuantizedPool}}}}
""",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ('config', 'expected'),
    [
        pytest.param(
            'quantized.py',
            {f'roi_head.{head}_roi_extractor': [32, *2 * [0, 0, 39, 39]] for head in ('bbox', 'mask')},
            marks=needs('mmdet'),
        ),
        pytest.param(
            MMDET / 'mask-rcnn_r50-fpn_1x_coco.py',
            {f'roi_head.{head}_roi_extractor': [32, *[0] * 8] for head in ('bbox', 'mask')},
            marks=needs('mmdet'),
        ),
        pytest.param(
            'quantized.yaml',
            {f'roi_heads.{head}_pooler': [32, *2 * [0, 0, 39, 39]] for head in ('box', 'mask')},
            marks=needs('detectron2'),
        ),
        pytest.param(
            LAZY,
            {f'roi_heads.{head}_pooler': [32, *[0] * 8] for head in ('box', 'mask')},
            marks=needs('detectron2'),
        ),
    ],
)
def test_draws_the_extractors_of_a_config(visualize, tmp_path, config, expected):
    for name, text in QUANTIZED.items():
        (tmp_path / name).write_text(text)
    status, out, err = visualize(config)
    assert status == 0, err
    assert rows(out) == expected
    assert Image.open(tmp_path / 'where_it_reads.png').width > 1000


@needs('mmdet')
def test_mmcvs_precise_pooling_is_read_as_ours(visualize, tmp_path):
    config = tmp_path / 'prroi.py'
    layer = "roi_layer=dict(_delete_=True, type='PrRoIPool', output_size=7)"
    config.write_text(
        f"_base_ = '{MMDET / 'mask-rcnn_r50-fpn_1x_coco.py'}'\n"
        f'model = dict(roi_head=dict(bbox_roi_extractor=dict({layer})))\n'
    )
    status, out, err = visualize(config)
    assert status == 0, err
    assert rows(out)['roi_head.bbox_roi_extractor'] == [32, *2 * [-16, -16, 16, 16]]


@pytest.mark.slow
@needs('mmdet')
def test_draws_all_extractors_side_by_side(visualize, tmp_path):
    config = MMDET / 'mask-rcnn_r50-fpn_1x_coco.py'
    status, out, err = visualize(config, '--extractors', 'all', '--output', 'all.svg')
    assert status == 0, err
    table = rows(out)
    assert table.keys() == METHODS.keys()
    assert 'precise: no shift by half a cell, as published' in out
    assert table['quantized-pool-floor'] == [32, 0, 0, -25, -25, 0, 0, -217, -217]
    assert table['align-avg-unaligned'] == [32, *2 * [-16, -16, 16, 16]]
    assert '<svg' in (tmp_path / 'all.svg').read_text()


@needs('mmdet')
@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'box': '1,2,3'}, "'1,2,3'; expected four numbers x1,y1,x2,y2"),
        ({'box': '0,0,900,10'}, 'expected x1,y1,x2,y2 with 0 <= x1 < x2 <= 800'),
        ({'image': 'nowhere.png'}, 'nowhere.png: No such file'),
        ({'image': 'text.png'}, 'text.png: not an image'),
        ({'config': 'nowhere.py'}, 'nowhere.py does not exist'),
        ({'config': 'dense.py'}, 'dense.py: has no RoI extractor'),
        ({'config': 'broken.py'}, 'broken.py cannot be read'),
    ],
)
def test_bad_input_is_named(visualize, tmp_path, options, message):
    (tmp_path / 'text.png').write_text('no image')
    (tmp_path / 'dense.py').write_text("model = dict(type='RetinaNet')\n")
    (tmp_path / 'broken.py').write_text('model = dict(\n')
    status, _, err = visualize(**{'config': MMDET / 'mask-rcnn_r50-fpn_1x_coco.py', **options})
    assert status == 2
    assert message in err
    assert not (tmp_path / 'where_it_reads.png').exists()


@needs('mmdet')
@pytest.mark.parametrize('name', ['align-max', 'AlignMax', 'align_max', 'AlignMaxRoIExtractor'])
def test_an_extractor_has_one_name_however_it_is_spelt(visualize, name):
    config = MMDET / 'mask-rcnn_r50-fpn_1x_coco.py'
    status, out, err = visualize(config, '--extractors', name)
    assert status == 0, err
    assert rows(out).keys() == {'align-max'}


def test_every_row_of_a_plan_can_be_drawn():
    plans = [yaml.safe_load(path.read_text()) for path in ROOT.glob('configs/ablations/*.yaml')]
    names = {name for plan in plans for name in plan['extractors']}
    assert len(names) > 12
    assert {method_name(name) for name in names - {'stock'}} <= METHODS.keys()
    assert method_name('align-unaligned') == 'align-avg-unaligned'
    assert method_name('RoIWarpMax') == 'roi-warp-max'
    assert method_name('RoIWarp') == 'roi-warp-avg'


@needs('mmdet')
def test_remarks_are_in_the_picture_too(visualize, tmp_path):
    config = MMDET / 'mask-rcnn_r50-fpn_1x_coco.py'
    names = ('align-avg', 'align-avg-unaligned', 'random-sampling', 'precise')
    status, out, err = visualize(config, '--extractors', *names, '--output', 'some.svg')
    assert status == 0, err
    shown = (tmp_path / 'some.svg').read_text()  # glyphs are paths, but each text is in a comment
    texts = ' '.join(re.findall(r'<!-- (.*?) -->', shown))
    assert texts.count('no shift by half a cell') == out.count('no shift by half a cell') == 2
    assert 'samples lie anywhere' in texts and 'align-avg:' not in out


@needs('mmdet')
def test_an_extractor_of_a_config_that_is_not_aligned_is_remarked(visualize, tmp_path):
    (tmp_path / 'unaligned.py').write_text(
        f"_base_ = '{MMDET / 'mask-rcnn_r50-caffe-c4_1x_coco.py'}'\n"
        "extractor = dict(type='AlignAvgRoIExtractor', aligned=False)\n"
        'model = dict(roi_head=dict(bbox_roi_extractor=extractor))\n'
    )
    status, out, err = visualize('unaligned.py')
    assert status == 0, err
    assert 'roi_head.shared_roi_extractor: no shift' in out or 'bbox_roi_extractor: no shift' in out


@needs('mmdet')
def test_an_unknown_extractor_is_named(visualize):
    status, _, err = visualize(MMDET / 'mask-rcnn_r50-fpn_1x_coco.py', '--extractors', 'sinc')
    assert status == 2
    assert "no extractor is named 'sinc'; expected all, or of quantized-pool" in err


@needs('mmdet')
def test_a_config_that_imports_a_helper_is_one_line(visualize, tmp_path):
    (tmp_path / 'helper.py').write_text('raise RuntimeError\n')
    (tmp_path / 'lazy.py').write_text('from helper import model\n')
    status, _, err = visualize('lazy.py')
    assert status == 2
    assert err.startswith('error: ') and len(err.splitlines()) == 1
    assert 'lazy.py' in err


LAZY_HELPER = f"""
from detectron2.config import LazyConfig
_found = LazyConfig.load({str(LAZY)!r})
model, train, dataloader, optimizer = _found.model, _found.train, _found.dataloader, _found.optimizer
"""


@needs('detectron2')
@pytest.mark.parametrize(
    'lines', ['from {} import model, train, dataloader, optimizer', 'import {0}\nglobals().update(vars({0}))']
)
def test_a_lazy_config_that_imports_a_helper_by_its_name(visualize, tmp_path, lines):
    """Nothing in the first says ``detectron2``, and nothing in the second says anything."""
    name = f'helper_{len(lines)}'
    (tmp_path / f'{name}.py').write_text(LAZY_HELPER)
    (tmp_path / 'lazy.py').write_text(lines.format(name) + '\n')
    status, out, err = visualize('lazy.py')
    assert status == 0, err
    assert rows(out).keys() == {'roi_heads.box_pooler', 'roi_heads.mask_pooler'}


@needs('detectron2')
def test_what_a_lazy_config_lacks_is_not_said_of_both_frameworks(visualize, tmp_path):
    (tmp_path / 'helper_of_parts.py').write_text(LAZY_HELPER)
    (tmp_path / 'lazy.py').write_text('from helper_of_parts import model, dataloader\n')
    status, _, err = visualize('lazy.py')
    assert status == 2
    assert err.startswith('error: lazy.py: the LazyConfig has no train.output_dir')


@needs('mmdet')
@needs('detectron2')
def test_a_config_that_neither_framework_reads_is_one_line(visualize, tmp_path):
    (tmp_path / 'helper_of_none.py').write_text('model = 1\n')
    (tmp_path / 'config.py').write_text('import helper_of_none\nmodel = helper_of_none.model\n')
    status, _, err = visualize('config.py')
    assert status == 2
    (line,) = err.splitlines()
    assert line.startswith('error: config.py is a config of neither framework. read as one of mmdet: ')
    assert '. read as one of detectron2: ' in line


MODULES = {
    'mmdet': """
from mmdet.registry import MODELS
from roi_plugins.integrations.mmdet import QuantizedPoolRoIExtractor
MODELS.register_module(name='OfMineRoIExtractor', module=type('Mine', (QuantizedPoolRoIExtractor,), {}))
""",
    'detectron2': """
from detectron2.modeling import ROI_HEADS_REGISTRY
from roi_plugins.integrations.detectron2 import RoIPluginsStandardROIHeads
ROI_HEADS_REGISTRY.register(type('HeadsOfMine', (RoIPluginsStandardROIHeads,), {}))
""",
}
CONFIGS_OF_MODULES = {
    'mmdet': f"""
_base_ = '{MMDET / 'mask-rcnn_r50-fpn_1x_coco.py'}'
model = dict(roi_head=dict(bbox_roi_extractor=dict(type='OfMineRoIExtractor')))
""",
    'detectron2': f"""
_BASE_: {DETECTRON2 / 'mask-rcnn_r50-fpn_1x_coco.yaml'}
MODEL: {{ROI_HEADS: {{NAME: HeadsOfMine}}}}
""",
}


@pytest.mark.parametrize(
    'framework', [pytest.param(name, marks=needs(name)) for name in ('mmdet', 'detectron2')]
)
def test_parts_that_a_module_registers(visualize, tmp_path, framework):
    config = 'config.py' if framework == 'mmdet' else 'config.yaml'
    (tmp_path / config).write_text(CONFIGS_OF_MODULES[framework])
    status, _, err = visualize(config)
    assert status == 2 and 'OfMine' in err and len(err.splitlines()) == 1
    status, _, err = visualize(config, '--import', 'nowhere')
    assert status == 2 and err.startswith('error: --import: nowhere cannot be imported')
    (tmp_path / f'of_mine_{framework}.py').write_text(MODULES[framework])
    status, out, err = visualize(config, '--import', f'of_mine_{framework}.py')
    assert status == 0, err
    assert len(rows(out)) == 2
