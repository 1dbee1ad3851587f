"""Damaged results, records and annotations: an error that names the file, whatever the damage."""

import copy
import json
import shutil

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from roi_plugins.ablation.compare import ComparisonError, compare
from roi_plugins.evaluation.coco_files import _pixels_of_rle
from roi_plugins.files import DataError, write_json
from roi_plugins.run_record import write_run

values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 3),
        st.sampled_from(
            [10**400, 2**63, float('nan'), float('inf'), 1e300, 'a\0b', 'a' * 300, '../..', [], {}]
        ),
        st.floats(),
        st.text(max_size=5),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
FILES = ('annotations.json', 'metrics.json', 'trial.json', 'predictions.bbox.json', 'predictions.segm.json')


def rle(top, left):
    mask = np.zeros((20, 30), np.uint8, order='F')
    mask[top : top + 9, left : left + 7] = 1
    encoded = mask_utils.encode(mask)
    return {'size': [20, 30], 'counts': encoded['counts'].decode()}


@pytest.fixture(scope='module')
def originals(tmp_path_factory):
    """A folder with annotations and a finished trial `good`, and what is in its files."""
    folder = tmp_path_factory.mktemp('comparison')
    objects = [(1, 2, 3), (1, 8, 20), (2, 5, 5)]
    polygon = [3.0, 2.0, 10.0, 2.0, 10.0, 11.0, 3.0, 11.0]
    annotations = [
        {
            'id': i + 1,
            'image_id': image,
            'category_id': 4,
            'bbox': [left, top, 7, 9],
            'area': 63,
            'iscrowd': 0,
        }
        | {'segmentation': [polygon] if i == 0 else rle(top, left)}
        for i, (image, top, left) in enumerate(objects)
    ]
    images = [{'id': i, 'height': 20, 'width': 30} for i in (1, 2)]
    categories = [{'id': 4, 'name': 'thing'}]
    ann_file = folder / 'annotations.json'
    write_json(ann_file, {'images': images, 'annotations': annotations, 'categories': categories})
    run = folder / 'good'
    run.mkdir()
    common = [{'image_id': a['image_id'], 'category_id': 4, 'score': 0.5} for a in annotations]
    boxes, masks = ([a['bbox'] for a in annotations], [rle(t, x) for _, t, x in objects])
    write_json(run / 'predictions.bbox.json', [c | {'bbox': b} for c, b in zip(common, boxes, strict=True)])
    write_json(
        run / 'predictions.segm.json', [c | {'segmentation': m} for c, m in zip(common, masks, strict=True)]
    )
    write_run(run, framework='mmdet', config='c', checkpoint='x', ann_file=ann_file, command=[])
    record = {'format': 1, 'config_name': 'c', 'extractor': 'good', 'seed': 0, 'state': 'finished'}
    write_json(run / 'trial.json', record | {'started': ''})
    shutil.copytree(run, folder / 'bad')
    write_json(folder / 'bad' / 'trial.json', record | {'extractor': 'bad', 'started': ''})
    return folder, {name: json.loads(path_of(folder, name).read_text()) for name in FILES}


def path_of(folder, name):
    return folder / name if name == 'annotations.json' else folder / 'bad' / name


def place_in(tree, data):
    """A random path into a tree."""
    path = []
    while isinstance(tree, (dict, list)) and tree and data.draw(st.integers(0, 4)):
        keys = sorted(tree) if isinstance(tree, dict) else range(len(tree))
        path.append(data.draw(st.sampled_from(keys)))
        tree = tree[path[-1]]
    return path


def check(folder, name, content):
    """Compares with one file so damaged. It is compared all the same, or there is an error."""
    path = path_of(folder, name)
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        comparison = compare([folder / 'good', folder / 'bad'], resamples=2)
        errors = comparison.problems
    except (ComparisonError, DataError) as error:
        comparison, errors = None, [str(error)]
    finally:
        path.write_bytes(before)
    if name == 'annotations.json':
        named = (str(path), 'good', 'bad')
    else:
        named = (str(path), str(path.parent))
    assert all(any(what in error for what in named) for error in errors)
    assert comparison is None or len(comparison.metrics) + len(errors) >= 2
    return errors


def test_undamaged(originals):
    folder, trees = originals
    for name in FILES:
        assert not check(folder, name, json.dumps(trees[name]).encode())


@given(st.sampled_from(FILES), st.data())
def test_anything_in_the_place_of_something(originals, name, data):
    folder, trees = originals
    tree = [copy.deepcopy(trees[name])]
    path = [0, *place_in(tree[0], data)]
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    if data.draw(st.booleans()) or parent is tree:
        parent[path[-1]] = data.draw(values)
    else:
        del parent[path[-1]]
    check(folder, name, json.dumps(tree[0]).encode())


@given(st.sampled_from(FILES), st.data())
def test_damaged_bytes(originals, name, data):
    folder, trees = originals
    text = json.dumps(trees[name]).encode()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 20, len(text))))
    check(folder, name, text[:start] + data.draw(st.binary(max_size=3)) + text[end:])


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('content', [b'', b'{', b'\xff', b'null', b'[' * 100_000, b'9' * 5000], ids=range(6))
def test_no_json_of_ours(originals, name, content):
    folder, _ = originals
    assert check(folder, name, content)


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=9), st.text(max_size=4))
@example([0, 600], '')
def test_pixels_of_rle(runs, damage):
    """As many as pycocotools has; a damaged text has another number, or none."""
    size = sum(runs)
    text = mask_utils.frPyObjects({'size': [size, 1], 'counts': runs}, size, 1)['counts'].decode()
    assert _pixels_of_rle(text) == _pixels_of_rle(runs) == size
    assert (
        _pixels_of_rle(text + damage) is None
        or not damage
        or set(text + damage) <= set(map(chr, range(48, 112)))
    )
