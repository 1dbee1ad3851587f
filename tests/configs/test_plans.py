"""Every plan in configs/ablations, dry: its trials, their commands and what they will take."""

import copy
import functools
import importlib.util
import shlex
from pathlib import Path

import pytest

pytest.importorskip('mmdet', reason='MMDetection is not installed')
pytest.importorskip('detectron2', reason='Detectron2 is not installed')

from mmengine.config import Config

from roi_plugins.ablation import dry_run
from roi_plugins.ablation.plan import load_plan

ROOT = Path(__file__).resolve().parents[2]
PLANS = sorted((ROOT / 'configs/ablations').glob('*.yaml'))


@pytest.fixture(scope='module')
def ablate():
    spec = importlib.util.spec_from_file_location('ablate', ROOT / 'tools/ablate.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@functools.cache
def read_once(path):
    """MMEngine reads MMDetection's whole model zoo for each config, and a plan has each for all its seeds."""
    return READ(path, import_custom_modules=False)


READ = Config.fromfile


@pytest.mark.parametrize('path', PLANS, ids=lambda path: path.stem)
def test_a_dry_run_prints_the_whole_plan_and_writes_nothing(path, ablate, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Config, 'fromfile', lambda path, **_: copy.deepcopy(read_once(path)))
    # What the frameworks lack here is another test's: tests/tools/test_dry_run.py.
    monkeypatch.setattr(dry_run, '_ask', lambda module, jobs: [''] * len(jobs))
    code = ablate([str(path), '--dry-run'])
    trials, summary, *missing = capsys.readouterr().out.split('\n\n')
    plan = load_plan(path)
    # The checkpoints of those that are tested only are not there.
    assert code == len(missing) == any(trial.checkpoint for trial in plan.trials)
    lines = trials.splitlines()
    assert [line for line in lines if line[0] != ' '] == [f'{trial.name}: to run' for trial in plan.trials]
    commands = [shlex.split(line) for line in lines if line.startswith('  ') and 'not yet:' not in line]
    for trial in plan.trials:
        own = [command for command in commands if str(plan.work_dir / trial.name) in ' '.join(command)]
        assert own and all(str(trial.config) in command for command in own), trial.name
    assert f'{len(plan.trials)} trials: 0 finished' in summary
    assert summary.rstrip().endswith('in total unknown')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('path', PLANS, ids=lambda path: path.stem)
def test_what_is_on_coco_is_for_the_gpus_of_its_schedule(path):
    plan = load_plan(path)
    on_coco = [trial for trial in plan.trials if trial.config.stem.endswith('_coco')]
    if on_coco:
        assert plan.num_gpus == 8  # the schedules are for 16 images a step, 2 on each of 8 GPUs
