"""COCO average precision, and the files of an evaluated run.

What the tools that write results and those that read them share. One path computes every figure:
pycocotools' ``COCOeval``, over all images of the annotation file (``roi_plugins.matching`` leaves out
of it only what does nothing). Needs no detection framework.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import reprlib
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from roi_plugins import __version__
from roi_plugins.files import DataError, read_json, write_json, written_aside
from roi_plugins.hardware import cpu_name
from roi_plugins.matching import AREAS, MAX_DETS, Matches, match, precision_at_recall

METRICS = ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl')
"""What is reported of one evaluation, in the order of ``COCOeval.stats[:6]``."""

CURVE = 'AP_over_IoU'
"""The key of the AP at each of ``IOU_THRESHOLDS``."""

PER_CLASS = 'AP_per_class'
"""The key of the AP of each class, by rising category id."""

COUNT = 'predictions'
"""The key of the number of predictions."""

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
IOU_TYPES = ('bbox', 'segm')

BOUNDARY = 'boundary'
"""Evaluates masks too, by Boundary IoU: a third kind of AP from the predictions of ``'segm'``."""

EVALUATIONS = (*IOU_TYPES, BOUNDARY)

METRICS_FILE = 'metrics.json'
CELL_FILE = 'cell.json'
ANNOTATIONS_FILE = 'annotations.json'
"""In a run, the annotations of the evaluated categories, where these are not all of the file."""

PREDICTION_FILES = {'bbox': 'predictions.bbox.json', 'segm': 'predictions.segm.json'}


def evaluate(
    ann_file: str | Path | COCO,
    predictions: str | Path | Sequence[dict],
    iou_type: str,
    max_dets: int = MAX_DETS,
) -> dict[str, Any]:
    """COCO AP of one detector's results over all images of an annotation file.

    Args:
        ann_file: COCO instance annotations, or what :func:`load_annotations` made of them.
        predictions: COCO results, as a file or as the list in it: ``image_id``, ``category_id``,
            ``score`` and ``bbox`` (x, y, w, h in pixels) or ``segmentation`` (compressed RLE). An
            empty list has AP 0.
        iou_type: ``'bbox'``, ``'segm'`` or, for Boundary AP, ``'boundary'``.
        max_dets: how many detections of each class count in an image, those with the highest scores:
            COCO's ``maxDets``, for all figures.

    Returns:
        What :func:`summarize` returns.

    Raises:
        DataError: a file is missing or malformed, or the predictions are not for these
            annotations.
    """
    return summarize(match_predictions(ann_file, predictions, iou_type, max_dets))


def match_predictions(
    ann_file: str | Path | COCO,
    predictions: str | Path | Sequence[dict],
    iou_type: str,
    max_dets: int = MAX_DETS,
) -> Matches:
    """The first half of :func:`evaluate`: which predictions match which objects.

    The area of a predicted mask is its own, not its box's, as in MMDetection and Detectron2.
    """
    if iou_type not in EVALUATIONS:
        raise ValueError(f'iou_type is {iou_type!r}; expected one of {", ".join(EVALUATIONS)}')
    coco = ann_file if isinstance(ann_file, COCO) else load_annotations(ann_file)
    results = read_predictions(coco, predictions, iou_type)
    if iou_type != 'bbox':
        _check_outlines(coco)
    with contextlib.redirect_stdout(io.StringIO()):
        return match(coco, load_results(coco, results), iou_type, max_dets)


def summarize(matches: Matches) -> dict[str, Any]:
    """The second half of :func:`evaluate`: AP from matches, as pycocotools has it.

    Returns:
        The ``METRICS``, as fractions in full precision, -1 where there is no ground truth; under
        ``CURVE`` the list of the AP at each of ``IOU_THRESHOLDS``; under ``PER_CLASS`` that of the
        AP of each class, by rising category id; and under ``COUNT`` the number of predictions.
    """
    precision = precision_at_recall(matches)  # (T, R, K, A)
    over_all = precision[..., 0]
    metrics = [
        over_all,
        over_all[IOU_THRESHOLDS.index(0.5)],
        over_all[IOU_THRESHOLDS.index(0.75)],
        *(precision[..., area] for area in range(1, len(AREAS))),
    ]
    return {
        **dict(zip(METRICS, map(_mean_precision, metrics), strict=True)),
        CURVE: [_mean_precision(p) for p in over_all],
        PER_CLASS: [_mean_precision(p) for p in np.moveaxis(over_all, -1, 0)],
        COUNT: matches.count,
    }


def format_points(fraction: float, digits: int, sign: bool = False) -> str:
    """An AP in points: 100 times the fraction, rounded half to even, once and exactly.

    With one digit these are the digits that pycocotools prints: 31.2 where it has 0.312.
    """
    scaled = round(Fraction(fraction) * 100 * 10**digits)
    return f'{Decimal(scaled).scaleb(-digits):{"+" if sign else ""}.{digits}f}'


def print_metrics(metrics: Mapping[str, Mapping[str, float]]) -> None:
    """Prints a line for each IoU type, e.g. ``bbox  AP 31.2  AP50 ...``: points, as in all tables.

    Args:
        metrics: the ``METRICS`` by IoU type, as fractions; -1 where there is no ground truth, shown as ``-``.
    """
    for iou_type, values in metrics.items():
        points = {name: '-' if value == -1 else format_points(value, 1) for name, value in values.items()}
        print(iou_type, *(f'{name} {value}' for name, value in points.items()), sep='  ')


def _mean_precision(precision: np.ndarray) -> float:
    present = precision[precision > -1]
    return float(np.mean(present)) if present.size else -1.0


def read_predictions(
    coco: COCO, predictions: str | Path | Sequence[dict], iou_type: str
) -> list[dict]:
    """Checks predictions, and returns a copy of what their evaluation needs and no more.

    COCO's evaluation changes what it is given, and takes a mask's area from ``bbox`` where there is
    one.
    """
    if isinstance(predictions, (str, Path)):
        source = str(predictions)
        predictions = read_json(predictions, 'prediction file')
    else:
        source = 'predictions'
    keys = ('image_id', 'category_id', 'score', 'bbox' if iou_type == 'bbox' else 'segmentation')
    _check_predictions(coco, predictions, iou_type, keys, source)
    return [{key: prediction[key] for key in keys} for prediction in predictions]


def load_results(coco: COCO, results: list[dict]) -> COCO:
    """``coco.loadRes(results)``, which cannot take an empty list."""
    return coco.loadRes(results) if results else _no_detections(coco)


def load_annotations(ann_file: str | Path) -> COCO:
    """Reads COCO instance annotations, once for several evaluations.

    Raises:
        DataError: the file is missing, or is not one of instance annotations.
    """
    dataset = read_json(ann_file, 'annotation file')
    parts = ('images', 'annotations', 'categories')
    if not isinstance(dataset, dict) or any(part not in dataset for part in parts):
        raise DataError(
            f'{ann_file}: not COCO annotations; expected an object with {", ".join(parts)}'
        )
    _check_annotations(dataset, ann_file)
    coco = COCO()
    coco.dataset = dataset
    coco.source = str(ann_file)  # for messages
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def check_annotations(ann_file: str | Path, iou_types: Sequence[str] = IOU_TYPES) -> COCO:
    """Reads a test set's annotations, and checks all that an evaluation needs of them.

    Call it before a training, so that its test cannot fail on the annotations.

    Args:
        ann_file: COCO instance annotations.
        iou_types: what will be evaluated, of ``EVALUATIONS``.

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
    if any(iou_type != 'bbox' for iou_type in iou_types):
        _check_outlines(coco)
    return coco


def write_run(
    run_dir: str | Path,
    *,
    framework: str,
    config: str | Path,
    checkpoint: str | Path,
    ann_file: str | Path,
    command: Sequence[str],
    category_ids: Sequence[int] | None = None,
    max_dets: int = MAX_DETS,
    image_dir: str | Path | None = None,
    extractors: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Evaluates the predictions in ``run_dir`` and writes ``metrics.json``: the run is finished.

    Args:
        run_dir: holds ``predictions.bbox.json``, and ``predictions.segm.json`` if there are masks.
        framework: the package that made the predictions, e.g. ``'mmdet'``.
        config: path as given by the user.
        checkpoint: path of the evaluated weights.
        ann_file: COCO annotations of the evaluated images.
        command: what was run, as a list of arguments.
        category_ids: of the categories that AP is the mean over; by default all of the file. Where it
            is some, ``run_dir`` gets a copy of the annotations with these alone, and the run is one on
            this copy.
        max_dets: see :func:`evaluate`.
        image_dir: the folder of the images, for pages with pictures; None where it is not known.
        extractors: type and options of each RoI extractor of the evaluated model, by where it is in it.

    Returns:
        What was written.

    Raises:
        DataError: there are no predictions, or they cannot be evaluated. Nothing is written.
    """
    run_dir = Path(run_dir)
    predictions = {t: name for t, name in PREDICTION_FILES.items() if (run_dir / name).is_file()}
    if not predictions:
        raise DataError(f'{run_dir}: no {" or ".join(PREDICTION_FILES.values())} to evaluate')
    coco = load_annotations(ann_file)
    (run_dir / ANNOTATIONS_FILE).unlink(missing_ok=True)  # of an earlier test
    if category_ids is not None and (wanted := set(category_ids)) != set(coco.cats):
        ann_file = run_dir / ANNOTATIONS_FILE
        with written_aside(ann_file) as aside:
            aside.write_text(json.dumps(_of_categories(coco.dataset, wanted)), encoding='utf-8')
        coco = load_annotations(ann_file)
    metrics = {}
    for iou_type, name in predictions.items():
        result = evaluate(coco, run_dir / name, iou_type, max_dets)
        metrics[iou_type] = {metric: result[metric] for metric in METRICS}
    record = {
        'format': 1,
        'framework': framework,
        'config': str(config),
        'checkpoint': str(checkpoint),
        'ann_file': os.path.abspath(ann_file),
        'max_dets': max_dets,
        'image_dir': None if image_dir is None else os.path.abspath(image_dir),
        'extractors': extractors or {},
        'predictions': predictions,
        'metrics': metrics,
        'versions': _versions(framework),
        'hardware': _hardware(),
        'command': [str(argument) for argument in command],
        'time': datetime.now().astimezone().isoformat(timespec='seconds'),
    }
    write_json(run_dir / METRICS_FILE, record)
    return record


def _of_categories(dataset: dict, category_ids: set[int]) -> dict:
    return {
        'images': dataset['images'],
        'annotations': [a for a in dataset['annotations'] if a['category_id'] in category_ids],
        'categories': [category for category in dataset['categories'] if category['id'] in category_ids],
    }


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
            # It stores the id of a match, and 0 for none.
            raise DataError(f'{where} has id 0, which COCO\'s evaluation takes for no match; number from 1')
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
    """Of two entries with one id COCO's index keeps the last, while its evaluation may count both."""
    seen: dict[int, int] = {}
    for index, entry in enumerate(entries):
        first = seen.setdefault(entry['id'], index)
        if first != index:
            raise DataError(f'{where}[{index}] has the id {entry["id"]} of {where.split()[-1]}[{first}]')


def _check_outlines(coco: COCO) -> None:
    """What COCO's evaluation of masks needs of the objects, which that of boxes does not."""
    source = getattr(coco, 'source', 'annotations')
    for annotation in coco.anns.values():
        outline, image = annotation.get('segmentation'), coco.imgs.get(annotation['image_id'])
        if isinstance(outline, dict):
            size = outline.get('size')
            valid = _is_size(size) and _cells_of_rle(outline.get('counts')) == size[0] * size[1]
        else:
            valid = isinstance(outline, list) and outline and all(map(_is_polygon, outline))
            # pycocotools takes a first polygon of four numbers for a box, and then fails.
            valid = valid and len(outline[0]) >= 6
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
    coco: COCO, predictions: Any, iou_type: str, keys: Sequence[str], source: str
) -> None:
    if not isinstance(predictions, (list, tuple)):
        raise DataError(
            f'{source}: not COCO results; expected a list, got {type(predictions).__name__}'
        )
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
            raise DataError(
                f'{where} has score {_brief(prediction["score"])}; expected a finite number'
            )
        if iou_type == 'bbox':
            bbox = prediction['bbox']
            if not _is_box(bbox):
                raise DataError(
                    f'{where} has bbox {_brief(bbox)}; expected four finite numbers x, y, w, h'
                )
        else:
            _check_mask(prediction['segmentation'], image, where)


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


    if _cells_of_rle(rle['counts']) != size[0] * size[1]:
        raise DataError(f'{where} has a damaged mask: its counts are not of {size} (h, w)')


def _cells_of_rle(counts: Any) -> int | None:
    """How many cells a mask has by its run lengths, a list or compressed; None if they are none.

    pycocotools believes what it is given: damaged counts make it hang, or read what is not its own.
    """
    if isinstance(counts, list):
        return sum(counts) if all(isinstance(n, int) and n >= 0 for n in counts) else None
    if not isinstance(counts, (str, bytes)):
        return None
    text = counts.encode() if isinstance(counts, str) else counts
    # LEB128 with six bits a character, which tell the difference to the last but one from the fourth on.
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
    for chain in (runs[1::2], runs[2::2]):
        np.cumsum(chain, out=chain)
    return int(runs.sum()) if runs.min() >= 0 else None


def _is_finite(number: Any) -> bool:
    # Integers of any size are JSON; those beyond a double are not to be computed with.
    return isinstance(number, (int, float)) and abs(number) <= sys.float_info.max


def _is_box(box: Any) -> bool:
    return isinstance(box, (list, tuple)) and len(box) == 4 and all(map(_is_finite, box))


def _is_polygon(polygon: Any) -> bool:
    coordinates = len(polygon) if isinstance(polygon, list) else 0
    return coordinates >= 4 and coordinates % 2 == 0 and all(map(_is_finite, polygon))


def _is_size(size: Any) -> bool:
    return isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)


def _brief(value: Any) -> str:
    """For messages: damaged files hold values of any length."""
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


def _versions(framework: str) -> dict[str, str]:
    versions = {'python': platform.python_version(), 'roi_plugins': __version__}
    # The distribution of a package may have another name, as builds of detectron2 have.
    distributions = metadata.packages_distributions().get(framework, [framework])
    for name in (*distributions, 'mmengine', 'mmcv', 'torch', 'torchvision', 'numpy', 'pycocotools'):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _hardware() -> str:
    import torch  # here only: reading results does not need it

    if torch.cuda.is_available():
        return f'{torch.cuda.device_count()} x {torch.cuda.get_device_name()}'
    return f'{os.cpu_count()} x {cpu_name()}'
