import numpy as np
import pytest
import torch
from PIL import Image

from roi_plugins.extractors import AlignAvg, Precise, QuantizedPool
from roi_plugins.ops import reference
from roi_plugins.visualization import (
    METHODS,
    VisualizationError,
    draw_readings,
    misalignment,
    read_box,
    to_table,
)

FPN = [4, 8, 16, 32]


def test_textbook_box_loses_most_of_a_cell_and_then_most_of_a_bin():
    """665 px at stride 32 are 20.78 cells: 20 are kept, and of those 7 bins of 2 cells read 14."""
    reading = read_box(METHODS['quantized-pool-floor'](7, [32]), (64, 64, 729, 729), (800, 800))
    assert reading.region == (64, 64, 64 + 20 * 32, 64 + 20 * 32)
    assert misalignment(reading, of_bins=False) == (0, 0, -25, -25)  # 0.78 of a cell
    assert misalignment(reading) == (0, 0, -25 - 6 * 32, -25 - 6 * 32)


def test_what_each_method_makes_of_a_box():
    """29..165 px at stride 16 are cells 1.81 to 10.31."""
    quantized = {
        'quantized-pool': ((32, 176), (32, 176)),  # cells 2 to 10, inclusive
        'quantized-pool-floor': ((16, 144), (16, 112)),  # 8 cells from 1; 3 bins of 2
        'quantized-pool-bins': ((29, 166), (16, 176)),  # bins rounded outwards
        'roi-warp-max': ((32, 176), (32, 176)),
        'roi-warp-avg': ((32, 176), (32, 176)),
    }
    unaligned = {'align-avg-unaligned', 'precise'}  # half a cell too far
    for name, build in METHODS.items():
        exact = (37, 173) if name in unaligned else (29, 165)
        region, covered = quantized.get(name, (exact, exact))
        reading = read_box(build(3, [16]), (29, 29, 165, 165), (192, 192))
        assert reading.x.region == pytest.approx(region, abs=1e-4), name
        assert (reading.covered[0], reading.covered[2]) == pytest.approx(covered, abs=1e-4), name


# An integral has no samples to average, and position-sensitive pooling reads another map for each bin.
@pytest.mark.parametrize(
    'name', sorted(METHODS.keys() - {'precise', 'precise-aligned', 'position-sensitive'})
)
def test_samples_are_where_the_op_reads(name):
    """On a map that holds its own positions, a bin's average is that of the samples that are drawn."""
    extractor, box = METHODS[name](5, [8]), (33.0, 20.0, 140.0, 121.0)
    method = {**extractor.method, 'reduction': 'avg'}
    positions = (torch.arange(24.0) + 0.5) * 8  # of the cells' centres
    for axis in 'xy':
        map_ = (positions if axis == 'x' else positions[:, None]).expand(1, 1, 24, 24)
        read = reference.roi_extract(map_, torch.tensor([[0, *box]]), 5, 1 / 8, **method)[0, 0]
        drawn = getattr(read_box(extractor, box, (192, 192)), axis).samples
        means = torch.tensor([samples.mean() for samples in drawn])
        torch.testing.assert_close(read.diagonal(), means)


def test_of_an_integral_the_cells_with_a_weight_are_drawn():
    box, map_ = (33.0, 20.0, 140.0, 121.0), torch.zeros(1, 1, 24, 24, requires_grad=True)
    reference.roi_extract(
        map_, torch.tensor([[0, *box]]), (1, 3), 1 / 8, sampling_ratio=None, reduction='integral'
    )[..., 1].backward()
    reading = read_box(Precise((1, 3), [8], aligned=True), box, (192, 192))
    for axis, dim in ((reading.x.samples[1], 0), (reading.y.samples[0], 1)):
        np.testing.assert_array_equal(axis, 8 * (map_.grad[0, 0].any(dim).nonzero()[:, 0] + 0.5))
    # Cells beyond a bin take part in it, but no more than one on each side.
    low, high = reading.x.bins[1]
    assert low - 8 < reading.x.samples[1][0] < low and high < reading.x.samples[1][-1] < high + 8


def test_the_level_rule_chooses_the_map():
    levels = [
        read_box(AlignAvg(7, FPN), (0, 0, side, side), (1000, 1000)).level for side in (50, 112, 300, 900)
    ]
    assert levels == [0, 1, 2, 3]


def test_bins_beyond_the_map_read_nothing():
    """The box rounds to the cell behind the last."""
    reading = read_box(QuantizedPool(2, [16]), (57, 0, 64, 32), (64, 64))
    assert np.isnan(reading.x.bins).all()
    assert to_table({'pool': reading}).splitlines()[-1].split()[-4:] == ['-', '+0.0', '-', '+16.0']
    draw_readings({'pool': reading}, Image.new('RGB', (64, 64))).draw_without_rendering()


@pytest.mark.parametrize(
    'box', [(10, 10, 10, 20), (20, 10, 10, 20), (-1, 0, 5, 5), (0, 0, 65, 5), (0, 0, float('nan'), 5)]
)
def test_a_bad_box_is_an_error_that_says_what_is_expected(box):
    with pytest.raises(VisualizationError, match='0 <= x1 < x2 <= 64 and 0 <= y1 < y2 <= 48'):
        read_box(AlignAvg(7, [16]), box, (48, 64))


@pytest.mark.parametrize('count', [1, 2, 3])
def test_every_reading_is_drawn_on_the_image_and_on_the_grid(count):
    image = Image.new('RGB', (70, 50))  # no multiple of the stride
    readings = {
        name: read_box(METHODS[name](2, [16]), (10, 5, 60, 45), (50, 70)) for name in list(METHODS)[:count]
    }
    figure = draw_readings(readings, image)
    figure.draw_without_rendering()
    panels = [panel for panel in figure.axes if panel.axison]
    assert len(panels) == 2 * count
    titles = [panel.get_title(loc='left') for panel in panels[::2]]
    assert titles == [f'{name}, stride 16' for name in readings]
    for on_image, on_grid in zip(panels[::2], panels[1::2], strict=True):
        # Four bins twice, the box and the region.
        assert len(on_image.patches) == len(on_grid.patches) == 10
        box = on_image.patches[-2].get_bbox().extents, on_grid.patches[-2].get_bbox().extents
        np.testing.assert_allclose(box[0], (10, 5, 60, 45))
        np.testing.assert_allclose(box[1], np.array((10, 5, 60, 45)) / 16)
