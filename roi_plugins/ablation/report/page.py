"""Writes a comparison as one self-contained page of HTML: it needs no network and no other file."""

from __future__ import annotations

import functools
import os
import platform
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from roi_plugins import __version__
from roi_plugins.ablation.compare import Comparison
from roi_plugins.ablation.confounding import reference_run
from roi_plugins.ablation.extractor_cost import Costs
from roi_plugins.ablation.extractor_cost import to_rows as cost_rows
from roi_plugins.ablation.learning_curves import read_learning_curve
from roi_plugins.ablation.records import Record, read_record
from roi_plugins.ablation.report.images import (
    MIN_SCORE,
    Detections,
    data_uri,
    find_picture,
    folders_beside,
    most_different,
)
from roi_plugins.ablation.report.plots import (
    plot_ap_over_cost,
    plot_ap_over_iou,
    plot_differences,
    plot_learning_curves,
)
from roi_plugins.ablation.report.tables import (
    TITLES,
    caption,
    details_caption,
    find_best,
    make_headline,
    make_tables,
    metric_title,
)
from roi_plugins.ablation.results import Run
from roi_plugins.evaluation.coco import format_points
from roi_plugins.evaluation.coco_files import load_annotations
from roi_plugins.evaluation.matching import EVALUATIONS, IOU_TYPES
from roi_plugins.files import atomic_write
from roi_plugins.hardware import cpu_name
from roi_plugins.settings import CONFOUNDED, PLACE, SEED, differences

IMAGES_PER_PAIR = 4

_SHOWN_OPTIONS = ('type', 'output_size', 'region', 'sampling_ratio', 'reduction', 'aligned')
"""The options of an extractor that have a column of their own in the table of extractors."""

TEXT_COLUMNS = ('Config', 'Extractor', 'Verdict', 'Class', 'In the model', *_SHOWN_OPTIONS, 'others')
_KINDS = {'bbox': 'boxes', 'segm': 'masks', 'keypoints': 'keypoints'}


def write_report(
    comparison: Comparison,
    path: str | Path,
    command: Sequence[str],
    digits: int = 1,
    costs: Costs | None = None,
) -> None:
    """Writes the page. An existing file is replaced atomically.

    Args:
        comparison: what :func:`~roi_plugins.ablation.compare.compare` found.
        path: the file to write.
        command: the command that made the comparison, as a list of arguments. The page shows it.
        digits: how many decimals AP has in the tables, in points.
        costs: the costs of the extractors, if they were measured.

    Raises:
        DataError: a record or predictions that the comparison read cannot be read any more.
    """
    path = Path(path)
    # Names, paths, classes and configs are text, never markup: they are escaped.
    environment = Environment(
        loader=PackageLoader('roi_plugins.ablation.report'),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    records = {run.name: read_record(run) for run, _ in comparison.metrics}
    titles = {run.name: _title(run, comparison) for run, _ in comparison.metrics}
    pairs, pictures = _pairs(comparison, titles, records.values(), digits)
    details = list(_details(comparison, digits))
    if not (built := _extractors(comparison, records)).empty:
        details.append(_table('Extractors as they were built', built))
    cost_table = None
    if costs and costs.rows:
        header, rows = cost_rows(costs)
        cost_table = _table('Cost of the extractor in a training step', pd.DataFrame(rows, columns=header))
    losses, loss_notes = _losses(comparison)
    runs = _runs(comparison, titles, records)
    page = environment.get_template('report.html').render(
        title=f'Extractors on {comparison.ann_file.name}',
        config=comparison.config_names[0] if len(comparison.config_names) == 1 else '',
        summary=caption(comparison, digits),
        details_summary=details_caption(comparison, digits),
        messages=[
            *(('problem', text) for text in comparison.problems + (costs.problems if costs else [])),
            *(('note', text) for text in [*comparison.notes, *loss_notes]),
        ],
        headline=[
            _table(title, table, find_best(table))
            for title, table in make_headline(comparison, digits).items()
        ],
        metric=comparison.metric,
        baseline=comparison.baseline,
        margin=format_points(comparison.margin, digits) if comparison.margin else '',
        primary=metric_title(comparison.primary_iou_type, comparison.metric),
        difference_plots=list(plot_differences(comparison)),
        machine=costs.machine if costs else '',
        cost_table=cost_table,
        cost_plots=list(plot_ap_over_cost(comparison, costs)) if costs else [],
        loss_plots=list(plot_learning_curves(comparison, losses)),
        details=details,
        text_columns=TEXT_COLUMNS,
        curves=list(plot_ap_over_iou(comparison)),
        pairs=pairs,
        pictures=pictures,
        min_score=MIN_SCORE,
        runs=runs,
        settings=_settings(runs),
        machines=_machines(runs),
        made={
            'command': shlex.join(command),
            'time': datetime.now().astimezone().isoformat(timespec='seconds'),
            'hardware': f'{os.cpu_count()} x {cpu_name()}',
            'versions': f'Python {platform.python_version()}, roi_plugins {__version__}, '
            f'pycocotools {metadata.version("pycocotools")}',
        },
        plotly_js=get_plotlyjs(),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as aside:
        # The name of a file need not be UTF-8.
        aside.write_text(page, encoding='utf-8', errors='replace')


def _details(comparison: Comparison, digits: int) -> Iterator[dict[str, Any]]:
    for title, table in make_tables(comparison, digits).items():
        yield _table(title, table)
    for iou_type in EVALUATIONS:
        groups = [group for group in comparison.groups if group.iou_type == iou_type]
        if groups:
            rows = [
                {'Config': group.config_name, 'Extractor': group.extractor}
                | {
                    f'{iou:g}': '-' if np.isnan(value) else format_points(value, digits)
                    for iou, value in group.estimates.over_iou['value'].items()
                }
                for group in groups
            ]
            yield _table(f'{TITLES[iou_type]} over IoU', pd.DataFrame(rows))


def _table(title: str, table: pd.DataFrame, best: pd.DataFrame | None = None) -> dict[str, Any]:
    """Returns a table for the page. The cells that are ``best`` are in bold.

    The column of the config is left out if there is only one, whose name is at the top of the page.
    """
    if best is None:
        best = pd.DataFrame(False, table.index, table.columns)
    if 'Config' in table and table['Config'].nunique() == 1:
        table, best = table.drop(columns='Config'), best.drop(columns='Config')
    return {
        'title': title,
        'columns': list(table.columns),
        'rows': [
            list(zip(*both, strict=True))
            for both in zip(table.to_numpy().tolist(), best.to_numpy().tolist(), strict=True)
        ],
    }


def _losses(comparison: Comparison) -> tuple[list[tuple[Run, pd.Series]], list[str]]:
    """Reads the losses of the runs that have a log, and notes about damaged logs."""
    losses, notes = [], []
    for run, _ in comparison.metrics:
        if run.framework:  # bare prediction files have no folder of their own
            loss, own_notes = read_learning_curve(Path(run.name))
            notes += own_notes
            if not loss.empty:
                losses.append((run, loss))
    return losses, notes


def _pairs(
    comparison: Comparison, titles: Mapping[str, str], records: Iterable[Record | None], digits: int
) -> tuple[list[dict], list[dict]]:
    """Prepares the images that show each extractor beside the baseline, or else the first extractor.

    Returns:
        The pairs of runs with their images and outlines, and the pictures that the images use.
    """
    coco = load_annotations(comparison.ann_file)
    runs = {run.name: run for run, _ in comparison.metrics}
    recorded = [record.image_dir for record in records if record and record.image_dir]
    image_dirs = list(dict.fromkeys([*recorded, *folders_beside(comparison.ann_file)]))

    @functools.lru_cache(maxsize=2)  # the reference and the run beside it
    def detections(name: str, iou_type: str) -> Detections:
        return Detections(coco, runs[name], iou_type)

    pictures: dict[int, dict[str, Any]] = {}
    pairs = []
    for iou_type, first, second in _paired_runs(comparison):
        both = detections(first.name, iou_type), detections(second.name, iou_type)
        found = most_different(coco, *both, IMAGES_PER_PAIR)
        for difference in found:
            _add_picture(pictures, difference.image, image_dirs)
        if found:
            title = f'{titles[second.name]} and {titles[first.name]}, {_KINDS[iou_type]}'
            images = [
                {
                    **_picture_frame(difference.image),
                    'has_picture': difference.image['id'] in pictures,
                    'objects': difference.objects,
                    'panels': [
                        {
                            'title': titles[panel.run.name],
                            'ap': format_points(panel.ap, digits),
                            'shapes': panel.shapes,
                            'right': sum(shape.kind == 'right' for shape in panel.shapes),
                            'wrong': sum(shape.kind == 'wrong' for shape in panel.shapes),
                        }
                        for panel in difference.panels
                    ],
                }
                for difference in found
            ]
            pairs.append({'title': title, 'images': images})
    return pairs, list(pictures.values())


def _paired_runs(comparison: Comparison) -> Iterator[tuple[str, Run, Run]]:
    """Yields an IoU type, a run of the reference and a run of another extractor.

    Of each config and extractor, these are the first two runs with the same seed.
    """
    runs = [run for run, _ in comparison.metrics]
    for iou_type in IOU_TYPES:
        for reference, others in _by_config(comparison, runs):
            for extractor in dict.fromkeys(run.extractor for run in others):
                pair = next(
                    (
                        (iou_type, a, b)
                        for b in others
                        for a in reference
                        if b.extractor == extractor
                        and a.seed == b.seed
                        and iou_type in a.predictions
                        and iou_type in b.predictions
                    ),
                    None,
                )
                if pair:
                    yield pair


def _by_config(comparison: Comparison, runs: Sequence[Run]) -> Iterator[tuple[list[Run], list[Run]]]:
    """Yields, for each config, the runs of the reference and the other runs."""
    for config_name in dict.fromkeys(run.config_name for run in runs):
        of_config = [run for run in runs if run.config_name == config_name]
        extractors = [run.extractor for run in of_config]
        known = comparison.baseline in extractors
        reference = comparison.baseline if known else extractors[0]
        yield (
            [run for run in of_config if run.extractor == reference],
            [run for run in of_config if run.extractor != reference],
        )


def _picture_frame(image: Mapping[str, Any]) -> dict[str, Any]:
    return {
        'id': image['id'],
        'name': image.get('file_name', f'image {image["id"]}'),
        'width': image['width'],
        'height': image['height'],
    }


def _add_picture(pictures: dict[int, dict], image: Mapping[str, Any], image_dirs: Sequence[Path]) -> None:
    path = find_picture(image, image_dirs)
    if image['id'] in pictures or path is None:
        return
    try:
        pictures[image['id']] = {**_picture_frame(image), 'uri': data_uri(path)}
    except OSError:  # the file is damaged; the outlines are drawn without it
        return


def _runs(
    comparison: Comparison, titles: Mapping[str, str], records: Mapping[str, Record | None]
) -> list[dict[str, Any]]:
    runs = [run for run, _ in comparison.metrics]
    shown = []
    for reference, others in _by_config(comparison, runs):
        for run in (*reference, *others):
            record = records[run.name]
            shown.append(
                {
                    'run': run,
                    'title': titles[run.name],
                    'hardware': record.hardware if record else '',
                    'time': record.time if record else '',
                    'commands': [shlex.join(command) for command in record.commands] if record else [],
                    'versions': record.versions if record else {},
                    **_differences(run, reference_run(run, runs, comparison.baseline), titles, records),
                }
            )
    return shown


def _settings(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lists the settings that differ between runs, each once with its runs; confounded ones come first.

    Seeds and folders always differ, so they are only listed with each run.
    """
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        for difference in run['differences'] or ():
            if difference.kind not in (SEED, PLACE):
                found.setdefault((difference.kind, str(difference)), []).append(run)
    entries = [
        {'kind': kind, 'difference': text, 'runs': _titles_of(some, runs)}
        for (kind, text), some in found.items()
    ]
    return sorted(entries, key=lambda entry: entry['kind'] != CONFOUNDED)


def _machines(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lists the machines with their versions and the runs that were evaluated there."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        versions = ', '.join(f'{name} {version}' for name, version in run['versions'].items())
        if run['hardware'] or versions:
            found.setdefault((run['hardware'], versions), []).append(run)
    return [
        {'hardware': hardware, 'versions': versions, 'runs': _titles_of(some, runs)}
        for (hardware, versions), some in found.items()
    ]


def _differences(
    run: Run, reference: Run, titles: Mapping[str, str], records: Mapping[str, Record | None]
) -> dict[str, Any]:
    """Lists the settings in which a run differs from its reference, with a title; None if not recorded."""
    if run is reference:
        return {'differences': [], 'differences_title': 'The other runs are compared with its settings.'}
    base, own = (
        record.settings if record else None for record in (records[reference.name], records[run.name])
    )
    if base is None or own is None:
        return {'differences': None, 'differences_title': ''}
    found = differences(base, own)
    title = f'Settings: what differs from {titles[reference.name]}'
    return {'differences': found, 'differences_title': title if found else f'{title}: nothing'}


def _extractors(comparison: Comparison, records: Mapping[str, Record | None]) -> pd.DataFrame:
    """Makes the table of the types and options of the extractors, as they were built in the models."""
    rows = []
    for run, _ in comparison.metrics:
        record = records[run.name]
        for where, options in (record.extractors if record else {}).items():
            rows.append(
                {
                    'Config': run.config_name,
                    'Extractor': run.extractor,
                    'In the model': where,
                    **{name: str(options.get(name, '-')) for name in _SHOWN_OPTIONS},
                    'others': ', '.join(
                        f'{name}={value}'
                        for name, value in options.items()
                        if name not in _SHOWN_OPTIONS and value is not None
                    ),
                }
            )
    return pd.DataFrame(rows).drop_duplicates()


def _title(run: Run, comparison: Comparison) -> str:
    """Names a run. The config is left out if there is only one, as in the tables."""
    config_name = run.config_name if len(comparison.config_names) > 1 else ''
    if run.seed is not None:
        which = f'seed {run.seed}'
    else:  # a label that the user gave may be that of several runs
        which = '' if Path(run.name).name == run.extractor else run.name
    return ' · '.join(filter(None, [config_name, run.extractor, which]))


def _titles_of(some: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> str:
    """Names some of the runs in few words: an extractor stands for all of its runs."""
    if len(some) == len(runs):
        return 'all runs'
    names = []
    for key in dict.fromkeys(_key(entry) for entry in some):
        own = [entry for entry in some if _key(entry) == key]
        if len(own) > 1 and len(own) == sum(_key(entry) == key for entry in runs):
            names.append(own[0]['title'].removesuffix(f' · seed {own[0]["run"].seed}'))
        else:
            names += [entry['title'] for entry in own]
    return '; '.join(names)


def _key(entry: Mapping[str, Any]) -> tuple[str, str]:
    return entry['run'].config_name, entry['run'].extractor
