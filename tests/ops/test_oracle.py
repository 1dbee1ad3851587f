"""The two worked examples of the public explanations, by hand, on the oracle and on the op."""

import numpy as np
import oracle
import pytest
import torch

from roi_plugins.ops import reference, roi_extract


def by_oracle(features, rois, output_size, spatial_scale, **method):
    return oracle.roi_extract(
        features.numpy(), rois.numpy(), output_size, spatial_scale, coord=np.float32, **method
    ).output


def by_op(features, rois, output_size, spatial_scale, **method):
    return roi_extract(features, rois, output_size, spatial_scale, **method).numpy()


def by_reference(features, rois, output_size, spatial_scale, **method):
    return reference.roi_extract(features, rois, output_size, spatial_scale, **method).numpy()


@pytest.fixture(params=[by_oracle, by_op, by_reference], ids=['oracle', 'op', 'reference'])
def extract(request):
    return request.param


def ramp(height, width, per_row):
    """Cell (y, x) holds ``per_row * y + x``: a value tells where it was read."""
    y = torch.arange(height, dtype=torch.float32)[:, None]
    x = torch.arange(width, dtype=torch.float32)
    return (per_row * y + x)[None, None]


class TestBoxOf665Pixels:
    """A 665 px box at stride 32, pooled to 7x7: 665 / 32 = 20.78 becomes 20, and 20 / 7 = 2.86
    becomes 2, so 14 of its 20 cells are read along each axis."""

    # 64 / 32 = 2 is the first cell; bin p reads the cells 2 + 2p and 3 + 2p.
    rois = torch.tensor([[0.0, 64.0, 64.0, 64.0 + 665.0, 64.0 + 665.0]])
    features = ramp(25, 25, per_row=100)

    def test_max_is_the_last_cell_of_each_bin(self, extract):
        output = extract(
            self.features, self.rois, (7, 7), 1 / 32,
            region='floor', sampling_ratio=None, reduction='max',
        )  # fmt: skip
        last = np.array([3, 5, 7, 9, 11, 13, 15])
        np.testing.assert_array_equal(output[0, 0], 100 * last[:, None] + last)

    def test_average_is_the_middle_of_each_bin(self, extract):
        output = extract(
            self.features, self.rois, (7, 7), 1 / 32,
            region='floor', sampling_ratio=None, reduction='avg',
        )  # fmt: skip
        middle = np.array([2.5, 4.5, 6.5, 8.5, 10.5, 12.5, 14.5])
        np.testing.assert_allclose(output[0, 0], 100 * middle[:, None] + middle, rtol=1e-6)

    @pytest.mark.parametrize('ops', [roi_extract, reference.roi_extract], ids=['op', 'reference'])
    def test_fourteen_of_twenty_cells_are_read(self, ops):
        features = self.features.clone().requires_grad_()
        ops(
            features,
            self.rois,
            (7, 7),
            1 / 32,
            region='floor',
            sampling_ratio=None,
            reduction='avg',
        ).sum().backward()
        read = torch.zeros(25, 25)
        read[2:16, 2:16] = 1 / 4  # each bin is the mean of 2 x 2 cells
        torch.testing.assert_close(features.grad[0, 0], read, rtol=0, atol=0)

    def test_fast_rcnn_reads_all_of_it(self, extract):
        # round(2) = 2 to round(22.78) = 23, inclusive: 22 cells, bins of 22 / 7 = 3.14 cells; bin p
        # ends before ceil(3.14 * (p + 1)) + 2, so its last cell is 5, 8, 11, 14, 17, 20, 23.
        output = extract(
            self.features, self.rois, (7, 7), 1 / 32,
            region='round', sampling_ratio=None, reduction='max',
        )  # fmt: skip
        last = np.array([5, 8, 11, 14, 17, 20, 23])
        np.testing.assert_array_equal(output[0, 0], 100 * last[:, None] + last)


class TestMapOfTenByTen:
    """A 10x10 map, RoI (2, 2, 8, 8), 2x2 bins of 2x2 = 4 points, stride 1.

    The RoI is 6 cells wide, a bin 3. With half-cell alignment the RoI starts at index 1.5, so the
    points lie at 1.5 + 3 * (0.25, 0.75, 1.25, 1.75) = 2.25, 3.75 | 5.25, 6.75 along each axis; in
    the legacy convention they lie half a cell further: 2.75, 4.25 | 5.75, 7.25.
    """

    rois = torch.tensor([[0.0, 2.0, 2.0, 8.0, 8.0]])
    features = ramp(10, 10, per_row=10)

    # The interpolation of a ramp is the ramp: a point (y, x) reads 10 y + x. The mean of a bin is
    # the ramp at the bin's centre, its maximum the ramp at its last point.
    @pytest.mark.parametrize(
        ('reduction', 'aligned', 'expected'),
        [
            ('avg', True, [[33.0, 36.0], [63.0, 66.0]]),  # centres 3 and 6
            ('avg', False, [[38.5, 41.5], [68.5, 71.5]]),  # centres 3.5 and 6.5
            ('max', True, [[41.25, 44.25], [71.25, 74.25]]),  # last points 3.75 and 6.75
            ('max', False, [[46.75, 49.75], [76.75, 79.75]]),  # last points 4.25 and 7.25
        ],
    )
    def test_ramp(self, extract, reduction, aligned, expected):
        output = extract(
            self.features, self.rois, (2, 2), 1.0,
            sampling_ratio=2, reduction=reduction, aligned=aligned,
        )  # fmt: skip
        np.testing.assert_allclose(output[0, 0], expected, rtol=1e-6)

    def test_peak(self, extract):
        # One cell, (y, x) = (3, 4), holds 16. Row 3 weighs 0.25 for the points at 2.25 and at 3.75,
        # column 4 weighs 0.75 for the points at 3.75 and nothing elsewhere. So in bin (0, 0) two
        # of the four points read 16 * 0.25 * 0.75 = 3, the mean is 1.5, and all other bins read 0.
        features = torch.zeros(1, 1, 10, 10)
        features[0, 0, 3, 4] = 16
        average = extract(features, self.rois, (2, 2), 1.0, sampling_ratio=2, reduction='avg')
        largest = extract(features, self.rois, (2, 2), 1.0, sampling_ratio=2, reduction='max')
        np.testing.assert_allclose(average[0, 0], [[1.5, 0], [0, 0]], rtol=1e-6)
        np.testing.assert_allclose(largest[0, 0], [[3, 0], [0, 0]], rtol=1e-6)

    @pytest.mark.parametrize('ops', [roi_extract, reference.roi_extract], ids=['op', 'reference'])
    def test_gradient_of_the_maximum(self, ops):
        # On the ramp the point (3.75, 3.75) wins bin (0, 0): its taps are the cells 3 and 4 with
        # the weights 0.25 and 0.75 along each axis.
        features = self.features.clone().requires_grad_()
        output = ops(features, self.rois, (2, 2), 1.0, sampling_ratio=2, reduction='max')
        output[0, 0, 0, 0].backward()
        expected = torch.zeros(10, 10)
        expected[3:5, 3:5] = torch.tensor([[0.0625, 0.1875], [0.1875, 0.5625]])
        torch.testing.assert_close(features.grad[0, 0], expected)

    def test_warp(self, extract):
        # round(2) = 2 to round(8) = 8, inclusive: 7 cells from the edge of cell 2, which is index
        # 1.5. Bins of 3.5, centres at 1.5 + 1.75 = 3.25 and 6.75; `aligned` has no say.
        for aligned in (True, False):
            output = extract(
                self.features, self.rois, (2, 2), 1.0,
                region='round', sampling_ratio=2, reduction='avg', aligned=aligned,
            )  # fmt: skip
            np.testing.assert_allclose(output[0, 0], [[35.75, 39.25], [70.75, 74.25]], rtol=1e-6)

    def test_mmcv_pool(self, extract):
        # 2 to 8 + 1 = 9: bins of 3.5, cells 2 to ceil(5.5) - 1 = 5 and floor(5.5) = 5 to 8.
        output = extract(
            self.features, self.rois, (2, 2), 1.0,
            region='bins', sampling_ratio=None, reduction='max',
        )  # fmt: skip
        np.testing.assert_array_equal(output[0, 0], [[55, 58], [85, 88]])

    def test_adaptive(self, extract):
        # ceil(6 / 2) = 3 points an axis: the last point of bin 0 lies at 1.5 + 3 * 5 / 6 = 4. With
        # at most one point, that is the bin's centre, 3; with at least four, the last lies at
        # 1.5 + 3 * 7 / 8 = 4.125.
        last = {}
        for bounds in ((1, None), (1, 1), (4, None)):
            output = extract(
                self.features, self.rois, (2, 2), 1.0, sampling_ratio=0, reduction='max',
                min_samples=bounds[0], max_samples=bounds[1],
            )  # fmt: skip
            last[bounds] = output[0, 0, 0, 0]
        np.testing.assert_allclose(
            list(last.values()), [10 * 4 + 4, 10 * 3 + 3, 10 * 4.125 + 4.125], rtol=1e-6
        )

    @pytest.mark.parametrize(
        ('aligned', 'expected'),
        [(True, [[33.0, 36.0], [63.0, 66.0]]), (False, [[38.5, 41.5], [68.5, 71.5]])],
    )
    def test_integral_of_the_ramp_is_its_value_at_the_centre(self, extract, aligned, expected):
        output = extract(
            self.features, self.rois, (2, 2), 1.0,
            sampling_ratio=None, reduction='integral', aligned=aligned,
        )  # fmt: skip
        np.testing.assert_allclose(output[0, 0], expected, rtol=1e-6)

    def test_integral_of_a_peak(self, extract):
        # The hat of cell (3, 4) is 2 wide and has area 1 on an axis. Bin 0 reaches from 1.5 to 4.5: all of
        # row 3, and of column 4 all but the triangle from 4.5 to 5, an eighth, which is in bin 1.
        features = torch.zeros(1, 1, 10, 10)
        features[0, 0, 3, 4] = 72
        output = extract(features, self.rois, (2, 2), 1.0, sampling_ratio=None, reduction='integral')
        np.testing.assert_allclose(output[0, 0], [[7, 1], [0, 0]], rtol=1e-5)

    def test_integral_beyond_the_map(self, extract):
        # Over a map of ones the surface falls to 0 from -0.5 on: of the half cell before index 0 the
        # integral is 3/8. What lies further out counts as 0.
        features = torch.ones(1, 1, 10, 10)
        rois = torch.tensor([[0.0, 0, 0, 2, 2], [0, -4, 5, 0.5, 7], [0, -9, 2, -1, 4]])
        output = extract(features, rois, (1, 1), 1.0, sampling_ratio=None, reduction='integral')
        expected = [(1.875 / 2) ** 2, 0.5 / 4.5, 0]
        np.testing.assert_allclose(output[:, 0, 0, 0], expected, rtol=1e-6)
