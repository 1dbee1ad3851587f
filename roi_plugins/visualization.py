"""Shows where an extractor reads a box: the region it makes of the box, its bins and its samples.

All positions are those of ``roi_plugins.ops.geometry``, which the kernels are tested against.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image
from tabulate import tabulate

from roi_plugins.extractors import AllLevels, Deformable, Precise, RandomSampling, RoIExtractor
from roi_plugins.extractors.presets import load_presets
from roi_plugins.names import plain_name
from roi_plugins.ops.geometry import resolve_axis, resolve_region

METHODS: dict[str, Callable[..., RoIExtractor]] = {
    name: preset.build for name, preset in load_presets().items()
}
"""Builds an extractor for every row, by name; called as ``(output_size, featmap_strides, level_rule=...)``.

:meta hide-value:
"""

REMARKS: dict[type[RoIExtractor], str] = {
    RandomSampling: 'as in evaluation; in training the samples lie anywhere in their strata',
    Deformable: 'offsets of zero, as at the beginning of a training',
    AllLevels: 'every map is read; drawn is the one of the level rule',
}
"""What a reader has to know of a type besides its method."""


def method_name(name: str) -> str:
    """Returns the key of METHODS for any spelling of a name, such as ``AlignMax``.

    Args:
        name: name of a row, a class or a type in a config, with or without hyphens.

    Raises:
        VisualizationError: there is no such method.
    """
    plain = plain_name(name)
    keys = {plain_name(key): key for key in METHODS}
    if plain not in keys:
        raise VisualizationError(f'no extractor is named {name!r}; expected all, or of {", ".join(METHODS)}')
    return keys[plain]


def remark(extractor: RoIExtractor) -> str:
    """Returns what is to be said of an extractor beside others; empty if nothing."""
    remarks = []
    if extractor.region == 'none' and not extractor.aligned:
        remarks.append('no shift by half a cell' + ', as published' * isinstance(extractor, Precise))
    if type(extractor) in REMARKS:
        remarks.append(REMARKS[type(extractor)])
    return ', '.join(remarks)


SIDES = ('left', 'top', 'right', 'bottom')

# The palette of Okabe and Ito, whose colours colour-blind readers can tell apart. Neighbouring bins differ.
_BIN_COLORS = ('#56B4E9', '#F0E442', '#CC79A7')
_BOX_COLOR, _REGION_COLOR = '#D55E00', '#0072B2'


class VisualizationError(ValueError):
    """A box or an extractor that cannot be drawn; the message says why."""


@dataclass(frozen=True)
class AxisReading:
    """Where an extractor reads on one axis of a box, in pixels of the image.

    Attributes:
        region: begin and end of the region that is divided into bins.
        bins: ``(P, 2)`` begin and end of each bin; NaN for a bin that reads nothing.
        samples: positions that each of the P bins reads: bilinear samples, or centres of cells. For an
            integral, the centres of the cells that have a weight.
    """

    region: tuple[float, float]
    bins: np.ndarray
    samples: list[np.ndarray]


@dataclass(frozen=True)
class Reading:
    """Where an extractor reads a box, in pixels of the image.

    Attributes:
        box: ``(x1, y1, x2, y2)``.
        level: index of the map that the level rule chose.
        stride: stride of this map, in pixels.
        of_cells: whether whole cells are read rather than bilinear samples.
        map_size: ``(height, width)`` of the map in cells.
        x: the horizontal axis.
        y: the vertical axis.
    """

    box: tuple[float, float, float, float]
    level: int
    stride: float
    of_cells: bool
    map_size: tuple[int, int]
    x: AxisReading
    y: AxisReading

    @property
    def region(self) -> tuple[float, float, float, float]:
        """The region that the method makes of the box, ``(x1, y1, x2, y2)``."""
        return self.x.region[0], self.y.region[0], self.x.region[1], self.y.region[1]

    @property
    def covered(self) -> tuple[float, float, float, float]:
        """The area that all bins cover together, ``(x1, y1, x2, y2)``; NaN on an axis that reads nothing."""
        ends = [_span(axis.bins) for axis in (self.x, self.y)]
        return ends[0][0], ends[1][0], ends[0][1], ends[1][1]


def read_box(extractor: RoIExtractor, box: Sequence[float], image_size: tuple[int, int]) -> Reading:
    """Returns where an extractor reads a box.

    Args:
        extractor: the extractor; its level rule chooses the map, if there are several.
        box: ``(x1, y1, x2, y2)`` in pixels of the image that the detector is given.
        image_size: ``(height, width)`` of that image, which the maps cover, padded to the coarsest stride.

    Raises:
        VisualizationError: the box is empty, inverted, not finite, or not inside the image.
    """
    x1, y1, x2, y2 = map(float, box)
    height, width = image_size
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        raise VisualizationError(
            f'box: got {x1:g},{y1:g},{x2:g},{y2:g}, expected x1,y1,x2,y2 with '
            f'0 <= x1 < x2 <= {width} and 0 <= y1 < y2 <= {height}, the size of the image'
        )
    strides = extractor.featmap_strides
    level = 0
    if len(strides) > 1:
        level = int(extractor.level_rule(torch.tensor([[0.0, x1, y1, x2, y2]]), len(strides)))
    stride, padding = strides[level], max(strides)
    rows, columns = (round(math.ceil(side / padding) * padding / stride) for side in image_size)
    bins_y, bins_x = extractor.output_size
    return Reading(
        box=(x1, y1, x2, y2),
        level=level,
        stride=stride,
        of_cells=_is_of_cells(extractor),
        map_size=(rows, columns),
        x=_read_axis(extractor, level, x1, x2, bins_x, columns),
        y=_read_axis(extractor, level, y1, y2, bins_y, rows),
    )


def _read_axis(
    extractor: RoIExtractor, level: int, low: float, high: float, pooled: int, extent: int
) -> AxisReading:
    method = extractor.method
    stride, scale = extractor.featmap_strides[level], extractor.spatial_scales[level]
    ends = torch.tensor([low]), torch.tensor([high])
    how = method['region'], method['sampling_ratio'], method['aligned']
    start, size, bin_ = (value.item() for value in resolve_region(*ends, scale, pooled, *how))
    bounds = method['min_samples'], method['max_samples']
    axis = resolve_axis(*ends, scale, pooled, extent, *how, *bounds).row(0)
    if method['reduction'] == 'integral':
        cells = torch.cat([axis.low, axis.high], dim=-1)
        reads = torch.cat([axis.low_weight, axis.high_weight], dim=-1) > 0
        positions = [cells[p][reads[p]].unique() for p in range(pooled)]
    else:
        between = axis.low * axis.low_weight + axis.high * axis.high_weight
        positions = [between[p][axis.valid[p]] for p in range(pooled)]
    # The value of a cell sits at its centre, half a cell from its edge.
    samples = [((position + 0.5) * stride).numpy() for position in positions]
    if _is_of_cells(extractor):
        half = stride / 2
        bins = [(s.min() - half, s.max() + half) if len(s) else (np.nan, np.nan) for s in samples]
    else:
        start += 0.5
        bins = [(stride * (start + p * bin_), stride * (start + (p + 1) * bin_)) for p in range(pooled)]
    return AxisReading((stride * start, stride * (start + size)), np.array(bins), samples)


def _is_of_cells(extractor: RoIExtractor) -> bool:
    return extractor.method['region'] != 'none' and extractor.method['sampling_ratio'] is None


def misalignment(reading: Reading, of_bins: bool = True) -> tuple[float, float, float, float]:
    """Returns how far the reading goes beyond the box, in pixels: left, top, right, bottom.

    Values are below 0 where part of the box is not read.

    Args:
        reading: where an extractor reads the box.
        of_bins: whether to compare the area that the bins cover, or the region before it is divided.
    """
    x1, y1, x2, y2 = reading.covered if of_bins else reading.region
    box = reading.box
    return box[0] - x1, box[1] - y1, x2 - box[2], y2 - box[3]


def to_table(readings: Mapping[str, Reading]) -> str:
    """Returns a table, as text, of the misalignment of each reading, in pixels of the image.

    Args:
        readings: the readings by their titles.
    """
    rows = [
        [
            name,
            f'{reading.stride:g}',
            *(_format(side) for side in misalignment(reading, of_bins=False)),
            *(_format(side) for side in misalignment(reading)),
        ]
        for name, reading in readings.items()
    ]
    header = ['', 'stride', *(f'region\n{side}' for side in SIDES), *(f'bins\n{side}' for side in SIDES)]
    align = ['left'] + ['right'] * (len(header) - 1)
    return tabulate(rows, header, disable_numparse=True, colalign=align)


def draw_readings(
    readings: Mapping[str, Reading], image: Image.Image, remarks: Mapping[str, str] | None = None
) -> Figure:
    """Draws each reading on the image and, cropped around the box, on the cells of its map.

    Args:
        readings: the readings of one box in ``image``, by their titles.
        image: the image that the detector is given. A cell has the mean colour of its pixels.
        remarks: text below the title of a reading; none by default.
    """
    per_row = min(len(readings), 2)
    rows = -(-len(readings) // per_row)
    figure = Figure(figsize=(6.6 * per_row, 3.7 * rows + 0.4), dpi=110, layout='constrained')
    panels = figure.subplots(rows, 2 * per_row, squeeze=False).reshape(-1, 2)
    for (on_image, on_grid), (title, reading) in zip(panels, readings.items(), strict=False):
        on_image.imshow(image, extent=(0, image.width, image.height, 0))
        lines = [f'{title}, stride {reading.stride:g}', *textwrap.wrap((remarks or {}).get(title, ''), 50)]
        on_image.set_title('\n'.join(lines), fontsize=9, loc='left')
        _draw(on_image, reading, 1, max(image.size))
        on_image.set(xlim=(0, image.width), ylim=(image.height, 0))
        on_image.set_xlabel('pixels', fontsize=7)

        rows_, columns = reading.map_size
        on_grid.imshow(_mean_of_cells(image, reading), extent=(0, columns, rows_, 0), alpha=0.5)
        x_window, y_window = _window(reading)
        _draw(on_grid, reading, reading.stride, max(np.diff([x_window, y_window]).flat))
        on_grid.set(xlim=x_window, ylim=y_window[::-1])
        on_grid.set_xticks(np.arange(math.ceil(x_window[0]), x_window[1]), minor=True)
        on_grid.set_yticks(np.arange(math.ceil(y_window[0]), y_window[1]), minor=True)
        on_grid.grid(which='both', color='0.4', linewidth=0.4)
        left, top, right, bottom = map(_format, misalignment(reading))
        on_grid.set_title(
            f'beyond the box, in pixels: left {left}, top {top},\nright {right}, bottom {bottom}',
            fontsize=8,
        )
        on_grid.set_xlabel('cells', fontsize=7)
        for panel in (on_image, on_grid):
            panel.tick_params(which='both', labelsize=7, length=2)
            panel.tick_params(which='minor', length=0)
    for panel in panels[len(readings) :].flat:
        panel.set_axis_off()
    figure.legend(
        handles=[
            Rectangle((0, 0), 1, 1, fill=False, edgecolor=_BOX_COLOR, linewidth=2, label='box'),
            Rectangle(
                (0, 0), 1, 1, fill=False, edgecolor=_REGION_COLOR, linewidth=2, linestyle='--',
                label='region made of it',
            ),
            Rectangle((0, 0), 1, 1, facecolor=_BIN_COLORS[0], alpha=0.6, label='bins (overlaps darker)'),
            figure.axes[0].plot([], [], 'k.', label='what is read: bilinear samples, or centres of cells')[0],
        ],
        loc='outside lower center', ncols=4, frameon=False, fontsize=8,
    )  # fmt: skip
    figure.draw_without_rendering()  # the layout needs two rounds for panels of fixed aspect
    return figure


def _draw(panel: Axes, reading: Reading, unit: float, longest: float) -> None:
    """Draws box, region, bins and samples; ``unit`` of the axes in pixels, ``longest`` is the longer axis."""
    for p, (top, bottom) in enumerate(reading.y.bins / unit):
        for q, (left, right) in enumerate(reading.x.bins / unit):
            color = _BIN_COLORS[(p + q) % len(_BIN_COLORS)]
            size = right - left, bottom - top
            panel.add_patch(Rectangle((left, top), *size, facecolor=color, alpha=0.45, linewidth=0))
            panel.add_patch(Rectangle((left, top), *size, fill=False, edgecolor='0.2', linewidth=0.5))
    x, y = (np.concatenate(axis.samples) / unit for axis in (reading.x, reading.y))
    # A panel is some 200 points wide; a dot takes about half of the room between samples.
    x1, y1, x2, y2 = np.array(reading.region) / unit
    gap = min((x2 - x1) / max(len(x), 1), (y2 - y1) / max(len(y), 1))
    panel.plot(*np.meshgrid(x, y), '.', color='black', markersize=np.clip(150 * gap / longest, 0.3, 5))
    for corners, color, line in (
        (reading.box, _BOX_COLOR, '-'),
        (reading.region, _REGION_COLOR, (0, (4, 3))),
    ):
        x1, y1, x2, y2 = np.array(corners) / unit
        outline = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=2)
        outline.set(linestyle=line, path_effects=[withStroke(linewidth=3.5, foreground='white')])
        panel.add_patch(outline)


def _window(reading: Reading) -> list[tuple[float, float]]:
    """Returns the x and y range of the box and everything that is read, in cells, with a margin of a cell."""
    ends = []
    for low, high, axis, extent in zip(
        reading.box[:2], reading.box[2:], (reading.x, reading.y), reading.map_size[::-1], strict=True
    ):
        spans = np.array([(low, high), axis.region, _span(axis.bins)]) / reading.stride
        ends.append((max(np.nanmin(spans) - 1, -1), min(np.nanmax(spans) + 1, extent + 1)))
    return ends


def _mean_of_cells(image: Image.Image, reading: Reading) -> Image.Image:
    rows, columns = reading.map_size
    width, height = round(columns * reading.stride), round(rows * reading.stride)
    padded = np.pad(
        np.asarray(image), ((0, height - image.height), (0, width - image.width), (0, 0)), mode='edge'
    )
    return Image.fromarray(padded).resize((columns, rows), Image.Resampling.BOX)


def _span(bins: np.ndarray) -> tuple[float, float]:
    if np.isnan(bins).all():
        return np.nan, np.nan
    return np.nanmin(bins), np.nanmax(bins)


def _format(pixels: float) -> str:
    return '-' if math.isnan(pixels) else f'{round(pixels, 1) + 0.0:+.1f}'  # never -0.0
