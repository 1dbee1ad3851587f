"""Draws where each extractor reads for one box: `python docs/figures/where_they_read.py`.

The positions are those of `roi_plugins.ops.reference`, not a drawing's own idea of them.
"""

from pathlib import Path

import matplotlib
import torch
from matplotlib.patches import Rectangle

from roi_plugins.ops.reference import resolve_axis

matplotlib.use('Agg')
import matplotlib.pyplot as plt

STRIDE, CELLS, BINS = 16, 12, 3
BOX = (29.0, 37.0, 165.0, 118.0)  # x1, y1, x2, y2 in pixels
PANELS = {
    'QuantizedPool, region="round"\n(Fast R-CNN\'s RoIPool)': ('round', None),
    'QuantizedPool, region="floor"\n(the textbook\'s)': ('floor', None),
    'QuantizedPool, region="bins"\n(MMCV\'s RoIPool)': ('bins', None),
    'RoIWarp\n(2 x 2 samples of the rounded box)': ('round', 2),
    'AlignMax, AlignAvg\n(2 x 2 samples of the box)': ('none', 2),
    'AdaptiveSampling\n(about a sample a cell)': ('none', 0),
}
COLOURS = ('#0072b2', '#e69f00', '#009e73')


def axis(low, high, region, sampling_ratio):
    low, high = torch.tensor([low]), torch.tensor([high])
    return resolve_axis(
        low, high, 1 / STRIDE, BINS, CELLS, region, sampling_ratio, True, 1, None
    ).row(0)


def draw(ax, title, region, sampling_ratio):
    y = axis(BOX[1], BOX[3], region, sampling_ratio)
    x = axis(BOX[0], BOX[2], region, sampling_ratio)
    for p in range(BINS):
        for q in range(BINS):
            colour = COLOURS[(p + q) % len(COLOURS)]
            for i in y.valid[p].nonzero().flatten():
                for j in x.valid[q].nonzero().flatten():
                    if sampling_ratio is None:
                        corner = (x.low[q, j] * STRIDE, y.low[p, i] * STRIDE)
                        ax.add_patch(Rectangle(corner, STRIDE, STRIDE, color=colour, alpha=0.28, lw=0))
                    else:  # a cell's value sits half a cell behind its edge
                        column = x.low[q, j] * x.low_weight[q, j] + x.high[q, j] * x.high_weight[q, j]
                        row = y.low[p, i] * y.low_weight[p, i] + y.high[p, i] * y.high_weight[p, i]
                        ax.plot((column + 0.5) * STRIDE, (row + 0.5) * STRIDE, 'o', ms=4.5, color=colour)
    size = (BOX[2] - BOX[0], BOX[3] - BOX[1])
    ax.add_patch(Rectangle(BOX[:2], *size, fill=False, ec='#d55e00', lw=2))
    ax.set(xlim=(0, CELLS * STRIDE), ylim=(CELLS * STRIDE, 0), aspect='equal')
    ax.set_xticks(range(0, CELLS * STRIDE + 1, STRIDE), minor=True)
    ax.set_yticks(range(0, CELLS * STRIDE + 1, STRIDE), minor=True)
    ax.set_xticks(range(0, CELLS * STRIDE + 1, 4 * STRIDE))
    ax.set_yticks(range(0, CELLS * STRIDE + 1, 4 * STRIDE))
    ax.grid(which='both', color='#bbbbbb', lw=0.6)
    ax.tick_params(which='both', length=0, labelsize=7)
    ax.set_title(title, fontsize=9)


def main():
    figure, axes = plt.subplots(2, 3, figsize=(10, 7.2), layout='constrained')
    for ax, (title, method) in zip(axes.flat, PANELS.items(), strict=True):
        draw(ax, title, *method)
    figure.suptitle(
        f'Where each extractor reads: a box (orange) at stride {STRIDE}, {BINS} x {BINS} bins.\n'
        'Shaded: cells that a bin reads (overlaps are darker); dots: bilinear samples. Axes in pixels.',
        fontsize=9,
    )
    figure.savefig(Path(__file__).with_suffix('.png'), dpi=110)


if __name__ == '__main__':
    main()
