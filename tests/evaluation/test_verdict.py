"""Verdicts: how seldom they claim a difference that is not there, and how often they find one that is."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from roi_plugins.evaluation.bootstrap import RunSample, estimate
from roi_plugins.evaluation.coco import IOU_THRESHOLDS, METRICS
from roi_plugins.evaluation.verdict import POWER, holm, judge, smallest_difference

QUANTITIES = len(METRICS) + len(IOU_THRESHOLDS)
SEEDS = range(3)
EXTRACTORS = 4


def simulate(rng, effects, over_images, over_seeds):
    """The differences of AP in a plan with a baseline and several extractors.

    What the images do to the difference is the same for all seeds of an extractor; a seed adds its own part.
    """

    def runs(effect):
        of_images = rng.normal(0, over_images)
        spread = rng.normal(0, over_images, 400)
        found = {}
        for seed in SEEDS:
            value = 0.4 + effect + of_images + rng.normal(0, over_seeds)
            found[seed] = RunSample(np.full(QUANTITIES, value), np.tile(value + spread, (QUANTITIES, 1)))
        return found

    baseline = runs(0)
    return [estimate(runs(effect), baseline, classes=[]).metrics.loc['AP'] for effect in effects]


@pytest.mark.slow
@pytest.mark.parametrize(('over_images', 'over_seeds'), [(0.004, 0.01), (0.01, 0.004), (0, 0.01)])
def test_without_a_difference_one_plan_in_twenty_claims_one(over_images, over_seeds):
    rng = np.random.default_rng(0)
    plans = [
        judge(simulate(rng, [0] * EXTRACTORS, over_images, over_seeds), margin=0.001) for _ in range(300)
    ]
    wrong = sum(any(verdict.word in ('better', 'worse') for verdict in verdicts) for verdicts in plans)
    # Above 23 in 300 with a chance of 2%, if the rate is 5%.
    assert wrong <= 23


@pytest.mark.slow
@pytest.mark.parametrize(('over_images', 'over_seeds'), [(0.01, 0.004), (0, 0.01)])
def test_the_smallest_difference_is_found_four_times_in_five(over_images, over_seeds):
    """By the extractor that alone differs, with the true standard error instead of one that was seen."""
    rng = np.random.default_rng(1)
    true = pd.Series(
        {
            'image_se': np.sqrt(2) * over_images,
            'seed_se': np.sqrt(2 / len(SEEDS)) * over_seeds,
        }
    )
    true['dof'] = (true**2).sum() ** 2 * (len(SEEDS) - 1) / true['seed_se'] ** 4
    effect = smallest_difference(true, EXTRACTORS)
    plans = 300
    found = sum(
        judge(simulate(rng, [effect, *[0] * (EXTRACTORS - 1)], over_images, over_seeds), 0.001)[0].word
        == 'better'
        for _ in range(plans)
    )
    assert found / plans == pytest.approx(POWER, abs=0.07)


def difference(value, reach, p):
    return pd.Series(
        {'value': value, 'low': value - reach, 'high': value + reach, 'p': p}
        | {'image_se': reach / 2, 'seed_se': 0, 'dof': np.inf}
    )


def words(differences, margin):
    return [verdict.word for verdict in judge(differences, margin)]


def test_verdicts():
    better, worse = difference(0.03, 0.02, 0.001), difference(-0.03, 0.02, 0.001)
    alike, unsure = difference(0.001, 0.004, 0.6), difference(0.02, 0.03, 0.2)
    assert words([better, worse, alike, unsure], 0.005) == ['better', 'worse', 'alike', 'open']
    assert words([better, worse, alike, unsure], 0) == ['better', 'worse', 'open', 'open']
    # Sure, but too small to matter.
    assert words([difference(0.003, 0.001, 0.0001)], 0.005) == ['alike']
    # 0.03 is below 0.05 for one extractor, and not for two.
    almost = difference(0.02, 0.018, 0.03)
    assert words([almost], 0.005) == ['better']
    assert words([almost, almost], 0.005) == ['open', 'open']
    assert [verdict.p for verdict in judge([almost, almost], 0)] == pytest.approx([0.06, 0.06])
    assert judge([almost, almost], 0)[0].smallest_difference == smallest_difference(almost, 2)
    assert judge([], 0) == []


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1, 1]
    assert holm([]).size == 0


def test_smallest_difference():
    """With many seeds it is the textbook's (z for 5% + z for 80%) standard errors."""
    seen = pd.Series({'image_se': 0.003, 'seed_se': 0.004, 'dof': np.inf})
    expected = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * 0.005
    assert smallest_difference(seen, 1) == pytest.approx(expected)
    assert smallest_difference(seen.replace(np.inf, 1e6), 1) == pytest.approx(expected, rel=1e-4)
    assert smallest_difference(seen, 4) > smallest_difference(seen, 1)
    assert smallest_difference(seen.replace(np.inf, 2), 1) > 1.5 * expected
    assert smallest_difference(seen.replace([0.003, 0.004], 0), 1) == 0
