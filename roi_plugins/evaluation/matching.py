"""Matches detections with objects as ``COCOeval`` does, and computes AP from the matches.

The matches in an image do not depend on other images. So pycocotools' ``COCOeval.evaluateImg`` makes them
once, and AP is computed from them as often as needed: over all images by ``COCOeval.accumulate``, and over
resamples of the images by :func:`resampled_ap`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params
from scipy.sparse import csr_array

MAX_DETS = 100
"""Default limit of detections for each class and image; those with the highest scores count."""

KEYPOINT_MAX_DETS = 20
"""The limit for keypoints, as in COCO and Detectron2. A lower ``max_dets`` holds for them too."""

REGIONS = ('bbox', 'segm')
"""The kinds of predictions that cover a region of the image and so have an IoU: boxes and masks."""

IOU_TYPES = (*REGIONS, 'keypoints')
"""The kinds of predictions, that is boxes, masks and keypoints. In place of IoU, keypoints have OKS."""

COCO_SIGMAS = tuple(Params('keypoints').kpt_oks_sigmas.tolist())
"""COCO's OKS sigmas of the 17 keypoints of a person: how far annotators disagree on each keypoint, in units
of the square root of the object's area."""

BOUNDARY = 'boundary'
"""The fourth kind of AP, of masks by Boundary IoU, from the predictions of ``'segm'``."""

EVALUATIONS = (*IOU_TYPES, BOUNDARY)
"""Every kind of AP, that is of boxes, masks and keypoints, and Boundary AP."""

AREAS = ('all', 'small', 'medium', 'large')
"""The ranges of object areas that have an AP of their own, in the order of ``COCOeval``."""


_BATCH = 256  # images that are matched side by side, to bound the memory


@dataclass(frozen=True)
class ClassMatches:
    """The detections and objects of one class.

    Attributes:
        image: (D,) the image of each detection, as index into ``Matches.image_ids``. Detections are in the
            order of ``COCOeval``: by falling score and, where scores are equal, by image.
        score: (D,) the score of each detection.
        matched: (areas, IoU thresholds, D) whether a detection matches an object.
        ignored: (areas, IoU thresholds, D) whether a detection counts neither as right nor as wrong.
        object_image: (G,) the image of each object.
        object_ignored: (areas, G) whether an object does not count: crowds, objects of another area and, for
            keypoints, objects without a labelled one.
    """

    image: np.ndarray
    score: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray
    object_image: np.ndarray
    object_ignored: np.ndarray


@dataclass(frozen=True)
class Matches:
    """One detector's detections, matched with the objects of a data set.

    Attributes:
        image_ids: the ids of all images of the annotations, sorted.
        category_ids: the ids of all classes of the annotations, sorted.
        classes: the matches of each class, in the order of ``category_ids``.
        count: number of all detections, including those beyond the limit of an image.
    """

    image_ids: list[int]
    category_ids: list[int]
    classes: list[ClassMatches]
    count: int


@dataclass(frozen=True)
class ResampledAP:
    """AP over each of R resamples of the images, as fractions; NaN where a resample has no object to find.

    Attributes:
        curves: (areas, IoU thresholds, R) AP, mean over the classes.
        recall: (areas, IoU thresholds, R) highest recall, mean over the classes.
        per_class: (classes, R) AP, mean over the IoU thresholds, for objects of all areas.
    """

    curves: np.ndarray
    recall: np.ndarray
    per_class: np.ndarray


def new_evaluation(
    ground_truth: COCO, detections: COCO, iou_type: str, max_dets: int, sigmas: Sequence[float]
) -> COCOeval:
    """Returns a ``COCOeval`` that has not evaluated anything yet.

    Args:
        ground_truth, detections, iou_type, max_dets, sigmas: see :func:`match`.

    Raises:
        ValueError, ImportError: see :func:`match`.
    """
    if max_dets < 1:
        raise ValueError(f'max_dets is {max_dets}; expected 1 or more')
    if iou_type == BOUNDARY:
        coco_eval: COCOeval = BoundaryEval(ground_truth, detections)
    elif iou_type == 'keypoints':
        coco_eval = KeypointEval(ground_truth, detections, sigmas)
        max_dets = min(max_dets, KEYPOINT_MAX_DETS)
    else:
        coco_eval = COCOeval(ground_truth, detections, iou_type)
    coco_eval.params.maxDets = [max_dets]
    return coco_eval


def match(
    ground_truth: COCO,
    detections: COCO,
    iou_type: str,
    max_dets: int = MAX_DETS,
    sigmas: Sequence[float] = COCO_SIGMAS,
) -> Matches:
    """Matches detections as ``COCOeval(ground_truth, detections, iou_type).evaluate()`` does.

    pycocotools has no ``'boundary'``: see :class:`BoundaryEval`. It is called only for pairs of an image and
    a class that have an object; nearly all pairs have none, so there is nothing to match.

    Args:
        ground_truth: annotations.
        detections: what :func:`~roi_plugins.evaluation.coco_files.load_results` returned.
        iou_type: one of ``EVALUATIONS``.
        max_dets: how many detections of each class count in an image, those with the highest scores; of
            keypoints ``KEYPOINT_MAX_DETS`` at most.
        sigmas: the OKS sigma of each keypoint; other kinds do not need it.

    Returns:
        The matches of each class, at each IoU threshold and for each area.

    Raises:
        ValueError: ``max_dets`` is below 1.
        ImportError: see :class:`BoundaryEval`.
    """
    coco_eval = new_evaluation(ground_truth, detections, iou_type, max_dets, sigmas)
    coco_eval._prepare()
    params = coco_eval.params
    images_of: dict[int, set[int]] = {category_id: set() for category_id in params.catIds}
    for image_id, category_id in (*coco_eval._gts, *coco_eval._dts):
        images_of[category_id].add(image_id)
    index = {image_id: i for i, image_id in enumerate(params.imgIds)}
    classes = [_match_class(coco_eval, c, images_of[c], index) for c in params.catIds]
    return Matches(params.imgIds, params.catIds, classes, len(detections.anns))


def boundary_of_masks() -> Callable[[dict], dict]:
    """Returns the function of faster-coco-eval that maps the RLE of a mask to the RLE of its boundary.

    Raises:
        ImportError: faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval.core.mask import rleToBoundary
    except ImportError as error:
        raise ImportError('Boundary AP needs faster-coco-eval: pip install faster-coco-eval') from error
    return rleToBoundary


class BoundaryEval(COCOeval):
    """COCOeval of masks by Boundary IoU (Cheng et al., CVPR 2021, arXiv:2103.16562), which is sensitive to
    errors of contours.

    The IoU of a pair is the lower of the IoU of the masks and the IoU of their boundaries. A boundary is the
    pixels inside of the mask that are within 2% of the image's diagonal of its contour. Crowds keep the IoU
    of the masks.

    Args:
        ground_truth: annotations with masks.
        detections: results with masks.

    Raises:
        ImportError: faster-coco-eval, which finds the boundaries, is not installed.
    """

    def __init__(self, ground_truth: COCO, detections: COCO) -> None:
        super().__init__(ground_truth, detections, 'segm')
        self._boundary = boundary_of_masks()

    def computeIoU(self, imgId: int, catId: int) -> np.ndarray | list:
        ious = super().computeIoU(imgId, catId)
        objects = self._gts[imgId, catId]
        found = sorted(self._dts[imgId, catId], key=lambda d: -d['score'])[: len(ious)]
        if not (objects and found):
            return ious
        boundaries = [
            [self._boundary(instance['segmentation']) for instance in instances]
            for instances in (found, objects)
        ]
        of_boundaries = mask_utils.iou(*boundaries, [0] * len(objects))
        is_crowd = np.array([bool(instance['iscrowd']) for instance in objects])
        return np.where(is_crowd, ious, np.minimum(ious, of_boundaries))


class KeypointEval(COCOeval):
    """COCOeval of keypoints by OKS.

    It has all of ``AREAS``. COCO has no AP of small objects for keypoints, since it labels no keypoints of
    small persons.

    Args:
        ground_truth: annotations with keypoints.
        detections: results with keypoints.
        sigmas: the OKS sigma of each keypoint.
    """

    def __init__(self, ground_truth: COCO, detections: COCO, sigmas: Sequence[float]) -> None:
        super().__init__(ground_truth, detections, 'keypoints')
        of_boxes = Params('bbox')
        self.params.areaRng, self.params.areaRngLbl = of_boxes.areaRng, of_boxes.areaRngLbl
        self.params.kpt_oks_sigmas = np.array(sigmas, float)

    def computeIoU(self, imgId: int, catId: int) -> np.ndarray | list:
        return self.computeOks(imgId, catId)


def _match_class(
    coco_eval: COCOeval, category_id: int, image_ids: set[int], index: dict[int, int]
) -> ClassMatches:
    params = coco_eval.params
    (max_dets,) = params.maxDets
    low, high = np.array(params.areaRng).T[..., None]
    detections: list[dict] = []
    objects: list[dict] = []
    detection_counts, object_counts, images = [], [], []
    ious: dict[int, np.ndarray] = {}
    for image_id in image_ids:
        pair = image_id, category_id
        found = sorted(coco_eval._dts.get(pair, []), key=lambda detection: -detection['score'])[:max_dets]
        present = coco_eval._gts.get(pair, [])
        detections += found
        objects += present
        images.append(index[image_id])
        detection_counts.append(len(found))
        object_counts.append(len(present))
        if found and present:
            ious[len(images) - 1] = coco_eval.computeIoU(*pair)

    area = np.array([instance['area'] for instance in objects], float)
    crowd = np.array([instance['iscrowd'] for instance in objects], bool)
    ignore = np.array([instance['ignore'] for instance in objects], bool)
    object_ignored = ignore | (area < low) | (area > high)
    matched, ignored = _match_pairs(
        ious, detection_counts, object_counts, object_ignored, crowd, params.iouThrs
    )
    area = np.array([detection['area'] for detection in detections], float)
    ignored |= ~matched & ((area < low) | (area > high))[:, None]
    image = np.repeat(np.array(images, int), detection_counts)
    score = np.array([detection['score'] for detection in detections], float)
    order = np.lexsort((image, -score))
    return ClassMatches(
        image=image[order],
        score=score[order],
        matched=matched[..., order],
        ignored=ignored[..., order],
        object_image=np.repeat(np.array(images, int), object_counts),
        object_ignored=object_ignored,
    )


def _match_pairs(
    ious: dict[int, np.ndarray],
    detection_counts: list[int],
    object_counts: list[int],
    object_ignored: np.ndarray,
    crowd: np.ndarray,
    thresholds: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Matches as ``COCOeval.evaluateImg`` does, step by step the same, but in many images side by side.

    Args:
        ious: the IoU of each detection of an image, by falling score, with each of its objects; by the
            index of the image, for images that have both.
        detection_counts: the number of detections of each image.
        object_counts: the number of objects of each image.
        object_ignored: (areas, G) whether an object does not count, for the objects of all images.
        crowd: (G,) whether an object is a crowd, which any number of detections may match.
        thresholds: (T,) the IoU thresholds.

    Returns:
        Whether each detection has a match, and whether with an object that does not count. Both have the
        shape (areas, T, D), for the detections of all images.
    """
    areas = len(object_ignored)
    first_detection = np.cumsum(detection_counts) - detection_counts
    first_object = np.cumsum(object_counts) - object_counts
    matched, ignored = np.zeros((2, areas, len(thresholds), sum(detection_counts)), bool)
    # Images of a batch are alike in their number of detections, so that little is filled up.
    both = sorted(ious, key=lambda i: -detection_counts[i])
    for start in range(0, len(both), _BATCH):
        batch = both[start : start + _BATCH]
        ranks, most = detection_counts[batch[0]], max(object_counts[i] for i in batch)
        # Places without an object have an IoU below every threshold.
        iou = np.full((ranks, most, areas, len(batch)), -1.0)
        is_ignored, is_crowd = np.zeros((2, most, areas, len(batch)), bool)
        for column, i in enumerate(batch):
            objects = slice(first_object[i], first_object[i] + object_counts[i])
            for area, of_area in enumerate(object_ignored[:, objects]):
                # Objects that do not count come last: a detection gets one only if no other object fits.
                order = np.argsort(of_area, kind='stable')
                iou[: detection_counts[i], : len(order), area, column] = ious[i][:, order]
                is_ignored[: len(order), area, column] = of_area[order]
                is_crowd[: len(order), area, column] = crowd[objects][order]
        found = _match_batch(iou, is_ignored, is_crowd, thresholds)
        for column, i in enumerate(batch):
            detections = slice(first_detection[i], first_detection[i] + detection_counts[i])
            matched[..., detections], ignored[..., detections] = found[..., column, : detection_counts[i]]
    return matched, ignored


def _match_batch(
    iou: np.ndarray, is_ignored: np.ndarray, is_crowd: np.ndarray, thresholds: np.ndarray
) -> np.ndarray:
    """Matches the detections of N images, which have D detections by falling score and G objects each.

    Args:
        iou: (D, G, areas, N) the IoU of detections and objects, with objects that do not count last.
        is_ignored: (G, areas, N) whether an object does not count.
        is_crowd: (G, areas, N) whether an object is a crowd.
        thresholds: (T,) the IoU thresholds.

    Returns:
        (2, areas, T, N, D) what :func:`_match_pairs` returns.
    """
    ranks, most, areas, images = iou.shape
    lowest = np.minimum(thresholds, 1 - 1e-10)[:, None]
    shape = areas, len(thresholds), images
    is_ignored, is_crowd, iou = is_ignored[:, :, None], is_crowd[:, :, None], iou[:, :, :, None]
    free = np.ones((most, *shape), bool)
    matched, ignored = results = np.zeros((2, *shape, ranks), bool)
    for rank in range(ranks):
        best = np.broadcast_to(lowest, shape)
        match = np.full(shape, -1)
        counts = np.zeros(shape, bool)  # whether the match so far is an object that counts
        for place, value in enumerate(iou[rank]):
            if (value < lowest.min()).all():
                continue
            # Not "at least": boxes may be so large that their IoU is NaN, which COCOeval takes for a match.
            better = ~(value < best) & free[place] & ~(counts & is_ignored[place])
            best = np.where(better, value, best)
            match[better] = place
            counts |= better & ~is_ignored[place]
        found = match >= 0
        matched[..., rank], ignored[..., rank] = found, found & ~counts
        of_area, of_threshold, of_image = np.nonzero(found)
        free[match[found], of_area, of_threshold, of_image] = is_crowd[match[found], of_area, 0, of_image]
    return results


def precision_and_recall(matches: Matches) -> tuple[np.ndarray, np.ndarray]:
    """Computes pycocotools' precision and its highest recall from matches.

    Args:
        matches: the matches of one detector.

    Returns:
        ``COCOeval.eval['precision'][..., -1]`` of shape (IoU thresholds, 101 recalls, classes, areas), and
        ``COCOeval.eval['recall'][..., -1]`` of shape (IoU thresholds, classes, areas); -1 for classes without
        objects.
    """
    joined = [
        {
            'dtScores': c.score[:end],
            'dtMatches': c.matched[area][:, :end],
            'dtIgnore': c.ignored[area][:, :end],
            'gtIgnore': c.object_ignored[area],
        }
        for c in matches.classes
        for area in range(len(AREAS))
        for end in [_end_of_matches(c.matched[area])]
    ]
    return accumulate(joined, len(matches.classes), len(AREAS))


def accumulate(joined: list[dict], classes: int, areas: int) -> tuple[np.ndarray, np.ndarray]:
    """Calls ``COCOeval.accumulate`` with results that are already joined over all images.

    Args:
        joined: a dict like those of ``evaluateImg`` for each class and, within a class, for each area.
        classes: number of classes.
        areas: number of areas, of the first of ``AREAS``.

    Returns:
        Precision and recall, as :func:`precision_and_recall` returns them.
    """
    coco_eval = COCOeval(iouType='bbox')
    params = coco_eval.params
    params.imgIds, params.catIds = [0], list(range(classes))
    params.areaRng = params.areaRng[:areas]
    params.iouThrs = params.iouThrs[: len(joined[0]['dtMatches'])] if joined else params.iouThrs
    # The limit of detections holds for an image, so it has been applied already; none is left out here.
    params.maxDets = [max((len(result['dtScores']) for result in joined), default=0)]
    coco_eval._paramsEval = params
    coco_eval.evalImgs = joined
    with contextlib.redirect_stdout(io.StringIO()):
        coco_eval.accumulate()
    return coco_eval.eval['precision'][..., -1], coco_eval.eval['recall'][..., -1]


def resampled_ap(matches: Matches, counts: np.ndarray) -> ResampledAP:
    """Computes AP over resamples of the images, as ``COCOeval`` does if each copy is an image of its own.

    The two differ only if an image has two detections of one class with equal scores. ``COCOeval`` then ranks
    them copy by copy; here all copies of the first detection come before those of the second.

    Args:
        matches: the matches of one detector.
        counts: (images, R) integers, how often each resample has each image.
    """
    counts = np.ascontiguousarray(counts, dtype=np.int32)
    # Precision and recall beside each other: both are means over the classes that have an object.
    sums = np.zeros((2, len(AREAS), matches.classes[0].matched.shape[1], counts.shape[1]))
    present = np.zeros((len(AREAS), 1, counts.shape[1]), int)
    per_class = np.full((len(matches.classes), counts.shape[1]), np.nan)
    for index, matched in enumerate(matches.classes):
        for area in range(len(AREAS)):
            objects = counts[matched.object_image[~matched.object_ignored[area]]].sum(axis=0)
            if not (is_present := objects > 0).any():
                continue
            ap, recall = np.where(is_present, _ap_and_recall(matched, area, counts, objects), 0)
            sums[:, area] += ap, recall
            present[area] += is_present
            if AREAS[area] == 'all':
                per_class[index] = np.where(is_present, ap.mean(axis=0), np.nan)
    curves, recall = np.divide(sums, present, out=np.full_like(sums, np.nan), where=present > 0)
    return ResampledAP(curves, recall, per_class)


_RECALLS = COCOeval(iouType='bbox').params.recThrs


def _ap_and_recall(matches: ClassMatches, area: int, counts: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Returns AP and recall (2, T, R) of a class at each IoU threshold.

    ``objects`` (R,) is the number of its objects in each resample.

    Only the positions of matched detections in the ranking matter, because recall rises there alone, and
    precision is highest there. With a row for each position and a column for each resample, sums along the
    ranking are sums of rows, which are fast.
    """
    ap, highest = found = np.zeros((2, matches.matched.shape[1], counts.shape[1]))
    matched, ignored = matches.matched[area], matches.ignored[area]
    end = _end_of_matches(matched)
    images = matches.image[:end].astype(np.int32)
    recalls_reached, first = _recalls_reached(objects)
    for threshold, (is_match, is_ignored) in enumerate(zip(matched[:, :end], ignored[:, :end], strict=True)):
        image = images[~is_ignored]
        hits = np.flatnonzero(is_match[~is_ignored])
        if not len(hits):
            continue
        # Row i sums the detections after hit i - 1, up to and including hit i.
        last = hits[-1] + 1
        since_last_hit = csr_array(
            (np.ones(last, np.int32), image[:last], np.append(0, hits + 1).astype(np.int32)),
            shape=(len(hits), len(counts)),
        )
        ranked = since_last_hit @ counts
        right = counts[image[hits]]
        for rows in (ranked, right):
            for row, above in zip(rows[1:], rows, strict=False):
                row += above
        precision = ranked + np.spacing(1)
        np.divide(right, precision, out=precision)
        for row, below in zip(precision[-2::-1], precision[::-1], strict=False):
            np.maximum(row, below, out=row)
        reached = recalls_reached.take(right + first)
        reached[1:] -= reached[:-1].copy()
        ap[threshold] = np.einsum('ij,ij->j', precision, reached) / len(_RECALLS)
        highest[threshold] = right[-1] / np.maximum(objects, 1)
    return found


def _end_of_matches(matched: np.ndarray) -> int:
    """Returns how many detections there are up to the last that has a match at any IoU threshold.

    Those after it change neither precision nor recall: recall does not rise, and precision only falls.
    """
    hits = np.flatnonzero(matched.any(axis=0))
    return hits[-1] + 1 if len(hits) else 0


def _recalls_reached(objects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts how many of ``_RECALLS`` are reached with 0, 1, ... right detections of ``objects`` (R,).

    Returns:
        A table of these counts, int8, which all IoU thresholds share, and the place in it (R,) where those of
        each resample begin. Resamples with as many objects share theirs.
    """
    distinct, which = np.unique(objects, return_inverse=True)
    right = np.arange(distinct[-1] + 1)
    recall = np.minimum(right / np.maximum(distinct, 1)[:, None], 1)
    reached = (100 * recall + 1e-9).astype(np.int8)  # the last of _RECALLS, or one too many
    reached += _RECALLS.take(reached) <= recall
    return reached.ravel(), which * len(right)
