"""The plots of the page: figures of plotly as plain data; the page draws them in the colours of its theme."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from roi_plugins.ablation.compare import Comparison, Group
from roi_plugins.ablation.extractor_cost import Costs
from roi_plugins.ablation.report.tables import metric_title
from roi_plugins.ablation.results import Run
from roi_plugins.evaluation.coco import IOU_THRESHOLDS, format_points

# Okabe and Ito's colours, with grey instead of black, so that all can be seen on a light and on a dark page.
_COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00', '#8A8A8A')
_SYMBOLS = ('circle', 'square', 'triangle-up', 'diamond', 'triangle-down', 'cross', 'x')

_ROW = 44  # the height of an extractor's row in pixels
_LONGEST_NAME = 22  # characters; a longer name would leave no room for the plot on a phone
_SMOOTHED = 40  # the mean of learning curves is smoothed over this part of a training


def plot_differences(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Plots the differences to the baseline: a panel for each config and IoU type, a row for each extractor.

    Args:
        comparison: what :func:`~roi_plugins.ablation.compare.compare` found.

    Yields:
        A plot: its ``title``, what it shows as ``label``, its ``height`` in pixels and the ``figure``.
    """
    metric = comparison.metric
    panels: dict[tuple[str, str], list[tuple[Group, pd.Series]]] = {}
    for group in comparison.groups:
        if group.difference_estimates is not None:
            difference = 100 * group.difference_estimates.metrics.loc[metric]
            if not np.isnan(difference['value']):
                panels.setdefault((group.config_name, group.iou_type), []).append((group, difference))
    # One scale, so that widths can be compared between panels.
    ends = [d[column] for rows in panels.values() for _, d in rows for column in ('value', 'low', 'high')]
    margin = 100 * comparison.margin
    ends += [-max(margin, 0.1), max(margin, 0.1)]
    room = 0.05 * (np.nanmax(ends) - np.nanmin(ends))
    for (config_name, iou_type), rows in panels.items():
        data = [_difference_trace(group, difference, comparison) for group, difference in rows]
        names = [group.extractor for group, _ in rows]
        networks = any(np.isnan(difference['seed_se']) for _, difference in rows)
        band = {
            'type': 'rect', 'xref': 'x', 'yref': 'paper', 'x0': -margin, 'x1': margin, 'y0': 0, 'y1': 1,
            'fillcolor': 'rgba(128, 128, 128, .2)', 'line': {'width': 0}, 'layer': 'below',
        }  # fmt: skip
        title = _panel_title(comparison, config_name, iou_type, metric)
        yield {
            'title': f'{title}{" (one seed: these networks only)" if networks else ""}',
            'label': f'difference to {comparison.baseline}',
            'height': 75 + _ROW * len(rows),
            'figure': {
                'data': data,
                'layout': {
                    **_layout(),
                    'margin': {'t': 10, 'r': 10, 'b': 50, 'l': 10},
                    'hovermode': 'closest',
                    'showlegend': False,
                    'shapes': [band] if margin and iou_type == comparison.primary_iou_type else [],
                    'xaxis': {
                        'title': {'text': f'{metric} difference, points'},
                        'range': [np.nanmin(ends) - room, np.nanmax(ends) + room],
                        'zeroline': True,
                        'zerolinewidth': 2,
                    },
                    'yaxis': {
                        'type': 'category',
                        'tickvals': names,
                        'ticktext': [_row_title(group) for group, _ in rows],
                        'range': [len(rows) - 0.5, -0.5],  # the first extractor is on top
                        'automargin': True,
                        'showgrid': False,
                    },
                },
            },
        }


def _difference_trace(group: Group, difference: pd.Series, comparison: Comparison) -> dict[str, Any]:
    style = _style(group.extractor, comparison)
    value, low, high = (
        format_points(difference[column] / 100, 2, sign=True) if not np.isnan(difference[column]) else '-'
        for column in ('value', 'low', 'high')
    )
    verdict = f', {group.verdict.word}' if group.verdict else ''
    return {
        'x': [difference['value']], 'y': [group.extractor], 'mode': 'markers',
        'marker': {**style, 'size': 11},
        'error_x': _interval(difference, style['color']),
        'hovertemplate': f'{_escape(group.extractor)}: {value} [{low}, {high}]{verdict}<extra></extra>',
    }  # fmt: skip


def plot_ap_over_cost(comparison: Comparison, costs: Costs) -> Iterator[dict[str, Any]]:
    """Plots the primary metric over the time of a training step, a panel for each config.

    Args:
        comparison: what :func:`~roi_plugins.ablation.compare.compare` found.
        costs: the costs of its extractors.

    Yields:
        A plot, as :func:`plot_differences` does.
    """
    metric = comparison.metric
    cost_of = {(cost.config_name, cost.extractor): cost for cost in costs.rows}
    panels: dict[str, list[dict[str, Any]]] = {}
    for group in comparison.groups:
        cost = cost_of.get((group.config_name, group.extractor))
        point = 100 * group.estimates.metrics.loc[metric]
        if cost is None or group.iou_type != comparison.primary_iou_type or np.isnan(point['value']):
            continue
        style = _style(group.extractor, comparison)
        panels.setdefault(group.config_name, []).append(
            {
                'x': [1e3 * cost.step_seconds], 'y': [point['value']], 'name': _escape(group.extractor),
                'mode': 'markers', 'marker': {**style, 'size': 11},
                'error_y': _interval(point, style['color']),
                'hovertemplate': f'{_escape(group.extractor)}: %{{y:.1f}}, %{{x:.0f}} ms<extra></extra>',
            }
        )  # fmt: skip
    for config_name, data in panels.items():
        yield {
            'title': _panel_title(comparison, config_name, comparison.primary_iou_type, metric),
            'label': 'AP over the time of a training step',
            'height': 400,
            'figure': {
                'data': data,
                'layout': {
                    **_layout('time of a training step, ms', f'{metric} x 100'),
                    'hovermode': 'closest',
                    'showlegend': True,
                },
            },
        }


def plot_learning_curves(
    comparison: Comparison, losses: Sequence[tuple[Run, pd.Series]]
) -> Iterator[dict[str, Any]]:
    """Plots the losses of all trainings, a panel for each config.

    A training is a thin line, and the mean over the seeds of an extractor a bold one.

    Args:
        comparison: what :func:`~roi_plugins.ablation.compare.compare` found.
        losses: the runs with their losses by iteration, not empty.

    Yields:
        A plot, as :func:`plot_differences` does.
    """
    panels: dict[str, dict[str, list[tuple[Run, pd.Series]]]] = {}
    for run, loss in losses:
        panels.setdefault(run.config_name, {}).setdefault(run.extractor, []).append((run, loss))
    for config_name, extractors in panels.items():
        data: list[dict[str, Any]] = []
        for extractor, trials in extractors.items():
            name, color = _escape(extractor), _style(extractor, comparison)['color']
            data += [
                {
                    'x': loss.index.tolist(), 'y': _nullable(loss), 'mode': 'lines', 'opacity': 0.5,
                    'line': {'color': color, 'width': 1}, 'legendgroup': name, 'showlegend': False,
                    'hoverinfo': 'skip',
                }
                for _, loss in trials
            ]  # fmt: skip
            mean = _smoothed_mean([loss for _, loss in trials])
            data.append(
                {
                    'x': mean.index.tolist(), 'y': _nullable(mean), 'name': name, 'legendgroup': name,
                    'mode': 'lines', 'line': {'color': color, 'width': 3}, 'hovertemplate': '%{y:.3f}',
                }
            )  # fmt: skip
        # The first losses are often so large that nothing else can be told apart.
        shown = np.concatenate([loss[loss.index > loss.index[-1] / 20] for _, loss in losses])
        shown = shown[np.isfinite(shown)]
        layout = {**_layout('iteration', 'total loss'), 'showlegend': True}
        if len(shown):
            layout['yaxis'] |= {'range': [0, 1.1 * float(shown.max())]}
        yield {
            'title': config_name if len(comparison.config_names) > 1 else 'Total loss',
            'label': 'total loss over the iterations',
            'height': 400,
            'figure': {'data': data, 'layout': layout},
        }


def _smoothed_mean(losses: Sequence[pd.Series]) -> pd.Series:
    """Returns the mean of curves where all of them are known, smoothed over a small part of the training."""
    # A training that was resumed may have been logged at other iterations.
    table = pd.concat(losses, axis=1).sort_index().interpolate('index', limit_area='inside').dropna()
    mean = table.mean(axis=1)
    return mean.rolling(max(1, len(mean) // _SMOOTHED), center=True, min_periods=1).mean()


def plot_ap_over_iou(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Plots AP over the IoU threshold, a panel for each config and IoU type.

    Args:
        comparison: what :func:`~roi_plugins.ablation.compare.compare` found.

    Yields:
        A plot, as :func:`plot_differences` does.
    """
    panels: dict[tuple[str, str], list[Group]] = {}
    for group in comparison.groups:
        panels.setdefault((group.config_name, group.iou_type), []).append(group)
    for (config_name, iou_type), groups in panels.items():
        layout = _layout('IoU threshold', 'AP x 100')
        layout['xaxis'] |= {'tickvals': list(IOU_THRESHOLDS)}
        layout['yaxis'] |= {'rangemode': 'tozero'}
        yield {
            'title': _panel_title(comparison, config_name, iou_type, 'AP'),
            'label': 'AP against the IoU threshold',
            'height': 416,
            'figure': {'data': [t for group in groups for t in _traces(group, comparison)], 'layout': layout},
        }


def _traces(group: Group, comparison: Comparison) -> Iterator[dict[str, Any]]:
    over_iou = 100 * group.estimates.over_iou
    if over_iou['value'].isna().all():  # no ground truth
        return
    style = _style(group.extractor, comparison)
    name = _escape(group.extractor)
    x = list(IOU_THRESHOLDS)
    if over_iou['low'].notna().all():
        yield {
            'x': x + x[::-1], 'y': [*over_iou['low'], *over_iou['high'][::-1]], 'fill': 'toself',
            'fillcolor': style['color'], 'opacity': 0.15, 'line': {'width': 0}, 'mode': 'lines',
            'hoverinfo': 'skip', 'showlegend': False, 'legendgroup': name,
        }  # fmt: skip
    yield {
        'x': x, 'y': over_iou['value'].tolist(), 'name': name, 'legendgroup': name, 'mode': 'lines+markers',
        'line': {'color': style['color']}, 'marker': {'symbol': style['symbol'], 'size': 8},
        'hovertemplate': '%{y:.1f}',
    }  # fmt: skip


def _layout(x: str = '', y: str = '') -> dict[str, Any]:
    return {
        'paper_bgcolor': 'rgba(0,0,0,0)',
        'plot_bgcolor': 'rgba(0,0,0,0)',
        'margin': {'t': 10, 'r': 10, 'b': 50, 'l': 60},
        'hovermode': 'x unified',
        'hoverlabel': {'bgcolor': '#24292f', 'font': {'color': '#ffffff'}},
        'legend': {'orientation': 'h', 'y': -0.25},
        'xaxis': {'title': {'text': x}},
        'yaxis': {'title': {'text': y}},
    }


def _style(extractor: str, comparison: Comparison) -> dict[str, str]:
    """Returns the colour and the symbol of an extractor, the same in all plots."""
    index = list(dict.fromkeys(group.extractor for group in comparison.groups)).index(extractor)
    return {'color': _COLORS[index % len(_COLORS)], 'symbol': _SYMBOLS[index % len(_SYMBOLS)]}


def _interval(point: Mapping[str, float], color: str) -> dict[str, Any]:
    """Returns the error bars of one point."""
    if np.isnan(point['low']):
        return {'visible': False}
    return {
        'type': 'data', 'symmetric': False, 'color': color, 'thickness': 2.5, 'width': 5,
        'array': [point['high'] - point['value']], 'arrayminus': [point['value'] - point['low']],
    }  # fmt: skip


def _panel_title(comparison: Comparison, config_name: str, iou_type: str, metric: str) -> str:
    shown = metric_title(iou_type, metric)
    return f'{config_name} · {shown}' if len(comparison.config_names) > 1 else shown


def _nullable(values: pd.Series) -> list[float | None]:
    """Replaces what JSON cannot have. A loss of a training that diverged is a gap."""
    return [float(f'{value:.6g}') if np.isfinite(value) else None for value in values]


def _row_title(group: Group) -> str:
    name = group.extractor
    if len(name) > _LONGEST_NAME:
        name = f'{name[: _LONGEST_NAME - 1]}…'
    return _escape(name) + (f'<br>{group.verdict.word}' if group.verdict else '')


def _escape(name: str | None) -> str:
    """Escapes a name, because plotly interprets some markup."""
    return html.escape(name or '', quote=False)
