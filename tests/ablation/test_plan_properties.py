"""Whatever is in a plan: it is read, or one error says what is wrong with which file."""

from datetime import date

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from roi_plugins.ablation.plan import Plan, PlanError, load_plan

PLAN = {
    'name': 'small',
    'work_dir': 'work_dirs/small',
    'baseline': 'align-avg',
    'configs': {
        'mask': {
            'framework': 'mmdet',
            'path': '{extractor}.py',
            'cfg_options': {'train_cfg.max_iters': 100},
        },
        'faster': {
            'framework': 'mmdet',
            'path': '{extractor}.py',
            'checkpoints': {'align-avg': 'runs/{seed}'},
        },
        'one': {
            'framework': 'mmdet',
            'path': 'align-avg.py',
            'heads': ['bbox'],
            'row_paths': {'align-max': 'align-max.py'},
        },
    },
    'extractors': ['align-max', 'align-avg'],
    'seeds': [3, 0],
    'cfg_options': {},
    'num_gpus': 1,
}

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(['', '{extractor}', '{seed}', '{', '/', '..', 'a' * 300, 'mmdet', 'a\0b', 'align-avg']),
    st.dates(),
    st.binary(max_size=4),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars, inner, max_size=3),
    max_leaves=6,
)


def places(tree, path=()):
    """The paths of everything in a tree."""
    yield path
    if isinstance(tree, (dict, list)):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield from places(tree[key], (*path, key))


def replaced(tree, path, value):
    if not path:
        return value
    copy = tree.copy()
    copy[path[0]] = replaced(tree[path[0]], path[1:], value)
    return copy


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('plans')
    for extractor in PLAN['extractors']:
        (folder / f'{extractor}.py').touch()
    return folder


def read(path):
    try:
        assert isinstance(load_plan(path), Plan)
        return True
    except PlanError as error:
        assert str(error).startswith(f'{path}: ')
        assert len(str(error)) > len(f'{path}: ')
        return False


def test_the_plan_is_one(folder):
    path = folder / 'plan.yaml'
    path.write_text(yaml.safe_dump(PLAN))
    assert read(path)


in_a_folder = settings(
    max_examples=2 * settings().max_examples, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@in_a_folder
@given(place=st.sampled_from(list(places(PLAN))), value=values)
@example(place=('configs', 'mask', 'framework'), value=['mmdet'])  # has no hash
@example(place=('configs', 'mask', 'path'), value='a\0{extractor}')  # is no path
@example(place=('configs', 'mask', 'path'), value='{extractor}' * 300)  # too long for one
@example(place=('seeds',), value=[date(2026, 1, 1)])
def test_anything_in_the_place_of_something(folder, place, value):
    path = folder / 'plan.yaml'
    path.write_text(yaml.safe_dump(replaced(PLAN, place, value)), encoding='utf-8')
    read(path)


@in_a_folder
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@example(b'seeds: 2026-13-45')  # a date that is none
@example(b'seeds: ' + b'9' * 5000)  # more digits than Python converts
@example(b'[' * 5000)
@example(b'&a [*a]')
@example(b'a: &a {b: *a}')
@example(b'? [1]\n: 2')
@example(b'!!python/object/apply:os.system [true]')
@example(b'\xff\xfe')
def test_anything_for_a_file(folder, content):
    path = folder / 'any.yaml'
    path.write_bytes(content)
    assert not read(path)


@in_a_folder
@given(st.data())
def test_a_damaged_file(folder, data):
    text = yaml.safe_dump(PLAN)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 40, len(text))))
    path = folder / 'damaged.yaml'
    path.write_text(text[:start] + data.draw(st.text(max_size=5)) + text[end:], encoding='utf-8')
    read(path)
