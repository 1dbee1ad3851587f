import json

import numpy as np
import pandas as pd
import pytest

from roi_plugins.ablation.compare import compare
from roi_plugins.ablation.extractor_cost import Cost, Costs
from roi_plugins.ablation.report.plots import plot_ap_over_cost, plot_differences, plot_learning_curves


@pytest.fixture
def make_comparison(make_run):
    """Compares three extractors, of which the first is the baseline."""

    def make(seeds=(0, 1, 2), **options):
        errors = {'align-avg': 0.1, 'align-max': 0.05, 'pool': 0.3}
        runs = [
            make_run(f'{extractor}.{seed}', error, extractor=extractor, seed=seed)
            for extractor, error in errors.items()
            for seed in seeds
        ]
        return compare(runs, baseline='align-avg', **{'resamples': 50, **options})

    return make


def test_a_row_of_the_differences_is_a_point_with_its_interval(make_comparison):
    comparison = make_comparison(margin=0.02)
    (plot,) = plot_differences(comparison)
    assert plot['title'] == 'Box AP'
    data, layout = plot['figure']['data'], plot['figure']['layout']
    assert [trace['y'] for trace in data] == [['align-max'], ['pool']]
    for trace, group in zip(data, comparison.groups[1:], strict=True):
        difference = 100 * group.difference_estimates.metrics.loc['AP']
        (x,), bars = trace['x'], trace['error_x']
        assert x == pytest.approx(difference['value'])
        assert x + bars['array'][0] == pytest.approx(difference['high'])
        assert x - bars['arrayminus'][0] == pytest.approx(difference['low'])
        low, high = layout['xaxis']['range']
        assert low < min(0, difference['low'])
        assert max(0, difference['high']) < high
        assert f'<br>{group.verdict.word}' in layout['yaxis']['ticktext'][data.index(trace)]
    (band,) = layout['shapes']
    assert (band['x0'], band['x1']) == (-2, 2)
    json.dumps(plot, allow_nan=False)


def test_one_seed_is_said_to_be_of_these_networks_only(make_comparison):
    (plot,) = plot_differences(make_comparison(seeds=(0,)))
    assert plot['title'] == 'Box AP (one seed: these networks only)'
    assert plot['figure']['layout']['shapes'] == []


def test_without_intervals_there_are_points(make_comparison):
    comparison = make_comparison(resamples=0)
    (plot,) = plot_differences(comparison)
    assert [trace['error_x'] for trace in plot['figure']['data']] == [{'visible': False}] * 2
    costs = Costs('', [Cost('mask_rcnn', 'pool', 1, 1, 1, 0.5, None, 0, None, None)], [])
    (over_cost,) = plot_ap_over_cost(comparison, costs)
    (trace,) = over_cost['figure']['data']
    assert (trace['name'], trace['x']) == ('pool', [500])
    json.dumps([plot, over_cost], allow_nan=False)


def test_the_mean_of_learning_curves_is_taken_where_all_are_known(make_comparison):
    comparison = make_comparison()
    first, second = (run for run, _ in comparison.metrics[:2])
    losses = [
        (first, pd.Series({10: 4.0, 20: 2.0, 30: 2.0})),
        (second, pd.Series({15: 5.0, 20: 4.0, 30: np.inf, 40: 1.0})),
    ]
    (plot,) = plot_learning_curves(comparison, losses)
    *trials, mean = plot['figure']['data']
    assert [trial['y'] for trial in trials] == [[4, 2, 2], [5, 4, None, 1]]  # a loss that diverged is a gap
    assert (mean['x'][:2], mean['y'][:2]) == ([15, 20], [4, 3])
    json.dumps(plot, allow_nan=False)
