"""Checks that a test of an MMDetection config can be run, before a training that ends with it.

The test of this package reports what ``CocoMetric`` would report for the same predictions. A setting that
would make the two differ is a :class:`RunError` that names it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS

from roi_plugins.evaluation.coco import IOU_THRESHOLDS
from roi_plugins.evaluation.coco_files import check_annotations
from roi_plugins.evaluation.matching import MAX_DETS, REGIONS

from ..errors import RunError
from .check_data import check_data, check_images, class_names, coco_datasets, no_category
from .check_model import build, check_num_classes
from .registered import class_of, enter_scope, is_subclass, type_name

TEST_SETTINGS = ('test_dataloader', 'test_cfg', 'test_evaluator')

# Options of CocoMetric that change what is printed or written, but not what is computed.
_OF_THE_OUTPUT = ('type', 'metric', 'classwise', 'metric_items', 'prefix', 'format_only', 'outfile_prefix')


@dataclass(frozen=True)
class Evaluation:
    """What the test of a config evaluates.

    Attributes:
        metric: the options of its ``CocoMetric``.
        other_metrics: the options of its other metrics, which run unchanged.
        ann_file: path of the annotations.
        iou_types: the IoU types that are evaluated, some of ``REGIONS``: MMDetection 3 has no keypoint head.
        category_ids: the category of each label, in order; AP is the mean over these.
        classes: the names of these categories.
        max_dets: how many detections of each class count in an image.
        image_dir: the folder of the images, the first if there are several; None if it is not known.
    """

    metric: dict[str, Any]
    other_metrics: list[dict[str, Any]]
    ann_file: str
    iou_types: list[str]
    category_ids: list[int]
    classes: list[str]
    max_dets: int
    image_dir: str | None


def has_test(cfg: Config) -> bool:
    """Whether the config has a test, which a training does not need."""
    return any(cfg.get(setting) is not None for setting in TEST_SETTINGS)


def check_test(cfg: Config, max_dets: int | None = None) -> Evaluation:
    """Checks the test of a config.

    Args:
        cfg: the config.
        max_dets: how many detections of each class count in an image; by default the AP is that of the
            config's evaluator.

    Returns:
        What the test evaluates.

    Raises:
        RunError: the test would fail, or would report another AP than MMDetection's own test.
        DataError: the annotations cannot be evaluated.
    """
    for setting in (*TEST_SETTINGS, 'test_dataloader.dataset'):
        half, _, part = setting.partition('.')
        found = cfg.get(half)
        if (found.get(part) if part else found) is None:
            raise RunError(f'the config {cfg.filename} has no {setting}, which a test needs')
    check_data(cfg, 'test_dataloader')
    enter_scope(cfg)
    setting, options, others = _coco_metric(cfg)
    kinds = _kinds(cfg, setting, options)
    ann_file = annotation_file(setting, options)
    coco = check_annotations(ann_file, kinds)
    metric = build(METRICS, setting, {**options, 'ann_file': None})  # already read
    _check_thresholds(setting, metric)
    if max_dets is None:
        _check_limits(cfg, setting, metric)
    else:
        _check_max_dets(cfg, max_dets)
    parts = list(coco_datasets(cfg, 'test_dataloader'))  # checks each of them
    dataset = build(DATASETS, 'test_dataloader.dataset', cfg.test_dataloader.dataset)
    check_images(coco, ann_file, dataset)
    names = class_names('test_dataloader.dataset', dataset)
    ids = coco.getCatIds(catNms=names)
    if options.get('sort_categories'):
        ids.sort()
    if not ids:
        raise RunError(no_category('test_dataloader.dataset', ann_file, names))
    check_num_classes(cfg, len(ids), 'test_dataloader.dataset', ann_file)
    return Evaluation(
        metric=options,
        other_metrics=others,
        ann_file=ann_file,
        iou_types=kinds,
        category_ids=ids,
        classes=[coco.cats[id_]['name'] for id_ in ids],
        max_dets=max_dets or MAX_DETS,
        image_dir=next((folder for part in parts if (folder := part.data_prefix.get('img'))), None),
    )


def _coco_metric(cfg: Config) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """Setting and options of the CocoMetric of a config, and the options of its other metrics.

    Several CocoMetrics that only differ in what they print count as one, with the ``metric`` of all.
    """
    evaluator = cfg.test_evaluator
    if isinstance(evaluator, Mapping) and 'metrics' in evaluator:
        kind = type_name({'type': 'Evaluator', **evaluator})
        if kind.rpartition('.')[2] != 'Evaluator':
            raise RunError(
                f'test_evaluator.type is {kind}, which this tool does not support; use a list of metrics'
            )
    found, others = [], []
    entries = metrics_of('test_evaluator', evaluator)
    for setting, options, kind in entries:
        if not is_subclass(kind, CocoMetric):
            others.append(options)
            continue
        if kind.compute_metrics is not CocoMetric.compute_metrics:
            raise RunError(
                f'{setting}.type is {kind.__name__}, which computes its own metrics; this tool computes '
                'those of CocoMetric'
            )
        found.append((setting, options))
    if not found:
        types = ', '.join(type_name(options) for _, options, _ in entries)
        raise RunError(
            f'test_evaluator of the config {cfg.filename} has no CocoMetric, only {types}; this tool needs '
            "one to write the predictions, from which it computes COCO's AP"
        )
    setting, options = found[0]
    kinds = metric_list(options)
    for other_setting, other in found[1:]:
        for key in sorted({*options, *other}):
            if key not in _OF_THE_OUTPUT and options.get(key) != other.get(key):
                raise RunError(
                    f'{setting}.{key} is {options.get(key)!r} and {other_setting}.{key} is '
                    f'{other.get(key)!r}; this tool reports one evaluation: keep one CocoMetric'
                )
        kinds += [kind for kind in metric_list(other) if kind not in kinds]
    return setting, {**options, 'metric': kinds}, others


def metrics_of(setting: str, evaluator: Any) -> list[tuple[str, Any, Any]]:
    """The metrics of an evaluator.

    Args:
        setting: the setting of the evaluator.
        evaluator: its config: one metric, a list of them, or a dict with ``metrics``.

    Returns:
        Setting, options and class of each metric; the class is None if it is not registered.
    """
    if isinstance(evaluator, Mapping) and 'metrics' in evaluator:
        setting, evaluator = f'{setting}.metrics', evaluator['metrics']
    named = [(setting, evaluator)]
    if isinstance(evaluator, (list, tuple)):
        named = [(f'{setting}.{index}', options) for index, options in enumerate(evaluator)]
    return [
        (name, options, class_of(METRICS, options.get('type')) if isinstance(options, Mapping) else None)
        for name, options in named
    ]


def metric_list(options: Mapping[str, Any]) -> list[str]:
    """The option ``metric`` of a CocoMetric as a list."""
    metric = options.get('metric', 'bbox')
    return list(metric) if isinstance(metric, (list, tuple)) else [metric]


def _kinds(cfg: Config, setting: str, options: Mapping[str, Any]) -> list[str]:
    kinds = options['metric']
    for kind in kinds:
        if kind not in REGIONS:
            raise RunError(
                f'{setting}.metric has {kind!r}, which this tool does not compute; '
                f'it computes {" and ".join(REGIONS)}'
            )
    heads = (cfg.get('model') or {}).get('roi_head')
    if 'segm' in kinds and heads is not None and not heads.get('mask_head'):
        raise RunError(f"{setting}.metric has 'segm', but model.roi_head has no mask_head to predict masks")
    return kinds


def annotation_file(setting: str, options: Mapping[str, Any]) -> str:
    """The path of the annotations of a CocoMetric; a RunError if it is not one local file."""
    ann_file = options.get('ann_file')
    if not ann_file:
        raise RunError(f'{setting} has no ann_file: this tool evaluates on an annotation file in COCO format')
    if not isinstance(ann_file, (str, os.PathLike)):
        raise RunError(f'{setting}.ann_file is {ann_file!r}; expected one path')
    if '://' in str(ann_file) or options.get('backend_args'):
        raise RunError(f'{setting}.ann_file {ann_file}: this tool evaluates on local files only')
    if not os.path.isfile(ann_file):
        raise RunError(f'{setting}.ann_file: the annotation file {ann_file} does not exist')
    return str(ann_file)


def _check_thresholds(setting: str, metric: CocoMetric) -> None:
    # With a list instead of an array, pycocotools reports -1 for AP50 and AP75.
    if not (isinstance(metric.iou_thrs, np.ndarray) and np.allclose(metric.iou_thrs, IOU_THRESHOLDS)):
        raise RunError(
            f"{setting}.iou_thrs is {metric.iou_thrs}; this tool's AP is over 0.50 to 0.95, the default: "
            'leave the setting out'
        )


def _check_limits(cfg: Config, setting: str, metric: CocoMetric) -> None:
    """Checks that MMDetection's AP counts the 100 best detections of each class in an image.

    pycocotools computes AP at 100 detections, whatever the limits are, but AP50, AP75 and the AP by area at
    the third limit.
    """
    limits = sorted(metric.proposal_nums)
    advice = f'set it to (1, 10, {MAX_DETS})'
    if len(limits) < 3 or MAX_DETS not in limits:
        raise RunError(
            f'{setting}.proposal_nums is {tuple(metric.proposal_nums)}, for which MMDetection has no AP: it '
            f'needs three limits with {MAX_DETS} among them; {advice}'
        )
    limit = min(limits[2], MAX_DETS)
    most = _max_per_image(cfg)
    if limits[2] != MAX_DETS and not 0 < most <= limit:
        raise RunError(
            f'{setting}.proposal_nums is {tuple(metric.proposal_nums)}, so that MMDetection computes AP at '
            f'{MAX_DETS} detections of a class in an image, but AP50 at {limits[2]}, and the model gives up '
            f'to {most if most > 0 else "any number"} (max_per_img). This tool computes both at {MAX_DETS}: '
            f'{advice}, or give --max-dets for another limit'
        )


def _check_max_dets(cfg: Config, max_dets: int) -> None:
    if max_dets < 1:
        raise RunError(f'max_dets is {max_dets}; expected 1 or more')
    most = _max_per_image(cfg)
    if 0 < most < max_dets:
        raise RunError(
            f'max_dets is {max_dets}, but the model gives at most {most} detections an image: set '
            f'model.test_cfg.rcnn.max_per_img to {max_dets} too (model.test_cfg.max_per_img of a detector of '
            'one stage)'
        )


def _max_per_image(cfg: Config) -> int:
    """How many detections the model gives for an image: 100 if the config does not say, -1 for no limit."""
    options = (cfg.get('model') or {}).get('test_cfg') or {}
    options = options.get('rcnn') or options
    return options.get('max_per_img', MAX_DETS)
