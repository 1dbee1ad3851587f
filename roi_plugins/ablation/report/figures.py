"""Draws the figures of a comparison, without pyplot, which would need a display and global state."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from roi_plugins.ablation.compare import Comparison
from roi_plugins.evaluation.coco import IOU_THRESHOLDS
from roi_plugins.evaluation.matching import EVALUATIONS

# Okabe and Ito's colours, which colour-blind readers can tell apart, without the yellow, which is too pale
# for a line. Markers tell the curves apart in grey, and line styles do so when the colours repeat.
_COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00', '#000000')
_MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
_LINES = ('-', '--', ':', '-.')
_TITLES = {'bbox': 'Boxes', 'segm': 'Masks', 'keypoints': 'Keypoints', 'boundary': 'Boundaries of masks'}


def plot_ap_over_iou(comparison: Comparison) -> Figure:
    """Plots AP against the IoU threshold: for each extractor a curve, the mean over its seeds.

    If there are several seeds, the band around a curve is one sample standard deviation wide on either side.
    There is a column of panels for boxes, for masks and for their boundaries, and a row for each config.

    Args:
        comparison: what :func:`~roi_plugins.ablation.compare.compare` found.
    """
    groups = comparison.groups
    configs = list(dict.fromkeys(group.config_name for group in groups))
    extractors = list(dict.fromkeys(group.extractor for group in groups))
    iou_types = [t for t in EVALUATIONS if any(group.iou_type == t for group in groups)]
    legend_columns = min(len(extractors), 2 * len(iou_types))
    legend_rows = -(-len(extractors) // legend_columns)
    figure = Figure(
        figsize=(4.5 * len(iou_types), 3.4 * len(configs) + 0.3 * legend_rows),
        dpi=150,
        layout='constrained',
    )
    panels = figure.subplots(len(configs), len(iou_types), sharex=True, sharey='row', squeeze=False)
    handles = {}
    for panel in panels.flat:
        _label_axes(panel)
    for group in groups:
        panel = panels[configs.index(group.config_name), iou_types.index(group.iou_type)]
        panel.set_title(' · '.join(filter(None, [_plain(group.config_name), _TITLES[group.iou_type]])))
        index = extractors.index(group.extractor)
        handles[group.extractor] = _plot_curve(panel, group.curves, index)
    for panel in panels[:, 0]:
        panel.set_ylabel('AP (x 100)')
        panel.set_ylim(bottom=0)
    for panel in panels[-1]:
        panel.set_xlabel('IoU threshold')
    # Below the panels, where it covers no curve.
    figure.legend(
        [handles[extractor] for extractor in extractors],
        [_plain(extractor) for extractor in extractors],
        loc='outside lower center',
        ncols=legend_columns,
        frameon=False,
    )
    return figure


def save_figure(figure: Figure, path: str | Path, suffix: str) -> None:
    """Saves a figure. The same figure always gives the same bytes.

    Args:
        figure: the figure.
        path: the file to write.
        suffix: the format, ``'png'`` or ``'svg'``.
    """
    metadata = {'Date': None} if suffix == 'svg' else None
    with matplotlib.rc_context({'svg.hashsalt': 'roi_plugins'}):
        figure.savefig(path, format=suffix, metadata=metadata)


def _plain(name: str) -> str:
    """Escapes a name so that matplotlib does not read it as mathematics."""
    return name.replace('$', r'\$')


def _label_axes(panel: Axes) -> None:
    panel.set_xticks(IOU_THRESHOLDS[::2])
    panel.grid(color='0.9', linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[['top', 'right']].set_visible(False)


def _plot_curve(panel: Axes, curves: np.ndarray, index: int) -> Line2D:
    curves = np.where(curves < 0, np.nan, 100 * curves)
    mean = curves.mean(axis=0)
    color = _COLORS[index % len(_COLORS)]
    (line,) = panel.plot(
        IOU_THRESHOLDS,
        mean,
        color=color,
        marker=_MARKERS[index % len(_MARKERS)],
        linestyle=_LINES[index // len(_COLORS) % len(_LINES)],
        markersize=4,
        linewidth=1.6,
    )
    if len(curves) > 1:
        std = curves.std(axis=0, ddof=1)
        panel.fill_between(IOU_THRESHOLDS, mean - std, mean + std, color=color, alpha=0.18, linewidth=0)
    return line
