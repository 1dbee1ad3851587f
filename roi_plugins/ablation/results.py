"""Reading evaluated runs: what was run, and where its predictions lie."""

from __future__ import annotations

import os
import reprlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from roi_plugins.evaluation.matching import IOU_TYPES, MAX_DETS
from roi_plugins.files import DataError, read_json
from roi_plugins.run_record import METRICS_FILE, trial_file

DETECTRON2_RESULTS = os.path.join('inference', 'coco_instances_results.json')
"""What Detectron2's own COCOEvaluator leaves in the output directory of a training."""


@dataclass(frozen=True)
class Run:
    """One trained and evaluated detector.

    Attributes:
        name: the path it was read from, for messages.
        extractor: label of what is compared. For a run that is no trial of a plan, the name of its
            directory or file, or the whole path where several have the same name.
        config_name: the config of the plan, with what its checkpoint was trained with where the trial
            has only tested one; empty for a run that is no trial of a plan.
        seed: None for a run that is no trial of a plan.
        framework: ``'mmdet'`` or ``'detectron2'``; None for bare prediction files.
        ann_file: COCO annotations of the evaluated images.
        predictions: COCO results by IoU type, ``'bbox'`` or ``'segm'``.
        max_dets: how many detections of each class count in an image.
    """

    name: str
    extractor: str
    config_name: str
    seed: int | None
    framework: str | None
    ann_file: Path
    predictions: dict[str, Path]
    max_dets: int = MAX_DETS


@dataclass
class FoundRuns:
    """Runs in the order in which they were given, and what to tell the user of the others.

    Attributes:
        runs: those that can be read.
        problems: runs that were asked for and cannot be read.
        notes: trials of a sweep that are not finished.
    """

    runs: list[Run] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_runs(paths: Sequence[str | Path], ann_file: str | Path | None = None) -> FoundRuns:
    """Reads runs, each given as a run directory, a directory of such, or a file of predictions.

    Args:
        paths: a directory with ``metrics.json``; a directory that holds those one level below,
            such as a work directory of ``tools/ablate.py``; the output directory of a script with
            Detectron2's COCOEvaluator; or COCO results. ``NAME.bbox.json`` and ``NAME.segm.json`` are
            the two files of one run. What is given twice is read once. ``LABEL=PATH`` names a run.
        ann_file: COCO annotations to use in place of the recorded ones; files need it.

    Returns:
        The runs that can be read, and what is wrong with the others.
    """
    found = FoundRuns()
    files: dict[str, Run] = {}
    labelled = [_split_label(path) for path in paths]
    for label, path in {os.path.realpath(path): (label, path) for label, path in labelled}.values():
        first_new = len(found.runs)
        try:
            if not path.exists():
                raise DataError(f'{path}: no such file or directory')
            if path.is_file():
                run = _read_prediction_file(path, ann_file)
                first = files.setdefault(run.name, run)
                if run is first:
                    found.runs.append(run)
                else:
                    first.predictions.update(run.predictions)
            elif _is_run(path) or not (trials := list(filter(_is_run, path.iterdir()))):
                found.runs.append(_read_run(path, ann_file))
            else:
                _read_trials(trials, ann_file, found)
            if label:
                _label(found, first_new, label, path)
        except DataError as error:
            found.problems.append(str(error))
    found.runs = _with_distinct_labels(found.runs)
    return found


def _split_label(path: str | Path) -> tuple[str, Path]:
    """The parts of ``LABEL=PATH``; no label for a path that is there as it is."""
    label, equals, rest = str(path).partition('=')
    if equals and label and rest and '/' not in label and not os.path.lexists(path):
        return label, Path(rest)
    return '', Path(path)


def _label(found: FoundRuns, first_new: int, label: str, path: Path) -> None:
    new = found.runs[first_new:]
    if len(new) > 1:
        del found.runs[first_new:]
        raise DataError(f'{label}={path}: {path} holds {len(new)} runs; label one alone')
    found.runs[first_new:] = [replace(run, extractor=label) for run in new]


def _is_run(path: Path) -> bool:
    files = (trial_file(path), path / METRICS_FILE, path / DETECTRON2_RESULTS)
    return any(file.is_file() for file in files)


def _read_trials(trials: Sequence[Path], ann_file: str | Path | None, found: FoundRuns) -> None:
    for trial in sorted(trials, key=_when_started):
        try:
            if (trial / METRICS_FILE).is_file() or not trial_file(trial).is_file():
                found.runs.append(_read_run(trial, ann_file))
            else:
                state = _read_record(trial_file(trial), state=str)['state']
                found.notes.append(f'{trial}: not finished (state: {state}); left out')
        except DataError as error:
            found.problems.append(str(error))


def _when_started(trial: Path) -> tuple[str, str]:
    """Sorts trials as their plan does, which runs them one after the other."""
    try:
        return _read_record(trial_file(trial), started=str)['started'], trial.name
    except DataError:  # reported where the trial is read
        return '', trial.name


def _read_run(run_dir: Path, ann_file: str | Path | None) -> Run:
    if _is_stock_detectron2(run_dir):
        return replace(
            _read_prediction_file(run_dir / DETECTRON2_RESULTS, ann_file),
            name=str(run_dir),
            framework='detectron2',
        )
    if not (run_dir / METRICS_FILE).is_file():
        raise DataError(
            f'{run_dir}: no {METRICS_FILE}, here or one level below: the run is not evaluated yet'
        )
    record = _read_record(run_dir / METRICS_FILE, framework=str, ann_file=str, predictions=dict)
    labels = {'extractor': _printable(run_dir.resolve().name), 'config_name': '', 'seed': None}
    if trial_file(run_dir).is_file():
        labels = _read_record(trial_file(run_dir), extractor=str, config_name=str, seed=int)
        trained_with = read_json(trial_file(run_dir), 'record').get('trained_with')
        if trained_with:
            labels['config_name'] += f', trained with {trained_with}'
    # Runs of before it was recorded are at COCO's limit.
    max_dets = read_json(run_dir / METRICS_FILE, 'record').get('max_dets', MAX_DETS)
    if not isinstance(max_dets, int) or max_dets < 1:
        raise DataError(
            f'{run_dir / METRICS_FILE}: max_dets is {reprlib.repr(max_dets)}; expected a whole number from 1'
        )
    if not record['predictions']:
        raise DataError(f'{run_dir / METRICS_FILE}: names no predictions')
    predictions = {}
    for iou_type, name in record['predictions'].items():
        if iou_type not in IOU_TYPES:
            raise DataError(
                f'{run_dir / METRICS_FILE}: has predictions of type {iou_type!r}; '
                f'expected {" or ".join(IOU_TYPES)}'
            )
        if name != os.path.basename(str(name)):
            raise DataError(
                f'{run_dir / METRICS_FILE}: names the predictions {name!r}; expected a file beside it'
            )
        predictions[iou_type] = run_dir / name
        if not os.path.isfile(predictions[iou_type]):
            raise DataError(f'{predictions[iou_type]}: the predictions that {METRICS_FILE} names are missing')
    recorded = Path(record['ann_file'])
    if ann_file is None and not os.path.isfile(recorded):  # Path.is_file raises on too long a path
        raise DataError(
            f'{run_dir}: was evaluated on {recorded}, which is not there; '
            'say where its annotations are with --ann-file'
        )
    return Run(
        name=str(run_dir),
        framework=record['framework'],
        ann_file=recorded if ann_file is None else Path(ann_file),
        predictions=predictions,
        max_dets=max_dets,
        **labels,
    )


def _is_stock_detectron2(run_dir: Path) -> bool:
    """Whether Detectron2's own evaluator made it: its ``metrics.json`` has a line for each step."""
    if trial_file(run_dir).is_file() or not (run_dir / DETECTRON2_RESULTS).is_file():
        return False
    try:
        record = read_json(run_dir / METRICS_FILE, 'record')
    except DataError:
        return True
    return not isinstance(record, dict) or 'format' not in record


def _printable(name: str) -> str:
    """A file's name as text; it need not be UTF-8."""
    return os.fsencode(name).decode(errors='replace')


def _read_prediction_file(path: Path, ann_file: str | Path | None) -> Run:
    if ann_file is None:
        raise DataError(f'{path}: a file of predictions needs --ann-file')
    name = path.name.removesuffix('.json')
    stem, _, iou_type = name.rpartition('.')
    if iou_type in IOU_TYPES:
        predictions = {iou_type: path}
    else:
        stem, predictions = name, dict.fromkeys(_iou_types(path), path)
    label, folder = stem, path.resolve().parent
    if os.path.join(folder.name, path.name) == DETECTRON2_RESULTS:
        label = folder.parent.name  # every run's file has the same name
    return Run(
        name=str(path.with_name(stem)),
        extractor=_printable(label),
        config_name='',
        seed=None,
        framework=None,
        ann_file=Path(ann_file),
        predictions=predictions,
    )


def _iou_types(path: Path) -> list[str]:
    results = read_json(path, 'prediction file')
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise DataError(f'{path}: not COCO results; expected a list of objects')
    if results and 'segmentation' in results[0]:
        return ['bbox', 'segm'] if 'bbox' in results[0] else ['segm']
    return ['bbox']


_KINDS = {str: 'a string', int: 'a whole number', dict: 'an object'}


def _read_record(path: Path, **keys: type) -> dict[str, Any]:
    """What a record has under these keys, each of a type."""
    record = read_json(path, 'record')
    if not isinstance(record, dict) or record.get('format') != 1:
        raise DataError(f'{path}: not a record of format 1, which this version reads')
    if missing := [key for key in keys if key not in record]:
        raise DataError(f'{path}: lacks {", ".join(missing)}')
    for key, kind in keys.items():
        if not isinstance(record[key], kind):
            raise DataError(f'{path}: {key} is {reprlib.repr(record[key])}; expected {_KINDS[kind]}')
    return {key: record[key] for key in keys}


def _with_distinct_labels(runs: Sequence[Run]) -> list[Run]:
    """Runs that are no trials of a plan must not become one group for having the same name."""
    count = Counter(run.extractor for run in runs if run.seed is None)
    return [
        replace(run, extractor=run.name) if run.seed is None and count[run.extractor] > 1 else run
        for run in runs
    ]
