"""Data and modules of the user's own in MMDetection's tools: files, --import, what is not registered."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmcv.ops')

from mmengine.config import Config

from roi_plugins.datasets.shapes import ShapesSpec, generate_shapes
from roi_plugins.files import DataError
from roi_plugins.integrations.errors import RunError
from roi_plugins.integrations.mmdet import command_line, runner
from roi_plugins.integrations.mmdet.config import read_config
from roi_plugins.integrations.mmdet.own_files import use_files
from roi_plugins.integrations.mmdet.train_step import load_step
from roi_plugins.integrations.mmdet_framework import MODULE as COMMAND_LINE

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ROOT / 'configs/mmdet/shapes/mask-rcnn_r18-c4_shapes.py'
CLASSES = ['cross', 'star', 'rectangle', 'triangle', 'ellipse']  # not the order of the config
FAST = {
    'train_cfg.max_iters': 1,
    **{f'{half}_dataloader.num_workers': 0 for half in ('train', 'test')},
    **{f'{half}_dataloader.persistent_workers': False for half in ('train', 'test')},
    'train_dataloader.batch_size': 2,
    'model.test_cfg.rcnn.score_thr': 0.001,
}
MODULE = """
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS, MODELS, TRANSFORMS
from roi_plugins.integrations.mmdet import AlignMaxRoIExtractor

@DATASETS.register_module(name='DatasetOf{name}')
class Dataset(CocoDataset):
    pass

@TRANSFORMS.register_module(name='TransformOf{name}')
class Transform:
    def __call__(self, results):
        return results

@MODELS.register_module(name='RoIExtractorOf{name}')
class Extractor(AlignMaxRoIExtractor):
    pass
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Generated images in folders of other names than the config's, with the categories in another order."""
    made = tmp_path_factory.mktemp('made')
    generate_shapes(made, ShapesSpec(num_train=6, num_val=3, image_size=64))
    root = tmp_path_factory.mktemp('mine')
    for half in ('train', 'val'):
        annotations = json.loads((made / f'annotations/instances_{half}.json').read_text())
        annotations['categories'].reverse()
        (root / f'{half}.json').write_text(json.dumps(annotations))
        (made / half).rename(root / f'images_{half}')
    return root


def files(data, half):
    return [str(data / f'{half}.json'), str(data / f'images_{half}')]


def as_options(options):
    return ['--cfg-options', *(f'{key}={value}' for key, value in options.items())] if options else []


@pytest.fixture
def no_training(monkeypatch):
    """A training stops where it would begin; the config that it would be of is kept."""
    found = []
    monkeypatch.setattr(runner, 'run', lambda cfg, phase: found.append(cfg))
    return found


def train(work_dir, *flags, config=SHAPES, options=()):
    return command_line.train_main(
        [str(config), '--work-dir', str(work_dir), *flags, *as_options(dict(options))]
    )


def error_of(capsys):
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_trains_and_tests_on_files(data, tmp_path, monkeypatch):
    """As a user does it: relative paths, another folder for the test, whose config is the saved one."""
    monkeypatch.chdir(data)
    flags = ['--train-data', 'train.json', 'images_train', '--test-data', 'val.json', 'images_val']
    assert train(tmp_path / 'run', *flags, '--extractor', 'align-avg', options=FAST) == 0
    saved = tmp_path / 'run' / SHAPES.name
    cfg = Config.fromfile(saved)
    for loader, half in (('train_dataloader', 'train'), ('test_dataloader', 'val')):
        dataset = cfg[loader].dataset
        assert [dataset.ann_file, dataset.data_prefix.img] == files(data, half)
        assert list(dataset.metainfo.classes) == CLASSES
    monkeypatch.chdir(tmp_path)
    assert (
        command_line.test_main([str(saved), str(tmp_path / 'run'), '--work-dir', str(tmp_path / 'run')]) == 0
    )
    metrics = json.loads((tmp_path / 'run/metrics.json').read_text())
    assert metrics['ann_file'] == str(data / 'val.json')
    assert json.loads((tmp_path / 'run/predictions.bbox.json').read_text())
    # What --cost does.
    _, step = load_step(saved, metrics['checkpoint'], torch.device('cpu'))
    step()


def test_a_test_on_other_files_is_another_result(data, tmp_path, monkeypatch, capsys, no_training):
    def result(work_dir):
        command = ['python', '-m', COMMAND_LINE, 'test', str(SHAPES), str(checkpoint)]
        command += ['--work-dir', str(work_dir), '--launcher', 'none', '--test-data', *files(data, 'val')]
        record = {'config': str(SHAPES), 'checkpoint': str(checkpoint), 'command': command}
        (work_dir / 'metrics.json').write_text(json.dumps(record))

    checkpoint = tmp_path / 'iter_1.pth'
    torch.save({'state_dict': {}}, checkpoint)
    result(tmp_path)
    argv = [str(SHAPES), str(checkpoint), '--work-dir', str(tmp_path), '--test-data']
    with pytest.raises(FileNotFoundError):  # the predictions, which it would have made
        command_line.test_main([*argv, *files(data, 'val')])
    result(tmp_path)
    assert command_line.test_main([*argv, *files(data, 'train')]) == 2
    error = error_of(capsys)
    assert 'holds the result of another run' in error and f'--test-data {data}/val.json' in error


COCO_DATASET = {'type': 'CocoDataset', 'ann_file': 'gone.json', 'data_root': 'gone', 'pipeline': ['kept']}


@pytest.mark.parametrize(
    ('dataset', 'inner'),
    [
        (COCO_DATASET, lambda dataset: dataset),
        ({'type': 'RepeatDataset', 'times': 3, 'dataset': COCO_DATASET}, lambda d: d['dataset']),
        ({'type': 'ConcatDataset', 'datasets': [COCO_DATASET, COCO_DATASET]}, lambda dataset: dataset),
        (
            {
                'type': 'MultiImageMixDataset',
                'pipeline': ['mosaic'],
                'dataset': {'type': 'ConcatDataset', 'datasets': [COCO_DATASET]},
            },
            lambda dataset: dataset['dataset'],
        ),
    ],
)
def test_the_innermost_dataset_is_replaced(data, dataset, inner):
    cfg = Config({'default_scope': 'mmdet', 'train_dataloader': {'dataset': dataset}})
    use_files(cfg, 'train', files(data, 'train'))
    found = cfg.train_dataloader.dataset
    if dataset['type'] in ('RepeatDataset', 'MultiImageMixDataset'):
        assert {**found, 'dataset': None} == {**dataset, 'dataset': None}
    assert inner(found) == {
        'type': 'CocoDataset',
        'data_root': '',
        'ann_file': str(data / 'train.json'),
        'data_prefix': {'img': str(data / 'images_train')},
        'metainfo': {'classes': CLASSES},
        'pipeline': ['kept'],
    }


@pytest.mark.parametrize('several', [False, True])
def test_the_validation_is_on_the_test_files(data, several):
    """On the config's own it would be of the classes of COCO."""
    cfg = Config.fromfile(ROOT / 'configs/mmdet/mask_rcnn/mask-rcnn_r50-fpn_1x_align-max_coco.py')
    if several:
        cfg.val_evaluator = [cfg.val_evaluator, {'type': 'CocoMetric', 'ann_file': 'gone'}]
    use_files(cfg, 'test', files(data, 'val'))
    assert cfg.val_dataloader.dataset.ann_file == cfg.test_dataloader.dataset.ann_file == f'{data}/val.json'
    metrics = cfg.val_evaluator if several else [cfg.val_evaluator]
    assert {metric.ann_file for metric in [*metrics, cfg.test_evaluator]} == {str(data / 'val.json')}
    assert 'coco' in cfg.train_dataloader.dataset.data_root  # which it leaves alone


@pytest.mark.parametrize(
    ('given', 'change', 'message'),
    [
        ('gone.json', None, r'/gone\.json: the annotation file does not exist'),
        ('train.txt', None, r'--train-data: the annotations \S+/train\.txt are not a \.json file'),
        ('{}', None, '--train-data: .* has no categories with names'),
        ('[]', None, '--train-data: .* has no categories with names'),
        ('{"categories": []}', None, '--train-data: .* has no categories with names'),
        (None, {'train_dataloader.dataset.type': 'VOCDataset'}, r'dataset\.type is VOCDataset, which does'),
        (None, {'train_dataloader.dataset': None}, r'--train-data: .* no train_dataloader\.dataset to be'),
    ],
)
def test_files_that_cannot_be_used_are_named(data, tmp_path, given, change, message):
    cfg = read_config(SHAPES, change)
    annotations, images = files(data, 'train')
    if given:
        annotations = str(tmp_path / given)
    if given and not given.endswith(('.json', '.txt')):
        annotations = str(tmp_path / 'made.json')
        Path(annotations).write_text(given)
    with pytest.raises((RunError, DataError), match=message):
        use_files(cfg, 'train', [annotations, images])
    with pytest.raises(RunError, match='--test-data: the folder of images /nowhere does not exist'):
        use_files(cfg, 'test', [files(data, 'val')[0], '/nowhere'])


def test_data_that_is_not_there_says_how_to_name_ones_own(tmp_path, capsys, no_training):
    options = {f'{half}_dataloader.dataset.data_root': 'nowhere/' for half in ('train', 'test')}
    assert train(tmp_path / 'run', options=options) == 2
    assert '--train-data ANNOTATIONS.json IMAGES' in error_of(capsys)
    assert not no_training and not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('config', 'heads'),
    [
        (SHAPES, ['model.roi_head.bbox_head.num_classes']),  # the mask head is class-agnostic
        (
            "_base_ = 'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py'",
            [
                *(f'model.roi_head.bbox_head.{stage}.num_classes' for stage in range(3)),
                'model.roi_head.mask_head.num_classes',
            ],
        ),
        ("_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'", ['model.bbox_head.num_classes']),
        ("_base_ = 'mmdet::solo/solo_r50_fpn_1x_coco.py'", ['model.mask_head.num_classes']),
    ],
)
@pytest.mark.parametrize('has_test', [True, False])
def test_heads_of_other_classes_are_refused_with_the_option_to_give(
    data, tmp_path, capsys, no_training, config, heads, has_test
):
    if isinstance(config, str):
        (tmp_path / 'config.py').write_text(config)
        config = tmp_path / 'config.py'
    flags = ['--train-data', *files(data, 'train')]
    options = {} if config != SHAPES else {'model.roi_head.bbox_head.num_classes': 80}
    none = ['test_dataloader', 'test_evaluator', 'test_cfg', 'val_dataloader', 'val_evaluator', 'val_cfg']
    if has_test:
        flags += ['--test-data', *files(data, 'val')]
    else:
        options |= dict.fromkeys(none, 'None')
    assert train(tmp_path / 'run', *flags, config=config, options=options) == 2
    error = error_of(capsys)
    assert f'{heads[0]} is 80, but 5 categories of {data}/' in error
    given = error.partition('give --cfg-options ')[2].split()
    assert given == [f'{head}=5' for head in heads]
    assert not no_training and not (tmp_path / 'run').exists()
    # What it says to give is what helps.
    options |= dict(option.split('=') for option in given)
    assert train(tmp_path / 'run', *flags, config=config, options=options) == 0
    assert len(no_training) == 1


def test_training_files_alone_must_have_the_classes_of_the_test(data, tmp_path, capsys, no_training):
    options = {'test_dataloader.dataset.data_root': f'{data}/', 'test_evaluator.ann_file': f'{data}/val.json'}
    options |= {'test_dataloader.dataset.ann_file': 'val.json'}
    options['test_dataloader.dataset.data_prefix.img'] = 'images_val/'
    annotations = json.loads((data / 'train.json').read_text())
    annotations['categories'].reverse()
    (tmp_path / 'train.json').write_text(json.dumps(annotations))
    flags = ['--train-data', str(tmp_path / 'train.json'), str(data / 'images_train')]
    assert train(tmp_path / 'run', *flags, options=options) == 2
    assert 'its classes are ellipse, triangle' in error_of(capsys)


@pytest.mark.parametrize('given', ['by_name', 'by_file.py'])
def test_a_module_with_types_of_ones_own(data, tmp_path, monkeypatch, given):
    """The saved config is read in a process that knows nothing of the module, as ``--cost`` does it."""
    name = given.removesuffix('.py')
    (tmp_path / f'{name}.py').write_text(MODULE.format(name=name))
    monkeypatch.chdir(tmp_path)
    config = tmp_path / 'config.py'
    config.write_text(f"""
_base_ = '{SHAPES}'
pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]
pipeline += [dict(type='TransformOf{name}'), dict(type='PackDetInputs')]
train_dataloader = dict(dataset=dict(type='DatasetOf{name}', pipeline=pipeline))
model = dict(roi_head=dict(bbox_roi_extractor=dict(type='RoIExtractorOf{name}')))
""")
    flags = ['--import', given, '--train-data', *files(data, 'train'), '--test-data', *files(data, 'val')]
    environment = os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT), 'CUDA_VISIBLE_DEVICES': ''}

    def python(*arguments):
        found = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert found.returncode == 0, found.stderr
        return found.stdout

    tool = ROOT / 'tools/mmdet/train.py'
    python(tool, config, '--work-dir', 'run', *flags, *as_options(FAST))
    cfg = Config.fromfile('run/config.py', import_custom_modules=False)
    if given == name:
        assert cfg.custom_imports.imports == ['roi_plugins.integrations.mmdet', name]
    else:
        assert cfg.imported_files == [str(tmp_path / given)]
    program = """
import torch
from pathlib import Path
from roi_plugins.integrations.inspection import read_extractors
from roi_plugins.integrations.mmdet.train_step import load_step
load_step('run/config.py', 'run/iter_1.pth', torch.device('cpu'))[1]()
print(list(read_extractors('run/config.py')))
"""
    assert 'roi_head.bbox_roi_extractor' in python('-c', program)
    # A test of the saved config needs no option at all.
    python(ROOT / 'tools/mmdet/test.py', 'run/config.py', 'run', '--work-dir', 'run')
    assert Path('run/metrics.json').exists()


def test_what_is_imported_is_in_the_config_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine_by_name.py').write_text('')
    (tmp_path / 'mine_by_file.py').write_text('')
    config = tmp_path / 'config.py'
    imports = ['mine_by_name', 'mine_by_file.py']
    config.write_text("custom_imports = dict(imports='json', allow_failed_imports=True)\n")
    cfg = read_config(config, imports=imports)
    assert cfg.custom_imports == {'imports': ['json', 'mine_by_name'], 'allow_failed_imports': True}
    cfg.dump(tmp_path / 'saved.py')
    again = read_config(tmp_path / 'saved.py', imports=imports)
    assert again.to_dict() == cfg.to_dict()
    assert again.imported_files == [str(tmp_path / 'mine_by_file.py')]
    (tmp_path / 'mine_by_file.py').unlink()
    sys.modules.pop('mine_by_file')
    with pytest.raises(RunError, match=r'^imported_files of the config .*mine_by_file\.py cannot be'):
        read_config(tmp_path / 'saved.py')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            {'train_dataloader.dataset.type': 'CocoDatset'},
            r'train_dataloader\.dataset\.type: CocoDatset is not registered as a dataset; '
            r'did you mean CocoDataset .*--import MODULE',
        ),
        (
            {'test_dataloader.dataset.pipeline.1.type': 'Rezise'},
            r'test_dataloader\.dataset\.pipeline\.1\.type: Rezise is not registered as a transform; '
            r'did you mean Resize\?.*--import MODULE',
        ),
        (
            {'model.roi_head.mask_roi_extractor.type': 'Mine'},
            r'mask_roi_extractor\.type: Mine is not registered as a model; There is .*AlignMaxRoIExtractor, ',
        ),
        (
            {'model.roi_head.mask_roi_extractor.type': 'AlignMeanRoIExtractor'},
            r'did you mean AlignMaxRoIExtractor .*There is .*SingleRoIExtractor.*custom_imports',
        ),
        ({'model.backbone.type': 'Zq'}, r'backbone\.type: Zq is not .*; none has a name like that\. A type'),
        ({'model.backbone.type': 'mmdet.ResNt'}, r'model\.backbone\.type: mmdet\.ResNt is .*ResNet'),
        ({'model.type': 'MaskRCN'}, r'model\.type: MaskRCN is not .*MaskRCNN'),
    ],
)
def test_an_unknown_type_is_one_line_before_the_training(
    data, tmp_path, capsys, no_training, options, message
):
    flags = ['--train-data', *files(data, 'train'), '--test-data', *files(data, 'val')]
    with pytest.raises(AssertionError, match=message):
        assert train(tmp_path / 'run', *flags, options=options) == 2
        raise AssertionError(error_of(capsys))
    assert not no_training and not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'model.roi_head.bbox_head.loss_cls.type': 'CrossEntropyLos'}, 'did you mean CrossEntropyLoss'),
        ({'default_hooks.timer.type': 'ItrTimerHook'}, 'did you mean IterTimerHook'),
        ({'model.rpn_head.anchor_generator.type': 'AnchrGenerator'}, 'did you mean AnchorGenerator'),
    ],
)
def test_an_unknown_type_inside_of_a_part_is_one_line_too(data, tmp_path, capsys, options, message):
    flags = ['--train-data', *files(data, 'train'), '--test-data', *files(data, 'val')]
    assert train(tmp_path / 'run', *flags, options={**FAST, **options}) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list((tmp_path / 'run').glob('*.pth'))
