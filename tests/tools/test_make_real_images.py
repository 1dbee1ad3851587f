"""The converters of real images, on repositories of the original layout with a few drawn images."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('make_real_images', ROOT / 'tools/make_real_images.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def noise(width, height):
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), np.uint8))


def name_of(index):
    return f'{index:016d}{0:048d}'


def read(out):
    return {split: COCO(str(out / f'annotations/instances_{split}.json')) for split in ('train', 'val')}


@pytest.fixture(scope='module')
def nuclei(tmp_path_factory):
    """Ten images; the first is shrunk to half. Its masks are two rectangles and a single pixel."""
    clone = tmp_path_factory.mktemp('nuclei')
    for index in range(10):
        width, height = (1280, 64) if index == 0 else (48, 32)
        name = name_of(index)
        folder = clone / 'stage1_train' / name
        (folder / 'images').mkdir(parents=True)
        (folder / 'masks').mkdir()
        noise(width, height).convert('RGBA').save(folder / 'images' / f'{name}.png')
        for number, (x, y, w, h) in enumerate([(4, 6, 20, 10), (30, 8, 6, 12), (1, 1, 1, 1)]):
            mask = np.zeros((height, width), np.uint8)
            mask[y : y + h, x : x + w] = 255
            Image.fromarray(mask).save(folder / 'masks' / f'{number}.png')
    return clone


def test_nuclei(tool, nuclei, tmp_path):
    assert tool.main(['nuclei', str(nuclei), str(tmp_path / 'out')]) == 0
    found = read(tmp_path / 'out')
    assert [len(coco.imgs) for coco in found.values()] == [7, 3]
    sources = [image['source_id'] for coco in found.values() for image in coco.imgs.values()]
    assert sorted(sources) == sorted(path.name for path in (nuclei / 'stage1_train').iterdir())
    for split, coco in found.items():
        assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
        for image in coco.imgs.values():
            stored = Image.open(tmp_path / 'out' / split / image['file_name'])
            assert (stored.size, stored.mode) == ((image['width'], image['height']), 'RGB')
            shrunk = image['source_id'] == name_of(0)
            assert stored.size == ((640, 32) if shrunk else (48, 32))
            objects = coco.loadAnns(coco.getAnnIds(image['id']))
            # Shrunk, a quarter of a pixel is nothing.
            expected = (
                [[2, 3, 10, 5], [15, 4, 3, 6]] if shrunk else [[4, 6, 20, 10], [30, 8, 6, 12], [1, 1, 1, 1]]
            )
            assert [obj['bbox'] for obj in objects] == expected
            for obj in objects:
                mask = coco.annToMask(obj)
                x, y, w, h = obj['bbox']
                assert mask[y : y + h, x : x + w].all() and mask.sum() == w * h == obj['area']
                assert rle.area(obj['segmentation']) == obj['area'] and obj['iscrowd'] == 0


def test_apples(tool, tmp_path, monkeypatch):
    clone = tmp_path / 'clone'
    (clone / 'data/images').mkdir(parents=True)
    (clone / 'data/json').mkdir()
    # Centre and size: inside, across the left and the upper border, and with 1 px left inside.
    boxes = [[40, 60, 20, 32], [4, 2, 16, 12], [164, 60, 10, 10]]
    for name in ('a_b_1', 'a_b_2', 'c_d_7'):
        noise(160, 120).save(clone / f'data/images/{name}.jpg')
        annotations = [{'bbox': box, 'area': 0} for box in boxes]
        (clone / f'data/json/{name}.json').write_text(json.dumps({'annotations': annotations}))
    (tmp_path / 'split.txt').write_text('# which\ntrain a_b 1 2\nval c_d 7\n')
    monkeypatch.setattr(tool, 'APPLES_SPLIT', tmp_path / 'split.txt')
    assert tool.main(['apples', str(clone), str(tmp_path / 'out')]) == 0
    found = read(tmp_path / 'out')
    names = [[image['file_name'] for image in coco.imgs.values()] for coco in found.values()]
    assert names == [['a_b_1.jpg', 'a_b_2.jpg'], ['c_d_7.jpg']]
    for split, coco in found.items():
        for image in coco.imgs.values():
            assert Image.open(tmp_path / 'out' / split / image['file_name']).size == (120, 90)
            objects = coco.loadAnns(coco.getAnnIds(image['id']))
            assert [obj['bbox'] for obj in objects] == [[22.5, 33, 15, 24], [0, 0, 9, 6]]
            assert [obj['area'] for obj in objects] == [360, 54]


def test_the_given_split_of_apples_has_no_photograph_in_both_halves(tool):
    lines = [line.split() for line in tool.APPLES_SPLIT.read_text().splitlines()[1:]]
    assert {line[0] for line in lines} == {'train', 'val'}
    assert len({line[1] for line in lines}) == len(lines) == 76
    assert all(len(set(line[2:])) == 4 for line in lines)


def test_nothing_is_overwritten_or_left_half_done(tool, nuclei, tmp_path, capsys):
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'mine').write_text('mine')
    assert tool.main(['nuclei', str(nuclei), str(out)]) == 1
    assert f'error: {out} exists and is not an empty folder; choose another one' in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ['mine']
    assert tool.main(['apples', str(nuclei), str(tmp_path / 'apples')]) == 1  # not a clone of it
    assert 'error: ' in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['out']


def test_a_mask_of_another_size_is_named(tool, nuclei, tmp_path, capsys):
    folder = nuclei / 'stage1_train' / name_of(3) / 'masks'
    Image.new('L', (5, 5)).save(folder / 'bad.png')
    try:
        assert tool.main(['nuclei', str(nuclei), str(tmp_path / 'out')]) == 1
    finally:
        (folder / 'bad.png').unlink()
    assert 'bad.png: the mask is of (5, 5) px, its image of (48, 32) px' in capsys.readouterr().err


def test_two_images_of_one_name_are_an_error(tool, nuclei, tmp_path, capsys):
    folder = nuclei / 'stage1_train' / f'{name_of(3)[:-1]}1'
    (folder / 'images').mkdir(parents=True)
    noise(8, 8).save(folder / 'images' / f'{folder.name}.png')
    other = nuclei / 'stage1_train' / f'{name_of(3)[:-1]}2'
    (other / 'images').mkdir(parents=True)
    noise(8, 8).save(other / 'images' / f'{other.name}.png')
    try:
        assert tool.main(['nuclei', str(nuclei), str(tmp_path / 'out')]) == 1
    finally:
        shutil.rmtree(folder)
        shutil.rmtree(other)
    assert f'two images would be named {name_of(3)[:16]}.jpg' in capsys.readouterr().err
