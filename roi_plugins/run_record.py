"""The files of an evaluated run: its predictions, and ``metrics.json`` with its AP and how it was made."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from roi_plugins import __version__
from roi_plugins.evaluation.coco import METRICS, evaluate
from roi_plugins.evaluation.coco_files import load_annotations
from roi_plugins.evaluation.matching import COCO_SIGMAS, IOU_TYPES, MAX_DETS
from roi_plugins.files import DataError, atomic_write, write_json
from roi_plugins.hardware import cpu_name

METRICS_FILE = 'metrics.json'

TRIAL_FILE = 'trial.json'

ANNOTATIONS_FILE = 'annotations.json'
"""The annotations of the evaluated categories, written to a run that does not evaluate all categories."""

PREDICTION_FILES = {iou_type: f'predictions.{iou_type}.json' for iou_type in IOU_TYPES}


def trial_file(run_dir: Path) -> Path:
    """Returns the path of what an ablation records of a run, ``trial.json``.

    Earlier versions named it ``cell.json``. That path is returned if only this file exists.

    Args:
        run_dir: the folder of the run.
    """
    earlier = run_dir / 'cell.json'
    return earlier if earlier.is_file() and not (run_dir / TRIAL_FILE).is_file() else run_dir / TRIAL_FILE


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
    sigmas: Sequence[float] = COCO_SIGMAS,
    image_dir: str | Path | None = None,
    extractors: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Evaluates the predictions of a run and writes ``metrics.json``, which makes the run finished.

    Args:
        run_dir: the folder of the run. It has ``predictions.bbox.json``, and ``predictions.segm.json`` or
            ``predictions.keypoints.json`` if the model predicts masks or keypoints.
        framework: the package that made the predictions, e.g. ``'mmdet'``.
        config: the path of the config, as the user gave it.
        checkpoint: the path of the evaluated weights.
        ann_file: the COCO annotations of the evaluated images.
        command: the command that made the predictions, as a list of arguments.
        category_ids: the ids of the categories that AP is the mean over; by default all categories of the
            annotations. If they are not all, ``run_dir`` gets a copy of the annotations with only these
            categories, and the record names this copy.
        max_dets: how many detections of each class count in an image, see
            :func:`~roi_plugins.evaluation.coco.evaluate`.
        sigmas: the OKS sigma of each keypoint.
        image_dir: the folder of the images, for reports with pictures; None if it is not known.
        extractors: type and options of each RoI extractor of the evaluated model, by its place in the model.

    Returns:
        The content of ``metrics.json``.

    Raises:
        DataError: there are no predictions, or they cannot be evaluated. Nothing is written.
    """
    run_dir = Path(run_dir)
    predictions = {t: name for t, name in PREDICTION_FILES.items() if (run_dir / name).is_file()}
    if not predictions:
        raise DataError(f'{run_dir}: no {" or ".join(PREDICTION_FILES.values())} to evaluate')
    coco = load_annotations(ann_file)
    (run_dir / ANNOTATIONS_FILE).unlink(missing_ok=True)  # left by an earlier test
    if category_ids is not None and (wanted := set(category_ids)) != set(coco.cats):
        ann_file = run_dir / ANNOTATIONS_FILE
        with atomic_write(ann_file) as aside:
            aside.write_text(json.dumps(_of_categories(coco.dataset, wanted)), encoding='utf-8')
        coco = load_annotations(ann_file)
    metrics = {}
    for iou_type, name in predictions.items():
        result = evaluate(coco, run_dir / name, iou_type, max_dets, sigmas)
        metrics[iou_type] = {metric: result[metric] for metric in METRICS}
    record = {
        'format': 1,
        'framework': framework,
        'config': str(config),
        'checkpoint': str(checkpoint),
        'ann_file': os.path.abspath(ann_file),
        'max_dets': max_dets,
        **({'oks_sigmas': list(sigmas)} if 'keypoints' in predictions else {}),
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


def _versions(framework: str) -> dict[str, str]:
    versions = {'python': platform.python_version(), 'roi_plugins': __version__}
    # The distribution of a package may have another name: some builds of detectron2 do.
    distributions = metadata.packages_distributions().get(framework, [framework])
    for name in (*distributions, 'mmengine', 'mmcv', 'torch', 'torchvision', 'numpy', 'pycocotools'):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _hardware() -> str:
    import torch  # here, because reading results does not need it

    if torch.cuda.is_available():
        return f'{torch.cuda.device_count()} x {torch.cuda.get_device_name()}'
    return f'{os.cpu_count()} x {cpu_name()}'
