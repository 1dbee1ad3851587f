"""The generated dataset: annotations against pixels, and what a folder keeps and refuses."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.path import Path as MplPath
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from roi_plugins.datasets import CLASSES, KEYPOINTS, ShapesSpec, generate_shapes, shapes

REPO = Path(__file__).parents[2]
SMALL = ShapesSpec(num_train=6, num_val=3, image_size=64, seed=3)


def load(root, split):
    return COCO(root / f'annotations/instances_{split}.json')


def digests(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    return generate_shapes(tmp_path_factory.mktemp('shapes') / 'ds', ShapesSpec(60, 20))


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    return generate_shapes(tmp_path_factory.mktemp('shapes') / 'ds', SMALL)


# --- What is written ------------------------------------------------------------------------------


@pytest.mark.parametrize(('split', 'num'), [('train', 60), ('val', 20)])
def test_layout_is_coco_s(dataset, split, num):
    coco = load(dataset, split)
    assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    assert coco.getCatIds() == list(range(1, len(CLASSES) + 1))
    assert coco.getImgIds() == list(range(num))
    assert len(list((dataset / split).iterdir())) == num
    for info in coco.dataset['images']:
        with Image.open(dataset / split / info['file_name']) as image:
            assert (image.mode, image.size) == ('RGB', (info['width'], info['height']))
            assert image.size == (192, 192)


def test_annotations_are_consistent_with_their_polygons(dataset):
    annotations = load(dataset, 'train').dataset['annotations']
    assert [a['id'] for a in annotations] == list(range(1, len(annotations) + 1))
    assert {a['image_id'] for a in annotations} == set(range(60)), 'no image is empty'
    assert any(len(a['segmentation']) > 1 for a in annotations)
    for a in annotations:
        polygons = [shapely.Polygon(np.reshape(flat, (-1, 2))) for flat in a['segmentation']]
        assert all(p.is_valid for p in polygons)
        union = shapely.union_all(polygons)
        assert union.area == pytest.approx(sum(p.area for p in polygons), abs=0.01), 'overlap'
        assert a['area'] == pytest.approx(union.area, abs=0.01)
        x, y, w, h = a['bbox']
        np.testing.assert_allclose([x, y, x + w, y + h], union.bounds, atol=1e-6)
        assert x >= 0 and y >= 0 and x + w <= 192 and y + h <= 192
        assert a['iscrowd'] == 0


def test_objects_of_an_image_do_not_overlap(dataset):
    coco = load(dataset, 'train')
    for annotations in coco.imgToAnns.values():
        polygons = [
            shapely.Polygon(np.reshape(flat, (-1, 2))) for a in annotations for flat in a['segmentation']
        ]
        assert shapely.union_all(polygons).area == pytest.approx(sum(a['area'] for a in annotations), abs=0.5)


PIXELS_OF_SEED_3 = 'efbc51096caac42b8448b79bfc8b3f3312ff4fe2168f79dd1b135430ce614ad4'
BOXES_AND_MASKS_OF_SEED_3 = 'b1ddee6aa399992e6fdd9c621345b6b6665ee01a3c76f5e2445c9da1c7c6e13c'


def test_images_boxes_and_masks_are_those_that_the_published_results_are_from(small):
    """Written before there were keypoints: by the generator of commit eda3d61."""
    pixels, annotations = hashlib.sha256(), []
    for split in ('train', 'val'):
        for path in sorted((small / split).iterdir()):
            pixels.update(np.asarray(Image.open(path)).tobytes())
        for a in load(small, split).dataset['annotations']:
            del a['keypoints'], a['num_keypoints']
            annotations.append(a)
    assert pixels.hexdigest() == PIXELS_OF_SEED_3
    text = json.dumps(annotations, sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == BOXES_AND_MASKS_OF_SEED_3


def test_keypoints_are_the_outermost_corners_that_are_seen():
    """Where nothing hides it, the outermost corner touches the box of the object, as its name says."""
    seen, hidden = 0, 0
    for seed in range(150):
        in_front = []
        for obj in shapes._sample_objects(np.random.default_rng(seed), 192):
            is_whole = shapely.box(0, 0, 192, 192).contains(obj.outline)
            is_whole &= not any(obj.outline.intersects(other) for other in in_front)
            in_front.append(obj.outline)
            a = shapes._annotate(obj)
            points = np.reshape(a['keypoints'], (4, 3))
            assert a['num_keypoints'] == (points[:, 2] == 2).sum()
            assert not points[points[:, 2] != 2].any()
            if CLASSES[obj.label] == 'ellipse':
                assert a['num_keypoints'] == 0
                continue
            assert not is_whole or a['num_keypoints'] == 4
            x1, y1, x2, y2 = obj.outline.bounds
            sides = {'top': (1, y1), 'right': (0, x2), 'bottom': (1, y2), 'left': (0, x1)}
            for name, (x, y, v) in zip(KEYPOINTS, points.tolist(), strict=True):
                # A pixel's index is its centre in COCO's keypoints, and half a pixel further in its masks.
                corner = shapely.Point(x + 0.5, y + 0.5)
                axis, side = sides[name]
                if v:
                    assert (x, y)[axis] + 0.5 == pytest.approx(side, abs=1e-6)
                    polygons = [shapely.Polygon(np.reshape(p, (-1, 2))) for p in a['segmentation']]
                    assert min(corner.distance(polygon) for polygon in polygons) < 0.02
                seen += bool(v)
                hidden += not v
    assert seen > 2 * hidden > 200


def decode(annotation, size=192):
    """The mask as pycocotools and the frameworks read it."""
    rles = mask_utils.frPyObjects(annotation['segmentation'], size, size)
    return mask_utils.decode(mask_utils.merge(rles)).astype(bool)


def test_masks_are_what_is_painted(monkeypatch):
    """With one object in white and all else in black, the picture is that object's coverage."""
    for seed in range(25):
        objects = shapes._sample_objects(np.random.default_rng(seed), 192)
        for nth, obj in enumerate(reversed(objects), start=1):
            # The ground is painted first, then the objects from back to front.
            levels = [0] * (len(objects) + 1)
            levels[nth] = 255
            paints = (np.full((192, 192, 3), level, np.uint8) for level in levels)
            monkeypatch.setattr(shapes, '_texture', lambda *_, paints=paints: next(paints))
            picture = np.asarray(shapes._render(np.random.default_rng(0), objects, 192))
            assert next(paints, None) is None, 'all objects are painted'
            coverage = picture.mean(axis=2) / 255

            annotation = shapes._annotate(obj)
            similar = iou(coverage > 0.5, decode(annotation))
            assert similar >= (0.95 if annotation['area'] >= 1024 else 0.85)
            # Grain, cut off at black and white, leaves a little grey everywhere.
            painted = coverage[coverage > 0.1].sum()
            assert painted == pytest.approx(annotation['area'], abs=0.3 * obj.visible.length)


def test_masks_are_the_visible_parts_of_the_outlines():
    """Against another rasteriser: the outlines' pixel centres, painted from back to front."""
    centres = np.mgrid[:192, :192][::-1].reshape(2, -1).T + 0.5
    holes, excess = 0, []
    for seed in range(300):
        objects = shapes._sample_objects(np.random.default_rng(seed), 192)
        labels = np.zeros(192 * 192, int)
        for nth, obj in enumerate(reversed(objects), start=1):
            inside = MplPath(shapely.get_coordinates(obj.outline)).contains_points(centres)
            labels[inside] = nth
        for nth, obj in enumerate(reversed(objects), start=1):
            visible = (labels == nth).reshape(192, 192)
            annotation = shapes._annotate(obj)
            assert iou(visible, decode(annotation)) >= (0.95 if visible.sum() >= 400 else 0.8)
            excess.append((annotation['area'] - visible.sum()) / obj.visible.length)
            holes += any(p.interiors for p in shapely.get_parts(obj.visible))
    # In pixels of width along the edge: a grid of centres counts wrong by chance, not on average.
    assert np.abs(excess).max() < 0.5
    assert abs(np.mean(excess)) < 0.01
    assert holes, 'no scene has an object in front of the middle of another'


def test_classes_are_balanced_and_sizes_span_those_of_coco():
    objects = [obj for seed in range(400) for obj in shapes._sample_objects(np.random.default_rng(seed), 192)]
    per_class = np.bincount([obj.label for obj in objects]) / len(objects)
    np.testing.assert_allclose(per_class, 1 / len(CLASSES), atol=0.035)
    areas = np.array([obj.visible.area for obj in objects])
    small, large = (areas < 32**2).mean(), (areas >= 96**2).mean()
    assert 0.08 < small < 0.2
    assert 0.04 < large < 0.12
    assert 2.4 < len(objects) / 400 < 3


def test_colour_does_not_tell_the_class(dataset):
    coco = load(dataset, 'train')
    colours = {label: [] for label in coco.getCatIds()}
    for image_id, annotations in coco.imgToAnns.items():
        image = np.asarray(Image.open(dataset / f'train/{image_id:06d}.png'))
        for a in annotations:
            colours[a['category_id']].append(image[coco.annToMask(a).astype(bool)].mean(axis=0))
    # Nearest class mean, on the very objects the means come from: little better than chance.
    means = np.array([np.mean(c, axis=0) for c in colours.values()])
    right = sum(
        np.linalg.norm(means - colour, axis=1).argmin() == k
        for k, group in enumerate(colours.values())
        for colour in group
    )
    assert right / sum(map(len, colours.values())) < 0.4


@given(seed=st.integers(0, 2**63), image_size=st.integers(32, 512))
def test_every_scene_has_objects_that_can_be_annotated(seed, image_size):
    objects = shapes._sample_objects(np.random.default_rng(seed), image_size)
    assert 1 <= len(objects) <= 5
    for obj in objects:
        a = shapes._annotate(obj)
        assert a['area'] >= 1
        assert min(a['bbox'][2:]) > 0
        assert all(len(flat) >= 6 and len(flat) % 2 == 0 for flat in a['segmentation'])
        assert a['area'] == pytest.approx(obj.visible.area, abs=12), 'slivers alone are left out'


@given(st.lists(st.tuples(*[st.integers(1, 39)] * 2, *[st.integers(1, 12)] * 2), min_size=1, max_size=12))
def test_a_polygon_with_holes_becomes_pieces_without(cuts):
    whole = shapely.box(0, 0, 40, 40)
    for x, y, w, h in cuts:
        whole = whole.difference(shapely.box(x, y, x + w, y + h), grid_size=0.01)
    for polygon in shapely.get_parts(whole):
        pieces = shapes._without_holes(polygon)
        assert not any(p.interiors for p in pieces)
        assert sum(p.area for p in pieces) == pytest.approx(polygon.area)
        assert shapely.union_all(pieces).symmetric_difference(polygon).area < 0.01


# --- Determinism ----------------------------------------------------------------------------------


def test_same_seed_same_bytes_in_another_process(small, tmp_path):
    run_tool(tmp_path / 'ds', SMALL, PYTHONHASHSEED='1')
    assert digests(tmp_path / 'ds') == digests(small)


def test_another_seed_gives_other_pictures(small, tmp_path):
    other = generate_shapes(tmp_path / 'ds', replace(SMALL, seed=4))
    ours, theirs = digests(small), digests(other)
    assert ours.keys() == theirs.keys()
    assert not set(ours.values()) & set(theirs.values())


def test_train_and_val_share_no_picture(small):
    files = digests(small).values()
    assert len(files) == len(set(files))


def test_a_larger_dataset_begins_with_the_smaller(small, tmp_path):
    larger = generate_shapes(tmp_path / 'ds', replace(SMALL, num_train=8, num_val=5))
    for split in ('train', 'val'):
        few, many = load(small, split).dataset, load(larger, split).dataset
        for key in ('images', 'annotations'):
            assert 0 < len(few[key]) < len(many[key])
            assert many[key][: len(few[key])] == few[key]
    pictures = {name: d for name, d in digests(small).items() if name.endswith('.png')}
    assert len(pictures) == 9
    assert pictures.items() <= digests(larger).items()


# --- Folders --------------------------------------------------------------------------------------


def run_tool(root, spec, **env):
    flags = [f'--{name.replace("_", "-")}={value}' for name, value in asdict(spec).items()]
    command = [sys.executable, REPO / 'tools/make_shapes.py', root, *flags]
    env = os.environ | {'PYTHONPATH': str(REPO)} | env
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True)


def test_a_complete_dataset_is_left_alone(small):
    before = {path: path.stat().st_mtime_ns for path in small.rglob('*')}
    assert generate_shapes(str(small), SMALL) == small
    assert {path: path.stat().st_mtime_ns for path in small.rglob('*')} == before


def test_another_spec_is_refused(small):
    before = digests(small)
    with pytest.raises(FileExistsError) as error:
        generate_shapes(small, replace(SMALL, seed=77))
    for part in (str(small), '"seed": 3', '"seed": 77', 'choose another folder, or delete'):
        assert part in str(error.value)
    assert digests(small) == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / 'train').mkdir()
    (tmp_path / 'train/000000.png').write_text('mine')
    with pytest.raises(FileExistsError, match=r'not empty.*choose another folder'):
        generate_shapes(tmp_path, SMALL)
    assert [p.name for p in tmp_path.rglob('*')] == ['train', '000000.png']
    with pytest.raises(FileExistsError, match='is a file'):
        generate_shapes(tmp_path / 'train/000000.png', SMALL)


def test_an_empty_folder_is_filled_and_parents_are_made(small, tmp_path):
    (tmp_path / 'empty').mkdir()
    assert digests(generate_shapes(tmp_path / 'empty', SMALL)) == digests(small)
    assert digests(generate_shapes(tmp_path / 'a/b', SMALL)) == digests(small)
    assert {p.name for p in tmp_path.iterdir()} == {'empty', 'a'}, 'nothing is left aside'


def test_an_interrupted_call_leaves_nothing_and_is_redone(small, tmp_path, monkeypatch):
    calls = []

    def interrupt(*args, render=shapes._render):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return render(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shapes, '_render', interrupt)
        generate_shapes(tmp_path / 'ds', SMALL)
    assert not list(tmp_path.iterdir())
    assert digests(generate_shapes(tmp_path / 'ds', SMALL)) == digests(small)


def test_a_killed_call_is_redone(small, tmp_path):
    code = (
        'import os, signal\n'
        'from roi_plugins.datasets import shapes\n'
        'describe, calls = shapes._describe, []\n'
        'def last_words(spec):\n'
        '    calls.append(spec)\n'
        '    if len(calls) > 1: os.kill(os.getpid(), signal.SIGKILL)\n'
        '    return describe(spec)\n'
        'shapes._describe = last_words\n'
        f'shapes.generate_shapes({str(tmp_path / "ds")!r}, shapes.{SMALL!r})\n'
    )
    killed = subprocess.run([sys.executable, '-c', code], cwd=REPO, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(tmp_path.rglob('instances_val.json')), 'it was all but complete'
    assert not (tmp_path / 'ds').exists()
    assert digests(generate_shapes(tmp_path / 'ds', SMALL)) == digests(small)


def test_a_faster_call_at_the_same_time_wins(small, tmp_path, monkeypatch):
    def slow(root, spec, write=shapes._write_dataset):
        monkeypatch.setattr(shapes, '_write_dataset', write)
        generate_shapes(tmp_path / 'ds', other)
        write(root, spec)

    other = SMALL
    monkeypatch.setattr(shapes, '_write_dataset', slow)
    assert digests(generate_shapes(tmp_path / 'ds', SMALL)) == digests(small)

    (tmp_path / 'ds').rename(tmp_path / 'first')
    other = replace(SMALL, seed=4)
    monkeypatch.setattr(shapes, '_write_dataset', slow)
    with pytest.raises(FileExistsError, match='another spec'):
        generate_shapes(tmp_path / 'ds', SMALL)
    assert {p.name for p in tmp_path.iterdir()} == {'ds', 'first'}


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('num_train', 0),
        ('num_val', True),
        ('image_size', 31),
        ('image_size', '192'),
        ('seed', -1),
        ('seed', 1.0),
    ],
)
def test_a_bad_spec_names_the_field(field, value):
    with pytest.raises(ValueError, match=rf'{field}={value!r}, expected an integer >= \d'):
        ShapesSpec(**{field: value})


def test_the_tool_prints_the_folder_and_reports_a_refusal(small):
    assert run_tool(small, SMALL).stdout.strip() == str(small)
    with pytest.raises(subprocess.CalledProcessError) as error:
        run_tool(small, replace(SMALL, num_val=1))
    assert error.value.stderr.startswith('error: root=')
    assert 'Traceback' not in error.value.stderr
