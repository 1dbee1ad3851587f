"""Generated annotations, and detections of a detector whose quality is known.

    python tests/synthetic.py DIR [N]

writes data of the size of COCO val2017 to a new directory: 5,000 images, 80 classes, and N detectors (two)
with 100 detections in each image; ``annotations.json``, ``a.bbox.json``, ``b.bbox.json`` and so on.
"""

from __future__ import annotations

import json
import string
import sys
from pathlib import Path

import numpy as np


def make_annotations(
    rng: np.random.Generator, images: int, classes: int, objects: float, crowds: float = 0.01
) -> dict:
    """COCO annotations of 640 x 480 images with small, medium and large boxes.

    Args:
        objects: mean number an image.
        crowds: the share of the objects that are crowds.
    """
    annotations = []
    # As in COCO, the classes of an image are few, and some classes are far more frequent.
    frequency = 1 / np.arange(1, classes + 1)
    frequency /= frequency.sum()
    for image in range(1, images + 1):
        palette = rng.choice(classes, 3, p=frequency)
        for _ in range(rng.poisson(objects)):
            size = np.exp(rng.uniform(np.log(12), np.log(300), 2))
            x, y = rng.uniform(0, 1, 2) * np.maximum(1, [640, 480] - size)
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': image,
                    'category_id': int(rng.choice(palette)) + 1,
                    'bbox': [float(x), float(y), *size.tolist()],
                    'area': float(size.prod()) * 0.7,
                    'iscrowd': int(rng.random() < crowds),
                }
            )
    return {
        'images': [{'id': i, 'height': 480, 'width': 640} for i in range(1, images + 1)],
        'annotations': annotations,
        'categories': [{'id': i + 1, 'name': f'class {i}'} for i in range(classes)],
    }


def detect(
    rng: np.random.Generator, dataset: dict, noise: float, per_image: int, recall: float = 0.9
) -> list[dict]:
    """Boxes of a detector: one for most objects, near misses around them, and background.

    Args:
        noise: standard deviation of the localisation, as a fraction of the box's sides.
        per_image: detections an image.
        recall: the share of the objects that have a detection.
    """
    by_image: dict[int, list[dict]] = {image['id']: [] for image in dataset['images']}
    for annotation in dataset['annotations']:
        by_image[annotation['image_id']].append(annotation)
    classes = [category['id'] for category in dataset['categories']]
    detections = []
    for image, truths in by_image.items():
        found = [truth for truth in truths if rng.random() < recall]
        for index in range(per_image):
            if index < 2 * len(found):  # a detection, then a worse one of the same object
                truth = found[index % len(found)]
                spread = noise * (1 + index // len(found))
                w, h = truth['bbox'][2:] * np.exp(rng.normal(0, spread, 2))
                x, y = truth['bbox'][:2] + rng.normal(0, spread, 2) * truth['bbox'][2:]
                score = rng.beta(5, 2) / (1 + index // len(found))
                category = truth['category_id'] if rng.random() < 0.95 else rng.choice(classes)
            else:
                w, h = np.exp(rng.uniform(np.log(12), np.log(300), 2))
                x, y = rng.uniform(0, 1, 2) * [640 - w, 480 - h]
                score = rng.beta(1, 6)
                category = rng.choice(classes)
            detections.append(
                {
                    'image_id': image,
                    'category_id': int(category),
                    'bbox': [round(float(v), 2) for v in (x, y, w, h)],
                    'score': round(float(score), 5),
                }
            )
    return detections


if __name__ == '__main__':
    output = Path(sys.argv[1])
    output.mkdir(parents=True)
    rng = np.random.default_rng(0)
    dataset = make_annotations(rng, images=5000, classes=80, objects=7.3)
    (output / 'annotations.json').write_text(json.dumps(dataset))
    for index in range(int(sys.argv[2]) if len(sys.argv) > 2 else 2):
        name = string.ascii_lowercase[index]
        results = detect(rng, dataset, 0.06 + index / 100, per_image=100)
        (output / f'{name}.bbox.json').write_text(json.dumps(results))
