"""Runs that differ in more than their extractor are named, before a training and in its comparison."""

from pathlib import Path

import pytest
from rich.console import Console

from roi_plugins.ablation.confounding import find_confounded
from roi_plugins.ablation.job import prepare, warn_of_confounded
from roi_plugins.ablation.plan import parse_plan
from roi_plugins.ablation.results import Run


def run(extractor, seed=0, config_name='c', framework='mmdet', **settings):
    name = f'{config_name}.{extractor}.{seed}'
    made = Run(name, extractor, config_name, seed, framework, Path('a.json'), {})
    return made, {'SEED': seed, **settings}


def warnings(*runs, baseline=None):
    settings = {made.name: found for made, found in runs}
    return find_confounded([made for made, _ in runs], baseline, lambda made: settings[made.name])


def test_nothing_is_said_where_only_the_extractor_differs():
    layer = 'model.roi_head.bbox_roi_extractor.type'
    runs = [run(name, seed, **{layer: name, 'lr': 1}) for name in 'ab' for seed in (0, 1)]
    assert warnings(*runs) == []


def test_the_warning_names_extractor_reference_and_setting():
    (warning,) = warnings(run('a', lr=1), run('b', lr=2), run('b', 1, lr=2), baseline='a')
    assert warning == (
        'confounded: c: b: differs from a in more than the extractor, which may explain the AP: lr: 1 → 2'
    )


def test_it_is_the_baseline_that_the_others_are_held_against():
    (warning,) = warnings(run('a', lr=1), run('b', lr=2), run('x', lr=2), baseline='b')
    assert 'c: a: differs from b' in warning


def test_each_config_is_for_itself():
    assert warnings(run('a', lr=1), run('b', lr=1), run('a', 0, 'd', lr=2), run('b', 0, 'd', lr=2)) == []


def test_seeds_of_one_extractor_that_were_trained_otherwise():
    (warning,) = warnings(run('a', 0, lr=1), run('a', 1, lr=2))
    assert 'c: a: its runs differ in more than the extractor' in warning


def test_pairs_are_of_one_seed():
    """A test of weights of each seed: they differ with it."""
    runs = [run(name, seed, **{'MODEL.WEIGHTS': f'seed{seed}.pth'}) for name in 'ab' for seed in (0, 1)]
    assert [text for text in warnings(*runs) if 'c: b:' in text] == []


def test_two_frameworks():
    (warning,) = warnings(run('a', lr=1), run('b', framework='detectron2', lr=1))
    assert 'framework: mmdet → detectron2' in warning


def test_many_settings_are_counted():
    (warning,) = warnings(run('a'), run('b', **{f'x{index}': 1 for index in range(9)}))
    assert warning.count('→') == 5
    assert warning.endswith('; and 4 more')


def test_runs_without_a_record_are_left_alone():
    first, second = run('a', lr=1), run('b', lr=2)
    assert find_confounded([first[0], second[0]], None, lambda made: None) == []


@pytest.mark.parametrize('spoilt', [False, True])
def test_a_plan_is_warned_of_before_it_is_run(tmp_path, capsys, spoilt):
    pytest.importorskip('mmengine')
    for name, lr in (('a', 0.1), ('b', 0.2 if spoilt else 0.1)):
        text = f"model = dict(roi_head=dict(bbox_roi_extractor=dict(type='{name}')))\nlr = {lr}\n"
        (tmp_path / f'{name}.py').write_text(text)
    plan = parse_plan(
        {
            'name': 'p',
            'work_dir': 'w',
            'baseline': 'a',
            'configs': {'m': {'framework': 'mmdet', 'path': '{extractor}.py'}},
            'extractors': ['a', 'b'],
            'seeds': [0, 1],
        },
        tmp_path,
    )
    jobs = prepare(plan, tmp_path / 'w', {})
    warn_of_confounded(jobs, plan, Console(width=60))
    printed = capsys.readouterr().out
    assert ('warning: confounded: m: b: differs from a' in printed) == spoilt
    assert ('lr: 0.1 → 0.2' in printed) == spoilt
