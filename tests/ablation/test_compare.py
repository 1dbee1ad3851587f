import csv
import json
import re
import statistics
import sys
from decimal import ROUND_HALF_EVEN, Context, Decimal

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pycocotools.mask import encode

from roi_plugins.ablation.compare import ComparisonError, compare
from roi_plugins.ablation.report.formats import to_latex, to_markdown, write_comparison
from roi_plugins.ablation.report.page import write_report
from roi_plugins.ablation.report.tables import make_headline, make_tables
from roi_plugins.evaluation.coco import IOU_THRESHOLDS, evaluate, format_points
from roi_plugins.files import DataError, write_json

# One run's AP, and the mean, deviation or difference of several.
fractions = st.floats(-1, 1)


@given(fractions, st.integers(0, 6))
@example(0.3125, 1)  # a tie
@example(0.3135, 1)  # no tie: the double is a little more
@example(-0.0004, 1)
def test_points_are_rounded_once(fraction, digits):
    exact = Context(prec=2000)
    points = exact.multiply(Decimal(fraction), 100)
    expected = points.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_EVEN, exact)
    text = format_points(fraction, digits)
    assert Decimal(text) == expected
    assert not (text.startswith('-') and expected == 0)
    assert format_points(fraction, digits, sign=True)[0] in '+-'


@given(st.floats(0, 1))
def test_points_have_the_digits_that_pycocotools_prints(fraction):
    assert Decimal(format_points(fraction, 1)) == 100 * Decimal(f'{fraction:0.3f}')


@pytest.fixture
def sweep(make_run, tmp_path):
    for seed in (0, 1, 2):
        make_run(f'sweep/a{seed}', 0.05, extractor='align-avg', seed=seed)
        make_run(f'sweep/b{seed}', 0.15, extractor='pool', seed=seed)
    make_run('sweep/c0', 0.1, extractor='other', seed=0)
    return tmp_path / 'sweep'


def test_mean_deviation_and_paired_difference(sweep, tmp_path):
    comparison = compare([sweep], baseline='align-avg')
    ap = {
        name: [
            evaluate(
                tmp_path / 'annotations.json',
                sweep / f'{name}{seed}' / 'predictions.bbox.json',
                'bbox',
            )['AP']
            for seed in range(3 if name != 'c' else 1)
        ]
        for name in 'abc'
    }
    assert len(set(ap['a'] + ap['b'])) > 3
    base, pool, _ = comparison.groups
    assert base.mean['AP'] == pytest.approx(statistics.mean(ap['a']), abs=1e-15)
    assert base.std['AP'] == pytest.approx(statistics.stdev(ap['a']), abs=1e-15)
    assert base.difference is None
    paired = [b - a for a, b in zip(ap['a'], ap['b'], strict=True)]
    assert pool.difference['AP'] == pytest.approx(statistics.mean(paired), abs=1e-15)
    assert pool.difference_std['AP'] == pytest.approx(statistics.stdev(paired), abs=1e-15)

    tables = make_tables(comparison, digits=2)
    titles = ['Box AP, mean ± standard deviation', 'Box AP, difference to align-avg']
    table, differences = (tables[title].set_index('Extractor') for title in titles)
    mean, std = (format_points(f(ap['b']), 2) for f in (statistics.mean, statistics.stdev))
    assert table.loc['pool', 'AP'] == f'{mean} ± {std}'
    assert table['n'].tolist() == ['3', '3', '1']
    assert table.loc['other', 'AP'] == format_points(ap['c'][0], 2)  # one seed: no deviation
    assert table['APl'].tolist() == ['-'] * 3  # no large objects
    assert differences.index.tolist() == ['pool', 'other']
    assert '±' not in differences.loc['other', 'AP']  # not the seeds of the baseline


def test_files(sweep, tmp_path):
    comparison = compare([sweep], baseline='align-avg')
    for _ in range(2):  # the second time in place of the first
        write_comparison(comparison, tmp_path / 'out' / 'deep')
    files = {path.name: path for path in (tmp_path / 'out' / 'deep').iterdir()}
    assert files.keys() == {
        *(f'compare.{suffix}' for suffix in ('md', 'csv', 'tex', 'json')),
        'ap_over_iou.png',
        'ap_over_iou.svg',
    }
    assert files['ap_over_iou.png'].read_bytes().startswith(b'\x89PNG')
    assert '</svg>' in files['ap_over_iou.svg'].read_text()
    record = json.loads(files['compare.json'].read_text())
    assert [run['metrics'] for run in record['runs']] == [m for _, m in comparison.metrics]
    assert [run['seed'] for run in record['runs']] == [0, 1, 2, 0, 1, 2, 0]
    pool = record['groups'][1]
    assert pool['seeds'] == [0, 1, 2]
    assert pool['mean'] == {**comparison.groups[1].mean.to_dict(), 'APl': -1}
    assert pool['std']['APl'] is None
    assert record['groups'][2]['std'] is None
    with files['compare.csv'].open() as lines:
        row = list(csv.DictReader(lines))[1]
    assert row['extractor'] == 'pool'
    assert float(row['AP']) == pytest.approx(100 * pool['mean']['AP'], rel=1e-15)
    assert float(row['AP_difference_std']) == pytest.approx(100 * pool['difference_std']['AP'], rel=1e-15)
    assert row['APl'] == ''
    assert to_markdown(comparison) in files['compare.md'].read_text()


def test_names_are_escaped(make_run):
    run = make_run('a', extractor=r'a|b_c%&#\d', seed=0)
    comparison = compare([run])
    assert r'| a\|b_c%&#\\d |' in to_markdown(comparison)
    assert r'a|b\_c\%\&\#\textbackslash{}d & ' in to_latex(comparison)


def test_configs_without_the_baseline_have_no_differences(make_run):
    runs = [
        make_run('a', config_name='x', extractor='stock'),
        make_run('b', config_name='x', extractor='pool'),
        make_run('c', config_name='y', extractor='pool'),
    ]
    comparison = compare(runs, baseline='stock')
    assert [group.difference is None for group in comparison.groups] == [True, False, True]
    assert comparison.notes[0] == "config 'y' has no run of the baseline 'stock': no differences for it"
    with pytest.raises(ComparisonError, match=r"'stok'; the extractors are: stock, pool"):
        compare(runs, baseline='stok')


def test_bad_predictions_are_reported_and_the_others_compared(make_run):
    good, bad, empty = make_run('good'), make_run('bad'), make_run('empty')
    predictions = json.loads((bad / 'predictions.bbox.json').read_text())
    write_json(bad / 'predictions.bbox.json', [{**predictions[0], 'image_id': 77}])
    write_json(empty / 'predictions.bbox.json', [])
    comparison = compare([bad, empty, good])
    assert [group.extractor for group in comparison.groups] == ['empty', 'good']
    assert comparison.groups[0].mean['AP'] == 0
    assert len(comparison.problems) == 1
    assert comparison.problems[0].startswith(str(bad / 'predictions.bbox.json'))
    assert 'has no predictions' in comparison.notes[0]
    with pytest.raises(ComparisonError, match=r'no run to compare:\n.*image_id 77'):
        compare([bad])


def test_runs_that_cannot_stand_beside_each_other(make_run, tmp_path):
    first, second = make_run('a'), make_run('b')
    ann_file = tmp_path / 'annotations.json'
    record = json.loads((second / 'metrics.json').read_text())
    other = tmp_path / 'other.json'
    other.write_bytes(ann_file.read_bytes())
    write_json(second / 'metrics.json', {**record, 'ann_file': str(other)})
    assert len(compare([first, second]).groups) == 2  # the same content is the same
    annotations = json.loads(ann_file.read_text())
    write_json(other, {**annotations, 'images': [*annotations['images'], {'id': 6}]})
    comparison = compare([first, second])
    assert [group.extractor for group in comparison.groups] == ['a']
    assert re.search(rf'^{second}: .*{other}.*{ann_file}, which differ', comparison.problems[0])
    assert len(compare([first, second], ann_file).groups) == 2
    with pytest.raises(ComparisonError, match='give one of them'):
        compare([make_run('x', seed=0), make_run('y', seed=0)])


def test_a_limit_of_detections_is_named_and_not_mixed(make_run, tmp_path):
    one, other, third = make_run('a', max_dets=1), make_run('b', 0.2, max_dets=1), make_run('c')
    comparison = compare([one, other, third], baseline='a')
    assert [group.extractor for group in comparison.groups] == ['a', 'b']
    assert comparison.problems == [
        f'{third}: was evaluated with max_dets 100, {one} with 1: give --max-dets for all, or '
        'compare them separately'
    ]
    named = "max_dets 1: the best 1 detections of each class in an image count, in place of COCO's 100."
    assert named in to_markdown(comparison)
    expected = evaluate(tmp_path / 'annotations.json', one / 'predictions.bbox.json', 'bbox', 1)['AP']
    at_100 = evaluate(tmp_path / 'annotations.json', one / 'predictions.bbox.json', 'bbox')['AP']
    assert comparison.groups[0].mean['AP'] == expected < at_100
    write_comparison(comparison, tmp_path / 'out')
    assert json.loads((tmp_path / 'out' / 'compare.json').read_text())['max_dets'] == 1

    comparison = compare([one, other, third], max_dets=100)
    assert comparison.groups[0].mean['AP'] == at_100 and len(comparison.groups) == 3
    assert 'max_dets' not in to_markdown(comparison)


def test_runs_of_before_the_limit_was_recorded_are_at_cocos(make_run):
    old, new = make_run('a'), make_run('b', max_dets=100)
    record = json.loads((old / 'metrics.json').read_text())
    write_json(old / 'metrics.json', {k: v for k, v in record.items() if k != 'max_dets'})
    assert len(compare([old, new]).groups) == 2
    write_json(old / 'metrics.json', {**record, 'max_dets': 'all'})
    assert "max_dets is 'all'; expected a whole number from 1" in compare([old, new]).problems[0]


def test_intervals_in_tables_and_files(sweep, tmp_path):
    comparison = compare([sweep], baseline='align-avg', resamples=100, seed=5)
    again = compare([sweep], baseline='align-avg', resamples=100, seed=5)
    pool, other = comparison.groups[1:]
    assert again.groups[1].estimates.metrics.equals(pool.estimates.metrics)
    assert pool.estimates.metrics['value'].equals(pool.mean.rename('value'))
    assert pool.difference_estimates.metrics['value'].tolist() == pytest.approx(
        pool.difference.tolist(), abs=1e-15, nan_ok=True
    )
    assert pool.difference_estimates.metrics['seed_se']['AP'] == pytest.approx(
        pool.difference_std['AP'] / 3**0.5
    )
    assert other.difference_estimates.metrics['seed_se'].isna().all()  # one seed

    tables = make_tables(comparison, digits=2)
    title = 'Box AP, difference to align-avg'
    sure = pool.difference_estimates.metrics.loc['AP']
    trials = {
        '95% interval': f'[{format_points(sure["low"], 2, True)}, {format_points(sure["high"], 2, True)}]',
        'p-value (not corrected)': f'{sure["p"]:.3f}',
        'standard error by images / by seeds': f'{format_points(sure["image_se"], 2)} / '
        f'{format_points(sure["seed_se"], 2)}',
    }
    for suffix, trial in trials.items():
        assert tables[f'{title}, {suffix}'].set_index('Extractor').loc['pool', 'AP'] == trial
    assert '100 resamples of the images (seed 5) and the spread over seeds' in to_markdown(comparison)

    write_comparison(comparison, tmp_path / 'out')
    record = json.loads((tmp_path / 'out' / 'compare.json').read_text())
    assert (record['resamples'], record['resampling_seed'], record['confidence']) == (100, 5, 0.95)
    assert record['categories'] == [{'name': 'thing', 'objects': 10, 'images': 5}]
    estimates = record['groups'][1]['difference_estimates']
    assert estimates['metrics'][0] == {'metric': 'AP', **sure.to_dict()}
    assert [row['iou'] for row in estimates['over_iou']] == list(IOU_THRESHOLDS)
    assert estimates['per_class'][0]['class'] == 'thing'
    with (tmp_path / 'out' / 'compare.csv').open() as lines:
        row = list(csv.DictReader(lines))[1]
    assert float(row['AP_difference_low']) == pytest.approx(100 * sure['low'], rel=1e-15)
    assert float(row['AP_difference_p']) == sure['p']


def test_without_resamples_there_are_no_intervals(make_run):
    comparison = compare([make_run('a'), make_run('b')], baseline='a', resamples=0)
    assert list(make_headline(comparison)) == ['Box AP']
    assert list(make_tables(comparison)) == ['Box AP, difference to a']


def test_details(make_run, tmp_path):
    runs = [make_run(name, error, extractor=name) for name, error in (('a', 0.05), ('b_1', 0.3))]
    comparison = compare(runs, baseline='a', resamples=50, details=True)
    tables = make_tables(comparison)
    errors = tables['Box AP50 lost to each kind of error'].set_index('Extractor')
    lost = comparison.groups[1].errors[0]['ap50_lost']
    assert lost['localization'] > 0.1
    assert errors.loc['b_1', 'Localization'] == format_points(lost['localization'], 1)
    over_iou = tables['Box AP, difference to a, at each IoU'].iloc[0]
    first, second = (group.curves[0] for group in comparison.groups)
    for iou, difference in zip(IOU_THRESHOLDS, second - first, strict=True):
        assert over_iou[f'{iou:.2f}'] == format_points(difference, 1, sign=True)
    by_class = tables['Box AP, difference to a, by class']
    assert by_class['Class'].tolist() == ['thing']
    value = format_points(comparison.groups[1].difference['AP'], 1, sign=True)
    assert by_class['b_1'][0].startswith(f'{value} [')
    assert by_class['b_1'][0].endswith(']*')  # five images
    assert by_class['Images'].tolist() == ['5']
    mark = 'Intervals of classes with a * are from fewer than 20 images: too narrow.'
    assert mark in to_markdown(comparison)
    assert r'b\_1' in to_latex(comparison).split('by class')[1]
    write_comparison(comparison, tmp_path / 'out')
    record = json.loads((tmp_path / 'out' / 'compare.json').read_text())
    assert record['groups'][1]['errors'][0]['localization']['ap50_lost'] == lost['localization']
    (few,) = record['notes']
    assert few.startswith('few images have objects of AP (5)')
    assert f'- Note: {few}\n' in (tmp_path / 'out' / 'compare.md').read_text()
    write_report(comparison, tmp_path / 'report.html', [])
    page = (tmp_path / 'report.html').read_text()
    assert f'note: {few}' in page and mark in page and ']*</td>' in page


@pytest.mark.parametrize('name', ['AlignAvg', 'align_avg', 'AlignAvgRoIExtractor', 'align'])
def test_a_baseline_has_one_name_however_it_is_spelt(make_run, name):
    runs = [make_run(f'run{i}', extractor=extractor) for i, extractor in enumerate(('align-avg', 'AlignMax'))]
    assert compare(runs, baseline=name, resamples=0).baseline == 'align-avg'
    with pytest.raises(ComparisonError, match="no run of the baseline 'align-min'"):
        compare(runs, baseline='align-min', resamples=0)


def test_a_class_of_many_images_has_no_mark(make_run, monkeypatch):
    monkeypatch.setattr('roi_plugins.ablation.report.tables.MIN_IMAGES', 5)
    comparison = compare([make_run('a'), make_run('b', 0.3)], baseline='a', resamples=50, details=True)
    assert make_tables(comparison)['Box AP, difference to a, by class']['b'][0].endswith(']')
    assert 'classes with a *' not in to_markdown(comparison)


def test_boundary_ap_is_a_detail_of_masks(make_run, tmp_path, monkeypatch):
    run = make_run('a')
    ann_file = tmp_path / 'annotations.json'
    truth = json.loads(ann_file.read_text())
    boxes = [annotation['bbox'] for annotation in truth['annotations']]
    for annotation, (x, y, w, h) in zip(truth['annotations'], boxes, strict=True):
        annotation['segmentation'] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    write_json(ann_file, truth)
    predictions = []
    for annotation, (x, y, w, h) in zip(truth['annotations'], boxes, strict=True):
        mask = np.zeros((100, 100), np.uint8, order='F')
        mask[y + 3 : y + h, x + 3 : x + w] = 1  # the contour is off by 3 pixels on two sides
        rle = encode(mask)
        predictions.append(
            {
                'image_id': annotation['image_id'],
                'category_id': 1,
                'score': 0.5,
                'segmentation': {**rle, 'counts': rle['counts'].decode()},
            }
        )
    write_json(run / 'predictions.segm.json', predictions)
    record = json.loads((run / 'metrics.json').read_text())
    record['predictions']['segm'] = 'predictions.segm.json'
    write_json(run / 'metrics.json', record)
    comparison = compare([run], details=True)
    ap = {group.iou_type: group.mean['AP50'] for group in comparison.groups}
    assert list(ap) == ['bbox', 'segm', 'boundary']
    assert ap['segm'] == 1
    assert ap['boundary'] == 0
    write_comparison(comparison, tmp_path / 'out')
    assert '### Boundary AP' in (tmp_path / 'out' / 'compare.md').read_text()

    monkeypatch.setitem(sys.modules, 'faster_coco_eval.core.mask', None)
    comparison = compare([run], details=True)
    assert [group.iou_type for group in comparison.groups] == ['bbox', 'segm']
    assert comparison.problems == ['Boundary AP needs faster-coco-eval: pip install faster-coco-eval']


def test_the_csv_is_in_full_precision(sweep, tmp_path):
    comparison = compare([sweep], baseline='align-avg', resamples=50)
    write_comparison(comparison, tmp_path / 'out', digits=0)
    with (tmp_path / 'out' / 'compare.csv').open() as lines:
        row = list(csv.DictReader(lines))[1]
    pool = comparison.groups[1]
    assert float(row['AP']) == pytest.approx(100 * pool.mean['AP'], rel=1e-15)
    assert float(row['AP_difference_low']) == pytest.approx(
        100 * pool.difference_estimates.metrics['low']['AP'], rel=1e-15
    )
    assert float(row['AP_difference_p']) == pool.difference_estimates.metrics['p']['AP']


def test_a_difference_of_zero_to_the_digits_shown_has_no_p_value(sweep):
    comparison = compare([sweep], baseline='align-avg', resamples=50)
    estimates = comparison.groups[1].difference_estimates.metrics
    estimates.loc['AP', ['value', 'low', 'high', 'p']] = 2e-4, 1e-4, 3e-4, 0.002
    title = 'Box AP, difference to align-avg, p-value (not corrected)'
    assert make_tables(comparison)[title].set_index('Extractor').loc['pool', 'AP'] == '-'
    assert 'zero to the digits shown has no p-value' in to_markdown(comparison)
    assert make_tables(comparison, digits=2)[title].set_index('Extractor').loc['pool', 'AP'] == '0.002'
    assert 'zero to the digits shown has no p-value' not in to_markdown(comparison, digits=2)


def test_intervals_stay_where_ap_can_be(make_run):
    runs = [
        make_run(f'{name}{seed}', error, extractor=name, seed=seed)
        for name, error in (('good', 0.0), ('bad', 0.5))
        for seed in (0, 1)
    ]
    comparison = compare(runs, baseline='good', resamples=50)
    for group in comparison.groups:
        for table in (group.estimates.metrics, group.estimates.over_iou, group.estimates.per_class):
            bounds = table[['low', 'high']].stack()
            assert bounds.dropna().between(0, 1).all()
    bounds = comparison.groups[1].difference_estimates.metrics[['low', 'high']].stack()
    assert bounds.dropna().between(-1, 1).all()
    few, seeds = comparison.notes
    assert few.startswith('few images have objects of AP (5), APs (')
    assert seeds.startswith('two seeds hardly tell')


def test_one_image_gives_no_interval(make_run, tmp_path):
    runs = [make_run('a', 0.01), make_run('b', 0.2)]
    annotations = json.loads((tmp_path / 'annotations.json').read_text())
    annotations['images'] = annotations['images'][:1]
    annotations['annotations'] = [a for a in annotations['annotations'] if a['image_id'] == 1]
    write_json(tmp_path / 'annotations.json', annotations)
    for run in runs:
        found = json.loads((run / 'predictions.bbox.json').read_text())
        write_json(run / 'predictions.bbox.json', [f for f in found if f['image_id'] == 1])
    comparison = compare(runs, baseline='a')
    assert comparison.notes == ['one image cannot be resampled: no intervals and no verdicts']
    assert comparison.groups[1].difference_estimates.metrics['p'].isna().all()
    assert 'interval' not in to_markdown(comparison)


@pytest.mark.parametrize('part', ['images', 'categories'])
def test_annotations_without_images_or_categories_are_named(make_run, tmp_path, part):
    run = make_run('a')
    annotations = json.loads((tmp_path / 'annotations.json').read_text())
    write_json(tmp_path / 'annotations.json', {**annotations, 'annotations': [], part: []})
    write_json(run / 'predictions.bbox.json', [])
    with pytest.raises(DataError, match=f'annotations.json: has no {part}'):
        compare([run])


def test_every_latex_table_has_a_label_of_its_own(sweep):
    comparison = compare([sweep], baseline='align-avg', resamples=20, details=True)
    labels = re.findall(r'\\label\{(.*)\}', to_latex(comparison))
    tables = {**make_headline(comparison), **make_tables(comparison)}
    assert len(labels) == len(set(labels)) == len(tables)
    assert {'tab:box-ap', 'tab:box-ap-difference-to-align-avg-p-value-not-corrected'} <= set(labels)
