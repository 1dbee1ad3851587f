"""tools/ablate.py as a user has it, with a framework that takes milliseconds."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from fake_framework import FAKE, hear_signals

from roi_plugins.ablation import plan
from roi_plugins.integrations import zoo
from roi_plugins.integrations.registry import FRAMEWORKS

SLURM = ['plan.yaml', '--executor', 'slurm', '--time', '1-00:00:00']
TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'ablate.py'


def test_prints_and_writes_the_table(ablate, write_plan, capsys):
    plan = write_plan()
    assert ablate([plan]) == 0
    output = capsys.readouterr().out
    table = [line.split('|') for line in output.splitlines() if line.startswith('| ')]
    trials = [[trial.strip() for trial in row[1:-1]] for row in table]
    points = {row[trials[0].index('Extractor')]: row[trials[0].index('AP')] for row in trials[1:3]}
    # 0.8 passes 7 of the 10 thresholds.
    assert points == {'avg': '**100.0**', 'max': '70.0'}
    assert 'Differences' not in output  # one image has no intervals
    assert '-30.0' in output
    written = Path('work/compare/compare.md').read_text()
    assert '### Box AP, difference to avg' in written
    assert written.partition('\n\n### Box AP, ')[0] in output

    assert ablate([plan]) == 0
    assert '2 of 2 trials are finished already' in capsys.readouterr().out
    assert Path('work/tiny.max.seed0/steps.txt').read_text() == '1\n'


@pytest.mark.slow
def test_the_plan_says_what_the_verdicts_are_about(ablate, write_plan, capsys):
    path = Path(write_plan())
    tree = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**tree, 'primary_metric': 'bbox/AP75', 'margin': 2.5}))
    assert ablate([str(path)]) == 0
    assert 'AP75 difference' in capsys.readouterr().out
    record = json.loads(Path('work/compare/compare.json').read_text())
    assert (record['primary_metric'], record['margin']) == ('bbox/AP75', 0.025)


def test_without_a_plan(ablate, write_plan, capsys, monkeypatch, tmp_path):
    """Its configs are JSON, which no framework's are: what a row does to one is another test's."""
    write_plan(['own'])
    monkeypatch.setattr(plan, 'guess_frameworks', lambda path: ['fake'])
    command = ['own.json', '--extractors', 'stock', 'align-max', 'AlignAvg', '--seeds', '0', '3']
    command += ['--work-dir']
    assert ablate([*command, 'dry', '--dry-run']) == 0
    assert 'own.AlignAvg.seed3: to run' in capsys.readouterr().out
    assert not Path('dry').exists()
    assert ablate([*command, 'runs']) == 0
    assert 'AP difference' in capsys.readouterr().out
    assert json.loads(Path('runs/own.align-max.seed3/trial.json').read_text())['extractor'] == 'align-max'

    # The plan that it ran is beside the results.
    assert ablate(['runs/plan.yaml']) == 0
    assert '6 of 6 trials are finished already' in capsys.readouterr().out
    assert ablate([*command, 'runs', '--heads', 'bbox']) == 2
    assert 'runs/plan.yaml is the plan of another ablation; give another' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['own.json', '--seeds', '1'], '--seeds and --heads need --extractors'),
        (['own.json', 'two.json'], 'several configs, --seeds and --heads need --extractors'),
        (['own.json', '--extractors', 'align-mux'], "no extractor is named 'align-mux'; there are the rows"),
        (['own.json', '--extractors', '{name: x, type: Max}'], "x: type is 'Max'; expected one of"),
        (['own.json', '--extractors', '{name: x'], '{name: x is not YAML'),
        (['gone.py', '--extractors', 'stock'], 'there is no config gone.py: it is neither a file, nor in '),
        (['own.json', 'a/own.json', '--extractors', 'stock'], 'own.json have the same name; put them into'),
    ],
)
def test_without_a_plan_what_is_wrong_is_one_line(ablate, write_plan, capsys, arguments, message):
    write_plan(['own'])
    try:
        assert ablate(arguments) == 2
    except SystemExit as stop:  # of the parser
        assert stop.code == 2
    assert message in capsys.readouterr().err
    assert not Path('work_dirs').exists()


def test_a_plan_of_the_package_is_found_by_name_and_writes_where_one_stands(
    ablate, write_plan, tmp_path, monkeypatch, capsys
):
    write_plan()
    here = tmp_path / 'here'
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(zoo, 'configs_folder', lambda: tmp_path)
    before = sorted(tmp_path.iterdir())
    assert ablate(['plan.yaml']) == 0
    assert (here / 'work/tiny.max.seed0/metrics.json').exists()
    assert sorted(tmp_path.iterdir()) == before
    assert ablate(['plam.yaml']) == 2
    assert 'did you mean plan.yaml?' in capsys.readouterr().err


@pytest.mark.slow
def test_a_failed_trial_is_reported_after_the_table_of_the_others(ablate, write_plan, capsys):
    assert ablate([write_plan(avg={'fail': 'train'})]) == 1
    output, errors = capsys.readouterr()
    assert '70.0' in output
    log = Path('work/tiny.avg.seed0/trial.log')
    assert f'error: trial tiny.avg.seed0 failed: see {log}' in errors
    assert 'train fails as asked' in log.read_text()

    write_plan()
    assert ablate(['plan.yaml']) == 0
    assert 'AP difference' in capsys.readouterr().out


def test_a_dry_run_shows_what_options_give_and_runs_nothing(ablate, write_plan, capsys):
    arguments = ['--dry-run', '--work-dir', 'other', '--cfg-options', 'steps=7']
    assert ablate([write_plan(), *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'tiny.avg.seed0: to run'
    trials, summary = lines[: lines.index('')], lines[lines.index('') + 1 :]
    assert [line for line in trials if not line.startswith(' ')] == [lines[0], lines[3]]
    assert summary[0] == '2 trials: 0 finished, 2 to run'
    assert summary[-1] == 'in total unknown'
    commands = [shlex.split(line) for line in trials if line.startswith(' ')]
    assert [command[2] for command in commands] == ['train', 'test'] * 2
    assert {json.loads(command[3])['steps'] for command in commands} == {7}
    assert {Path(command[4]).parts[0] for command in commands} == {'other'}
    assert not Path('other').exists()
    assert not Path('work').exists()


def test_a_dry_run_tells_what_is_finished_and_changes_nothing(ablate, write_plan, capsys):
    assert ablate([write_plan(avg={'steps': 2}, max={'fail': 'test'})]) == 1
    before = {path: path.read_bytes() for path in Path().rglob('*') if path.is_file()}
    capsys.readouterr()
    assert ablate(['plan.yaml', '--dry-run']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'tiny.avg.seed0: finished'
    assert lines[3] == 'tiny.max.seed0: to resume'
    assert '2 trials: 1 finished, 1 to run' in lines
    took = json.loads(Path('work/tiny.avg.seed0/trial.json').read_text())['seconds']
    assert lines[-1].startswith(f'in total {took / 60:.1f} min on ')
    assert {path: path.read_bytes() for path in Path().rglob('*') if path.is_file()} == before


@pytest.mark.slow
def test_a_dry_run_tells_which_checkpoint_is_not_there_yet(ablate, write_plan, capsys):
    plan = Path(write_plan())
    tree = yaml.safe_load(plan.read_text())
    tree['configs']['tiny']['checkpoints'] = {'avg': '../work/tiny.avg.seed{seed}'}
    Path('swap.yaml').write_text(yaml.safe_dump({**tree, 'work_dir': 'swap'}))
    assert ablate(['swap.yaml', '--dry-run']) == 1
    trials, _, missing = capsys.readouterr().out.partition('\nmissing:\n')
    assert 'tiny.avg.max.seed0: to run\n' in trials
    assert '  tiny.avg.max.seed0: there is no checkpoint or finished run work/' in missing
    assert ablate(['swap.yaml']) == 1
    errors = capsys.readouterr().err
    assert 'error: trial tiny.avg.max.seed0 was not run: there is no checkpoint or finished run' in errors

    assert ablate([str(plan)]) == 0
    assert ablate(['swap.yaml']) == 0
    table = capsys.readouterr().out
    assert 'tiny, trained with avg' in table
    assert not Path('swap/tiny.avg.max.seed0/steps.txt').exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['none.yaml'], 'the plan none.yaml does not exist: it is neither a file, nor in '),
        (['plan.yaml', '--cfg-options', 'steps'], "'steps' is not of the form KEY=VALUE"),
        (['plan.yaml', '--cfg-options', 'a={b: 1}'], 'a is a mapping'),
        (['plan.yaml', '--cfg-options', 'a=['], "the value of 'a=[' is not YAML"),
        (['plan.yaml', '--gpus-per-trial', '-1'], '--gpus-per-trial is -1; expected an integer >= 0'),
        (['plan.yaml', '--partition', 'gpu'], '--nodes, --partition and --time are for --executor slurm'),
        (['plan.yaml', '--executor', 'slurm'], '--executor slurm needs --time'),
        ([*SLURM, '--nodes', '2', '--gpus-per-trial', '3'], 'give a multiple of 2 as --gpus-per-trial'),
        ([*SLURM, '--nodes', '2', '--gpus-per-trial', '0'], 'each trial has 0 GPUs in all'),
    ],
)
def test_a_mistake_is_one_line_and_not_a_traceback(ablate, write_plan, capsys, arguments, message):
    write_plan()
    assert ablate(arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith('error: ')
    assert message in errors
    assert not Path('work').exists()


@pytest.mark.parametrize('time', ['24:00', '1-12', 'day', '-5'])
def test_a_time_that_slurm_would_read_otherwise_is_refused(ablate, write_plan, capsys, time):
    with pytest.raises(SystemExit):
        ablate([write_plan(), '--executor', 'slurm', f'--time={time}'])
    assert f"argument --time: invalid minutes value: '{time}'" in capsys.readouterr().err


def test_without_slurm_its_executor_says_so(ablate, write_plan, capsys, monkeypatch):
    write_plan()
    monkeypatch.setenv('PATH', '')
    assert ablate(SLURM) == 2
    assert "error: --executor slurm: Slurm's command srun is not here" in capsys.readouterr().err


def test_options_for_all_trials_of_two_frameworks_are_refused(ablate, write_plan, capsys, monkeypatch):
    monkeypatch.setitem(FRAMEWORKS, 'other', FAKE)
    plan = Path(write_plan())
    tree = yaml.safe_load(plan.read_text())
    tree['configs']['second'] = {**tree['configs']['tiny'], 'framework': 'other'}
    plan.write_text(yaml.safe_dump(tree))
    assert ablate([str(plan), '--dry-run', '--cfg-options', 'steps=7']) == 2
    assert '--cfg-options: got steps for all trials' in capsys.readouterr().err
    assert ablate([str(plan), '--dry-run']) == 0


@pytest.mark.slow
def test_a_changed_config_is_an_error_and_nothing_is_run(ablate, write_plan, capsys):
    assert ablate([write_plan()]) == 0
    assert ablate([write_plan(max={'steps': 3})]) == 2
    assert 'trial tiny.max.seed0' in capsys.readouterr().err


PROGRAM = """
import runpy, sys
from fake_framework import FAKE
from roi_plugins.integrations.registry import FRAMEWORKS
FRAMEWORKS['fake'] = FAKE
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_everything_resumable(ablate, write_plan, tmp_path, number):
    hold = str(tmp_path / 'go')
    plan = write_plan(avg={'steps': 2, 'hold': hold}, max={'steps': 2, 'hold': hold})
    process = subprocess.Popen(
        [sys.executable, '-c', PROGRAM, str(TOOL), plan],
        env={**os.environ, 'PYTHONPATH': f'{TOOL.parents[1]}:{Path(__file__).parent}'},
        preexec_fn=hear_signals,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 30
        while not Path('work/tiny.avg.seed0/steps.txt').exists():
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        errors = process.communicate(timeout=120)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert 'the same command goes on where it was' in errors

    Path(hold).touch()
    assert ablate([plan]) == 0
    for extractor in ('avg', 'max'):
        assert Path(f'work/tiny.{extractor}.seed0/steps.txt').read_text() == '1\n2\n'


@pytest.mark.parametrize(
    ('framework', 'option', 'way'),
    [
        ('fake', 'seed', "the plan's seeds"),
        ('mmdet', 'randomness.seed', "the plan's seeds"),
        ('mmdet', 'randomness', "the plan's seeds"),
        ('mmdet', 'work_dir', '--work-dir'),
        ('mmdet', 'resume', 'the same command'),
        ('mmdet', 'launcher', '--gpus-per-trial'),
        ('detectron2', 'SEED', "the plan's seeds"),
        ('detectron2', 'train.seed', "the plan's seeds"),
        ('detectron2', 'OUTPUT_DIR', '--work-dir'),
        ('detectron2', 'train.output_dir', '--work-dir'),
    ],
)
def test_options_that_the_plan_sets_itself_are_refused(ablate, write_plan, capsys, framework, option, way):
    plan = Path(write_plan())
    tree = yaml.safe_load(plan.read_text())
    tree['configs']['tiny']['framework'] = framework
    plan.write_text(yaml.safe_dump(tree))
    assert ablate([str(plan), '--dry-run', '--cfg-options', f'{option}=7']) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f'error: --cfg-options: {option} ')
    assert way in errors
    tree['configs']['tiny']['cfg_options'] = {option: 7}
    plan.write_text(yaml.safe_dump(tree))
    assert ablate([str(plan), '--dry-run']) == 2
    assert f'configs.tiny.cfg_options: {option} ' in capsys.readouterr().err
    del tree['configs']['tiny']['cfg_options']
    plan.write_text(yaml.safe_dump({**tree, 'cfg_options': {option: 7}}))
    assert ablate([str(plan), '--dry-run']) == 2
    assert f'plan.yaml: cfg_options: {option} ' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize('given', ['plan', 'argument'])
def test_a_tilde_is_the_home_directory(ablate, write_plan, tmp_path, monkeypatch, given):
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    plan = Path(write_plan())
    tree = yaml.safe_load(plan.read_text())
    arguments = ['--work-dir', '~/runs'] if given == 'argument' else []
    if given == 'plan':
        tree['work_dir'] = '~/runs'
    (tmp_path / 'home' / 'configs').mkdir(parents=True)
    for extractor in ('avg', 'max'):
        Path(f'{extractor}.json').rename(tmp_path / 'home' / 'configs' / f'{extractor}.json')
    tree['configs']['tiny']['path'] = '~/configs/{extractor}.json'
    plan.write_text(yaml.safe_dump(tree))
    assert ablate([str(plan), *arguments]) == 0
    assert not Path('~').exists()
    assert (tmp_path / 'home/runs/tiny.avg.seed0/metrics.json').exists()
    swap = {**tree, 'work_dir': 'swap'}
    swap['configs']['tiny']['checkpoints'] = {'avg': '~/runs/tiny.avg.seed{seed}'}
    Path('swap.yaml').write_text(yaml.safe_dump(swap))
    assert ablate(['swap.yaml']) == 0


def test_a_home_of_nobody_is_an_error(ablate, write_plan, capsys):
    assert ablate([write_plan(), '--work-dir', '~nobody-of-that-name/runs']) == 2
    assert "error: --work-dir: '~nobody-of-that-name/runs'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_beside_a_linked_work_directory_is_that_of_the_shell(ablate, write_plan, tmp_path):
    plan = Path(write_plan())
    (tmp_path / 'scratch' / 'swap').mkdir(parents=True)
    (tmp_path / 'swap').symlink_to(tmp_path / 'scratch' / 'swap')
    assert ablate([str(plan), '--work-dir', 'scratch/work']) == 0
    tree = yaml.safe_load(plan.read_text())
    tree['configs']['tiny']['checkpoints'] = {'avg': '../work/tiny.avg.seed{seed}'}
    Path('swap.yaml').write_text(yaml.safe_dump({**tree, 'work_dir': 'swap'}))
    assert ablate(['swap.yaml']) == 0


@pytest.mark.slow
def test_a_percent_sign_in_the_path_of_side_by_side_trials_is_named(ablate, write_plan, capsys):
    plan = write_plan()
    assert ablate([plan, '--jobs', '2', '--work-dir', 'a%jb']) == 2
    assert 'a%jb: submitit and Slurm replace what follows a %' in capsys.readouterr().err
    assert ablate([plan, '--work-dir', 'a%jb']) == 0


@pytest.mark.parametrize('text', ['a: [', '\t', '\0'])
def test_a_plan_that_is_not_yaml_is_one_line(ablate, tmp_path, capsys, text):
    (tmp_path / 'plan.yaml').write_text(text)
    assert ablate([str(tmp_path / 'plan.yaml')]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'error: {tmp_path}/plan.yaml: the plan cannot be read: ')
