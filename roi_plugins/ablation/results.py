"""Finds evaluated runs: what was run, and where the predictions are."""

from __future__ import annotations

import contextlib
import json
import os
import reprlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from roi_plugins.evaluation.coco_files import FIELDS
from roi_plugins.evaluation.matching import COCO_SIGMAS, IOU_TYPES, MAX_DETS
from roi_plugins.files import DataError, read_json
from roi_plugins.run_record import METRICS_FILE, trial_file

_INFERENCE, _DETECTRON2_FILE = 'inference', 'coco_instances_results.json'
DETECTRON2_RESULTS = os.path.join(_INFERENCE, _DETECTRON2_FILE)
"""The file that Detectron2's own COCOEvaluator writes below the output directory of a training."""


@dataclass(frozen=True)
class Run:
    """One trained and evaluated detector.

    Attributes:
        name: the path that the run was read from, for messages.
        extractor: the label of the run in a comparison. For a trial of a plan, the name of its row. For
            another run, the name of its directory or file, or the whole path if several have the same name.
        config_name: the plan's name for the config. If the trial only tested a checkpoint, it also says what
            that was trained with. Empty for a run that is not a trial of a plan.
        seed: the seed of the training; None for a run that is not a trial of a plan.
        framework: ``'mmdet'`` or ``'detectron2'``; None for bare prediction files.
        ann_file: the COCO annotations of the evaluated images.
        predictions: the files of COCO results by IoU type, of ``IOU_TYPES``.
        max_dets: how many detections of each class count in an image.
        sigmas: the OKS sigma of each keypoint.
    """

    name: str
    extractor: str
    config_name: str
    seed: int | None
    framework: str | None
    ann_file: Path
    predictions: dict[str, Path]
    max_dets: int = MAX_DETS
    sigmas: tuple[float, ...] = COCO_SIGMAS

    @property
    def replicate(self) -> int | str:
        """The seed, or the name where the seed is not known; it differs between the runs of an extractor.

        Runs of two extractors with the same seed are compared with each other. Those of unknown seeds have
        no such partner.
        """
        return self.name if self.seed is None else self.seed


@dataclass
class FoundRuns:
    """What :func:`find_runs` found.

    Attributes:
        runs: the runs that can be read, in the order in which they were given.
        problems: a message for each run that was asked for and cannot be read.
        notes: a message for each trial of an ablation that is not finished.
    """

    runs: list[Run] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_runs(paths: Sequence[str | Path], ann_file: str | Path | None = None) -> FoundRuns:
    """Reads runs. Each is given as a run directory, a directory of run directories, or a prediction file.

    Args:
        paths: each is a directory with ``metrics.json``; a directory with such directories in it, such as
            the work directory of ``tools/ablate.py``; the output directory of a script with Detectron2's
            COCOEvaluator, or its ``inference``; a directory with the files of MMDetection's CocoMetric; or a
            file of COCO results. ``NAME.bbox.json`` and ``NAME.segm.json`` are two files of one run. A
            path that is given twice is read once. ``LABEL=PATH`` names a run. Runs with the same label are
            those of several seeds.
        ann_file: COCO annotations to use instead of the recorded ones. Prediction files need them.

    Returns:
        The runs that can be read, and messages about the others.
    """
    found = FoundRuns()
    files: dict[tuple[str, str], Run] = {}
    named: set[str] = set()
    labelled = [_split_label(path) for path in paths]
    for label, path in {os.path.realpath(path): (label, path) for label, path in labelled}.values():
        first_new = len(found.runs)
        try:
            if not path.exists():
                raise DataError(f'{path}: no such file or directory')
            if path.is_file():
                run = _read_prediction_file(path, ann_file)
                first = files.setdefault((label, run.name), run)
                if run is first:
                    found.runs.append(run)
                else:
                    first.predictions.update(run.predictions)
            elif _is_recorded(path) or not (trials := list(filter(_is_run, path.iterdir()))):
                found.runs.append(_read_run(path, ann_file))
            else:
                _read_trials(trials, ann_file, found)
            if label:
                _label(found, first_new, label, path)
                named.update(run.name for run in found.runs[first_new:])
        except DataError as error:
            found.problems.append(str(error))
    found.runs = _with_distinct_labels(found.runs, named)
    return found


def _split_label(path: str | Path) -> tuple[str, Path]:
    """Splits ``LABEL=PATH``. The label is empty if there is none, or if the whole text is a path."""
    label, equals, rest = str(path).partition('=')
    if equals and label and rest and '/' not in label and not os.path.lexists(path):
        return label, Path(rest)
    return '', Path(path)


def _label(found: FoundRuns, first_new: int, label: str, path: Path) -> None:
    new = found.runs[first_new:]
    if len(new) > 1:
        del found.runs[first_new:]
        raise DataError(
            f'{label}={path}: {path} holds {len(new)} runs; a label is for one: give each, as in '
            f'{label}={new[0].name}'
        )
    found.runs[first_new:] = [replace(run, extractor=label) for run in new]


def _is_recorded(path: Path) -> bool:
    """Tells whether a folder is the run directory of a tool, and not a folder of such."""
    files = (trial_file(path), path / METRICS_FILE, path / DETECTRON2_RESULTS, path / _DETECTRON2_FILE)
    return any(file.is_file() for file in files)


def _is_run(path: Path) -> bool:
    return _is_recorded(path) or bool(_stock_mmdet_files(path))


def _stock_mmdet_files(folder: Path) -> list[Path]:
    """Lists the files that MMDetection's CocoMetric writes with any ``outfile_prefix``."""
    return sorted(file for iou_type in IOU_TYPES for file in folder.glob(f'*.{iou_type}.json'))


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
    """The key to sort trials by. A plan runs its trials in order, so it sorts them as their plan does."""
    try:
        return _read_record(trial_file(trial), started=str)['started'], trial.name
    except DataError:  # _read_run reports it
        return '', trial.name


def _read_run(run_dir: Path, ann_file: str | Path | None) -> Run:
    if (stock := _stock_detectron2_file(run_dir)) is not None:
        folder = stock.resolve().parent
        folder = folder.parent if folder.name == _INFERENCE else folder
        return replace(
            _read_prediction_file(stock, ann_file),
            name=str(run_dir),
            extractor=_printable(folder.name),
            framework='detectron2',
        )
    if not (run_dir / METRICS_FILE).is_file():
        if not trial_file(run_dir).is_file() and (files := _stock_mmdet_files(run_dir)):
            return _read_stock_mmdet(run_dir, files, ann_file)
        raise DataError(
            f'{run_dir}: no {METRICS_FILE}, here or one level below: the run is not evaluated yet'
        )
    if not trial_file(run_dir).is_file() and _has_json_lines(run_dir / METRICS_FILE):
        raise DataError(
            f'{run_dir}: {METRICS_FILE} is the log of a training with Detectron2, without its predictions; '
            f'expected {DETECTRON2_RESULTS}, which COCOEvaluator writes: evaluate the run with '
            '--eval-only, or give the file of its predictions'
        )
    record = _read_record(run_dir / METRICS_FILE, framework=str, ann_file=str, predictions=dict)
    extractor, config_name, seed = _printable(run_dir.resolve().name), '', None
    if trial_file(run_dir).is_file():
        trial = _read_record(trial_file(run_dir), extractor=str, config_name=str, seed=int)
        extractor, config_name, seed = trial['extractor'], trial['config_name'], trial['seed']
        if trained_with := read_json(trial_file(run_dir), 'record').get('trained_with'):
            config_name += f', trained with {trained_with}'
    # Earlier versions did not record max_dets and used COCO's limit.
    max_dets = read_json(run_dir / METRICS_FILE, 'record').get('max_dets', MAX_DETS)
    if not isinstance(max_dets, int) or max_dets < 1:
        raise DataError(
            f'{run_dir / METRICS_FILE}: max_dets is {reprlib.repr(max_dets)}; expected a whole number from 1'
        )
    sigmas = read_json(run_dir / METRICS_FILE, 'record').get('oks_sigmas', COCO_SIGMAS)
    if not isinstance(sigmas, (list, tuple)) or not all(
        isinstance(s, (int, float)) and s > 0 for s in sigmas
    ):
        raise DataError(
            f'{run_dir / METRICS_FILE}: oks_sigmas is {reprlib.repr(sigmas)}; expected positive numbers'
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
        extractor=extractor,
        config_name=config_name,
        seed=seed,
        framework=record['framework'],
        ann_file=recorded if ann_file is None else Path(ann_file),
        predictions=predictions,
        max_dets=max_dets,
        sigmas=tuple(sigmas),
    )


def is_stock_detectron2(run_dir: Path) -> bool:
    """Tells whether Detectron2's own evaluator made a run, so that it has no records of ours.

    Args:
        run_dir: the output directory of a training, or its folder ``inference``.
    """
    return _stock_detectron2_file(run_dir) is not None


def _stock_detectron2_file(run_dir: Path) -> Path | None:
    if trial_file(run_dir).is_file() or _is_record(run_dir / METRICS_FILE):
        return None
    files = (run_dir / DETECTRON2_RESULTS, run_dir / _DETECTRON2_FILE)
    return next((file for file in files if file.is_file()), None)


def _is_record(path: Path) -> bool:
    try:
        record = read_json(path, 'record')
    except DataError:
        return False
    return isinstance(record, dict) and 'format' in record


def _has_json_lines(path: Path) -> bool:
    """Tells whether a file is what Detectron2 calls ``metrics.json``: a line of JSON for each logged step."""
    with contextlib.suppress(OSError, ValueError), path.open(encoding='utf-8') as file:
        return 'iteration' in json.loads(file.readline())
    return False


def _read_stock_mmdet(run_dir: Path, files: Sequence[Path], ann_file: str | Path | None) -> Run:
    prefixes = list(dict.fromkeys(file.name.rsplit('.', 2)[0] for file in files))
    if len(prefixes) > 1:
        raise DataError(
            f'{run_dir}: has predictions of {len(prefixes)} prefixes ({", ".join(prefixes)}); expected those '
            f'of one run: give one file of each, as in {files[0]}'
        )
    run, *others = [_read_prediction_file(file, ann_file) for file in files]
    for other in others:
        run.predictions.update(other.predictions)
    return replace(run, name=str(run_dir), extractor=_printable(run_dir.resolve().name), framework='mmdet')


def _printable(name: str) -> str:
    """Replaces the bytes of a file's name that are not UTF-8."""
    return os.fsencode(name).decode(errors='replace')


def _read_prediction_file(path: Path, ann_file: str | Path | None) -> Run:
    if ann_file is None:
        raise DataError(
            f'{path}: a file of predictions does not say what it was evaluated on; it needs --ann-file'
        )
    name = path.name.removesuffix('.json')
    stem, _, iou_type = name.rpartition('.')
    if iou_type in IOU_TYPES:
        predictions = {iou_type: path}
    else:
        stem, predictions = name, dict.fromkeys(_iou_types(path), path)
    label, folder = stem, path.resolve().parent
    if os.path.join(folder.name, path.name) == DETECTRON2_RESULTS:
        label = folder.parent.name  # the file has the same name in every run
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
    found = [iou_type for iou_type, field in FIELDS.items() if results and field in results[0]]
    return found or ['bbox']


_KINDS = {str: 'a string', int: 'a whole number', dict: 'an object'}


def _read_record(path: Path, **keys: type) -> dict[str, Any]:
    """Reads these keys of a record, and checks the types of their values."""
    record = read_json(path, 'record')
    if not isinstance(record, dict) or record.get('format') != 1:
        raise DataError(f'{path}: not a record of format 1, which this version reads')
    if missing := [key for key in keys if key not in record]:
        raise DataError(f'{path}: lacks {", ".join(missing)}')
    for key, kind in keys.items():
        if not isinstance(record[key], kind):
            raise DataError(f'{path}: {key} is {reprlib.repr(record[key])}; expected {_KINDS[kind]}')
    return {key: record[key] for key in keys}


def _with_distinct_labels(runs: Sequence[Run], named: Collection[str]) -> list[Run]:
    """Labels runs by their whole paths where several that are not trials of a plan have the same label.

    They would become the seeds of one group otherwise. That is what labels of the user's own, on the runs
    ``named``, are for, so these stay.
    """
    count = Counter(run.extractor for run in runs if run.seed is None)
    return [
        replace(run, extractor=run.name)
        if run.seed is None and run.name not in named and count[run.extractor] > 1
        else run
        for run in runs
    ]
