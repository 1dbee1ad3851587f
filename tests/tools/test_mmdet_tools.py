"""Training and testing with MMDetection: a small real detector, a few steps, on the CPU."""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmcv.ops')

import mmcv.transforms
from mmdet.registry import TRANSFORMS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS, init_default_scope
from tracker_files import TRACKERS, offline, read_run

from roi_plugins.datasets.shapes import ShapesSpec, generate_shapes
from roi_plugins.evaluation.coco import METRICS, evaluate
from roi_plugins.integrations.errors import RunError
from roi_plugins.integrations.mmdet import command_line
from roi_plugins.integrations.mmdet.checkpoints import (
    AtomicLocalBackend,
    allow_mmengine_checkpoints,
    last_checkpoint,
)
from roi_plugins.integrations.mmdet.command_line import test_main as run_test_tool
from roi_plugins.integrations.mmdet.command_line import train_main
from roi_plugins.integrations.mmdet.runner import named_images
from roi_plugins.integrations.mmdet.test import test as run_test
from roi_plugins.integrations.mmdet.train import train
from roi_plugins.settings import differences, read_settings

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
_base_ = '{root}/configs/mmdet/shapes/mask-rcnn_r18-c4_shapes.py'
data_root = '{data}'
train_cfg = dict(max_iters=4)
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root))
test_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root))
test_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
val_cfg = val_dataloader = val_evaluator = None
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2, max_keep_ckpts=-1))
randomness = dict(seed=0)
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes')
    generate_shapes(root, ShapesSpec(num_train=8, num_val=5, image_size=64))
    return root


def write_config(folder, data):
    path = folder / 'stock.py'
    path.write_text(CONFIG.format(root=ROOT, data=f'{data}/'))
    return path


@pytest.fixture(scope='module')
def config(data, tmp_path_factory):
    return write_config(tmp_path_factory.mktemp('configs'), data)


@pytest.fixture(scope='module')
def trained(config, tmp_path_factory):
    """The work directory of a finished training of 4 steps, saved at 2 and 4; only to be read."""
    work_dir = tmp_path_factory.mktemp('trained')
    train(config, work_dir=work_dir)
    return work_dir


@pytest.mark.slow
def test_settings_are_those_of_the_training(config, trained, tmp_path):
    """With the swapped row and the options; those of a test in the same folder do not replace them."""
    shutil.copytree(trained, tmp_path / 'run')
    options = {'model.test_cfg.rcnn.score_thr': 0.5}
    run_test(config, tmp_path / 'run', work_dir=tmp_path / 'run', cfg_options=options)
    settings = read_settings(tmp_path / 'run')
    assert settings == read_settings(trained)
    assert settings['train_cfg.max_iters'] == 4
    assert settings.get('load_from') is None
    run_test(config, trained, work_dir=tmp_path / 'test', extractor='precise')
    found = {d.key: d.kind for d in differences(settings, read_settings(tmp_path / 'test'))}
    assert found.pop('work_dir') == 'place'
    assert found['model.roi_head.mask_roi_extractor.aligned'] == 'extractor'
    assert set(found.values()) == {'extractor'}


@pytest.mark.slow
@pytest.mark.parametrize('tracker', TRACKERS)
def test_losses_go_to_a_tracker_which_continues_a_resumed_run(
    config, trained, tmp_path, monkeypatch, tracker
):
    offline(monkeypatch, tmp_path)
    work_dir = tmp_path / 'work/trial'
    # In processes of their own: MMEngine keeps the first visualizer of a process for all of its trainings.
    command = [
        sys.executable,
        ROOT / 'tools/mmdet/train.py',
        config,
        '--work-dir',
        work_dir,
        '--track',
        tracker,
    ]
    subprocess.run(command, check=True)
    assert {d.kind for d in differences(read_settings(trained), read_settings(work_dir))} == {'place'}
    subprocess.run([*command, '--resume', '--cfg-options', 'train_cfg.max_iters=5'], check=True)
    logs = sorted(work_dir.glob('*/vis_data/scalars.json'))
    logged = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    assert [entry['step'] for entry in logged] == [1, 2, 3, 4, 5]
    run = read_run(tracker, work_dir)
    assert run.name == 'trial'
    assert len(run.ids) == 1
    for name in ('loss', 'loss_mask', 'lr'):
        assert run.scalars[name] == [(entry['step'], pytest.approx(entry[name])) for entry in logged]
    # Whoever builds the config that MMEngine saved needs to know where the backend comes from.
    saved = Config.fromfile(work_dir / 'stock.py')
    assert len(saved.visualizer.vis_backends) == 2
    run_test(work_dir / 'stock.py', work_dir, work_dir=tmp_path / 'test')


def losses(checkpoint):
    allow_mmengine_checkpoints()
    history = torch.load(checkpoint, weights_only=True)['message_hub']['log_scalars']['train/loss']
    return history.data[0].tolist()


@pytest.mark.slow
def test_resume_goes_on_from_a_checkpoint(config, trained, tmp_path):
    train(config, work_dir=tmp_path, resume=trained / 'iter_2.pth')
    assert last_checkpoint(tmp_path) == tmp_path / 'iter_4.pth'
    assert not (tmp_path / 'iter_2.pth').exists()
    # Not only of those before: the steps after the checkpoint are those of the undisturbed training.
    assert len(losses(tmp_path / 'iter_4.pth')) == 4
    assert losses(tmp_path / 'iter_4.pth') == losses(trained / 'iter_4.pth')

    # 'auto' finds the last one of the work directory: nothing is left to do, or more steps than before.
    before = sorted(tmp_path.rglob('*'))
    train(config, work_dir=tmp_path, resume='auto')
    assert sorted(tmp_path.rglob('*')) == before
    train(config, work_dir=tmp_path, resume='auto', cfg_options={'train_cfg.max_iters': 5})
    assert losses(tmp_path / 'iter_5.pth')[:4] == losses(tmp_path / 'iter_4.pth')


@pytest.mark.slow
def test_a_damaged_checkpoint_falls_back_to_the_one_before(config, trained, tmp_path, capsys):
    for name in ('iter_2.pth', 'iter_4.pth', 'last_checkpoint'):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    os.truncate(tmp_path / 'iter_4.pth', (tmp_path / 'iter_4.pth').stat().st_size // 2)
    assert run_test_tool([str(config), str(tmp_path), '--work-dir', str(tmp_path / 'test')]) == 2
    assert f'error: the checkpoint {tmp_path}/iter_4.pth is damaged' in capsys.readouterr().err

    train(config, work_dir=tmp_path, resume='auto')
    assert f'warning: the checkpoint {tmp_path}/iter_4.pth is damaged and left out' in capsys.readouterr().err
    assert losses(tmp_path / 'iter_4.pth') == losses(trained / 'iter_4.pth')

    for path in tmp_path.glob('iter_*.pth'):
        path.write_bytes(b'')
    with pytest.raises(RunError, match=r'all checkpoints to resume from are damaged: .*move them away'):
        train(config, work_dir=tmp_path, resume='auto')


@pytest.mark.slow
@pytest.mark.parametrize('size', [0, 40])
def test_an_unreadable_image_is_named(data, tmp_path, size):
    shutil.copytree(data, tmp_path / 'data')
    for path in (tmp_path / 'data/train').iterdir():
        path.write_bytes(path.read_bytes()[:size])
    config = write_config(tmp_path, tmp_path / 'data')
    with pytest.raises(OSError, match=r'the image \S+/data/train/\S+\.(png|jpg) cannot be read: '):
        train(config, work_dir=tmp_path / 'work')


class Subclass(mmcv.transforms.LoadImageFromFile):
    """As of a user."""


@pytest.mark.parametrize(
    'type_', ['LoadImageFromFile', 'mmcv.LoadImageFromFile', mmcv.transforms.LoadImageFromFile, Subclass]
)
def test_an_unreadable_image_is_named_whatever_reads_it_is_called(tmp_path, type_):
    init_default_scope('mmdet')
    load = TRANSFORMS.build({'type': type_})
    image = {'img_path': str(tmp_path / 'nowhere.png')}
    with named_images(), pytest.raises(OSError, match=r'the image \S+/nowhere\.png cannot be read: '):
        load(image)
    with pytest.raises(FileNotFoundError):  # MMCV's own, for other programs
        load(image)


def test_an_earlier_training_is_not_overwritten(config, trained):
    before = (trained / 'iter_4.pth').read_bytes()
    with pytest.raises(RunError, match=r'holds the checkpoint iter_4\.pth .*--resume'):
        train(config, work_dir=trained)
    assert (trained / 'iter_4.pth').read_bytes() == before


def test_the_last_checkpoint_is_found_where_mmengine_does_not_find_it(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for age, name in enumerate(['iter_900.pth', 'iter_1000.pth']):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (age, age))
    (tmp_path / 'best_coco_iter_500.pth').touch()
    # The folder was moved.
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/iter_900.pth')
    assert last_checkpoint(tmp_path) == tmp_path / 'iter_900.pth'
    # It was removed to make place for one that was never written.
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_1.pth'))
    assert last_checkpoint(tmp_path) == tmp_path / 'iter_1000.pth'
    (tmp_path / 'last_checkpoint').write_text('')
    assert last_checkpoint(tmp_path) == tmp_path / 'iter_1000.pth'


class Attack:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.slow
@pytest.mark.parametrize(
    'attack',
    [
        lambda file: Attack(os.system, f'touch {file}'),
        lambda file: Attack(exec, f'open({str(file)!r}, "w")'),
        lambda file: Attack(getattr, HistoryBuffer, '__init__'),
        lambda file: Attack(getattr, 'text', 'mean'),
    ],
    ids=['system', 'exec', 'getattr-name', 'getattr-owner'],
)
def test_a_checkpoint_that_runs_code_is_refused(config, trained, tmp_path, attack):
    allow_mmengine_checkpoints()
    checkpoint = torch.load(trained / 'iter_2.pth', weights_only=True)
    checkpoint['attack'] = attack(tmp_path / 'attacked')
    torch.save(checkpoint, tmp_path / 'bad.pth')
    with pytest.raises(RunError, match=r'bad\.pth was not loaded'):
        train(config, work_dir=tmp_path / 'work', resume=tmp_path / 'bad.pth')
    assert not (tmp_path / 'attacked').exists()


def test_checkpoints_are_atomic_write(trained, tmp_path):
    assert "backend='atomic_local'" in (trained / 'stock.py').read_text()
    backend = AtomicLocalBackend()
    backend.put(b'old', tmp_path / 'folder' / 'file')
    with pytest.raises(TypeError):
        backend.put('not bytes', tmp_path / 'folder' / 'file')
    assert [path.read_bytes() for path in (tmp_path / 'folder').iterdir()] == [b'old']


def test_test_leaves_predictions_and_metrics(config, trained, data, tmp_path, capsys):
    # A threshold this low keeps boxes of a detector that has learnt nothing.
    options = {'model.test_cfg.rcnn.score_thr': 0.001}
    found = run_test(config, trained, work_dir=tmp_path, cfg_options=options)
    written = json.loads((tmp_path / 'metrics.json').read_text())
    assert written == found
    assert written['framework'] == 'mmdet'
    assert written['config'] == str(config)
    assert written['checkpoint'] == str(trained / 'iter_4.pth')
    box = written['extractors']['roi_head.bbox_roi_extractor']
    stock = {'type': 'SingleRoIExtractor of RoIAlign', 'sampling_ratio': 0, 'aligned': True}
    assert box.items() >= {**stock, 'output_size': [7, 7], 'featmap_strides': [16]}.items()
    ann_file = data / 'annotations' / 'instances_val.json'
    assert Path(written['ann_file']) == ann_file
    images = {image['id'] for image in json.loads(ann_file.read_text())['images']}
    for iou_type in ('bbox', 'segm'):
        predictions = json.loads((tmp_path / f'predictions.{iou_type}.json').read_text())
        assert {prediction['image_id'] for prediction in predictions} == images
        expected = evaluate(ann_file, predictions, iou_type)
        assert written['metrics'][iou_type] == {metric: expected[metric] for metric in METRICS}
    assert not (tmp_path / 'predictions.partial').exists()

    # The same again is welcome; anything else must be asked for.
    run_test(config, trained / 'iter_4.pth', work_dir=tmp_path, cfg_options=options)
    before = {path: path.read_bytes() for path in tmp_path.glob('*.json')}
    names = ('metrics.json', 'settings.json', 'predictions.bbox.json', 'predictions.segm.json')
    assert before.keys() == {tmp_path / name for name in names}
    other = [str(config), str(trained / 'iter_2.pth'), '--work-dir', str(tmp_path)]
    assert run_test_tool(other) == 2
    error = capsys.readouterr().err
    assert f'{tmp_path} holds the result of another run' in error
    assert f'{trained / "iter_4.pth"}' in error
    assert '--overwrite' in error
    with pytest.raises(RunError, match='another run'):
        run_test(config, trained, work_dir=tmp_path)  # without the options
    assert {path: path.read_bytes() for path in tmp_path.glob('*.json')} == before
    assert run_test_tool([*other, '--overwrite']) == 0
    written = json.loads((tmp_path / 'metrics.json').read_text())
    assert written['checkpoint'] == str(trained / 'iter_2.pth')


def test_a_checkpoint_of_another_detector_is_not_tested(config, trained, tmp_path, capsys):
    """MMEngine would warn, and test a model that is random where they differ."""
    allow_mmengine_checkpoints()
    checkpoint = torch.load(trained / 'iter_4.pth', weights_only=True)
    weights = checkpoint['state_dict']
    del weights['rpn_head.rpn_cls.bias']
    weights['roi_head.other.weight'] = torch.zeros(1)
    weights['roi_head.bbox_head.fc_cls.bias'] = torch.zeros(81)
    torch.save(checkpoint, tmp_path / 'other.pth')
    work_dir = tmp_path / 'work'
    assert run_test_tool([str(config), str(tmp_path / 'other.pth'), '--work-dir', str(work_dir)]) == 2
    error = capsys.readouterr().err
    assert f'the checkpoint {tmp_path}/other.pth does not fit the config' in error
    assert 'it lacks rpn_head.rpn_cls.bias' in error
    assert 'the model does not have its roi_head.other.weight' in error
    assert 'of another shape are roi_head.bbox_head.fc_cls.bias' in error
    assert not (work_dir / 'metrics.json').exists()


def test_what_is_missing_is_named(config, trained, tmp_path, capsys):
    def error(main, *arguments):
        assert main([*map(str, arguments), '--work-dir', str(tmp_path / 'work')]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        return lines[0]

    assert 'the config none.py does not exist' in error(train_main, 'none.py')
    assert 'the checkpoint a.pth does not exist' in error(run_test_tool, config, 'a.pth')
    assert f'{tmp_path} holds no checkpoint' in error(run_test_tool, config, tmp_path)
    assert 'the checkpoint a.pth does not exist' in error(train_main, config, '--resume', 'a.pth')
    orphan = tmp_path / 'orphan.py'
    orphan.write_text("_base_ = 'parent.py'")
    assert f'the config {orphan} cannot be read' in error(train_main, orphan)
    orphan.write_text("custom_imports = dict(imports=['not_a_module'])")
    assert 'not_a_module' in error(train_main, orphan)
    moved = write_config(tmp_path, tmp_path / 'nowhere')
    for main, arguments in ((train_main, ()), (run_test_tool, (trained,))):
        message = error(main, moved, *arguments)
        assert f'{tmp_path}/nowhere/annotations/instances_' in message
        assert 'data_root=' in message
    assert not (tmp_path / 'work').exists()


without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason='is about CPU machines')


@without_gpu
def test_an_unknown_extractor_is_named_and_ours_are_listed(config, tmp_path):
    options = {'model.roi_head.bbox_roi_extractor.type': 'AlignMeanRoIExtractor'}
    with pytest.raises(RunError, match=r'(?s)AlignMeanRoIExtractor.*AlignMaxRoIExtractor.*custom_imports'):
        train(config, work_dir=tmp_path, cfg_options=options)


def test_what_needs_a_gpu_is_refused_without_one(config, tmp_path, monkeypatch):
    with pytest.raises(RunError, match='--amp'):
        train(config, work_dir=tmp_path, amp=True)
    with pytest.raises(RunError, match='--launcher slurm needs a GPU'):
        train(config, work_dir=tmp_path, launcher='slurm')
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(RunError, match='use torchrun'):
        train(config, work_dir=tmp_path, launcher='pytorch')


@pytest.mark.slow
@without_gpu
def test_two_processes_without_a_gpu(config, trained, tmp_path):
    """Run as a user does it: by path, from elsewhere, without the package installed.

    The training is over two machines, both this one.
    """
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    environment.pop('PYTHONPATH', None)

    def torchrun(agents, tool, *arguments):
        with socket.socket() as found:
            found.bind(('127.0.0.1', 0))
            address = f'127.0.0.1:{found.getsockname()[1]}'
        two_agents = ['--nnodes=2', '--rdzv_backend=c10d', f'--rdzv_endpoint={address}']
        command = [
            *(sys.executable, '-m', 'torch.distributed.run', f'--nproc_per_node={2 // agents}'),
            *(two_agents if agents == 2 else ['--standalone']),
            *(ROOT / 'tools' / 'mmdet' / tool, *arguments, '--launcher', 'pytorch'),
        ]
        with contextlib.ExitStack() as stack:
            started = []
            for _ in range(agents):
                started.append(subprocess.Popen(command, cwd=tmp_path, env=environment))
                stack.callback(started[-1].kill)
            assert [agent.wait(120) for agent in started] == [0] * agents

    torchrun(2, 'train.py', config, '--work-dir', 'run', '--cfg-options', 'train_cfg.max_iters=2')
    assert last_checkpoint(tmp_path / 'run') == tmp_path / 'run' / 'iter_2.pth'

    torchrun(1, 'test.py', config, trained / 'iter_4.pth', '--work-dir', 'test')
    two = json.loads((tmp_path / 'test' / 'metrics.json').read_text())
    one = run_test(config, trained / 'iter_4.pth', work_dir=tmp_path / 'one')
    assert two.keys() == one.keys()
    for iou_type in ('bbox', 'segm'):
        assert two['metrics'][iou_type] == pytest.approx(one['metrics'][iou_type], abs=1e-6)
        name = f'predictions.{iou_type}.json'
        assert sorted(map(place, json.loads((tmp_path / 'test' / name).read_text()))) == sorted(
            map(place, json.loads((tmp_path / 'one' / name).read_text()))
        )


def place(prediction):
    return prediction['image_id'], prediction['category_id'], round(prediction['score'], 4)


class Started(Exception):
    """The training got to its first step."""


@HOOKS.register_module()
class StopAtStart(Hook):
    """Stops before the first step, with a checksum of the weights and what the steps would see."""

    def before_train(self, runner):
        weights = hashlib.sha256()
        for name, value in runner.model.state_dict().items():
            weights.update(name.encode() + value.cpu().numpy().tobytes())
        batches = [next(runner.train_loop.dataloader_iterator) for _ in range(8)]
        images = [[(s.img_id, s.flip_direction) for s in b['data_samples']] for b in batches]
        raise Started(weights.hexdigest(), images)


@pytest.mark.slow
def test_extractors_with_one_seed_start_alike(data, tmp_path):
    def start(extractor, seed):
        with pytest.raises(Started) as started:
            train(
                write_config(tmp_path, data),
                extractor=extractor,
                work_dir=tmp_path / 'work',
                cfg_options={
                    'custom_hooks': [{'type': 'StopAtStart'}],
                    'randomness.seed': seed,
                    # As in real trainings: what the heads draw does not touch the augmentation.
                    'train_dataloader.num_workers': 1,
                },
            )
        return started.value.args

    weights, images = start('stock', 0)
    for extractor in ('quantized-pool', 'align-max', 'align-avg', 'adaptive'):
        assert start(extractor, 0) == (weights, images), extractor
    other_weights, other_images = start('stock', 1)
    assert other_weights != weights
    assert other_images != images


@pytest.mark.slow
@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('model = dict(', "cannot be read: '(' was never closed"),
        ("raise RuntimeError('in\\ntwo lines')", 'cannot be read: in two lines'),
        ('x = undefined', "cannot be read: name 'undefined' is not defined"),
        ('', 'has no '),
        ('model = 3', 'model is 3; expected a dict'),
        ("{base}\nmodel = dict(type='MaskRCN')", 'MaskRCN is not registered as a model; did you mean Mask'),
        ('{base}\nmodel = dict(no_part=1)', "unexpected keyword argument 'no_part'"),
        (
            "{base}\nmodel = dict(roi_head=dict(bbox_roi_extractor=dict(type='AlignMaxxRoIExtractor')))",
            'AlignMaxxRoIExtractor is not registered as a model; did you mean AlignMaxRoIExtractor or',
        ),
        (
            "{base}\nfor half in ('train', 'test'):\n"
            "    globals()[f'{{half}}_dataloader'] = dict(dataset=dict(pipeline=[dict(type='LoadImag')]))",
            'pipeline.0.type: LoadImag is not registered as a transform; did you mean LoadImageFrom',
        ),
    ],
)
@pytest.mark.parametrize('tool', ['train', 'test'])
def test_a_broken_config_is_one_line(config, trained, tmp_path, capsys, tool, text, message):
    path = tmp_path / 'broken.py'
    path.write_text(text.format(base=f"_base_ = '{config}'"))
    argv = [str(path), '--work-dir', str(tmp_path / 'work')]
    assert getattr(command_line, f'{tool}_main')(argv if tool == 'train' else [*argv, str(trained)]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert (str(path) in error or 'dataset' in error or error.startswith('error: model')) and message in error


@pytest.mark.parametrize('missing', ['train_cfg', 'optim_wrapper', 'train_dataloader', 'model'])
def test_what_a_training_needs_is_named(config, tmp_path, capsys, missing):
    path = tmp_path / 'less.py'
    path.write_text(f"_base_ = '{config}'\n{missing} = None\n")
    assert train_main([str(path), '--work-dir', str(tmp_path / 'work')]) == 2
    assert f'the config {path} has no {missing}, which a training needs' in capsys.readouterr().err


def test_a_config_without_hooks_trains(config, tmp_path):
    path = tmp_path / 'hookless.py'
    path.write_text(f"_base_ = '{config}'\ndefault_hooks = None\ntrain_cfg = dict(max_iters=1)\n")
    train(path, work_dir=tmp_path / 'work')
    assert last_checkpoint(tmp_path / 'work')


def test_an_option_without_a_value_is_named(config, capsys):
    with pytest.raises(SystemExit, match='2'):
        train_main([str(config), '--cfg-options', 'train_cfg.max_iters'])
    assert "--cfg-options: 'train_cfg.max_iters' is not of the form KEY=VALUE" in capsys.readouterr().err
