"""``ablate --track``: a run of the tracker for each trial and one for the comparison, read by the tracker."""

import json
from pathlib import Path

import pytest
from tracker_files import TRACKERS, offline, read_run

from roi_plugins import needs
from roi_plugins.tracking import open_run

TRIALS = ('tiny.avg.seed0', 'tiny.max.seed0')


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    offline(monkeypatch, tmp_path)


def metrics(trial):
    found = json.loads(Path('work', trial, 'metrics.json').read_text())['metrics']
    return {f'{t}/{name}': value for t, of in found.items() for name, value in of.items() if value != -1}


def files():
    """When the files in the work directory were last written, but for those of the comparison."""
    return {
        path: path.stat().st_mtime_ns
        for path in Path('work').rglob('*')
        if path.is_file() and path.stem not in ('compare', 'ap_over_iou')
    }


@pytest.mark.parametrize('tracker', TRACKERS)
def test_a_run_for_each_trial_and_one_for_the_comparison(ablate, write_plan, capfd, tracker):
    plan = write_plan(steps=3, max={'stop': 2})
    command = [plan, '--track', tracker, '--cfg-options', 'lr=0.5']
    assert ablate(command) == 1
    assert 'trial tiny.max.seed0 failed' in capfd.readouterr().err
    before = read_run(tracker, 'work/compare')
    assert {name: points for name, points in before.scalars.items() if points[0][0] != 1} == {}

    # The failed trial goes on, in the same run.
    assert ablate(command) == 0
    assert 'did not log' not in ''.join(capfd.readouterr())
    for trial, extractor in zip(TRIALS, ('avg', 'max'), strict=True):
        run = read_run(tracker, Path('work', trial))
        assert run.name == trial
        assert len(run.ids) == 1
        expected = {'config': 'tiny', 'framework': 'fake', 'extractor': extractor, 'seed': 0, 'lr': 0.5}
        assert {name: str(run.parameters[name]) for name in expected} == {
            name: str(float(value) if tracker == 'tensorboard' and name == 'seed' else value)
            for name, value in expected.items()
        }
        assert run.scalars.pop('loss') == [(s, pytest.approx(1 / s)) for s in (1, 2, 3)]
        assert run.scalars == {k: [(0, pytest.approx(v))] for k, v in metrics(trial).items()}
    run = read_run(tracker, 'work/compare')
    assert run.name == 'compare'
    assert run.ids == before.ids
    assert run.scalars['tiny/avg/bbox/AP'] == [(1, pytest.approx(1)), (2, pytest.approx(1))]
    assert run.scalars['tiny/max/bbox/AP'] == [(2, pytest.approx(metrics(TRIALS[1])['bbox/AP']))]
    assert run.scalars['tiny/max/bbox/AP difference'] == [(2, pytest.approx(-0.3))]
    for word in ('Extractor', 'Verdict', '-30.0'):
        assert word in run.tables['Box AP']

    # Once more, there is nothing to log. A trial that ran with a tracker is finished without one, too.
    left = files()
    assert ablate(command) == 0
    assert ablate([plan, *command[3:]]) == 0
    assert files() == left


@pytest.mark.slow
def test_trials_that_ran_without_a_tracker_are_logged_and_not_run_again(ablate, write_plan):
    plan = write_plan()
    assert ablate([plan]) == 0
    assert not list(Path('work').rglob('*tfevents*'))
    records = {trial: Path('work', trial, 'trial.json').read_bytes() for trial in TRIALS}
    assert ablate([plan, '--track', 'tensorboard']) == 0
    assert records == {trial: Path('work', trial, 'trial.json').read_bytes() for trial in TRIALS}
    for trial in TRIALS:
        run = read_run('tensorboard', Path('work', trial))
        assert run.parameters['config'] == 'tiny'
        assert run.scalars == {k: [(0, pytest.approx(v))] for k, v in metrics(trial).items()}


@pytest.mark.parametrize('more', [[], ['--dry-run']])
def test_a_tracker_that_is_not_installed_is_named_before_anything_runs(
    ablate, write_plan, monkeypatch, capsys, more
):
    monkeypatch.setattr(needs, 'find_spec', lambda name: None)
    assert ablate([write_plan(), '--track', 'mlflow', *more]) == 2
    expected = 'error: --track mlflow needs mlflow, which is not installed. pip install mlflow\n'
    assert capsys.readouterr().err == expected
    assert not Path('work').exists()


@pytest.mark.slow
def test_a_tracker_that_fails_is_a_warning(ablate, write_plan, capsys):
    plan = write_plan()
    assert ablate([plan]) == 0
    capsys.readouterr()
    Path('work/tiny.avg.seed0/tracking.json').write_text('{')
    assert ablate([plan, '--track', 'tensorboard']) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith('warning: ')]
    assert [line.split(': ')[1] for line in warnings] == [
        f'tensorboard did not log the {what} of tiny.avg.seed0' for what in ('parameters', 'result')
    ]
    assert read_run('tensorboard', 'work/tiny.max.seed0').scalars


@pytest.mark.slow
def test_without_a_key_wandb_is_refused_before_anything_runs(ablate, write_plan, monkeypatch, capsys):
    wandb = pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'online')
    wandb.teardown()
    assert ablate([write_plan(), '--track', 'wandb']) == 2
    assert 'error: --track wandb needs an API key: ' in capsys.readouterr().err
    assert not Path('work').exists()
    wandb.teardown()


@pytest.mark.slow
def test_a_store_that_does_not_know_the_run_gets_a_new_one(tmp_path, monkeypatch):
    pytest.importorskip('mlflow')
    first = open_run('mlflow', tmp_path / 'work/trial')
    first.close()
    monkeypatch.setenv('MLFLOW_TRACKING_URI', f'sqlite:///{tmp_path}/other.db')
    second = open_run('mlflow', tmp_path / 'work/trial')
    assert second.id != first.id
    assert open_run('mlflow', tmp_path / 'work/trial').id == second.id
