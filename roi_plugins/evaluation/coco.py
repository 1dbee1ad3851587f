"""COCO average precision.

Every number comes from pycocotools' ``COCOeval``, over all images of the annotation file; :mod:`.matching`
only skips calls without effect. No detection framework is needed.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO

from roi_plugins.evaluation.coco_files import check_objects, load_annotations, load_results, read_predictions
from roi_plugins.evaluation.matching import (
    AREAS,
    COCO_SIGMAS,
    EVALUATIONS,
    IOU_TYPES,
    MAX_DETS,
    Matches,
    match,
    precision_and_recall,
)

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))


@dataclass(frozen=True)
class Quantity:
    """One AP or AR that is reported: a column of every table.

    Attributes:
        name: name of the column, and key in files.
        latex: name of the column in LaTeX.
        iou: the IoU threshold; None for the mean over ``IOU_THRESHOLDS``.
        area: area of the objects that count, one of ``AREAS``.
        measure: what is averaged: for AP the ``'precision'`` at 101 recalls, for AR the highest ``'recall'``.
    """

    name: str
    latex: str
    iou: float | None = None
    area: str = 'all'
    measure: Literal['precision', 'recall'] = 'precision'

    def select(self, measures: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the entries whose mean this quantity is.

        Args:
            measures: (areas, IoU thresholds, ...) of each measure, or its mean over recalls and classes.

        Returns:
            (IoU thresholds of this quantity, ...).
        """
        of_area = measures[self.measure][AREAS.index(self.area)]
        return of_area if self.iou is None else of_area[[IOU_THRESHOLDS.index(self.iou)]]


QUANTITIES = (
    Quantity('AP', 'AP'),
    Quantity('AP50', 'AP$_{50}$', iou=0.5),
    Quantity('AP75', 'AP$_{75}$', iou=0.75),
    Quantity('APs', 'AP$_S$', area='small'),
    Quantity('APm', 'AP$_M$', area='medium'),
    Quantity('APl', 'AP$_L$', area='large'),
    Quantity('AR', 'AR', measure='recall'),
)
"""Every AP and AR that is reported of an evaluation, in the order of the tables."""

METRICS = tuple(quantity.name for quantity in QUANTITIES)

PRIMARY_METRICS = tuple(f'{iou_type}/{metric}' for iou_type in IOU_TYPES for metric in METRICS)
"""What can be the primary metric of a comparison, in Detectron2's names, such as ``'bbox/AP75'``."""

CURVE = 'AP_over_IoU'
"""The key of the AP at each of ``IOU_THRESHOLDS``."""

PER_CLASS = 'AP_per_class'
"""The key of the AP of each class, by rising category id."""

COUNT = 'predictions'
"""The key of the number of predictions."""


def evaluate(
    ann_file: str | Path | COCO,
    predictions: str | Path | Sequence[dict],
    iou_type: str,
    max_dets: int = MAX_DETS,
    sigmas: Sequence[float] = COCO_SIGMAS,
) -> dict[str, Any]:
    """Computes the COCO AP of one detector's results, over all images of an annotation file.

    Args:
        ann_file: path of COCO instance annotations, or what
            :func:`~roi_plugins.evaluation.coco_files.load_annotations` returned for them.
        predictions: COCO results, as the path of a file or as the list in it. Each has ``image_id``,
            ``category_id``, ``score``, and ``bbox`` (x, y, w, h in pixels), ``segmentation`` (compressed RLE)
            or ``keypoints`` (x, y in pixels and any third number, for each keypoint). An empty list has AP 0.
        iou_type: ``'bbox'``, ``'segm'``, ``'keypoints'`` or, for Boundary AP, ``'boundary'``.
        max_dets: COCO's ``maxDets``: how many detections of each class count in an image, those with the
            highest scores. It holds for all quantities. Of keypoints, 20 count at most, as in COCO.
        sigmas: the OKS sigma of each keypoint, by default COCO's of a person.

    Returns:
        What :func:`summarize` returns.

    Raises:
        ValueError: there is no such ``iou_type``, or ``max_dets`` is below 1.
        DataError: a file is missing or malformed, or the predictions are not for these annotations.
    """
    return summarize(match_predictions(ann_file, predictions, iou_type, max_dets, sigmas))


def match_predictions(
    ann_file: str | Path | COCO,
    predictions: str | Path | Sequence[dict],
    iou_type: str,
    max_dets: int = MAX_DETS,
    sigmas: Sequence[float] = COCO_SIGMAS,
) -> Matches:
    """Finds which predictions match which objects: the first half of :func:`evaluate`.

    The area of a predicted mask is its own, not its box's, as in MMDetection and Detectron2.

    Args:
        ann_file, predictions, iou_type, max_dets, sigmas: see :func:`evaluate`.

    Raises:
        ValueError, DataError: see :func:`evaluate`.
    """
    if iou_type not in EVALUATIONS:
        raise ValueError(f'iou_type is {iou_type!r}; expected one of {", ".join(EVALUATIONS)}')
    coco = ann_file if isinstance(ann_file, COCO) else load_annotations(ann_file)
    results = read_predictions(coco, predictions, iou_type, sigmas)
    check_objects(coco, iou_type, sigmas)
    with contextlib.redirect_stdout(io.StringIO()):
        return match(coco, load_results(coco, results), iou_type, max_dets, sigmas)


def summarize(matches: Matches) -> dict[str, Any]:
    """Computes AP from matches, as pycocotools does: the second half of :func:`evaluate`.

    Args:
        matches: what :func:`match_predictions` returned.

    Returns:
        A dict with each of ``METRICS``; with ``CURVE``, the list of AP at each of ``IOU_THRESHOLDS``; with
        ``PER_CLASS``, the list of AP of each class, by rising category id; and with ``COUNT``, the number of
        predictions. AP are fractions in full precision, -1 where there is no ground truth.
    """
    # (areas, T, R, K) and (areas, T, K)
    precision, recall = (np.moveaxis(measure, -1, 0) for measure in precision_and_recall(matches))
    measures = {'precision': precision, 'recall': recall}
    over_all = precision[AREAS.index('all')]
    return {
        **{quantity.name: _mean_of_present(quantity.select(measures)) for quantity in QUANTITIES},
        CURVE: [_mean_of_present(p) for p in over_all],
        PER_CLASS: [_mean_of_present(p) for p in np.moveaxis(over_all, -1, 0)],
        COUNT: matches.count,
    }


def format_points(fraction: float, digits: int, sign: bool = False) -> str:
    """Returns an AP in points: 100 times the fraction, rounded once and exactly, half to even.

    With one digit these are the digits that pycocotools prints: 31.2 where it has 0.312.

    Args:
        fraction: the AP, from 0 to 1; or a difference of two.
        digits: number of decimals.
        sign: whether positive values get a plus.
    """
    scaled = round(Fraction(fraction) * 100 * 10**digits)
    return f'{Decimal(scaled).scaleb(-digits):{"+" if sign else ""}.{digits}f}'


def print_metrics(metrics: Mapping[str, Mapping[str, float]]) -> None:
    """Prints a line for each IoU type, such as ``bbox  AP 31.2  AP50 ...``, in points as in all tables.

    Args:
        metrics: the ``METRICS`` by IoU type, as fractions; -1 where there is no ground truth, shown as ``-``.
    """
    for iou_type, values in metrics.items():
        points = {name: '-' if value == -1 else format_points(value, 1) for name, value in values.items()}
        print(iou_type, *(f'{name} {value}' for name, value in points.items()), sep='  ')


def _mean_of_present(measure: np.ndarray) -> float:
    present = measure[measure > -1]
    return float(np.mean(present)) if present.size else -1.0
