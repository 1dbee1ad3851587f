"""The images on which two runs differ most, with outlines of what is there and what each run found."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from contourpy import contour_generator
from PIL import Image, ImageOps
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from roi_plugins.ablation.results import Run
from roi_plugins.evaluation import IOU_THRESHOLDS, load_results, read_predictions

MIN_SCORE = 0.3
"""Detections below it are drawn only if they match, or are the highest of as many as there are objects."""

_SHOWN_IOU = IOU_THRESHOLDS.index(0.75)
_SHOWN_SIDE = 800  # pixels, of an embedded picture


@dataclass(frozen=True)
class Shape:
    """An object or a detection as an SVG path in pixels of the image.

    Attributes:
        kind: ``'object'``, or of a detection ``'right'`` or ``'wrong'``.
        label: its class, and the score of a detection.
    """

    path: str
    kind: str
    label: str


@dataclass(frozen=True)
class Panel:
    """What one run found in an image, and its AP there, 0 to 1."""

    run: Run
    ap: float
    shapes: list[Shape]


@dataclass(frozen=True)
class Difference:
    """An image on which two runs differ.

    Attributes:
        image: its entry in the annotations.
        objects: the ground truth.
        panels: of the two runs.
    """

    image: dict
    objects: list[Shape]
    panels: list[Panel]


class Detections:
    """One run's detections of one kind, matched image by image with the objects.

    Args:
        coco: the annotations.
        iou_type: ``'bbox'`` or ``'segm'``.

    Raises:
        EvaluationError: the predictions cannot be evaluated.
    """

    def __init__(self, coco: COCO, run: Run, iou_type: str):
        self.run = run
        self.iou_type = iou_type
        results = read_predictions(coco, run.predictions[iou_type], iou_type)
        with contextlib.redirect_stdout(io.StringIO()):
            self.coco = load_results(coco, results)
            coco_eval = COCOeval(coco, self.coco, iou_type)
            coco_eval.params.areaRng, coco_eval.params.areaRngLbl = [[0, 1e10]], ['all']
            coco_eval.evaluate()
        self._results: dict[int, list[dict]] = {}
        for result in filter(None, coco_eval.evalImgs):
            self._results.setdefault(result['image_id'], []).append(result)
        self._recalls = coco_eval.params.recThrs

    def ap(self, image_id: int) -> float:
        """AP in this image alone, the mean of its classes; NaN for one without objects."""
        found = [self._class_ap(result) for result in self._results.get(image_id, [])]
        return float(np.mean(found)) if (found := [ap for ap in found if ap is not None]) else np.nan

    def _class_ap(self, result: dict) -> float | None:
        num_objects = int(np.sum(result['gtIgnore'] == 0))
        if num_objects == 0:
            return None
        counts = ~result['dtIgnore'].astype(bool)  # (T, D), by falling score
        right = np.cumsum((result['dtMatches'] != 0) & counts, axis=1)
        precision = right / np.maximum(np.cumsum(counts, axis=1), 1)
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        aps = []
        for p, r in zip(precision, right / num_objects, strict=True):
            at = np.searchsorted(r, self._recalls, side='left')
            aps.append(np.append(p, 0)[at].mean())
        return float(np.mean(aps))

    def shapes(self, image: dict, classes: dict[int, str], num_objects: int) -> list[Shape]:
        """The detections to draw, the highest score last, so that it lies on top."""
        right = {
            detection
            for result in self._results.get(image['id'], [])
            for detection, match in zip(
                result['dtIds'], result['dtMatches'][_SHOWN_IOU], strict=True
            )
            if match
        }
        found = self.coco.loadAnns(self.coco.getAnnIds(imgIds=[image['id']]))
        found = sorted(found, key=lambda detection: -detection['score'])
        shown = [
            detection
            for rank, detection in enumerate(found)
            if rank < num_objects or detection['score'] >= MIN_SCORE or detection['id'] in right
        ]
        return [
            Shape(
                outline(self.coco, detection, self.iou_type),
                'right' if detection['id'] in right else 'wrong',
                f'{classes[detection["category_id"]]} {detection["score"]:.2f}',
            )
            for detection in reversed(shown)
        ]


def most_different(
    coco: COCO, first: Detections, second: Detections, count: int
) -> list[Difference]:
    """Up to ``count`` images, those first whose AP differs most between two runs; none where it is equal,
    and none of unknown size."""
    sized = [id_ for id_, image in sorted(coco.imgs.items()) if image.keys() >= {'width', 'height'}]
    aps = {image_id: (first.ap(image_id), second.ap(image_id)) for image_id in sized}
    gaps = {image_id: abs(b - a) for image_id, (a, b) in aps.items() if abs(b - a) > 0}  # no NaN
    classes = {id_: category.get('name', str(id_)) for id_, category in coco.cats.items()}
    chosen = sorted(gaps, key=lambda image_id: -gaps[image_id])[:count]
    differences = []
    for image_id in chosen:
        image = coco.imgs[image_id]
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
        objects = [
            Shape(
                outline(coco, annotation, first.iou_type),
                'object',
                classes[annotation['category_id']] + (' (crowd)' if annotation['iscrowd'] else ''),
            )
            for annotation in annotations
        ]
        panels = [
            Panel(detections.run, ap, detections.shapes(image, classes, len(objects)))
            for detections, ap in zip((first, second), aps[image_id], strict=True)
        ]
        differences.append(Difference(image, objects, panels))
    return differences


def outline(coco: COCO, annotation: dict, iou_type: str) -> str:
    """The box, or the contours of the mask, as an SVG path."""
    if iou_type == 'bbox':
        x, y, w, h = annotation['bbox']
        return f'M{x:.1f} {y:.1f}h{w:.1f}v{h:.1f}h{-w:.1f}z'
    # Cells have their centres at whole numbers here, and half a cell further in the image.
    mask = np.pad(coco.annToMask(annotation), 1)
    lines = contour_generator(z=mask).lines(0.5)
    return ' '.join('M' + 'L'.join(f'{x - 0.5:.1f} {y - 0.5:.1f}' for x, y in line) + 'z' for line in lines)


def find_picture(image: dict, ann_file: Path) -> Path | None:
    """The file of an image, where datasets in COCO's layout have it: beside or below the annotations'
    folder, in a folder that is named as the split, e.g. ``val2017``."""
    name = image.get('file_name', '')
    split = ann_file.stem.removeprefix('instances_')
    folders: Sequence[Path] = (ann_file.parent.parent / split, ann_file.parent.parent, ann_file.parent)
    return next((path for folder in folders if name and (path := folder / name).is_file()), None)


def data_uri(picture: Path) -> str:
    """A picture as an address that holds it, scaled down to what a page shows.

    Raises:
        OSError: it cannot be read.
    """
    with Image.open(picture) as file:
        shown = ImageOps.exif_transpose(file).convert('RGB')
    shown.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    data = io.BytesIO()
    shown.save(data, 'JPEG', quality=85)
    return f'data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}'
