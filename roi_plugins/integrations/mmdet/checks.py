"""What a test of an MMDetection config needs, looked at before the training.

The test here reports what ``CocoMetric`` would report for the same predictions. A setting that
would make the two differ is a :class:`RunError` that names it.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from mmengine.optim import OptimWrapperDict, build_optim_wrapper
from mmengine.registry import DATASETS, METRICS, MODELS, OPTIMIZERS, Registry
from pycocotools.coco import COCO

from roi_plugins.evaluation.coco import IOU_THRESHOLDS
from roi_plugins.evaluation.coco_files import check_annotations
from roi_plugins.evaluation.matching import IOU_TYPES, MAX_DETS
from roi_plugins.files import Folders, read_json

from ..errors import RunError, describe_error
from ..output import check_space, checkpoint_bytes
from .registered import check_type, class_of, enter_scope, explain_unregistered, type_name

TEST_SETTINGS = ('test_dataloader', 'test_cfg', 'test_evaluator')

_HEADS = ('bbox_head', 'mask_head', 'mask_iou_head', 'point_head')

_OPTIONS = {
    'train_dataloader': 'train-data',
    'val_dataloader': 'test-data',
    'test_dataloader': 'test-data',
}

# Of two CocoMetrics, these choose what is printed and where; the others choose what is computed.
_OF_THE_OUTPUT = ('type', 'metric', 'classwise', 'metric_items', 'prefix', 'format_only', 'outfile_prefix')

BUILD_ERRORS = (
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Evaluation:
    """What the test of a config evaluates.

    Attributes:
        metric: the options of its ``CocoMetric``.
        other_metrics: the options of the evaluators of other types, which are run as they are.
        ann_file: the annotations.
        iou_types: what has an AP, of ``IOU_TYPES``.
        category_ids: of each label, in order; AP is the mean over these.
        classes: their names.
        max_dets: how many detections of each class count in an image.
        image_dir: the folder of the images, of the first where there are several; None where it is not known.
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
    """Whether the config says how to test, which a training can do without."""
    return any(cfg.get(setting) is not None for setting in TEST_SETTINGS)


def check_data(cfg: Config, *loaders: str) -> None:
    """Raises RunError where annotations or image folders of these loaders are not there."""
    for loader in loaders:
        for dataset in innermost_datasets((cfg.get(loader) or {}).get('dataset') or {}):
            if dataset.get('backend_args'):
                continue  # not local files
            setting = f'{loader}.dataset'
            root = dataset.get('data_root') or ''
            ann_file = dataset.get('ann_file') or ''
            prefixes = dataset.get('data_prefix') or {}
            if not isinstance(prefixes, Mapping):
                raise RunError(f"{setting}.data_prefix is {prefixes!r}; expected dict(img='FOLDER')")
            named = {'ann_file': ann_file, **{f'data_prefix.{key}': prefixes[key] for key in prefixes}}
            for key, path in {'data_root': root, **named}.items():
                if path is not None and not isinstance(path, (str, os.PathLike)):
                    raise RunError(
                        f'{setting}.{key} is {path!r}; expected one path. For several annotation files give '
                        'several datasets in a ConcatDataset'
                    )
            for path in filter(None, named.values()):
                full = os.path.join(root, path)
                if '://' not in full and not os.path.exists(full):
                    raise RunError(
                        f'{loader}: the dataset is not there: {full} does not exist. Put it there, '
                        f'or say where it is with --cfg-options {setting}.data_root=FOLDER. COCO files of '
                        f'your own are named by --{_OPTIONS[loader]} ANNOTATIONS.json IMAGES'
                    )
            full = os.path.join(root, ann_file)
            if ann_file and os.path.isfile(full) and not os.path.getsize(full):
                raise RunError(f'{setting}.ann_file: {full} is empty')


def innermost_datasets(dataset: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The innermost datasets of wrappers such as ``RepeatDataset`` and ``ConcatDataset``."""
    inner = [dataset['dataset']] if 'dataset' in dataset else dataset.get('datasets', [])
    if not inner:
        yield dataset
    for part in inner:
        yield from innermost_datasets(part)


def check_test(cfg: Config, max_dets: int | None = None) -> Evaluation:
    """Raises RunError or DataError where a test would fail, or report another AP than MMDetection's own.

    Args:
        max_dets: how many detections of each class count in an image, in place of what the config's
            evaluator says; AP is then one at this limit.
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
    ann_file = _annotation_file(setting, options)
    coco = check_annotations(ann_file, kinds)
    metric = _build(METRICS, setting, {**options, 'ann_file': None})  # they are read already
    _check_thresholds(setting, metric)
    if max_dets is None:
        _check_limits(cfg, setting, metric)
    else:
        _check_max_dets(cfg, max_dets)
    parts = list(_coco_datasets(cfg, 'test_dataloader'))  # each is looked at on its way
    dataset = _build(DATASETS, 'test_dataloader.dataset', cfg.test_dataloader.dataset)
    _check_images(coco, ann_file, dataset)
    names = _class_names('test_dataloader.dataset', dataset)
    ids = coco.getCatIds(catNms=names)
    if options.get('sort_categories'):
        ids.sort()
    if not ids:
        raise RunError(_no_category('test_dataloader.dataset', ann_file, names))
    _check_num_classes(cfg, len(ids), 'test_dataloader.dataset', ann_file)
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


def check_training(cfg: Config, evaluation: Evaluation | None) -> None:
    """Raises RunError on training data of other classes than the heads, or than the test, if there is one.

    Labels number the categories as the annotation file lists them, whatever the order in ``metainfo``.
    """
    enter_scope(cfg)
    setting = 'train_dataloader.dataset'
    for dataset in _coco_datasets(cfg, 'train_dataloader'):
        names = _class_names(setting, dataset)
        data = read_json(dataset.ann_file, 'annotation file')
        try:
            found = [entry['name'] for entry in data['categories'] if entry['name'] in names]
            count = len(data['images']), len(data['annotations'])
        except (KeyError, TypeError):
            raise RunError(
                f'{setting}.ann_file: {dataset.ann_file} has no images, annotations or categories with names'
            ) from None
        if not all(count):
            raise RunError(
                f'{setting}.ann_file: {dataset.ann_file} has {count[0]} images and {count[1]} annotations: '
                'nothing to train on'
            )
        if not found:
            raise RunError(_no_category(setting, dataset.ann_file, names))
        if evaluation is None:
            _check_num_classes(cfg, len(found), setting, dataset.ann_file)
        elif found != evaluation.classes:
            raise RunError(
                f'{setting}: its labels are {_listed(found)}, as {dataset.ann_file} lists them, but those of '
                f'the test are {_listed(evaluation.classes)}, as {evaluation.ann_file} does. Labels must be '
                'the same classes in both: set metainfo.classes, or sort the categories of the files'
            )


def check_model(cfg: Config) -> torch.nn.Module:
    """The model, not initialised; a RunError where the config does not make one."""
    enter_scope(cfg)
    return _build(MODELS, 'model', cfg.model)


def check_space_for_checkpoints(cfg: Config, model: torch.nn.Module, done: int) -> None:
    """Raises RunError where the checkpoints of a training would fill the disk, or it has no optimiser.

    Args:
        done: the epochs or steps that a training to be resumed has done.
    """
    options = (cfg.get('default_hooks') or {}).get('checkpoint', {'type': 'CheckpointHook'})
    if options is None:
        return
    enter_scope(cfg)
    check_type(OPTIMIZERS, 'optim_wrapper.optimizer', cfg.optim_wrapper.get('optimizer'))
    try:
        wrapper = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    except BUILD_ERRORS as error:
        raise RunError(f'optim_wrapper: {describe_error(error)}') from error
    wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    train_cfg = cfg.get('train_cfg') or {}
    unit = 'epochs' if options.get('by_epoch', True) else 'iters'
    total, interval = train_cfg.get(f'max_{unit}'), options.get('interval', -1)
    if not total:  # saved by epoch and trained by step, or the other way: how many is not known
        return
    count = total // interval - done // interval if interval > 0 else 0
    keep = options.get('max_keep_ckpts', -1)
    # One more is written before the oldest goes, and the last is saved whatever the interval.
    count = (count if keep < 0 else min(count, keep)) + 1
    check_space(
        cfg.work_dir,
        checkpoint_bytes(model, *(wrapper.optimizer for wrapper in wrappers)),
        count,
        setting='work_dir',
        count_setting='default_hooks.checkpoint.interval, max_keep_ckpts',
    )


def check_validation(cfg: Config) -> None:
    """Raises RunError or DataError where a validation on the way would fail on its annotations."""
    if cfg.get('val_evaluator') is None:
        return
    enter_scope(cfg)
    for setting, options, kind in metrics_of('val_evaluator', cfg.val_evaluator):
        # Others, such as LVISMetric, may need other annotations.
        if getattr(kind, 'compute_metrics', None) is not CocoMetric.compute_metrics:
            continue
        ann_file = options.get('ann_file')
        if ann_file and '://' not in str(ann_file) and not options.get('backend_args'):
            kinds = [kind for kind in _metric_list(options) if kind in IOU_TYPES]
            check_annotations(_annotation_file(setting, options), kinds)


def _coco_metric(cfg: Config) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """The setting and the options of the one CocoMetric, and the evaluators of other types.

    Of several that differ in what is printed alone, it is the first, with the ``metric`` of all.
    """
    evaluator = cfg.test_evaluator
    if isinstance(evaluator, Mapping) and 'metrics' in evaluator:
        kind = type_name({'type': 'Evaluator', **evaluator})
        if kind.rpartition('.')[2] != 'Evaluator':
            raise RunError(f'test_evaluator.type is {kind}, which this tool cannot do; use a list of metrics')
    found, others = [], []
    entries = metrics_of('test_evaluator', evaluator)
    for setting, options, kind in entries:
        if not (isinstance(kind, type) and issubclass(kind, CocoMetric)):
            others.append(options)
            continue
        if kind.compute_metrics is not CocoMetric.compute_metrics:
            raise RunError(
                f"{setting}.type is {kind.__name__}, which computes its own metrics; this tool's are "
                "CocoMetric's"
            )
        found.append((setting, options))
    if not found:
        types = ', '.join(type_name(options) for _, options, _ in entries)
        raise RunError(
            f'test_evaluator of the config {cfg.filename} has no CocoMetric, only {types}; it is what writes '
            "the predictions in COCO format, and this tool's AP is COCO's"
        )
    setting, options = found[0]
    kinds = _metric_list(options)
    for other_setting, other in found[1:]:
        for key in sorted({*options, *other}):
            if key not in _OF_THE_OUTPUT and options.get(key) != other.get(key):
                raise RunError(
                    f'{setting}.{key} is {options.get(key)!r} and {other_setting}.{key} is '
                    f'{other.get(key)!r}; this tool reports one evaluation: leave one CocoMetric'
                )
        kinds += [kind for kind in _metric_list(other) if kind not in kinds]
    return setting, {**options, 'metric': kinds}, others


def metrics_of(setting: str, evaluator: Any) -> list[tuple[str, Any, Any]]:
    """Setting, options and class of each metric of an evaluator, in any of the forms that it may have."""
    if isinstance(evaluator, Mapping) and 'metrics' in evaluator:
        setting, evaluator = f'{setting}.metrics', evaluator['metrics']
    named = [(setting, evaluator)]
    if isinstance(evaluator, (list, tuple)):
        named = [(f'{setting}.{index}', options) for index, options in enumerate(evaluator)]
    return [
        (name, options, class_of(METRICS, options.get('type')) if isinstance(options, Mapping) else None)
        for name, options in named
    ]


def _metric_list(options: Mapping[str, Any]) -> list[str]:
    metric = options.get('metric', 'bbox')
    return list(metric) if isinstance(metric, (list, tuple)) else [metric]


def _kinds(cfg: Config, setting: str, options: Mapping[str, Any]) -> list[str]:
    kinds = options['metric']
    for kind in kinds:
        if kind not in IOU_TYPES:
            raise RunError(
                f'{setting}.metric has {kind!r}, which this tool does not compute; '
                f'it computes {" and ".join(IOU_TYPES)}'
            )
    heads = (cfg.get('model') or {}).get('roi_head')
    if 'segm' in kinds and heads is not None and not heads.get('mask_head'):
        raise RunError(f"{setting}.metric has 'segm', but model.roi_head has no mask_head to predict masks")
    return kinds


def _annotation_file(setting: str, options: Mapping[str, Any]) -> str:
    ann_file = options.get('ann_file')
    if not ann_file:
        raise RunError(f"{setting} has no ann_file: this tool's AP is of an annotation file in COCO format")
    if not isinstance(ann_file, (str, os.PathLike)):
        raise RunError(f'{setting}.ann_file is {ann_file!r}; expected one path')
    if '://' in str(ann_file) or options.get('backend_args'):
        raise RunError(f'{setting}.ann_file {ann_file}: this tool evaluates on local files only')
    if not os.path.isfile(ann_file):
        raise RunError(f'{setting}.ann_file: the annotation file {ann_file} does not exist')
    return str(ann_file)


def _check_thresholds(setting: str, metric: CocoMetric) -> None:
    # Of a list, pycocotools finds no AP50 and no AP75: both are -1.
    if not (isinstance(metric.iou_thrs, np.ndarray) and np.allclose(metric.iou_thrs, IOU_THRESHOLDS)):
        raise RunError(
            f"{setting}.iou_thrs is {metric.iou_thrs}; this tool's AP is over 0.50 to 0.95 as by default: "
            'leave the setting out'
        )


def _check_limits(cfg: Config, setting: str, metric: CocoMetric) -> None:
    """Raises RunError where MMDetection's AP is not of the 100 best detections of each class and image.

    pycocotools takes AP at 100, whatever the limits are, and AP50, AP75 and those of the areas at the third.
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
            f"{setting}.proposal_nums is {tuple(metric.proposal_nums)}, so that MMDetection's AP is of "
            f'{MAX_DETS} detections of a class in an image and its AP50 of {limits[2]}, while the '
            f"model gives up to {most if most > 0 else 'any number'} (max_per_img). This tool's are all of "
            f'{MAX_DETS}: {advice}, or give --max-dets for an AP at another limit'
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
    """How many detections an image has at most: COCO's 100 where the config does not say, -1 for no limit."""
    options = (cfg.get('model') or {}).get('test_cfg') or {}
    options = options.get('rcnn') or options
    return options.get('max_per_img', MAX_DETS)


def _check_images(coco: COCO, ann_file: str, dataset: Any) -> None:
    """Raises RunError on images that the annotations do not have, that come twice or that are not there."""
    seen: set[int] = set()
    folders = Folders()
    if not len(dataset):
        raise RunError('test_dataloader.dataset has no images')
    for index in range(len(dataset)):
        image = dataset.get_data_info(index)
        id_, path = image.get('img_id'), str(image.get('img_path', ''))
        if id_ not in coco.imgs:
            raise RunError(f'test_dataloader.dataset has the image {id_}, which {ann_file} does not have')
        if id_ in seen:
            raise RunError(f'test_dataloader.dataset has the image {id_} twice')
        seen.add(id_)
        if not path or '://' in path or getattr(dataset, 'backend_args', None):
            continue
        # A name in the annotations may hold folders, so a file may be behind a link that a list has not.
        if not folders.has(path) and not os.path.exists(path):
            raise RunError(f'test_dataloader.dataset: the image {path} does not exist')


def _coco_datasets(cfg: Config, loader: str) -> Iterator[CocoDataset]:
    """The local datasets of COCO format among those of a loader; their annotations are not read yet."""
    for options in innermost_datasets((cfg.get(loader) or {}).get('dataset') or {}):
        kind = class_of(DATASETS, options.get('type'))
        if not (isinstance(kind, type) and issubclass(kind, CocoDataset)) or options.get('backend_args'):
            continue
        dataset = _build(DATASETS, f'{loader}.dataset', {**options, 'lazy_init': True, 'pipeline': []})
        if not os.path.isfile(dataset.ann_file):
            raise RunError(f'{loader}.dataset.ann_file is {dataset.ann_file!r}; expected an annotation file')
        yield dataset


def _class_names(setting: str, dataset: Any) -> Sequence[str]:
    metainfo = dataset.metainfo
    if not isinstance(metainfo, Mapping):
        raise RunError(f'{setting}: its parts have different metainfo; give them the same')
    names = metainfo.get('classes')
    if not isinstance(names, (list, tuple)) or not names:
        raise RunError(f"{setting}.metainfo.classes is {names!r}; expected names, as in ('cat', 'dog')")
    return names


def _no_category(setting: str, ann_file: str, names: Sequence[str]) -> str:
    return (
        f'{setting}.metainfo.classes is {_listed(names)}, but {ann_file} has no category of such a name: set '
        'it to the names in the file'
    )


def _check_num_classes(cfg: Config, expected: int, setting: str, ann_file: str) -> None:
    misfits = {
        name: found for name, found in _numbers_of_classes(cfg.get('model') or {}) if found != expected
    }
    if misfits:
        name, found = next(iter(misfits.items()))
        options = ' '.join(f'{name}={expected}' for name in misfits)
        raise RunError(
            f'{name} is {found}, but {expected} categories of {ann_file} are among '
            f'{setting}.metainfo.classes: give --cfg-options {options}'
        )


def _numbers_of_classes(model: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The settings of the heads' numbers of classes, of detectors of two stages or one."""
    for where, heads in (('model', model), ('model.roi_head', model.get('roi_head') or {})):
        for key in _HEADS:
            head = heads.get(key) or {}
            stages = {f'{where}.{key}': head}
            if isinstance(head, (list, tuple)):
                stages = {f'{where}.{key}.{stage}': options for stage, options in enumerate(head)}
            for name, options in stages.items():
                found = options.get('num_classes', _default(options.get('type'), 'num_classes'))
                if found is not None and not options.get('class_agnostic'):
                    yield f'{name}.num_classes', found


def _default(kind: Any, option: str) -> Any:
    """What a part of a model takes for an option that its config leaves out; None where that is not known."""
    found = class_of(MODELS, kind) if kind else None
    for owner in getattr(found, '__mro__', ()):
        parameter = inspect.signature(owner).parameters.get(option)
        if parameter is not None:
            return None if parameter.default is inspect.Parameter.empty else parameter.default
    return None


def _build(registry: Registry, setting: str, options: Mapping[str, Any]) -> Any:
    """What the config describes; a RunError that names the setting where it cannot be built."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells how far it is
            return registry.build(copy.deepcopy(options))
    except BUILD_ERRORS as error:
        message = explain_unregistered(error) or describe_error(error)
        raise RunError(f'{setting}: {message}') from error


def _listed(names: Sequence[str]) -> str:
    shown = ', '.join(names[:6])
    return f'{shown}, ... ({len(names)} in all)' if len(names) > 6 else shown
