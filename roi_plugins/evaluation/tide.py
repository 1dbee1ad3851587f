"""The errors of a detector by kind, and how much AP50 each kind costs: TIDE's breakdown.

Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020 (arXiv:2008.08115).
This is a new implementation, because their package is unmaintained and needs plotting libraries to load.
pycocotools decides which detections are right, so the breakdown is of the same AP50 as in the tables.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from roi_plugins.evaluation.coco_files import load_results
from roi_plugins.evaluation.matching import MAX_DETS, accumulate

ERRORS = ('classification', 'localization', 'both', 'duplicate', 'background', 'missed')
"""Kinds of errors. The last is an error of objects, the others are errors of detections.

They are told apart by the IoU of a detection with the objects of its image:

- ``classification``: IoU of 0.5 or more with an object of another class.
- ``localization``: IoU from 0.1 to 0.5 with an object of its class.
- ``both``: IoU from 0.1 to 0.5 with an object of another class.
- ``duplicate``: IoU of 0.5 or more with an object of its class that a better detection has already matched.
- ``background``: IoU of at most 0.1 with every object.
- ``missed``: an object without a detection, not even one with a classification or localization error.
"""

_CLASSIFICATION, _LOCALIZATION, _BOTH, _DUPLICATE, _BACKGROUND = range(5)
_RIGHT = -1
_FOREGROUND, _BACKGROUND_IOU = 0.5, 0.1


@dataclass
class _Ranking:
    """The detections that count, and the objects, as columns."""

    score: np.ndarray
    category: np.ndarray
    error: np.ndarray  # index into ERRORS, or _RIGHT
    fixed_category: np.ndarray  # the category with which it would be right without the error; -1 for none
    objects: Mapping[int, int]  # number of objects by category
    missed: Mapping[int, int]  # number of missed objects by category


def break_down_errors(
    coco: COCO, results: list[dict], iou_type: str, max_dets: int = MAX_DETS
) -> pd.DataFrame:
    """Counts the errors at IoU 0.5 by kind, and computes how much AP50 each kind costs.

    Args:
        coco: annotations.
        results: what :func:`~roi_plugins.evaluation.coco_files.read_predictions` returned; they are changed.
        iou_type: ``'bbox'`` or ``'segm'``.
        max_dets: how many detections of each class count in an image, those with the highest scores.

    Returns:
        A table with index ERRORS and the columns ``count`` and ``ap50_lost``, the fraction by which AP50
        would be higher if the errors of this kind alone were fixed. A classification or localization error is
        fixed by correcting the best such detection of an object that has none; other errors of detections by
        removing the detection, and missed objects by removing the object. The columns do not add up to what
        AP50 lacks.
    """
    ranking = _rank(coco, results, iou_type, max_dets)
    ap50 = _ap50(ranking, None)
    counts = np.bincount(ranking.error[ranking.error != _RIGHT], minlength=5).tolist()
    return pd.DataFrame(
        {
            'count': [*counts, sum(ranking.missed.values())],
            # It can be below zero only because recall is sampled in steps.
            'ap50_lost': [max(0.0, _ap50(ranking, fixed) - ap50) for fixed in range(len(ERRORS))],
        },
        index=pd.Index(ERRORS, name='error'),
    )


def _rank(coco: COCO, results: list[dict], iou_type: str, max_dets: int) -> _Ranking:
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints how long it took
        coco_eval = COCOeval(coco, load_results(coco, results), iou_type)
    coco_eval.params.iouThrs = np.array([_FOREGROUND])
    coco_eval.params.maxDets = [max_dets]
    coco_eval._prepare()
    categories_of: defaultdict[int, set[int]] = defaultdict(set)
    for image_id, category_id in (*coco_eval._gts, *coco_eval._dts):
        categories_of[image_id].add(category_id)
    images = [
        _rank_image(coco_eval, image_id, sorted(categories_of[image_id]), max_dets)
        for image_id in sorted(categories_of)
    ]
    objects, missed = Counter[int](), Counter[int]()
    for image in images:
        objects.update(image.objects)
        missed.update(image.missed)
    no_ids = np.array([], int)
    return _Ranking(
        score=np.concatenate([np.array([]), *(image.score for image in images)]),
        category=np.concatenate([no_ids, *(image.category for image in images)]),
        error=np.concatenate([no_ids, *(image.error for image in images)]),
        fixed_category=np.concatenate([no_ids, *(image.fixed_category for image in images)]),
        objects=objects,
        missed=missed,
    )


def _rank_image(coco_eval: COCOeval, image_id: int, categories: list[int], max_dets: int) -> _Ranking:
    everywhere = coco_eval.params.areaRng[0]
    detections, matched_ids, ignored = [], [], []
    for category_id in categories:
        pair = image_id, category_id
        coco_eval.ious[pair] = coco_eval.computeIoU(*pair) if pair in coco_eval._gts else []
        result = coco_eval.evaluateImg(*pair, everywhere, max_dets)
        detections += [coco_eval.cocoDt.anns[i] for i in result['dtIds']]
        matched_ids += result['dtMatches'][0].tolist()
        ignored += result['dtIgnore'][0].tolist()
    objects = [o for c in categories for o in coco_eval._gts.get((image_id, c), [])]
    objects = [o for o in objects if not o['ignore']]
    kept = np.flatnonzero(~np.array(ignored, bool))
    detections = [detections[i] for i in kept]
    matched = np.array(matched_ids)[kept] != 0
    taken_ids = set(np.array(matched_ids)[kept][matched])

    score = np.array([d['score'] for d in detections], float)
    category = np.array([d['category_id'] for d in detections], int)
    object_category = np.array([o['category_id'] for o in objects], int)
    is_taken = np.array([o['id'] in taken_ids for o in objects], bool)
    error = np.where(matched, _RIGHT, _BACKGROUND)
    fixed_category = np.full(len(detections), -1)
    wanted = np.zeros(len(objects), bool)
    if detections and objects:
        shape = 'bbox' if coco_eval.params.iouType == 'bbox' else 'segmentation'
        iou = mask_utils.iou([d[shape] for d in detections], [o[shape] for o in objects], [0] * len(objects))
        is_same = category[:, None] == object_category
        same, other = np.where(is_same, iou, 0), np.where(is_same, 0, iou)
        # In TIDE's order: the first condition that holds decides.
        is_localization = (same.max(1) >= _BACKGROUND_IOU) & (same.max(1) <= _FOREGROUND)
        is_classification = other.max(1) >= _FOREGROUND
        is_duplicate = (same * is_taken).max(1) >= _FOREGROUND
        is_background = iou.max(1) <= _BACKGROUND_IOU
        kinds = np.select(
            [is_localization, is_classification, is_duplicate, is_background],
            [_LOCALIZATION, _CLASSIFICATION, _DUPLICATE, _BACKGROUND],
            _BOTH,
        )
        error = np.where(matched, _RIGHT, kinds)
        target = np.where(is_localization, same.argmax(1), other.argmax(1))
        has_target = (error == _LOCALIZATION) | (error == _CLASSIFICATION)
        has_target &= ~is_taken[target]
        wanted[target[has_target]] = True
        best: set[int] = set()
        for i in np.argsort(-score, kind='stable'):
            if has_target[i] and target[i] not in best:
                best.add(target[i])
                fixed_category[i] = object_category[target[i]]
    is_missed = ~is_taken & ~wanted
    return _Ranking(
        score, category, error, fixed_category, _count(object_category), _count(object_category[is_missed])
    )


def _count(categories: np.ndarray) -> dict[int, int]:
    return dict(zip(*(a.tolist() for a in np.unique(categories, return_counts=True)), strict=True))


def _ap50(ranking: _Ranking, fixed: int | None) -> float:
    """Returns AP50 as a fraction, without the errors of the kind ``fixed``, an index into ERRORS."""
    right = ranking.error == _RIGHT
    is_fixed = ranking.error == fixed
    becomes_right = is_fixed & (ranking.fixed_category >= 0)
    category = np.where(becomes_right, ranking.fixed_category, ranking.category)
    counts = ~is_fixed | becomes_right
    right |= becomes_right
    joined = []
    for index, objects in ranking.objects.items():
        if fixed is not None and ERRORS[fixed] == 'missed':
            objects -= ranking.missed.get(index, 0)
        of_class = counts & (category == index)
        joined.append(
            {
                'dtScores': ranking.score[of_class],
                'dtMatches': right[None, of_class],
                'dtIgnore': np.zeros((1, np.count_nonzero(of_class)), bool),
                'gtIgnore': np.zeros(objects, bool),
            }
        )
    if not joined:
        return 0.0
    # If every object of a class is missed, fixing that leaves no object; as in TIDE its AP50 is 0.
    precision, _ = accumulate(joined, len(joined), 1)
    return float(np.maximum(precision, 0).mean())
