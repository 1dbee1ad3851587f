"""What keeps a Detectron2 run from its end is said before it starts, in one line."""

import json
import os
import re
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import detectron2_options
import pytest
import torch

pytest.importorskip('detectron2', reason='Detectron2 is not installed')

from detectron2 import model_zoo
from detectron2.data import DatasetCatalog, MetadataCatalog

from roi_plugins.datasets.shapes import ShapesSpec, generate_shapes
from roi_plugins.integrations import output
from roi_plugins.integrations.detectron2.command_line import main
from roi_plugins.integrations.detectron2.datasets import register_shapes

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools/detectron2/train_net.py'
YAML = ROOT / 'configs/detectron2/shapes/mask-rcnn_r50w16-c4_shapes.yaml'
LAZY = ROOT / 'configs/detectron2/shapes/mask-rcnn_r18-c4_shapes.py'
KEYPOINT_LAZY = ROOT / 'configs/detectron2/shapes/keypoint-rcnn_r18-c4_trunk_shapes.py'
KEYPOINTS = {
    'MODEL.KEYPOINT_ON': True,
    'MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS': 4,
    'MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS': '[8]',
    'TEST.KEYPOINT_OKS_SIGMAS': '[0.05, 0.05, 0.05, 0.05]',
}
ALIGN_MAX = {f'MODEL.ROI_{head}_HEAD.POOLER_TYPE': 'AlignMax' for head in ('BOX', 'MASK')}
OPTIONS = {'SOLVER.MAX_ITER': 2, **detectron2_options.YAML_OPTIONS}
LAZY_OPTIONS = {'train.max_iter': 2, 'train.seed': 0, **detectron2_options.LAZY_OPTIONS}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes')
    generate_shapes(root, ShapesSpec(num_train=4, num_val=3, image_size=64))
    register_shapes(str(root))
    return root


@pytest.fixture(autouse=True)
def no_loggers():
    detectron2_options.forget_loggers()


def yaml_run(output_dir, *flags, **changes):
    options = {**OPTIONS, 'OUTPUT_DIR': output_dir, **changes}
    pairs = [str(part) for pair in options.items() for part in pair]
    return ['--config-file', str(YAML), *map(str, flags), *pairs]


def lazy_run(output_dir, *flags, config=LAZY, **changes):
    options = {**LAZY_OPTIONS, 'train.output_dir': f'"{output_dir}"', **changes}
    return ['--config-file', str(config), *map(str, flags), *(f'{k}={v}' for k, v in options.items())]


@pytest.fixture
def refused(data, tmp_path, capfd):
    """Runs a command line that is to be refused before anything is written; returns what it says."""

    def run(argv):
        assert main(argv) == 2
        error = capfd.readouterr().err
        assert error.startswith('error: ') and 'Traceback' not in error
        assert len(error.splitlines()) == 1
        assert not (tmp_path / 'out').exists()
        return error

    return run


@pytest.fixture
def own(data, tmp_path):
    """Makes COCO files of one's own, the two options that name them."""

    def make(half='train', change=lambda found: None, images=None):
        split = {'train': 'train', 'test': 'val'}[half]
        found = json.loads((data / f'annotations/instances_{split}.json').read_text())
        change(found)
        path = tmp_path / f'own_{half}.json'
        path.write_text(json.dumps(found))
        return f'--{half}-data', str(path), str(images or data / split)

    return make


def keep_classes(number):
    def change(found):
        found['categories'] = found['categories'][:number]
        kept = {category['id'] for category in found['categories']}
        found['annotations'] = [a for a in found['annotations'] if a['category_id'] in kept]

    return change


# ------------------------------------------------------------------------ data


@pytest.mark.parametrize('half', ['train', 'test'])
@pytest.mark.parametrize('language', ['yaml', 'lazy'])
def test_a_dataset_that_is_not_registered(refused, tmp_path, language, half):
    if language == 'yaml':
        setting = f'DATASETS.{half.upper()}'
        argv = yaml_run(tmp_path / 'out', **{setting: "('shapes_trian',)"})
    else:
        setting = f'dataloader.{half}.dataset.names'
        argv = lazy_run(tmp_path / 'out', **{setting: 'shapes_trian'})
    error = refused(argv)
    assert f"{setting}: the dataset 'shapes_trian' is not registered; did you mean shapes_train" in error
    assert 'coco_2017_train' in error and 'There is' in error
    assert f'--{half}-data ANNOTATIONS.json IMAGES' in error and '--import MODULE' in error


@pytest.mark.parametrize('half', ['train', 'test'])
def test_files_that_are_not_there(refused, tmp_path, data, half):
    files = [f'--{half}-data', str(tmp_path / 'none.json'), str(data)]
    assert f'{tmp_path}/none.json does not exist' in refused(yaml_run(tmp_path / 'out', *files))


@pytest.mark.parametrize(
    ('half', 'change', 'message'),
    [
        ('train', lambda found: found.update(images=[], annotations=[]), 'is empty: it has no images'),
        ('test', lambda found: found.update(images=[], annotations=[]), 'has no images'),
        ('test', lambda found: found.update(annotations=[]), 'no image has an object to find'),
        ('train', lambda found: found.update(annotations=[]), 'has 4 images, but no object to train on'),
        ('train', lambda found: found.pop('categories'), 'KeyError: categories'),
        ('test', lambda found: found.pop('categories'), 'not COCO annotations'),
        ('train', lambda found: found['annotations'][0].pop('segmentation'), 'no segmentation for 1 of'),
        ('train', lambda found: found['images'][1].update(file_name='no.jpg'), '1 of the 4 images of'),
        ('test', lambda found: found['images'][1].update(file_name='no.jpg'), '1 of the 3 images of'),
        ('test', lambda found: found['annotations'][0].update(category_id=77), 'category_id 77'),
        ('test', lambda found: found['annotations'][0].pop('segmentation'), 'has the segmentation None'),
        ('test', lambda found: found['annotations'][0].pop('area'), 'annotations[0] lacks area'),
        ('train', lambda found: found['annotations'][0].update(category_id=77), 'category_id=77'),
    ],
)
def test_data_that_cannot_be_used(refused, own, tmp_path, half, change, message):
    error = refused(yaml_run(tmp_path / 'out', *own(half, change)))
    assert message in error and f'own_{half}.json' in error


def test_a_folder_of_images_that_is_not_there(refused, own, tmp_path):
    error = refused(yaml_run(tmp_path / 'out', *own(images=tmp_path / 'none')))
    assert '4 of the 4 images of' in error and f'{tmp_path}/none/' in error


@pytest.mark.parametrize('given', [1, 80])
@pytest.mark.parametrize('language', ['yaml', 'lazy'])
def test_a_number_of_classes_that_is_not_the_datas(refused, own, tmp_path, language, given):
    files = [*own('train', keep_classes(2)), *own('test', keep_classes(2))]
    if language == 'yaml':
        setting = 'MODEL.ROI_HEADS.NUM_CLASSES'
        argv = yaml_run(tmp_path / 'out', *files, **{setting: given})
    else:
        setting = 'model.roi_heads.num_classes'
        argv = lazy_run(tmp_path / 'out', *files, **{setting: given})
    error = refused(argv)
    assert f'{setting}: got {given}, but the dataset' in error and 'has 2 classes' in error


@pytest.mark.parametrize('language', ['yaml', 'lazy'])
def test_classes_of_a_detector_without_roi_heads(refused, own, tmp_path, language):
    # The zoo's YAML evaluates Python, which is not read here.
    config = tmp_path / 'retinanet.yaml'
    config.write_text(
        'MODEL:\n'
        '  META_ARCHITECTURE: RetinaNet\n'
        '  BACKBONE: {NAME: build_retinanet_resnet_fpn_backbone}\n'
        '  RESNETS: {OUT_FEATURES: [res3, res4, res5]}\n'
        '  FPN: {IN_FEATURES: [res3, res4, res5]}\n'
        '  ANCHOR_GENERATOR: {SIZES: [[32], [64], [128], [256], [512]]}\n'
        f'OUTPUT_DIR: {tmp_path}/out\n'
    )
    options = []
    if language == 'lazy':
        config = model_zoo.get_config_file('COCO-Detection/retinanet_R_50_FPN_1x.py')
        options = [f'train.output_dir="{tmp_path}/out"', 'train.init_checkpoint=""']
    argv = [*own('train'), *own('test'), '--config-file', str(config), *options]
    setting = 'MODEL.RETINANET.NUM_CLASSES' if language == 'yaml' else 'model.num_classes'
    assert f'{setting}: got 80, but the dataset' in refused(argv)


@pytest.mark.parametrize('language', ['yaml', 'lazy'])
def test_keypoints_without_their_sigmas(refused, tmp_path, language):
    if language == 'yaml':
        argv = yaml_run(tmp_path / 'out', **{**KEYPOINTS, 'TEST.KEYPOINT_OKS_SIGMAS': '[]'})
        where = 'MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is 4', 'TEST.KEYPOINT_OKS_SIGMAS'
    else:
        options = [f'train.output_dir="{tmp_path}/out"', 'dataloader.evaluator.kpt_oks_sigmas=[]']
        argv = ['--config-file', str(KEYPOINT_LAZY), *options]
        where = 'model.roi_heads.keypoint_head.num_keypoints is 4', 'dataloader.evaluator.kpt_oks_sigmas'
    assert f'{where[0]}, but there are 17 OKS sigmas: set {where[1]} to one for each' in refused(argv)


def test_keypoints_that_the_data_does_not_have(refused, own, tmp_path):
    def drop(found):
        for annotation in found['annotations']:
            del annotation['keypoints'], annotation['num_keypoints']

    def double(found):
        for annotation in found['annotations']:
            annotation['keypoints'] *= 2

    argv = yaml_run(tmp_path / 'out', **KEYPOINTS)
    assert 'has no keypoints, which the keypoint head is' in refused([*own('train', drop), *argv])
    assert 'has 8 keypoints an object, and the keypoint head is for 4' in refused(
        [*own('train', double), *argv]
    )
    assert 'has no keypoint_names' in refused([*own('train'), *argv])
    assert 'annotation 1 has num_keypoints None' in refused([*own('test', drop), *argv])


def test_classes_in_another_order(refused, own, tmp_path):
    def turn(found):
        names = [category['name'] for category in found['categories']]
        for category, name in zip(found['categories'], names[1:] + names[:1], strict=True):
            category['name'] = name

    error = refused(yaml_run(tmp_path / 'out', *own('train', turn)))
    assert 'number their classes differently' in error


def test_training_sets_of_other_classes(refused, own, tmp_path, data):
    def rename(found):
        found['categories'][0]['name'] = 'other'

    _, annotations, images = own('train', rename)
    names = f"('shapes_train', '{annotations}@{images}')"
    error = refused(yaml_run(tmp_path / 'out', **{'DATASETS.TRAIN': names}))
    assert error.startswith('error: DATASETS.TRAIN: ') and 'and shapes_train have different names' in error


def test_lazy_predictor_of_other_classes(refused, tmp_path):
    error = refused(lazy_run(tmp_path / 'out', **{'model.roi_heads.box_predictor.num_classes': 7}))
    assert 'got 7' in error and 'has 5 classes' in error


@pytest.mark.parametrize('language', ['yaml', 'lazy'])
def test_trains_on_coco_files_of_ones_own(own, tmp_path, language):
    files = [*own('train', keep_classes(2)), *own('test', keep_classes(2))]
    if language == 'yaml':
        argv = yaml_run(tmp_path / 'out', *files, **{'MODEL.ROI_HEADS.NUM_CLASSES': 2})
    else:
        argv = lazy_run(tmp_path / 'out', *files, **{'model.roi_heads.num_classes': 2})
    assert main(argv) == 0
    written = json.loads((tmp_path / 'out/metrics.json').read_text())
    assert written['ann_file'] == str(tmp_path / 'own_test.json')
    assert ' '.join(files) in ' '.join(written['command'])
    # Another half of the data is another result.
    other = [*files[:3], '--test-data', str(tmp_path / 'own_train.json'), str(tmp_path)]
    assert main([*argv[:2], '--resume', *other, *argv[8:]]) == 2


@pytest.mark.slow
def test_a_module_that_registers_data_reaches_every_process(data, tmp_path):
    module = tmp_path / 'data_of_the_test.py'
    module.write_text(
        'from detectron2.data.datasets import register_coco_instances\n'
        f'annotations = {str(data / "annotations/instances_val.json")!r}\n'
        f"register_coco_instances('of_the_test', {{}}, annotations, {str(data / 'val')!r})\n"
    )
    options = {'DATASETS.TEST': "('of_the_test',)", 'SOLVER.MAX_ITER': 1}
    argv = yaml_run(tmp_path / 'out', '--num-gpus', 2, '--import', 'data_of_the_test', **options)
    environment = {'ROI_PLUGINS_SHAPES': str(data), 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'}
    subprocess.run([sys.executable, TOOL, *argv], cwd=tmp_path, env=os.environ | environment, check=True)
    command = json.loads((tmp_path / 'out/metrics.json').read_text())['command']
    assert command[command.index('--import') + 1] == 'data_of_the_test'


# --------------------------------------------------------------- model, options


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'MODEL.ROI_BOX_HEAD.POOLER_TYPE': 'AlignMin'},
            "MODEL.ROI_BOX_HEAD.POOLER_TYPE: got 'AlignMin', expected one of",
        ),
        ({'MODEL.ROI_HEADS.NAME': 'StandardRoIHeads'}, "got 'StandardRoIHeads'; did you mean"),
        ({'MODEL.ROI_BOX_HEAD.NAME': 'FastHead'}, "No object named 'FastHead'"),
        (
            {
                'MODEL.ROI_HEADS.NAME': 'StandardROIHeads',
                'MODEL.ROI_BOX_HEAD.POOLER_TYPE': 'ROIAlignV2',
                'MODEL.ROI_MASK_HEAD.POOLER_TYPE': 'ROIAlignV2',
                'MODEL.ROI_BOX_HEAD.POOLER_OPTIONS.ALIGNED': 'False',
            },
            'POOLER_OPTIONS.ALIGNED: MODEL.ROI_HEADS.NAME StandardROIHeads does not read it; '
            'a type of this package would, such as MODEL.ROI_BOX_HEAD.POOLER_TYPE AlignMax',
        ),
        (
            {
                'MODEL.ROI_HEADS.NAME': 'RoIPluginsRes5ROIHeads',
                'MODEL.ROI_MASK_HEAD.POOLER_OPTIONS.ALIGNED': 'False',
            },
            'ALIGNED: RoIPluginsRes5ROIHeads does not read it; its pooler reads MODEL.ROI_BOX_HEAD',
        ),
        ({'MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO': 0.5}, 'POOLER_SAMPLING_RATIO'),
        ({'MODEL.WEIGHTS': 'none.pth'}, 'MODEL.WEIGHTS: none.pth does not exist'),
        ({'SOLVER.MAX_ITER': 0}, 'SOLVER.MAX_ITER: got 0'),
        ({'SOLVER.IMS_PER_BATCH': 0}, 'SOLVER.IMS_PER_BATCH: got 0'),
        (
            {'SOLVER.LR_SCHEDULER_NAME': 'CosineLR'},
            "the config's schedule cannot be built: Unknown LR scheduler",
        ),
        (
            {'MODEL.LOAD_PROPOSALS': 'True', 'DATASETS.PROPOSAL_FILES_TRAIN': "('none.pkl',)"},
            'DATASETS.PROPOSAL_FILES_TRAIN: none.pkl does not exist',
        ),
        ({'DATASETS.TRAIN': '()'}, 'DATASETS.TRAIN: got none'),
    ],
)
def test_a_config_that_makes_no_run(refused, tmp_path, changes, message):
    assert message in refused(yaml_run(tmp_path / 'out', **{**ALIGN_MAX, **changes}))


def test_options_of_a_head_that_is_off(data, tmp_path):
    """As its other options, they may be inherited."""
    changes = {'MODEL.MASK_ON': False, 'MODEL.ROI_MASK_HEAD.POOLER_OPTIONS.ALIGNED': True}
    assert main(yaml_run(tmp_path / 'out', **{**ALIGN_MAX, **changes})) == 0


def lazy_config(tmp_path, *lines):
    path = tmp_path / 'config.py'
    text = f'from detectron2.config import LazyConfig\n_base = LazyConfig.load({str(LAZY)!r})\n'
    names = ('model', 'dataloader', 'optimizer', 'lr_multiplier', 'train')
    path.write_text(text + ''.join(f'{name} = _base.{name}\n' for name in names) + '\n'.join(lines) + '\n')
    return path


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('del train', 'the LazyConfig has no train.output_dir'),
        ('del train.max_iter', 'has no train.max_iter'),
        ('del model', 'has no model'),
        ('del optimizer', 'has no optimizer, which a training needs'),
        ('optimizer.learning_rate = 3', "the config's optimiser cannot be built: .*'learning_rate'"),
        ('dataloader.train.total_batch_size = 3', 'total_batch_size: got 3, expected a multiple of the 2'),
        ('del dataloader.train', 'has no dataloader.train, which a training needs'),
        ('del dataloader.test', r'dataloader\.test\.dataset\.names: got \[\]'),
        ("model.roi_heads.box_pooler.pooler_type = 'AlignMin'", "got 'AlignMin', expected one of"),
        ("model.roi_heads._target_ = 'detectron2.Heads'", "the config's model cannot be built: .*Heads"),
        ('model.roi_heads.nms = 3', "the config's model cannot be built: .*'nms'"),
    ],
)
def test_a_lazy_config_that_makes_no_run(data, tmp_path, capfd, line, message):
    assert main(['--config-file', str(lazy_config(tmp_path, line)), '--num-gpus', '2']) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith('error: ') and re.search(message, error)


@pytest.mark.parametrize('flags', [[], ['--eval-only']])
def test_weights_that_the_network_does_not_give(data, tmp_path, capfd, flags):
    url = 'http://127.0.0.1:9/weights_that_are_nowhere.pth'
    assert main(yaml_run(tmp_path / 'out', *flags, **{'MODEL.WEIGHTS': url})) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith(f'error: the checkpoint {url} cannot be read: ')


def test_options_in_the_wrong_place(tmp_path, capfd):
    with pytest.raises(SystemExit, match='2'):
        main([*yaml_run(tmp_path / 'out'), '--import', 'module'])
    assert '--import has to stand before the options of the config' in capfd.readouterr().err


@pytest.mark.slow
def test_what_a_process_of_several_says_is_no_traceback(data, tmp_path):
    torch.save({'model': {}}, tmp_path / 'other.pth')
    argv = yaml_run(
        tmp_path / 'out', '--eval-only', '--num-gpus', 2, **{'MODEL.WEIGHTS': tmp_path / 'other.pth'}
    )
    environment = {'ROI_PLUGINS_SHAPES': str(data), 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        [sys.executable, TOOL, *argv], env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert 'error: --eval-only: the checkpoint' in done.stderr and 'Traceback' not in done.stderr


# ------------------------------------------------------------ folder and disk


def test_an_output_folder_that_cannot_be(refused, tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    assert 'file is not a folder' in refused(yaml_run(tmp_path / 'file/out'))
    # The tests may run as root, whom no permission stops.
    monkeypatch.setattr(output.os, 'access', lambda path, mode: False)
    assert f'OUTPUT_DIR: {tmp_path} cannot be written to' in refused(yaml_run(tmp_path / 'out'))


@pytest.mark.parametrize('language', ['yaml', 'lazy'])
def test_a_disk_that_checkpoints_would_fill(refused, data, tmp_path, monkeypatch, language):
    usage = namedtuple('usage', 'free')
    monkeypatch.setattr(output.shutil, 'disk_usage', lambda path: usage(300_000_000))
    if language == 'yaml':
        argv = yaml_run(tmp_path / 'out', **{'SOLVER.CHECKPOINT_PERIOD': 1, 'SOLVER.MAX_ITER': 90})
        assert 'OUTPUT_DIR: 91 checkpoints of about 0.0' in (error := refused(argv))
        assert 'save fewer: SOLVER.CHECKPOINT_PERIOD' in error and '0.30 GB free' in error
    else:
        options = {'train.checkpointer.period': 1, 'train.checkpointer.max_to_keep': 70, 'train.max_iter': 90}
        argv = lazy_run(tmp_path / 'out', **options)
        assert 'train.output_dir: 72 checkpoints of about 0.0' in refused(argv)


def test_the_size_of_a_checkpoint(data, tmp_path):
    from roi_plugins.integrations.detectron2.arguments import parse_arguments
    from roi_plugins.integrations.detectron2.config import read_config
    from roi_plugins.integrations.detectron2.describe import describe

    for argv in (yaml_run(tmp_path / 'yaml'), lazy_run(tmp_path / 'lazy')):
        args = parse_arguments(argv)
        run = describe(read_config(args.config_file, args.opts), 'cpu')
        model = run.model()
        expected = output.checkpoint_bytes(model, run.optimizer(model))
        assert main(argv) == 0
        size = (run.output_dir / 'model_final.pth').stat().st_size
        assert 0.97 * size < expected < 1.03 * size


# ----------------------------------------------------------------- evaluation


def test_a_dataset_of_other_rules(refused, data, tmp_path):
    name = 'other_rules'
    DatasetCatalog.register(name, list)
    files = {'json_file': str(data / 'annotations/instances_val.json'), 'evaluator_type': 'lvis'}
    MetadataCatalog.get(name).set(**files)
    try:
        error = refused(yaml_run(tmp_path / 'out', **{'DATASETS.TEST': f"('{name}',)"}))
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert 'DATASETS.TEST: other_rules is evaluated by the rules of lvis' in error


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'TEST.AUG.ENABLED': True}, 'TEST.AUG.ENABLED is True'),
        ({'TEST.PRECISE_BN.ENABLED': True}, 'TEST.PRECISE_BN.ENABLED is True'),
        ({'TEST.EXPECTED_RESULTS': "[['bbox', 'AP', 1, 1]]"}, 'TEST.EXPECTED_RESULTS'),
        ({'SOLVER.REFERENCE_WORLD_SIZE': 8}, 'SOLVER.REFERENCE_WORLD_SIZE is 8 and there are 1'),
        ({'DATASETS.TEST': "('shapes_val', 'shapes_train')"}, "DATASETS.TEST: got ['shapes_val', 'shapes_"),
        ({'MODEL.META_ARCHITECTURE': 'ProposalNetwork'}, 'ProposalNetwork, which predicts no objects'),
    ],
)
def test_what_detectron2_would_evaluate_otherwise(refused, tmp_path, changes, message):
    assert message in refused(yaml_run(tmp_path / 'out', **changes))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'dataloader.evaluator.max_dets_per_image': 5}, 'max_dets_per_image is 5; expected a number of'),
        ({'dataloader.evaluator.dataset_name': 'shapes_train'}, 'dataset_name is shapes_train'),
        ({'dataloader.evaluator._target_': 'detectron2.evaluation.LVISEvaluator'}, 'LVISEvaluator'),
        ({'dataloader.test.dataset.names': '[shapes_val,shapes_train]'}, 'dataset.names: got ['),
    ],
)
def test_what_a_lazy_evaluator_would_do_otherwise(refused, tmp_path, changes, message):
    assert message in refused(lazy_run(tmp_path / 'out', **changes))


@pytest.mark.parametrize('language', ['yaml', 'lazy'])
def test_more_detections_than_the_model_gives(refused, tmp_path, language):
    make = yaml_run if language == 'yaml' else lazy_run
    where = {
        'yaml': 'TEST.DETECTIONS_PER_IMAGE',
        'lazy': "test_topk_per_image of the model's FastRCNNOutputLayers",
    }
    error = refused(['--max-dets', '300', *make(tmp_path / 'out')])
    message = '--max-dets is 300, but the model gives at most 20 detections an image: set '
    assert message + where[language] in error


# ------------------------------------------------------------------------ broken configs

LAZY_START = (
    f'from detectron2.config import LazyConfig\n_base = LazyConfig.load({str(LAZY)!r})\n'
    'globals().update({name: _base[name] for name in _base})\n'
)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a: [1', 'cannot be read: while parsing a flow sequence'),
        ('just words', "is 'just words'; expected settings, KEY: VALUE"),
        ('- 1', 'is [1]; expected settings'),
        ('', 'is None; expected settings'),
        ('_BASE_: broken.yaml', 'cannot be read: maximum recursion depth exceeded'),
        ('SOLVER: {MAX_ITER: many}', 'config key: SOLVER.MAX_ITER'),
        ('MODEL: {ROI_HEADS: {NAME: Nope}}', "MODEL.ROI_HEADS.NAME: got 'Nope'"),
        ('MODEL: {ROI_BOX_HEAD: {POOLER_TYPE: AlignMaxx}}', 'type: AlignMaxx; did you mean AlignMax?'),
        (
            'MODEL: {ROI_HEADS: {NAME: RoIPluginsStandardROIHeads}, ROI_BOX_HEAD: {POOLER_TYPE: AlignMaxx}}',
            "got 'AlignMaxx', expected one of ",
        ),
    ],
)
def test_a_broken_yaml(refused, tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    base = '' if text.startswith(('a', 'j', '-', '_')) or not text else f'_BASE_: {YAML}\n'
    (tmp_path / 'broken.yaml').write_text(base + text)
    error = refused(['--config-file', 'broken.yaml', 'OUTPUT_DIR', 'out'])
    assert message in error


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('model = (', 'has syntax error'),
        ("raise RuntimeError('in\\ntwo lines')", 'cannot be read: in two lines'),
        ('x = undefined', "cannot be read: name 'undefined' is not defined"),
        ('', 'the LazyConfig has no model'),
        ('del train', 'the LazyConfig has no train.output_dir'),
        ('train = None', 'the LazyConfig has no train.output_dir'),
        ("train.max_iter = 'many'", "train.max_iter is 'many'; expected a whole number"),
        ("train.max_iter = '${nowhere}'", "Interpolation key 'nowhere' not found"),
        ('dataloader.train.dataset.names = 3', 'dataloader.train.dataset.names is 3; expected names'),
        ("model.roi_heads.box_pooler.pooler_type = 'AlignMaxx'", "got 'AlignMaxx', expected one of"),
    ],
)
def test_a_broken_lazy_config(refused, tmp_path, text, message):
    start = LAZY_START + f'train.output_dir = {str(tmp_path / "out")!r}\n' if text else ''
    (tmp_path / 'broken.py').write_text(start + text)
    lines = refused(['--config-file', str(tmp_path / 'broken.py')])
    assert message in lines


def test_a_sampler_that_does_not_exist(data, tmp_path, capfd):
    assert main(yaml_run(tmp_path / 'out', **{'DATALOADER.SAMPLER_TRAIN': 'Nope'})) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    cause = 'Unknown training sampler: Nope'
    assert error == f"error: the config's loader of the training data cannot be built: {cause}"
