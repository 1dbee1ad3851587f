"""Writes a comparison as one self-contained page of HTML: it needs no network and no other file."""

from __future__ import annotations

import functools
import html
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
from roi_plugins.ablation.compare import Comparison, Group
from roi_plugins.ablation.confounding import reference_run
from roi_plugins.ablation.extractor_cost import Costs
from roi_plugins.ablation.extractor_cost import to_rows as cost_rows
from roi_plugins.ablation.records import Record, read_record
from roi_plugins.ablation.report.images import (
    MIN_SCORE,
    Detections,
    data_uri,
    find_picture,
    folders_beside,
    most_different,
)
from roi_plugins.ablation.report.tables import (
    TITLES,
    caption,
    details_caption,
    make_headline,
    make_tables,
)
from roi_plugins.ablation.results import Run
from roi_plugins.evaluation.coco import IOU_THRESHOLDS, format_points
from roi_plugins.evaluation.coco_files import load_annotations
from roi_plugins.evaluation.matching import EVALUATIONS, IOU_TYPES
from roi_plugins.files import atomic_write
from roi_plugins.hardware import cpu_name
from roi_plugins.settings import differences

IMAGES_PER_PAIR = 4

_SHOWN_OPTIONS = ('type', 'output_size', 'region', 'sampling_ratio', 'reduction', 'aligned')
"""The options of an extractor that have a column of their own in the table of extractors."""

TEXT_COLUMNS = ('Config', 'Extractor', 'Class', 'In the model', *_SHOWN_OPTIONS, 'others')
_KINDS = {'bbox': 'boxes', 'segm': 'masks'}

# Okabe and Ito's colours, with grey instead of black, so that all can be seen on a light and on a dark page.
_COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00', '#8A8A8A')
_SYMBOLS = ('circle', 'square', 'triangle-up', 'diamond', 'triangle-down', 'cross', 'x')


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
    pairs, pictures = _pairs(comparison, records.values(), digits)
    tables = list(_tables(comparison, digits))
    if not (built := _extractors(comparison, records)).empty:
        tables.append(_table('Extractors as they were built', '', built))
    if costs and costs.rows:
        header, rows = cost_rows(costs)
        table = pd.DataFrame(rows, columns=header)
        tables.append(_table('Cost of the extractor in a training step', costs.machine, table))
    page = environment.get_template('report.html').render(
        title=f'Extractors on {comparison.ann_file.name}',
        summary=' '.join([caption(comparison, digits), details_caption(comparison, digits)]),
        messages=[
            *(('problem', text) for text in comparison.problems + (costs.problems if costs else [])),
            *(('note', text) for text in comparison.notes),
        ],
        tables=tables,
        text_columns=TEXT_COLUMNS,
        curves=list(_curves(comparison)),
        pairs=pairs,
        pictures=pictures,
        min_score=MIN_SCORE,
        runs=_runs(comparison, records),
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


def _tables(comparison: Comparison, digits: int) -> Iterator[dict[str, Any]]:
    for title, table in (make_headline(comparison, digits) | make_tables(comparison, digits)).items():
        yield _table(title, '', table)
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
            table = pd.DataFrame(rows)
            if not any(table['Config']):
                table = table.drop(columns='Config')
            yield _table(f'{TITLES[iou_type]} over IoU', '', table)


def _table(title: str, note: str, table: pd.DataFrame) -> dict[str, Any]:
    return {
        'title': title,
        'note': note,
        'columns': list(table.columns),
        'rows': table.to_numpy().tolist(),
    }


def _curves(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Makes a plotly figure for each config and IoU type."""
    extractors = list(dict.fromkeys(group.extractor for group in comparison.groups))
    panels: dict[tuple[str, str], list[Group]] = {}
    for group in comparison.groups:
        panels.setdefault((group.config_name, group.iou_type), []).append(group)
    for (config_name, iou_type), groups in panels.items():
        data: list[dict[str, Any]] = []
        for group in groups:
            data += _traces(group, extractors.index(group.extractor))
        layout = {
            'paper_bgcolor': 'rgba(0,0,0,0)',
            'plot_bgcolor': 'rgba(0,0,0,0)',
            'margin': {'t': 10, 'r': 10, 'b': 50, 'l': 60},
            'hovermode': 'x unified',
            'hoverlabel': {'bgcolor': '#24292f', 'font': {'color': '#ffffff'}},
            'legend': {'orientation': 'h', 'y': -0.2},
            'xaxis': {'title': {'text': 'IoU threshold'}, 'tickvals': list(IOU_THRESHOLDS)},
            'yaxis': {'title': {'text': 'AP x 100'}, 'rangemode': 'tozero'},
        }
        title = ' · '.join(filter(None, [config_name, TITLES[iou_type]]))
        yield {'title': title, 'figure': {'data': data, 'layout': layout}}


def _traces(group: Group, index: int) -> Iterator[dict[str, Any]]:
    over_iou = 100 * group.estimates.over_iou
    if over_iou['value'].isna().all():  # no ground truth
        return
    color = _COLORS[index % len(_COLORS)]
    name = html.escape(group.extractor, quote=False)  # plotly interprets some markup
    x = list(IOU_THRESHOLDS)
    if over_iou['low'].notna().all():
        yield {
            'x': x + x[::-1], 'y': [*over_iou['low'], *over_iou['high'][::-1]], 'fill': 'toself',
            'fillcolor': color, 'opacity': 0.15, 'line': {'width': 0}, 'mode': 'lines',
            'hoverinfo': 'skip', 'showlegend': False, 'legendgroup': name,
        }  # fmt: skip
    yield {
        'x': x, 'y': over_iou['value'].tolist(), 'name': name, 'legendgroup': name, 'mode': 'lines+markers',
        'line': {'color': color}, 'marker': {'symbol': _SYMBOLS[index % len(_SYMBOLS)], 'size': 8},
        'hovertemplate': '%{y:.1f}',
    }  # fmt: skip


def _pairs(
    comparison: Comparison, records: Iterable[Record | None], digits: int
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
            title = f'{_title(second)} and {_title(first)}, {_KINDS[iou_type]}'
            images = [
                {
                    **_picture_frame(difference.image),
                    'has_picture': difference.image['id'] in pictures,
                    'objects': difference.objects,
                    'panels': [
                        {
                            'title': _title(panel.run),
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


def _runs(comparison: Comparison, records: Mapping[str, Record | None]) -> list[dict[str, Any]]:
    runs = [run for run, _ in comparison.metrics]
    shown = []
    for reference, others in _by_config(comparison, runs):
        for run in (*reference, *others):
            record = records[run.name]
            shown.append(
                {
                    'title': _title(run),
                    'path': run.name,
                    'hardware': record.hardware if record else '',
                    'time': record.time if record else '',
                    'commands': [shlex.join(command) for command in record.commands] if record else [],
                    'versions': record.versions if record else {},
                    **_differences(run, reference_run(run, runs, comparison.baseline), records),
                }
            )
    return shown


def _differences(run: Run, reference: Run, records: Mapping[str, Record | None]) -> dict[str, Any]:
    """Lists the settings in which a run differs from its reference, with a title; None if not recorded."""
    if run is reference:
        return {'differences': [], 'differences_title': 'The other runs are compared with its settings.'}
    base, own = (
        record.settings if record else None for record in (records[reference.name], records[run.name])
    )
    if base is None or own is None:
        return {'differences': None, 'differences_title': ''}
    found = differences(base, own)
    title = f'Settings: what differs from {_title(reference)}'
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
    table = pd.DataFrame(rows).drop_duplicates()
    return table if table.empty or any(table['Config']) else table.drop(columns='Config')


def _title(run: Run) -> str:
    if run.seed is not None:
        which = f'seed {run.seed}'
    else:  # a label that the user gave may be that of several runs
        which = '' if Path(run.name).name == run.extractor else run.name
    return ' · '.join(filter(None, [run.config_name, run.extractor, which]))
