"""Finds the images on which two runs differ most, with outlines of the objects and of the detections."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from contourpy import contour_generator
from PIL import Image, ImageOps
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from roi_plugins.ablation.results import Run
from roi_plugins.evaluation.coco import IOU_THRESHOLDS
from roi_plugins.evaluation.coco_files import load_results, read_predictions
from roi_plugins.evaluation.matching import Matches, match, new_evaluation

MIN_SCORE = 0.3
"""A detection with a lower score is drawn only if it matches an object, or if it is among the highest N for N
objects."""

_SHOWN_IOU = IOU_THRESHOLDS.index(0.75)
_SHOWN_SIDE = 800  # the longer side of an embedded picture, pixels


@dataclass(frozen=True)
class Shape:
    """An object or a detection as an SVG path in pixels of the image.

    Attributes:
        path: the ``d`` attribute of the SVG path.
        kind: ``'object'``, or ``'right'`` or ``'wrong'`` for a detection.
        label: the class, and the score of a detection.
    """

    path: str
    kind: str
    label: str


@dataclass(frozen=True)
class Panel:
    """What one run found in an image.

    Attributes:
        run: the run.
        ap: its AP in this image, 0 to 1.
        shapes: its detections.
    """

    run: Run
    ap: float
    shapes: list[Shape]


@dataclass(frozen=True)
class Difference:
    """An image on which two runs differ.

    Attributes:
        image: the entry of the image in the annotations.
        objects: the ground truth.
        panels: what each of the two runs found.
    """

    image: dict
    objects: list[Shape]
    panels: list[Panel]


class Detections:
    """The detections of one run, as boxes, masks or keypoints, matched with the objects in each image.

    Args:
        coco: the annotations.
        run: the run.
        iou_type: one of :data:`~roi_plugins.evaluation.matching.IOU_TYPES`.

    Attributes:
        aps: the AP in each image by its id, the mean over the classes; NaN for an image without objects.

    Raises:
        DataError: the predictions cannot be evaluated.
    """

    def __init__(self, coco: COCO, run: Run, iou_type: str):
        self.run = run
        self.iou_type = iou_type
        self._truth = coco
        results = read_predictions(coco, run.predictions[iou_type], iou_type, run.sigmas)
        with contextlib.redirect_stdout(io.StringIO()):
            self._found = load_results(coco, results)
            matches = match(coco, self._found, iou_type, run.max_dets, run.sigmas)
        self.aps = dict(zip(matches.image_ids, _image_aps(matches).tolist(), strict=True))

    def shapes(self, image: dict, classes: dict[int, str], num_objects: int) -> list[Shape]:
        """Returns the detections to draw in an image. The highest score is last, so that it lies on top.

        Args:
            image: the entry of the image in the annotations.
            classes: the names of the classes by their ids.
            num_objects: how many objects the image has.
        """
        right = self._right(image['id'])
        found = self._found.loadAnns(self._found.getAnnIds(imgIds=[image['id']]))
        found = sorted(found, key=lambda detection: -detection['score'])
        shown = [
            detection
            for rank, detection in enumerate(found)
            if rank < num_objects or detection['score'] >= MIN_SCORE or detection['id'] in right
        ]
        return [
            Shape(
                outline(self._found, detection, self.iou_type),
                'right' if detection['id'] in right else 'wrong',
                f'{classes[detection["category_id"]]} {detection["score"]:.2f}',
            )
            for detection in reversed(shown)
        ]

    def _right(self, image_id: int) -> set[int]:
        """Returns the ids of the detections that match an object at the IoU that is shown."""
        with contextlib.redirect_stdout(io.StringIO()):
            coco_eval = new_evaluation(
                self._truth, self._found, self.iou_type, self.run.max_dets, self.run.sigmas
            )
            coco_eval.params.imgIds = [image_id]
            coco_eval.params.areaRng, coco_eval.params.areaRngLbl = [[0, 1e10]], ['all']
            coco_eval.evaluate()
        return {
            detection
            for result in filter(None, coco_eval.evalImgs)
            for detection, matched in zip(result['dtIds'], result['dtMatches'][_SHOWN_IOU], strict=True)
            if matched
        }


def _image_aps(matches: Matches) -> np.ndarray:
    """Returns the AP in each image, the mean over its classes, of shape (images,); NaN without objects."""
    sums, present = np.zeros((2, len(matches.image_ids)))
    recalls = COCOeval(iouType='bbox').params.recThrs
    for of_class in matches.classes:
        objects = np.bincount(of_class.object_image[~of_class.object_ignored[0]], minlength=len(sums))
        order = np.argsort(of_class.image, kind='stable')  # within an image they stay sorted by score
        ends = np.searchsorted(of_class.image[order], np.arange(len(sums) + 1))
        counts = ~of_class.ignored[0][:, order]
        right = of_class.matched[0][:, order] & counts
        for image in objects.nonzero()[0]:
            here = slice(ends[image], ends[image + 1])
            sums[image] += _ap(right[:, here], counts[:, here], objects[image], recalls)
            present[image] += 1
    return np.divide(sums, present, out=np.full_like(sums, np.nan), where=present > 0)


def _ap(right: np.ndarray, counts: np.ndarray, num_objects: int, recalls: np.ndarray) -> float:
    """Computes COCO's AP from arrays of shape (IoU thresholds, detections), sorted by falling score."""
    some = right.any(axis=1)  # AP is 0 at the other thresholds
    rights = np.cumsum(right[some], axis=1)
    precision = rights / np.maximum(np.cumsum(counts[some], axis=1), 1)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    total = 0.0
    for p, recall in zip(precision, rights / num_objects, strict=True):
        total += np.append(p, 0)[np.searchsorted(recall, recalls)].mean()
    return total / len(right)


def most_different(coco: COCO, first: Detections, second: Detections, count: int) -> list[Difference]:
    """Finds the images on which the AP of two runs differs most.

    Args:
        coco: the annotations.
        first: the detections of the first run.
        second: the detections of the second run.
        count: how many images to return at most.

    Returns:
        The images, the largest difference first. Images with equal AP are left out, and images whose size
        the annotations do not give.
    """
    sized = [id_ for id_, image in sorted(coco.imgs.items()) if image.keys() >= {'width', 'height'}]
    aps = {image_id: (first.aps[image_id], second.aps[image_id]) for image_id in sized}
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
    """Makes an SVG path of a box, of the contours of a mask, or of a cross at each keypoint.

    Args:
        coco: the annotations or results that the annotation is from; they give the size of its mask.
        annotation: an object or a detection.
        iou_type: ``'bbox'`` for its box, ``'segm'`` for its mask, ``'keypoints'`` for its keypoints.
    """
    if iou_type == 'bbox':
        x, y, w, h = annotation['bbox']
        return f'M{x:.1f} {y:.1f}h{w:.1f}v{h:.1f}h{-w:.1f}z'
    if iou_type == 'keypoints':
        points = np.reshape(annotation['keypoints'], (-1, 3))
        if 'score' not in annotation:  # the third number of an object is 0 for keypoints that it lacks
            points = points[points[:, 2] > 0]
        # COCO's keypoints are indices of pixels, and SVG has the centre of a pixel half a pixel further.
        return ''.join(f'M{x - 2.5:.1f} {y + 0.5:.1f}h6m-3 -3v6' for x, y, _ in points.tolist())
    # contour_generator puts the centres of pixels at whole numbers, and SVG half a pixel further. With the
    # padding of one pixel, the contours have to move by -0.5.
    mask = np.pad(coco.annToMask(annotation), 1)
    # By default each line is an array; the type of lines() has the results of all options.
    lines = cast('list[np.ndarray]', contour_generator(z=mask).lines(0.5))
    return ' '.join('M' + 'L'.join(f'{x - 0.5:.1f} {y - 0.5:.1f}' for x, y in line) + 'z' for line in lines)


def folders_beside(ann_file: Path) -> list[Path]:
    """Lists the folders in which datasets in COCO's layout keep their images.

    That is a folder with the name of the split, such as ``val2017``, beside the folder of the annotations; or
    the folder of the annotations itself, or its parent.

    Args:
        ann_file: the annotations.
    """
    split = ann_file.stem.removeprefix('instances_')
    return [ann_file.parent.parent / split, ann_file.parent.parent, ann_file.parent]


def find_picture(image: Mapping[str, Any], image_dirs: Sequence[Path]) -> Path | None:
    """Finds the file of an image in the first folder that has it.

    An absolute name, or one with ``..``, is not looked for: annotations must not choose which other files of
    this machine a page shows.

    Args:
        image: the entry of the image in the annotations.
        image_dirs: the folders to look in.

    Returns:
        The file; None if it was not found.
    """
    name = str(image.get('file_name', ''))
    if Path(name).is_absolute() or '..' in Path(name).parts:
        return None
    return next((path for folder in image_dirs if name and (path := folder / name).is_file()), None)


def as_rgb(image: Image.Image) -> Image.Image:
    """Converts a picture to 8-bit RGB as MMDetection does: of 16 bits, OpenCV keeps the upper 8."""
    if image.mode.startswith('I'):  # Pillow would clip 16 bits at 255, so nearly everything would be white
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert('RGB')
    return image.convert('RGB')


def data_uri(picture: Path) -> str:
    """Makes a ``data:`` URI of a picture, scaled down to the size that a page shows.

    Args:
        picture: the file.

    Raises:
        OSError: it cannot be read.
    """
    with Image.open(picture) as file:
        shown = as_rgb(ImageOps.exif_transpose(file))
    shown.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    data = io.BytesIO()
    shown.save(data, 'JPEG', quality=85)
    return f'data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}'
