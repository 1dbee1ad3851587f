import contextlib
import io
import warnings
from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from scipy import stats
from synthetic import detect, make_annotations

from roi_plugins.evaluation.bootstrap import (
    CONFIDENCE,
    RunSample,
    contrast,
    estimate,
    resample_images,
    sample_run,
)
from roi_plugins.evaluation.coco import CURVE, IOU_THRESHOLDS, METRICS, summarize
from roi_plugins.evaluation.matching import match, resampled_ap

QUANTITIES = len(METRICS) + len(IOU_THRESHOLDS)


def sample(values, resampled):
    """A run of which every AP is that one."""
    tiled = np.tile(np.asarray(resampled, float), (QUANTITIES, 1))
    return RunSample(np.full(QUANTITIES, float(values)), tiled)


def ap(runs, baseline=None):
    return estimate(runs, baseline, classes=[]).metrics.loc['AP']


def test_one_seed_has_the_interval_of_the_resamples_around_the_value():
    resampled = np.random.default_rng(0).gamma(2, 0.01, 1000)
    result = ap({None: sample(0.4, resampled)})
    assert result['value'] == 0.4
    low, high = np.quantile(resampled, [0.025, 0.975]) - resampled.mean() + 0.4
    assert (result['low'], result['high']) == pytest.approx((low, high), abs=1e-12)
    assert result['image_se'] == pytest.approx(resampled.std(ddof=1))
    assert np.isnan(result['seed_se']) and np.isnan(result['p'])


def test_one_seed_has_no_p_value_however_large_the_difference():
    """Two networks differ with certainty; that says nothing about their extractors."""
    noise = np.random.default_rng(0).normal(0, 0.01, (2, 1000))
    result = ap({0: sample(0.6, noise[0])}, {0: sample(0.3, noise[1])})
    assert result['low'] > 0.2
    assert np.isnan(result['p']) and np.isnan(result['dof'])


@pytest.mark.parametrize('shift', [-0.03, -0.02, 0.015, 0.02, 0.024])
def test_p_is_below_five_percent_where_the_interval_excludes_zero(shift):
    noise = np.random.default_rng(0).normal(0, 0.01, (2, 4000))
    seeds = (0, 1)
    own, reference = sample(0.3 + shift, noise[0]), sample(0.3, noise[1])
    result = ap(dict.fromkeys(seeds, own), dict.fromkeys(seeds, reference))
    assert (result['p'] < 1 - CONFIDENCE) == (result['low'] > 0 or result['high'] < 0)
    expected = 2 * stats.norm.sf(abs(shift) / np.hypot(0.01, 0.01))
    assert result['p'] == pytest.approx(expected, abs=0.03)


def test_equal_runs_do_not_differ():
    run = sample(0.3, np.random.default_rng(0).normal(0.31, 0.01, 100))
    for seeds, p in (([0], np.nan), ([0, 1], 1)):
        result = ap(dict.fromkeys(seeds, run), dict.fromkeys(seeds, run))
        expected = pytest.approx([0, 0, 0, p], abs=1e-12, nan_ok=True)
        assert result[['value', 'low', 'high', 'p']].tolist() == expected


def test_seeds_alone_give_the_t_tests():
    """Without variation over images what is left is Student's test, or Welch's for other seeds."""
    own, reference = [0.31, 0.35, 0.34], [0.30, 0.29, 0.32, 0.28]
    runs = {seed: sample(value, [value] * 9) for seed, value in enumerate(own)}
    others = {seed: sample(value, [value] * 9) for seed, value in enumerate(reference)}

    result = ap(runs)
    interval = stats.ttest_1samp(own, 0).confidence_interval(CONFIDENCE)
    assert (result['low'], result['high']) == pytest.approx(interval)
    assert result['image_se'] == pytest.approx(0, abs=1e-12)
    assert result['seed_se'] == pytest.approx(stats.sem(own))

    welch = stats.ttest_ind(own, reference, equal_var=False)
    result = ap(runs, others)
    assert result['p'] == pytest.approx(welch.pvalue)
    assert (result['low'], result['high']) == pytest.approx(welch.confidence_interval(CONFIDENCE))

    paired = stats.ttest_rel(own, reference[:3])
    del others[3]
    result = ap(runs, others)
    assert result['p'] == pytest.approx(paired.pvalue)
    assert (result['low'], result['high']) == pytest.approx(paired.confidence_interval(CONFIDENCE))

    del others[1], others[2]  # one seed: its spread is unknown, so is that of the difference
    assert np.isnan(ap(runs, others)['seed_se'])


def random_runs(seeds, rng):
    """Runs whose every AP is another."""
    return {
        seed: RunSample(rng.uniform(0.2, 0.5, QUANTITIES), rng.uniform(0.2, 0.5, (QUANTITIES, 200)))
        for seed in seeds
    }


@pytest.mark.parametrize('seeds', [[0], [0, 1, 2]])
def test_a_contrast_of_two_is_their_difference(seeds):
    rng = np.random.default_rng(0)
    runs, others = random_runs(seeds, rng), random_runs(seeds, rng)
    expected = estimate(runs, others, classes=[]).metrics.loc['AP75']
    result = contrast([(1, runs, 'AP75'), (-1, others, 'AP75')])
    assert result.to_dict() == pytest.approx(expected.to_dict(), nan_ok=True)


def test_a_difference_of_differences_is_taken_seed_by_seed():
    rng = np.random.default_rng(0)
    runs, others = random_runs(range(3), rng), random_runs(range(3), rng)
    ap75, ap50 = METRICS.index('AP75'), METRICS.index('AP50')
    by_seed = [
        (runs[seed].values - others[seed].values)[ap75] - (runs[seed].values - others[seed].values)[ap50]
        for seed in range(3)
    ]
    result = contrast([(1, runs, 'AP75'), (-1, others, 'AP75'), (-1, runs, 'AP50'), (1, others, 'AP50')])
    assert result['value'] == pytest.approx(np.mean(by_seed))
    assert result['seed_se'] == pytest.approx(stats.sem(by_seed))
    over_images = np.mean(
        [
            (runs[seed].resampled - others[seed].resampled)[ap75]
            - (runs[seed].resampled - others[seed].resampled)[ap50]
            for seed in range(3)
        ],
        axis=0,
    )
    assert result['image_se'] == pytest.approx(over_images.std(ddof=1))


def test_a_contrast_needs_the_same_seeds_everywhere():
    rng = np.random.default_rng(0)
    terms = [(1, random_runs([0, 1], rng), 'AP'), (-1, random_runs([0, 2], rng), 'AP75')]
    with pytest.raises(ValueError, match=r'AP75 has the seeds \[0, 2\], the first term \[0, 1\]'):
        contrast(terms)


def test_images_and_seeds_together_cover_the_truth():
    """Runs whose AP is a sum of what image, seed and both contribute, each drawn anew."""
    rng = np.random.default_rng(0)
    images, seeds = 80, 3
    counts = resample_images(images, 300, seed=1)
    covered, by_images_alone = [], []
    for _ in range(300):
        contributions = (
            rng.normal(0, 0.15, images)
            + rng.normal(0, 0.02, (seeds, 1))
            + rng.normal(0, 0.1, (seeds, images))
        )
        runs = {seed: sample(own.mean(), own @ counts / images) for seed, own in enumerate(contributions)}
        result = ap(runs)
        covered.append(result['low'] <= 0 <= result['high'])
        by_images_alone.append(abs(result['value']) <= 1.96 * result['image_se'])
    assert 0.92 <= np.mean(covered) <= 1  # a bit wide: see docs/statistics.md
    assert np.mean(by_images_alone) < 0.92


def test_resamples_are_of_the_images_and_repeatable():
    counts = resample_images(50, 2000, seed=3)
    assert (counts.sum(axis=0) == 50).all()
    assert np.array_equal(counts, resample_images(50, 2000, seed=3))
    assert not np.array_equal(counts, resample_images(50, 2000, seed=4))
    assert counts.mean(axis=1) == pytest.approx(1, abs=0.12)  # five standard errors
    assert counts.var(axis=1) == pytest.approx(1, abs=0.3)


def test_no_resamples_leave_intervals_unknown():
    result = ap({0: sample(0.4, []), 1: sample(0.5, [])})
    assert result['value'] == pytest.approx(0.45)
    assert np.isnan(result[['low', 'high', 'p', 'image_se']].astype(float)).all()
    assert result['seed_se'] == pytest.approx(0.05)


def subset(matches, images):
    """The matches in some of the images."""
    new = np.full(len(matches.image_ids), -1)
    new[images] = np.arange(len(images))
    classes = []
    for c in matches.classes:
        kept, objects = new[c.image] >= 0, new[c.object_image] >= 0
        classes.append(
            replace(
                c,
                image=new[c.image[kept]],
                score=c.score[kept],
                matched=c.matched[..., kept],
                ignored=c.ignored[..., kept],
                object_image=new[c.object_image[objects]],
                object_ignored=c.object_ignored[:, objects],
            )
        )
    return replace(matches, image_ids=list(range(len(images))), classes=classes)


@pytest.mark.slow
def test_intervals_cover_the_known_effect():
    """Detectors of known AP: over very many images; data sets are drawn from these."""
    rng = np.random.default_rng(0)
    population, size, sets = 800, 60, 100
    dataset = make_annotations(rng, population, classes=3, objects=5)
    truth = COCO()
    truth.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        matches = {
            name: match(truth, truth.loadRes(detect(rng, dataset, noise, per_image=8)), 'bbox')
            for name, noise in (('good', 0.06), ('equal', 0.06), ('worse', 0.075))
        }
    draws = [rng.choice(population, size, replace=False) for _ in range(1000)]
    counts = np.array([np.bincount(draw, minlength=population) for draw in draws]).T
    known = {name: resampled_ap(found, counts).curves[0].mean() for name, found in matches.items()}
    assert abs(known['equal'] - known['good']) < 0.02 < known['good'] - known['worse']

    covered = {'good': [], 'worse': [], 'worse to good': [], 'equal to good': []}
    differs = {'worse': [], 'equal': []}
    resamples = resample_images(size, 200, seed=0)
    for draw in draws[:sets]:
        samples = {}
        for name, found in matches.items():
            drawn = subset(found, draw)
            samples[name] = {0: sample_run(summarize(drawn), drawn, resamples)}
        for name in ('good', 'worse'):
            result = estimate(samples[name], None, [*'abc']).metrics.loc['AP']
            covered[name].append(result['low'] <= known[name] <= result['high'])
        for name in ('equal', 'worse'):
            result = estimate(samples[name], samples['good'], [*'abc']).metrics.loc['AP']
            effect = known[name] - known['good']
            covered[f'{name} to good'].append(result['low'] <= effect <= result['high'])
            differs[name].append(not result['low'] <= 0 <= result['high'])
    # 0.95 less three and a half standard errors of a share of a hundred.
    shares = {name: np.mean(hits) for name, hits in covered.items()}
    assert all(share >= 0.875 for share in shares.values()), shares
    assert np.mean(differs['worse']) > 0.8
    assert np.mean(differs['equal']) < 0.2


def test_the_curve_and_the_classes_are_those_of_the_run():
    rng = np.random.default_rng(0)
    dataset = make_annotations(rng, 20, classes=3, objects=5)
    truth = COCO()
    truth.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        matches = match(truth, truth.loadRes(detect(rng, dataset, 0.06, 8)), 'bbox')
    result = summarize(matches)
    run = sample_run(result, matches, resample_images(20, 1001, seed=0))  # more than one block
    assert run.resampled.shape == (QUANTITIES + 3, 1001)
    estimates = estimate({0: run}, None, ['x', 'y', 'z'])
    assert estimates.metrics['value'].to_dict() == {metric: result[metric] for metric in METRICS}
    assert estimates.over_iou['value'].tolist() == result[CURVE]
    assert estimates.per_class['value'].mean() == pytest.approx(result['AP'])
    unchanged = sample_run(result, matches, np.ones((20, 1), int))
    assert unchanged.resampled[:, 0] == pytest.approx(run.values, abs=1e-12, nan_ok=True)


def test_a_class_without_objects_has_no_ap():
    """COCOeval gives it -1, which is no AP and must not enter a mean."""
    rng = np.random.default_rng(0)
    dataset = make_annotations(rng, 6, classes=2, objects=5)
    truth = COCO()
    truth.dataset = dataset
    detections = detect(rng, dataset, 0.06, 8)
    dataset['annotations'] = [a for a in dataset['annotations'] if a['category_id'] != 2]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        matches = match(truth, truth.loadRes(detections), 'bbox')
    run = sample_run(summarize(matches), matches, resample_images(6, 9, seed=0))
    assert run.values[-2] > 0 and np.isnan(run.values[-1])
    assert (run.resampled[-2] > 0).all() and np.isnan(run.resampled[-1]).all()


def test_what_has_no_value_has_no_interval_and_no_p():
    """And does not warn: one seed has no spread, and many classes of a small data set have no objects."""
    unknown = {0: sample(np.nan, [np.nan] * 9)}
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for result in (ap(unknown), ap(unknown, unknown)):
            assert result.isna().all()


def test_no_interval_leaves_what_an_ap_can_be():
    """Student's interval of two seeds is 12.7 standard errors to either side."""

    def interval(values, baseline=None):
        runs, others = (
            dict(enumerate(sample(value, [value] * 9) for value in some)) if some else None
            for some in (values, baseline)
        )
        return ap(runs, others)[['low', 'high']].tolist()

    reach = stats.t.ppf((1 + CONFIDENCE) / 2, 1) * 0.02
    assert interval([0.95, 0.99]) == pytest.approx([0.97 - reach, 1])
    assert interval([0.01, 0.05]) == pytest.approx([0, 0.03 + reach])
    assert interval([0.9, 0.9], [0.1, 0.3]) == pytest.approx([0.7 - 5 * reach, 1])
    assert interval([0.1, 0.3], [0.9, 0.9]) == pytest.approx([-1, -0.7 + 5 * reach])


def test_p_at_the_ends_of_what_it_can_be():
    from roi_plugins.evaluation.bootstrap import _t_interval

    zero, one = np.zeros(1), np.ones(1)
    assert _t_interval(0.1 * one, zero, one)[2] == 0  # certain
    assert _t_interval(-0.1 * one, zero, one)[2] == 0
    assert _t_interval(zero, zero, one)[2] == 1
