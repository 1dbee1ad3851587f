"""Training and evaluation with Detectron2: a small real detector, a few steps, on the CPU."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import detectron2_options
import pytest
import torch
from tracker_files import TRACKERS, offline, read_run

pytest.importorskip('detectron2', reason='Detectron2 is not installed')

from roi_plugins.datasets.shapes import ShapesSpec, generate_shapes
from roi_plugins.evaluation.coco import METRICS, evaluate
from roi_plugins.integrations.base import Inputs
from roi_plugins.integrations.detectron2.command_line import main
from roi_plugins.integrations.detectron2.config import read_config
from roi_plugins.integrations.detectron2.datasets import register_shapes
from roi_plugins.integrations.detectron2.describe import describe
from roi_plugins.integrations.registry import FRAMEWORKS
from roi_plugins.integrations.zoo import find_config
from roi_plugins.settings import differences, read_settings

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ROOT / 'configs/detectron2/shapes'
YAML = SHAPES / 'mask-rcnn_r50w16-c4_shapes.yaml'
LAZY_SHAPES = SHAPES / 'mask-rcnn_r18-c4_shapes.py'
LAZY = find_config('COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py')
COCO = 'ROI_PLUGINS_TINY_COCO'
OPTIONS = {
    'SOLVER.MAX_ITER': 4,
    'SOLVER.CHECKPOINT_PERIOD': 2,
    'TEST.DETECTIONS_PER_IMAGE': 5,
    **detectron2_options.YAML_OPTIONS,
}
LAZY_OPTIONS = {
    'train.max_iter': 4,
    'train.checkpointer.period': 2,
    'model.roi_heads.box_predictor.test_topk_per_image': 5,
    **detectron2_options.LAZY_OPTIONS,
}


def arguments(output_dir, extractor='stock', *flags, **changes):
    options = {**OPTIONS, 'OUTPUT_DIR': output_dir, **changes}
    pairs = [str(part) for pair in options.items() for part in pair]
    return ['--config-file', str(YAML), '--extractor', extractor, *flags, *pairs]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes')
    generate_shapes(root, ShapesSpec(num_train=8, num_val=5, image_size=64))
    register_shapes(str(root))
    return root


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    """The folder of a finished run of 4 steps, saved at 2 and 4; only to be read."""
    output_dir = tmp_path_factory.mktemp('trained')
    assert main(arguments(output_dir)) == 0
    return output_dir


def steps(output_dir):
    return [json.loads(line) for line in (output_dir / 'training.json').read_text().splitlines()]


def weights(checkpoint):
    return torch.load(checkpoint, weights_only=True)['model']


def test_leaves_a_finished_run(trained, data):
    written = json.loads((trained / 'metrics.json').read_text())
    assert written['framework'] == 'detectron2'
    assert written['checkpoint'] == str(trained / 'model_final.pth')
    assert any('detectron2' in name for name in written['versions'])
    box = written['extractors']['roi_heads.box_pooler']
    assert box.items() >= {'type': 'ROIPooler of ROIAlign', 'sampling_ratio': 0, 'aligned': True}.items()
    settings = read_settings(trained)
    assert settings['SOLVER.MAX_ITER'] == 4
    assert settings['MODEL.ROI_BOX_HEAD.POOLER_TYPE'] == 'ROIAlignV2'
    assert written['metrics'].keys() == written['predictions'].keys() == {'bbox', 'segm'}
    for iou_type, name in written['predictions'].items():
        predictions = json.loads((trained / name).read_text())
        assert len({p['image_id'] for p in predictions}) == 5
        found = evaluate(data / 'annotations/instances_val.json', predictions, iou_type)
        assert {metric: found[metric] for metric in METRICS} == written['metrics'][iou_type]
    (last,) = steps(trained)
    assert all(last[name] > 0 for name in ('loss_cls', 'loss_box_reg', 'loss_mask'))
    assert math.isfinite(last['total_loss'])


@pytest.mark.slow
@pytest.mark.parametrize('tracker', TRACKERS)
def test_losses_go_to_a_tracker(trained, tmp_path, monkeypatch, capsys, tracker):
    offline(monkeypatch, tmp_path)
    output_dir = tmp_path / 'work/trial'
    assert main(arguments(output_dir, 'stock', '--track', tracker)) == 0
    assert {d.kind for d in differences(read_settings(trained), read_settings(output_dir))} == {'place'}
    assert '--track' not in json.loads((output_dir / 'metrics.json').read_text())['command']
    (last,) = steps(output_dir)
    run = read_run(tracker, output_dir)
    assert run.name == 'trial'
    assert len(run.ids) == 1
    for name in ('total_loss', 'loss_mask', 'lr'):
        assert run.scalars[name] == [(last['iteration'], pytest.approx(last[name]))]
    assert main(arguments(tmp_path / 'out', 'stock', '--eval-only', '--track', tracker)) == 2
    assert '--track is for a training, but --eval-only is given' in capsys.readouterr().err


def test_a_checkpoint_of_another_detector_is_not_tested(trained, tmp_path, capsys):
    """Detectron2 would warn, and test a model that is random where they differ."""
    found = weights(trained / 'model_final.pth')
    del found['proposal_generator.rpn_head.conv.bias']
    found['roi_heads.other.weight'] = torch.zeros(1)
    found['roi_heads.box_predictor.cls_score.bias'] = torch.zeros(81)
    torch.save({'model': found}, tmp_path / 'other.pth')
    options = {'MODEL.WEIGHTS': tmp_path / 'other.pth'}
    assert main(arguments(tmp_path / 'out', 'stock', '--eval-only', **options)) == 2
    error = capsys.readouterr().err
    assert f'the checkpoint {tmp_path}/other.pth does not fit the config' in error
    assert 'it lacks proposal_generator.rpn_head.conv.bias' in error
    assert 'the model does not have its roi_heads.other.weight' in error
    assert 'of another shape are roi_heads.box_predictor.cls_score.bias' in error
    assert not (tmp_path / 'out/metrics.json').exists()


@pytest.mark.parametrize('language', ['yaml', 'lazy'])
@pytest.mark.parametrize('split', ['train', 'val'])
def test_an_unreadable_image_is_named(data, language, split):
    if language == 'yaml':
        run = describe(read_config(YAML, [str(part) for pair in OPTIONS.items() for part in pair]))
    else:
        options = [f'{key}={json.dumps(value)}' for key, value in LAZY_OPTIONS.items()]
        run = describe(read_config(LAZY_SHAPES, options))
    before = {path: path.read_bytes() for path in (data / split).iterdir()}
    try:
        for path, content in before.items():
            path.write_bytes(content[: len(content) // 2])
        with pytest.raises(OSError, match=rf'the image {data}/{split}/\S+ cannot be read: .*truncated'):
            next(iter(run.train_loader() if split == 'train' else run.test_loader()))
    finally:
        for path, content in before.items():
            path.write_bytes(content)


def test_an_earlier_run_is_not_overwritten(trained, capsys):
    before = {path: path.read_bytes() for path in trained.iterdir() if path.is_file()}
    assert main(arguments(trained)) == 2
    assert '--resume' in capsys.readouterr().err
    assert main(arguments(trained, 'stock', '--resume', **{'SOLVER.MAX_ITER': 6})) == 2
    assert 'holds the result of another run' in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in trained.iterdir() if path.is_file()}


@pytest.mark.parametrize('last', [None, 'model_0000009.pth'], ids=['no last_checkpoint', 'one that is gone'])
def test_checkpoints_count_without_their_list(trained, tmp_path, capsys, last):
    """They were replaced where ``last_checkpoint`` was gone, by a training from the start."""
    for name in ('model_0000001.pth', 'model_0000003.pth'):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    os.utime(tmp_path / 'model_0000001.pth', (0, 0))
    if last:
        (tmp_path / 'last_checkpoint').write_text(last)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(arguments(tmp_path)) == 2
    error = capsys.readouterr().err
    assert 'holds the checkpoint model_0000003.pth of an earlier training: give --resume' in error
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(arguments(tmp_path, 'stock', '--resume')) == 0
    assert steps(tmp_path) == []  # nothing is left to train
    written = json.loads((tmp_path / 'metrics.json').read_text())
    assert written['checkpoint'] == str(tmp_path / 'model_0000003.pth')


def test_resume_goes_on_and_evaluates_what_is_trained(trained, tmp_path):
    for name in ('model_0000001.pth', 'last_checkpoint'):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    (tmp_path / 'last_checkpoint').write_text('model_0000001.pth')
    assert main(arguments(tmp_path, 'stock', '--resume')) == 0
    assert [step['iteration'] for step in steps(tmp_path)] == [3]
    assert (tmp_path / 'last_checkpoint').read_text() == 'model_final.pth'
    # Stopped before its evaluation was over, a finished training is only evaluated.
    (tmp_path / 'metrics.json').unlink()
    final = (tmp_path / 'model_final.pth').stat().st_mtime_ns
    assert main(arguments(tmp_path, 'stock', '--resume')) == 0
    assert (tmp_path / 'metrics.json').exists()
    assert (tmp_path / 'model_final.pth').stat().st_mtime_ns == final


def test_eval_only(trained, tmp_path, capsys):
    checkpoint = str(trained / 'model_final.pth')
    same = arguments(tmp_path, 'stock', '--eval-only', **{'MODEL.WEIGHTS': checkpoint})
    assert main(same) == 0
    assert 'bbox  AP ' in capsys.readouterr().out
    ours, theirs = (json.loads((d / 'metrics.json').read_text()) for d in (tmp_path, trained))
    assert ours['metrics'] == theirs['metrics']
    assert (tmp_path / 'predictions.segm.json').read_bytes() == (
        trained / 'predictions.segm.json'
    ).read_bytes()
    assert main(same) == 0  # again: the same result
    settings = [read_settings(folder) for folder in (trained, tmp_path)]
    assert [d.key for d in differences(*settings)] == ['OUTPUT_DIR']
    other = arguments(tmp_path, 'align-max', '--eval-only', **{'MODEL.WEIGHTS': checkpoint})
    assert main(other) == 2
    record = json.loads((tmp_path / 'metrics.json').read_text())
    assert record['config'] == str(YAML) and 'align-max' not in record['command']


def test_trials_of_one_seed_start_alike(data, tmp_path):
    """Initial weights and order of the data; nothing is learnt at a rate of 1e-20."""
    starts = {}
    for name, extractor, seed in (('a', 'stock', 0), ('b', 'align-max', 0), ('c', 'stock', 1)):
        changes = {'SEED': seed, 'SOLVER.BASE_LR': 1e-20, 'SOLVER.MAX_ITER': 1}
        assert main(arguments(tmp_path / name, extractor, **changes)) == 0
        starts[name] = weights(tmp_path / name / 'model_final.pth')
    # The backbone's running statistics tell which images were seen.
    for key, value in starts['a'].items():
        if key.startswith('backbone') or 'running' not in key:
            torch.testing.assert_close(value, starts['b'][key], rtol=0, atol=1e-12)
    changed = [key for key, value in starts['a'].items() if not torch.equal(value, starts['c'][key])]
    assert any('running_mean' in key for key in changed)
    assert any('conv2.weight' in key for key in changed)


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['--config-file', 'nowhere.yaml'], "the config 'nowhere.yaml' does not exist"),
        (['MODEL.ROI_BOX_HEAD.POOLERTYPE', 'AlignMax'], 'POOLER_TYPE'),
        (['MODEL.ROI_BOX_HEAD.POOLER_OPTIONS.ALGINED', 'True'], 'AGGREGATION, ALIGNED'),
        (['SEED'], 'pairs KEY VALUE'),
        (['--eval-only'], 'MODEL.WEIGHTS'),
        (['--eval-only', 'MODEL.WEIGHTS', 'none.pth'], 'none.pth does not exist'),
        (['DATASETS.TEST', '()'], 'expected one dataset'),
        (['TEST.AUG.ENABLED', 'True'], 'TEST.AUG.ENABLED'),
    ],
)
def test_what_cannot_be_run_is_said(data, tmp_path, capsys, argv, message):
    if '--config-file' not in argv:
        argv = ['--config-file', str(YAML), *argv]
    if len(argv) % 2 == 0:
        argv += ['OUTPUT_DIR', str(tmp_path / 'out')]
    assert main(argv) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_a_type_of_ours_in_detectron2s_own_pooler_is_explained(data, tmp_path, capsys):
    """Of a config in YAML, the heads are replaced: test_detectron2_swap_tool.py."""
    config = ['--config-file', str(LAZY_SHAPES), '--extractor', 'AlignMax']
    stock = 'model.roi_heads.box_pooler._target_=detectron2.modeling.poolers.ROIPooler'
    assert main([*config, stock, f'train.output_dir={tmp_path}']) == 2
    error = capsys.readouterr().err
    assert 'Unknown pooler type: AlignMax' in error
    assert 'StandardROIHeads' in error and 'L(build_pooler)' in error


def test_data_that_is_not_there(tmp_path, capsys):
    register_shapes(str(tmp_path / 'nowhere'))
    assert main(arguments(tmp_path / 'out')) == 2
    assert 'ROI_PLUGINS_SHAPES' in capsys.readouterr().err


def run(*argv, **environment):
    done = subprocess.run(
        [sys.executable, *map(str, argv)],
        cwd=ROOT,
        env=os.environ | {'OMP_NUM_THREADS': '1'} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f'{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
    return done.stdout


@pytest.mark.slow
def test_two_processes_on_the_cpu(data, tmp_path):
    tool = ROOT / 'tools/detectron2/train_net.py'
    argv = arguments(tmp_path, 'align-avg', '--num-gpus', '2')
    run(tool, *argv, ROI_PLUGINS_SHAPES=str(data), CUDA_VISIBLE_DEVICES='')
    predictions = json.loads((tmp_path / 'predictions.bbox.json').read_text())
    assert len({p['image_id'] for p in predictions}) == 5
    assert json.loads((tmp_path / 'metrics.json').read_text())['metrics'].keys() == {'bbox', 'segm'}


@pytest.mark.slow
def test_an_ablation_runs_its_trials(data, tmp_path):
    plan = tmp_path / 'plan.yaml'
    plan.write_text(
        json.dumps(
            {
                'name': 'small',
                'work_dir': str(tmp_path / 'runs'),
                'baseline': 'stock',
                'configs': {'mask': {'framework': 'detectron2', 'path': str(LAZY_SHAPES)}},
                'extractors': ['stock', 'quantized-pool'],
                'seeds': [0],
                'cfg_options': LAZY_OPTIONS,
            }
        )
    )
    table = run(ROOT / 'tools/ablate.py', plan, ROI_PLUGINS_SHAPES=str(data))
    assert 'stock' in table and 'quantized-pool' in table
    again = run(ROOT / 'tools/ablate.py', plan, ROI_PLUGINS_SHAPES=str(data))
    assert '2 of 2 trials are finished already' in again
    runs = [tmp_path / f'runs/mask.{name}.seed0' for name in ('stock', 'quantized-pool')]
    assert 'quantized-pool' in run(ROOT / 'tools/compare.py', *runs, '--baseline', 'stock')


def test_trials_of_lazy_configs():
    framework = FRAMEWORKS['detectron2']
    options = {'SEED': 3, 'train.max_iter': 7, 'model.roi_heads.box_pooler.pooler_type': 'AlignAvg'}
    first, second = (framework.resolve(LAZY, options) for _ in range(2))
    assert first == second  # what a trial was run with is compared by it
    assert first['train.seed'] == 3
    assert first['model.roi_heads.box_pooler.pooler_type'] == 'AlignAvg'
    assert first != framework.resolve(LAZY, options | {'SEED': 4})
    (command,) = framework.commands(LAZY, Path('a/b'), options, Inputs(), None, 1, 1)
    *_, resume, seed, steps_, _, output = command
    assert (resume, seed, steps_) == ('--resume', 'train.seed=3', 'train.max_iter=7')
    assert output == 'train.output_dir="a/b"'
    (command,) = framework.commands(LAZY, Path('a'), {}, Inputs(), Path('c.pth'), 1, 1)
    assert command[-3:] == ['--eval-only', 'train.output_dir="a"', 'train.init_checkpoint="c.pth"']
    (command,) = framework.commands(LAZY, Path('a'), {}, Inputs(), None, 8, 1)
    assert command[-4:] == ['--resume', '--num-gpus', '8', 'train.output_dir="a"']


def test_trials_of_yaml_configs():
    framework = FRAMEWORKS['detectron2']
    path, options = YAML, {'SEED': 3, 'INPUT.MIN_SIZE_TRAIN': [64, 96]}
    read = framework.resolve(path, options)
    assert (read['SEED'], read['INPUT.MIN_SIZE_TRAIN']) == (3, [64, 96])
    (command,) = framework.commands(path, Path('a/b'), options, Inputs(), None, 1, 1)
    *_, resume, key, seed, size, sizes, name, output = command
    assert (resume, key, seed, size, sizes) == ('--resume', 'SEED', '3', 'INPUT.MIN_SIZE_TRAIN', '[64, 96]')
    assert (name, output) == ('OUTPUT_DIR', 'a/b')


def test_progress_of_a_trial():
    progress = FRAMEWORKS['detectron2'].progress
    train = '[11/21 05:00:00 d2.utils.events]:  eta: 0:01:10  iter: 39  total_loss: 2.1  loss_cls: 1\n'
    test = 'Inference done 11/50. Dataloading: 0.0001 s/iter. Inference: 0.1 s/iter. ETA=1 day, 0:00:03\n'
    assert progress('starting') is None
    assert progress(train) == ('train 39', 70)
    assert progress(train + test) == ('test 11/50', 86403)


@pytest.mark.slow
@pytest.mark.skipif(COCO not in os.environ, reason=f'{COCO} does not say where a small COCO 2017 is')
def test_lazy_config_on_real_coco(tmp_path):
    """From training to metrics, through the command line."""
    (tmp_path / 'coco').symlink_to(Path(os.environ[COCO]).resolve())
    small = {
        'train.output_dir': f'"{tmp_path / "out"}"',
        'train.init_checkpoint': '""',
        'train.max_iter': 2,
        'train.log_period': 1,
        'train.seed': 0,
        'dataloader.train.total_batch_size': 1,
        'dataloader.train.num_workers': 0,
        'dataloader.train.mapper.augmentations.0.short_edge_length': '[160]',
        'dataloader.test.num_workers': 0,
        'dataloader.test.mapper.augmentations.0.short_edge_length': 96,
        'model.proposal_generator.post_nms_topk': '[100,20]',
        'model.roi_heads.batch_size_per_image': 32,
        'model.roi_heads.box_predictor.test_score_thresh': 0.0,
        'model.roi_heads.box_predictor.test_topk_per_image': 5,
        # From random weights, without statistics to normalise by, features would grow and grow.
        'model.backbone.bottom_up.stem.norm': 'GN',
        'model.backbone.bottom_up.stages.norm': 'GN',
    }
    options = [f'{key}={value}' for key, value in small.items()]
    tool = ROOT / 'tools/detectron2/train_net.py'
    run(tool, '--config-file', LAZY, '--extractor', 'align-max', *options, DETECTRON2_DATASETS=str(tmp_path))
    assert all(math.isfinite(step['total_loss']) for step in steps(tmp_path / 'out'))
    assert all(step['loss_mask'] > 0 for step in steps(tmp_path / 'out'))
    # Not every image has one, untrained.
    assert json.loads((tmp_path / 'out/predictions.segm.json').read_text())
    for checkpoint in (tmp_path / 'out').glob('*.pth'):
        checkpoint.unlink()  # 350 MB, and pytest keeps the folders of the last runs
