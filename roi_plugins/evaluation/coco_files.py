"""Reads and checks annotations and predictions in COCO's format."""

from __future__ import annotations

import contextlib
import io
import reprlib
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from pycocotools.coco import COCO

from roi_plugins.evaluation.matching import COCO_SIGMAS, REGIONS
from roi_plugins.files import DataError, read_json

FIELDS = {'bbox': 'bbox', 'segm': 'segmentation', 'keypoints': 'keypoints'}
"""By kind of predictions, the key of COCO's results that has them."""


def read_predictions(
    coco: COCO,
    predictions: str | Path | Sequence[dict],
    iou_type: str,
    sigmas: Sequence[float] = COCO_SIGMAS,
) -> list[dict]:
    """Checks predictions, and returns a copy of the keys that their evaluation needs.

    A copy, because COCO's evaluation changes its input; no other keys, because it takes the area of a mask
    from ``bbox`` if there is one. Keypoints keep their ``bbox``, which is what their area is taken from in
    pycocotools and Detectron2; without one, their area is that of the box around them.

    Args:
        coco: what :func:`load_annotations` returns.
        predictions: COCO results, as the path of a file or as the list in it.
        iou_type: one of :data:`~roi_plugins.evaluation.matching.EVALUATIONS`.
        sigmas: the OKS sigma of each keypoint. Their number is that of the keypoints.

    Raises:
        DataError: the file is missing or malformed, or the predictions are not for these annotations.
    """
    if isinstance(predictions, (str, Path)):
        source, results = str(predictions), read_json(predictions, 'prediction file')
    else:
        source, results = 'predictions', predictions
    keys = ['image_id', 'category_id', 'score', FIELDS.get(iou_type, 'segmentation')]
    if iou_type == 'keypoints' and isinstance(results, (list, tuple)):
        # pycocotools decides by the first.
        keys += ['bbox'] if results and isinstance(results[0], dict) and 'bbox' in results[0] else []
    _check_predictions(coco, results, iou_type, keys, source, len(sigmas))
    return [{key: result[key] for key in keys} for result in results]


def load_results(coco: COCO, results: list[dict]) -> COCO:
    """Returns ``coco.loadRes(results)``, but also takes an empty list.

    Args:
        coco: annotations.
        results: what :func:`read_predictions` returned; they are changed.
    """
    return coco.loadRes(results) if results else _no_detections(coco)


def load_annotations(ann_file: str | Path) -> COCO:
    """Reads COCO instance annotations, which several evaluations may share.

    Args:
        ann_file: path of the annotations.

    Raises:
        DataError: the file is missing or malformed.
    """
    dataset = read_json(ann_file, 'annotation file')
    parts = ('images', 'annotations', 'categories')
    if not isinstance(dataset, dict) or any(part not in dataset for part in parts):
        raise DataError(f'{ann_file}: not COCO annotations; expected an object with {", ".join(parts)}')
    _check_annotations(dataset, ann_file)
    coco = COCO()
    coco.dataset = dataset
    coco.source = str(ann_file)  # for messages
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def check_annotations(
    ann_file: str | Path, iou_types: Sequence[str] = REGIONS, sigmas: Sequence[float] = COCO_SIGMAS
) -> COCO:
    """Reads the annotations of a test set and checks everything that an evaluation needs of them.

    Call it before a training, so that the test after it cannot fail on the annotations.

    Args:
        ann_file: path of COCO instance annotations.
        iou_types: the kinds of AP that will be evaluated, of ``EVALUATIONS``.
        sigmas: the OKS sigma of each keypoint.

    Returns:
        What :func:`load_annotations` returns.

    Raises:
        DataError: the file is missing, cannot be evaluated, or has no images or no objects to find.
    """
    coco = load_annotations(ann_file)
    if not coco.imgs:
        raise DataError(f'{ann_file}: has no images')
    if not any(annotation['image_id'] in coco.imgs for annotation in coco.anns.values()):
        raise DataError(f'{ann_file}: no image has an object to find, so there is no AP')
    for iou_type in iou_types:
        check_objects(coco, iou_type, sigmas)
    return coco


def _check_annotations(dataset: dict, ann_file: str | Path) -> None:
    required = {
        'images': ('id',),
        'categories': ('id',),
        'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area', 'iscrowd'),
    }
    for part, keys in required.items():
        if not isinstance(dataset[part], list):
            raise DataError(f'{ann_file}: {part} is {_brief(dataset[part])}; expected a list')
        for index, entry in enumerate(dataset[part]):
            where = f'{ann_file}: {part}[{index}]'
            if not isinstance(entry, dict):
                raise DataError(f'{where} is {_brief(entry)}; expected an object')
            if missing := [key for key in keys if key not in entry]:
                raise DataError(f'{where} lacks {", ".join(missing)}')
            for key in keys:
                if key.endswith('id') and not isinstance(entry[key], int):
                    raise DataError(f'{where} has {key} {_brief(entry[key])}; expected a whole number')
        _check_ids(dataset[part], f'{ann_file}: {part}')
    for index, category in enumerate(dataset['categories']):
        if not isinstance(category.get('name', ''), str):
            name = _brief(category['name'])
            raise DataError(f'{ann_file}: categories[{index}] has name {name}; expected a string')
    categories = {category['id'] for category in dataset['categories']}
    for index, annotation in enumerate(dataset['annotations']):
        where = f'{ann_file}: annotations[{index}]'
        if annotation['id'] == 0:
            # COCO's evaluation stores the id of a match, and 0 for none.
            raise DataError(f"{where} has id 0, which COCO's evaluation takes for no match; number from 1")
        if annotation['category_id'] not in categories:
            raise DataError(
                f'{where} has category_id {annotation["category_id"]}, which is not among the categories'
            )
        if not _is_box(annotation['bbox']) or not _is_finite(annotation['area']):
            raise DataError(
                f'{where} has bbox {_brief(annotation["bbox"])} and area {_brief(annotation["area"])}; '
                'expected four finite numbers x, y, w, h and one'
            )
        if annotation['iscrowd'] not in (0, 1):
            raise DataError(f'{where} has iscrowd {_brief(annotation["iscrowd"])}; expected 0 or 1')


def _check_ids(entries: Sequence[dict], where: str) -> None:
    """Raises DataError on two entries with one id: COCO's index keeps the last, its evaluation may count
    both.
    """
    seen: dict[int, int] = {}
    for index, entry in enumerate(entries):
        first = seen.setdefault(entry['id'], index)
        if first != index:
            raise DataError(f'{where}[{index}] has the id {entry["id"]} of {where.split()[-1]}[{first}]')


def check_objects(coco: COCO, iou_type: str, sigmas: Sequence[float]) -> None:
    """Raises DataError if an object lacks what an evaluation needs in addition to that of boxes.

    Args:
        coco: what :func:`load_annotations` returns.
        iou_type: one of :data:`~roi_plugins.evaluation.matching.EVALUATIONS`.
        sigmas: the OKS sigma of each keypoint.
    """
    if iou_type == 'keypoints':
        _check_keypoints(coco, len(sigmas))
    elif iou_type != 'bbox':
        _check_outlines(coco)


def _check_keypoints(coco: COCO, num_keypoints: int) -> None:
    source = getattr(coco, 'source', 'annotations')
    for annotation in coco.anns.values():
        where = f'{source}: annotation {annotation["id"]}'
        if not isinstance(annotation.get('num_keypoints'), int):
            raise DataError(
                f'{where} has num_keypoints {_brief(annotation.get("num_keypoints"))}; expected how many '
                'keypoints are labelled'
            )
        _check_points(annotation.get('keypoints'), num_keypoints, where)


def _check_points(keypoints: Any, num_keypoints: int, where: str) -> None:
    if not isinstance(keypoints, list) or not all(map(_is_finite, keypoints)):
        raise DataError(f'{where} has the keypoints {_brief(keypoints)}; expected a list of numbers')
    if len(keypoints) != 3 * num_keypoints:
        raise DataError(
            f'{where} has keypoints of {len(keypoints)} numbers; expected x, y and visibility of '
            f'{num_keypoints} keypoints, as many as there are OKS sigmas: for other keypoints than those '
            "of COCO's persons, set Detectron2's TEST.KEYPOINT_OKS_SIGMAS"
        )


def _check_outlines(coco: COCO) -> None:
    source = getattr(coco, 'source', 'annotations')
    for annotation in coco.anns.values():
        outline, image = annotation.get('segmentation'), coco.imgs.get(annotation['image_id'])
        if isinstance(outline, dict):
            size = outline.get('size')
            valid = _is_size(size) and _pixels_of_rle(outline.get('counts')) == size[0] * size[1]
        else:
            is_polygons = isinstance(outline, list) and bool(outline) and all(map(_is_polygon, outline))
            # pycocotools takes a first polygon of four numbers for a box, and then fails.
            valid = is_polygons and len(outline[0]) >= 6
        if not valid:
            raise DataError(
                f'{source}: annotation {annotation["id"]} has the segmentation {_brief(outline)}; '
                'expected polygons of at least three points, or RLE'
            )
        if image is None:
            continue
        size = [image.get('height'), image.get('width')]
        if not _is_size(size):
            raise DataError(f'{source}: image {image["id"]} has no height and width')
        if isinstance(outline, dict) and outline['size'] != size:
            raise DataError(
                f'{source}: annotation {annotation["id"]} has a mask of size {outline["size"]}; image '
                f'{image["id"]} has {size} (h, w)'
            )


def _check_predictions(
    coco: COCO, predictions: Any, iou_type: str, keys: Sequence[str], source: str, num_keypoints: int
) -> None:
    if not isinstance(predictions, (list, tuple)):
        raise DataError(f'{source}: not COCO results; expected a list, got {type(predictions).__name__}')
    if iou_type == 'bbox' and _are_boxes(coco, predictions):
        return
    for index, prediction in enumerate(predictions):
        where = f'{source}: prediction {index}'
        if not isinstance(prediction, dict):
            raise DataError(f'{where} is not an object with {", ".join(keys)}')
        if missing := [key for key in keys if key not in prediction]:
            raise DataError(f'{where} lacks {", ".join(missing)}')
        image_id, category_id = prediction['image_id'], prediction['category_id']
        image = coco.imgs.get(image_id) if _is_finite(image_id) else None
        if image is None:
            raise DataError(
                f'{where} is for image_id {_brief(image_id)}, which the annotations do not '
                'have: these are predictions for another dataset'
            )
        if not _is_finite(category_id) or category_id not in coco.cats:
            raise DataError(
                f'{where} has category_id {_brief(category_id)}, which the annotations do '
                'not have: map the labels of the model to their category ids'
            )
        if not _is_finite(prediction['score']):
            raise DataError(f'{where} has score {_brief(prediction["score"])}; expected a finite number')
        if 'bbox' in keys and not _is_box(bbox := prediction['bbox']):
            raise DataError(f'{where} has bbox {_brief(bbox)}; expected four finite numbers x, y, w, h')
        if 'segmentation' in keys:
            _check_mask(prediction['segmentation'], image, where)
        if 'keypoints' in keys:
            _check_points(prediction['keypoints'], num_keypoints, where)


def _are_boxes(coco: COCO, predictions: Sequence) -> bool:
    """Tells, column by column and so much faster, whether predictions of boxes certainly have no fault.

    The types are those of JSON. What has others may be fine too.
    """
    try:
        image_ids, category_ids, scores, boxes = (
            [prediction[key] for prediction in predictions]
            for key in ('image_id', 'category_id', 'score', 'bbox')
        )
        numbers = [*scores, *chain.from_iterable(boxes)]
        return (
            {type(key) for key in chain(image_ids, category_ids)} <= {int}
            and {type(number) for number in numbers} <= {int, float}
            and coco.imgs.keys() >= set(image_ids)
            and coco.cats.keys() >= set(category_ids)
            and {(type(box), len(box)) for box in boxes} <= {(list, 4)}
            and {type(prediction) for prediction in predictions} <= {dict}
            and bool(np.isfinite(np.array(numbers, float)).all())
        )
    except (TypeError, LookupError, OverflowError):
        return False


def _check_mask(rle: Any, image: dict, where: str) -> None:
    if not isinstance(rle, dict) or not isinstance(rle.get('counts'), (str, bytes)):
        raise DataError(
            f'{where} has a segmentation that is not compressed RLE: '
            'expected {"size": [h, w], "counts": "..."}'
        )
    size = [image.get('height'), image.get('width')]
    if not _is_size(size) or rle.get('size') != size:
        raise DataError(
            f'{where} has a mask of size {_brief(rle.get("size"))}; image {image["id"]} has {size} (h, w)'
        )

    if _pixels_of_rle(rle['counts']) != size[0] * size[1]:
        raise DataError(f'{where} has a damaged mask: its counts are not of {size} (h, w)')


def _pixels_of_rle(counts: Any) -> int | None:
    """Returns the number of pixels of a mask from its run lengths, a list or compressed; None if they are
    invalid.

    pycocotools does not check them: invalid counts make it hang, or read beyond its memory.
    """
    if isinstance(counts, list):
        return sum(counts) if all(isinstance(n, int) and n >= 0 for n in counts) else None
    if not isinstance(counts, (str, bytes)):
        return None
    text = counts.encode() if isinstance(counts, str) else counts
    # LEB128 with six bits a character. From the fourth run on, a value is the difference to the run before
    # the last one.
    digits = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        return None
    ends = np.flatnonzero(digits & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 6:
        return None
    runs = np.add.reduceat((digits & 31) << 5 * place, starts)
    runs -= (digits[ends] & 16 > 0) * (1 << 5 * (place[ends] + 1))
    for every_other in (runs[1::2], runs[2::2]):
        np.cumsum(every_other, out=every_other)
    return int(runs.sum()) if runs.min() >= 0 else None


def _is_finite(number: Any) -> bool:
    # JSON has integers of any size; one beyond the range of a double cannot be computed with.
    return isinstance(number, (int, float)) and abs(number) <= sys.float_info.max


def _is_box(box: Any) -> bool:
    return isinstance(box, (list, tuple)) and len(box) == 4 and all(map(_is_finite, box))


def _is_polygon(polygon: Any) -> bool:
    coordinates = len(polygon) if isinstance(polygon, list) else 0
    return coordinates >= 4 and coordinates % 2 == 0 and all(map(_is_finite, polygon))


def _is_size(size: Any) -> TypeGuard[list[int]]:
    return isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)


def _brief(value: Any) -> str:
    """Returns a value in words, shortened, because a damaged file may hold values of any length."""
    return reprlib.repr(value)


def _no_detections(coco: COCO) -> COCO:
    detections = COCO()
    detections.dataset = {
        'images': coco.dataset['images'],
        'categories': coco.dataset['categories'],
        'annotations': [],
    }
    detections.createIndex()
    return detections
