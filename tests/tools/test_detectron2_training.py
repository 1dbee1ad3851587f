"""Training with Detectron2 over machines, and with evaluations on the way."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2_options import LAZY_OPTIONS

pytest.importorskip('detectron2', reason='Detectron2 is not installed')

from roi_plugins.datasets.shapes import ShapesSpec, generate_shapes
from roi_plugins.evaluation.coco import METRICS
from roi_plugins.integrations.detectron2.command_line import main
from roi_plugins.integrations.detectron2.datasets import register_shapes

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools/detectron2/train_net.py'
CONFIG = ROOT / 'configs/detectron2/shapes/mask-rcnn_r18-c4_shapes.py'
STEPS = 4
OPTIONS = {
    'train.max_iter': STEPS,
    'train.log_period': 1,
    'train.seed': 0,
    'model.roi_heads.box_predictor.test_topk_per_image': 5,
    **LAZY_OPTIONS,
}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes')
    generate_shapes(root, ShapesSpec(num_train=8, num_val=5, image_size=64))
    register_shapes(str(root))
    return root


def arguments(output_dir, *flags, **changes):
    options = {**OPTIONS, 'train.output_dir': f'"{output_dir}"', **changes}
    pairs = [f'{key}={value}' for key, value in options.items()]
    return ['--config-file', str(CONFIG), '--extractor', 'align-avg', *flags, *pairs]


def steps(output_dir):
    return [json.loads(line) for line in (output_dir / 'training.json').read_text().splitlines()]


def free_port():
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


def detectron2_launch(rank, address):
    own = ['--num-machines', '2', '--machine-rank', str(rank), '--dist-url', f'tcp://{address}']
    return [sys.executable, str(TOOL)], own


def torchrun_agent(rank, address):
    host, port = address.split(':')
    master = ['--node_rank', str(rank), '--master_addr', host, '--master_port', port]
    agent = ['-m', 'torch.distributed.run', '--nnodes', '2', '--nproc_per_node', '1', *master]
    return [sys.executable, *agent, str(TOOL)], []


def launch_machines(output_dirs, data, launch=detectron2_launch):
    """One launch a machine, as their users do, all on this one. Returns what each has printed."""
    address = f'127.0.0.1:{free_port()}'
    environment = {'OMP_NUM_THREADS': '1', 'ROI_PLUGINS_SHAPES': str(data), 'CUDA_VISIBLE_DEVICES': ''}
    with contextlib.ExitStack() as stack:
        machines = []
        for rank, output_dir in enumerate(output_dirs):
            program, flags = launch(rank, address)
            process = subprocess.Popen(
                [*program, *arguments(output_dir, *flags)],
                env=os.environ | environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            stack.callback(process.kill)
            machines.append(process)
        outputs = [machine.communicate(timeout=300)[0] for machine in machines]
    for machine, output in zip(machines, outputs, strict=True):
        assert machine.returncode == 0, output[-3000:]
    return outputs


@pytest.mark.slow
@pytest.mark.parametrize('launch', [detectron2_launch, torchrun_agent])
def test_two_machines_that_share_no_storage(data, tmp_path, launch):
    first, second = tmp_path / 'first', tmp_path / 'second'
    outputs = launch_machines([first, second], data, launch)
    predictions = json.loads((first / 'predictions.bbox.json').read_text())
    assert len({p['image_id'] for p in predictions}) == 5  # of both halves
    metrics = json.loads((first / 'metrics.json').read_text())
    assert metrics['metrics'].keys() == {'bbox', 'segm'}
    assert metrics['checkpoint'] == str(first / 'model_final.pth')
    assert '--num-gpus 1 --num-machines 2' in ' '.join(metrics['command'])
    assert len(steps(first)) == STEPS
    # What the first machine writes is all there is.
    assert not list(second.rglob('*.json')) and not list(second.rglob('*.pth'))
    assert ['bbox  AP ' in output for output in outputs] == [True, False]


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--num-machines', '2', '--machine-rank', '2'], '--machine-rank: got 2, expected 0 to 1'),
        (['--machine-rank', '1'], '--machine-rank: got 1, expected 0 to 0'),
        (['--num-machines', '0'], '--num-machines: got 0'),
        (['--num-gpus', '-1'], '--num-gpus: got -1'),
        (['--num-machines', '2', '--num-gpus', '0'], '--num-gpus: got 0, expected at least 1'),
        (['--num-machines', '2', '--dist-url', 'auto'], "--dist-url: got 'auto', expected tcp://HOST"),
        (['--num-machines', '2', '--dist-url', 'tcp://node0'], "'tcp://node0', expected tcp://HOST"),
    ],
)
def test_numbers_that_make_no_sense_together(data, tmp_path, capsys, flags, message):
    assert main(arguments(tmp_path / 'out', *flags)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_numbers_that_torchrun_knows_better(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'any')
    assert main(arguments(tmp_path / 'out', '--num-gpus', '2')) == 2
    assert 'got --num-gpus 2, --num-machines 1' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_evaluates_during_the_training(data, tmp_path):
    assert main(arguments(tmp_path / 'on', **{'train.eval_period': 2})) == 0
    assert main(arguments(tmp_path / 'off', **{'train.eval_period': 0})) == 0
    on, off = (json.loads((tmp_path / name / 'metrics.json').read_text()) for name in ('on', 'off'))
    assert on['metrics'] == off['metrics']  # which it leaves as they were
    evaluated = {line['iteration']: line for line in steps(tmp_path / 'on') if 'bbox/AP' in line}
    assert list(evaluated) == [1]  # the second of four steps; the last one's are in metrics.json
    wanted = {f'{iou_type}/{name}' for iou_type in ('bbox', 'segm') for name in METRICS}
    assert wanted <= evaluated[1].keys()
    assert not any('bbox/AP' in line for line in steps(tmp_path / 'off'))
