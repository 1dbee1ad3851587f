"""Kills, full disks and vanished directories: what is finished stays, and the rest goes on where it was.

The long form, with real trainings, is `make faults`.
"""

import errno
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fake_framework import hear_signals

from roi_plugins.evaluation.coco import METRICS
from roi_plugins.integrations.checkpoints import first_whole

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]

# tools/ablate.py in a process of its own, without what prints the table, which takes longer than the trials.
PROGRAM = """
import sys
from pathlib import Path
from fake_framework import FAKE
from rich.console import Console
from roi_plugins.ablation import plan, runner
from roi_plugins.integrations.registry import FRAMEWORKS
FRAMEWORKS['fake'] = FAKE
sys.exit(bool(runner.run(plan.load_plan(sys.argv[1]), Path(sys.argv[2]), {}, Console())))
"""


def test_nothing_is_lost_by_kills_at_random_moments(load_tool, write_plan, tmp_path, monkeypatch):
    faults = load_tool('faults')
    monkeypatch.setenv('PYTHONPATH', f'{ROOT}:{Path(__file__).parent}')
    plan = write_plan(['a', 'b', 'c'], steps=10, seconds=0.1)
    for path in tmp_path.glob('?.json'):  # evaluating would take longer than the rest of a trial
        path.write_text(json.dumps({'steps': 10, 'seconds': 0.1}))

    def make(number):
        work_dir = tmp_path / f'work{number}'
        return [sys.executable, '-c', PROGRAM, plan, str(work_dir)], work_dir

    report = faults.disturb(make, 5, random.Random(1), 3)
    assert report['violations'] == []
    assert report['kills'] == 5
    assert report['trials'] == 3 * report['ablations']
    command, undisturbed = make('')
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for undisturbed_dir in undisturbed.glob('tiny.*'):
        disturbed_dir = tmp_path / 'work1' / undisturbed_dir.name
        # No step that was saved is done again; the one at the kill may be.
        steps = [int(line) for line in (disturbed_dir / 'steps.txt').read_text().split()]
        assert sorted(set(steps)) == [*range(1, 11)]
        assert steps == sorted(steps)
        metrics = [json.loads((d / 'metrics.json').read_text()) for d in (undisturbed_dir, disturbed_dir)]
        assert [m['weights'] for m in metrics] == ['10', '10']


def test_what_the_long_form_tells_apart(load_tool, tmp_path):
    """Half a file and a finished trial that changes are violations; other predictions are shown."""
    faults = load_tool('faults')
    run_dir = tmp_path / 'work/trial'
    run_dir.mkdir(parents=True)
    (run_dir / 'trial.json').write_text('{"state": "finished"}')
    finished, violations = {}, []
    faults.check(tmp_path / 'work', finished, violations)
    assert (list(finished), violations) == ([run_dir], [])
    (run_dir / 'metrics.json').write_text('{"half')
    (run_dir / 'model.pth').write_text('PK')
    faults.check(tmp_path / 'work', finished, violations)
    assert [text.partition(': ')[2] for text in violations] == [
        'half a checkpoint', 'half a file', 'changed after it was finished',
    ]  # fmt: skip

    for name, ap in (('first', 0.25), ('second', 0.5)):
        (tmp_path / name / 'trial').mkdir(parents=True)
        metrics = {'metrics': {'bbox': dict.fromkeys(METRICS, ap)}}
        (tmp_path / name / 'trial/metrics.json').write_text(json.dumps(metrics))
        (tmp_path / name / 'trial/predictions.bbox.json').write_text(name)
    text = 'other predictions; APs differ by at most 25.00 (bbox AP 25.0)'
    assert faults.differences(tmp_path / 'first', tmp_path / 'second') == {'trial': text}
    text = 'the same predictions; APs differ by at most 0.00 (bbox AP 25.0)'
    assert faults.differences(tmp_path / 'first', tmp_path / 'first') == {'trial': text}


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(ablate, write_plan, capsys, monkeypatch):
    plan = write_plan(steps=2)
    sync, steps = os.fsync, Path('work/tiny.max.seed0/steps.txt')
    is_full = True

    def full(descriptor):
        if is_full and steps.exists():
            raise OSError(errno.ENOSPC, 'No space left on device')
        sync(descriptor)

    monkeypatch.setattr(os, 'fsync', full)
    assert ablate([plan]) == 2
    errors = capsys.readouterr().err
    assert errors.count('\n') == 1
    kept = 'No space left on device (work directory work). Finished trials are kept; the same command'
    assert kept in errors
    finished = Path('work/tiny.avg.seed0')
    before = {path: path.read_bytes() for path in finished.iterdir()}
    assert json.loads(before[finished / 'trial.json'])['state'] == 'finished'
    assert json.loads(Path('work/tiny.max.seed0/trial.json').read_text())['state'] == 'running'
    assert not list(Path('work').glob('*/.*.tmp'))

    is_full = False
    assert ablate([plan]) == 0
    assert {path: path.read_bytes() for path in finished.iterdir()} == before


TOOL = """
import sys
from fake_framework import FAKE
from roi_plugins.integrations.registry import FRAMEWORKS
from roi_plugins.commands import ablate
FRAMEWORKS['fake'] = FAKE
sys.exit(ablate.main())
"""


def test_a_vanished_work_directory_is_one_line(write_plan, tmp_path):
    hold = tmp_path / 'go'
    plan = write_plan(steps=2, hold=str(hold))
    process = subprocess.Popen(
        [sys.executable, '-c', TOOL, plan],
        env={**os.environ, 'PYTHONPATH': f'{ROOT}:{Path(__file__).parent}'},
        preexec_fn=hear_signals,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 60
        while not Path('work/tiny.avg.seed0/steps.txt').exists():
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.02)
        shutil.rmtree('work')
        hold.touch()
        errors = process.communicate(timeout=120)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 2
    assert errors.startswith('error: [Errno 2] No such file or directory')
    assert errors.count('\n') == 1


def test_what_a_killed_process_has_half_written_is_removed(ablate, write_plan):
    plan = write_plan(steps=2)
    assert ablate([plan, '--cfg-options', 'fail=test']) == 1
    leftover = Path('work/tiny.avg.seed0/.iter_5.pth.123.tmp')
    leftover.touch()
    assert ablate([plan, '--cfg-options', 'fail=test']) == 1
    assert not leftover.exists()


def test_a_failed_test_goes_through_the_training_again(ablate, write_plan):
    """It does nothing, or makes anew the checkpoint that the test could not read."""
    plan = write_plan(['avg'], steps=2)
    for _ in range(2):
        assert ablate([plan, '--cfg-options', 'fail=test']) == 1
    log = Path('work/tiny.avg.seed0/trial.log').read_text().splitlines()
    commands = [line.split()[4] for line in log if ' $ ' in line]
    assert commands == ['train', 'test'] * 2
    assert Path('work/tiny.avg.seed0/steps.txt').read_text() == '1\n2\n'


def test_the_newest_whole_checkpoint_is_taken(tmp_path, capsys):
    paths = [tmp_path / f'{name}.pth' for name in 'abc']
    for path in paths:
        torch.save({'weight': torch.ones(100)}, path)
    assert first_whole(paths) == paths[0]
    assert first_whole([]) is None
    for path in paths[:2]:
        path.write_bytes(path.read_bytes()[:-100])
    assert first_whole(paths) == paths[2]
    assert capsys.readouterr().err.splitlines() == [
        f'warning: the checkpoint {path} is damaged and left out' for path in paths[:2]
    ]
    with pytest.raises(ValueError, match=r'all checkpoints to resume from are damaged: .*a\.pth, .*b\.pth'):
        first_whole(paths[:2])


@pytest.fixture
def small_disk():
    """No file of this process can be larger than 1 MB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))

    yield fill
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_detectron2_saves_whole_checkpoints_or_none(tmp_path, small_disk):
    pytest.importorskip('detectron2', reason='Detectron2 is not installed')
    from roi_plugins.integrations.detectron2.checkpoints import Checkpointer
    from roi_plugins.integrations.errors import RunError

    def make():
        model = torch.nn.Linear(1000, 1000)
        return model, Checkpointer(model, str(tmp_path))

    first, checkpointer = make()
    for name in ('model_0000004', 'model_0000009'):
        checkpointer.save(name, iteration=int(name[-1]))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(before) == ['last_checkpoint', 'model_0000004.pth', 'model_0000009.pth']
    small_disk()
    with pytest.raises(OSError, match=r'the checkpoint .*/model_0000009\.pth was not saved: File too large'):
        checkpointer.save('model_0000009')
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    newest = tmp_path / 'model_0000009.pth'
    os.truncate(newest, 3_000_000)
    model, checkpointer = make()
    assert checkpointer.resume_or_load('', resume=True)['iteration'] == 4
    assert torch.equal(model.weight, first.weight)
    os.truncate(tmp_path / 'model_0000004.pth', 3_000_000)
    with pytest.raises(
        RunError, match=r'all checkpoints to resume from are damaged: .*0009\.pth, .*0004\.pth'
    ):
        checkpointer.resume_or_load('', resume=True)
    with pytest.raises(RunError, match=r'0009\.pth is damaged'):
        checkpointer.load(str(newest))


def test_mmengine_saves_whole_checkpoints_or_none(tmp_path, small_disk):
    pytest.importorskip('mmdet', reason='MMDetection is not installed')
    from roi_plugins.integrations.mmdet.checkpoints import AtomicLocalBackend

    backend = AtomicLocalBackend()
    backend.put(b'first', tmp_path / 'iter_1.pth')
    # MMEngine makes room first, with another backend of the same kind.
    AtomicLocalBackend().remove(tmp_path / 'iter_1.pth')
    small_disk()
    with pytest.raises(OSError, match=r'the checkpoint .*/iter_2\.pth was not saved: File too large'):
        backend.put(b' ' * 2_000_000, tmp_path / 'iter_2.pth')
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {'iter_1.pth': b'first'}
    backend.put(b'second', tmp_path / 'iter_2.pth')
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {'iter_2.pth': b'second'}
