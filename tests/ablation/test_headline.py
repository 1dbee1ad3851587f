"""What a comparison prints first, and what it must not claim."""

import csv
import json
import re

import numpy as np
import pytest

from roi_plugins.ablation.compare import ComparisonError, compare
from roi_plugins.ablation.report.formats import headline, to_latex, write_comparison
from roi_plugins.ablation.report.tables import find_best, make_headline
from roi_plugins.commands.compare import main
from roi_plugins.evaluation.coco import format_points
from roi_plugins.evaluation.verdict import judge, smallest_difference
from roi_plugins.files import write_json

ONE_SEED = 'One seed: these networks only; ask for three.'
VERDICTS = ('better', 'worse', 'alike', 'open')


@pytest.fixture
def make_sweep(make_run, tmp_path):
    """Makes runs of a good extractor, one that is far worse, and one that is nearly as good."""

    def make(seeds):
        for seed in range(seeds):
            for extractor, error in (('align', 0.05), ('pool', 0.3), ('warp', 0.06)):
                make_run(f'sweep/{extractor}{seed}', error, extractor=extractor, seed=seed)
        return tmp_path / 'sweep'

    return make


@pytest.fixture
def printed(capsys):
    """Runs the command; returns the rows of the one table that it prints, and all its output."""

    def run(*arguments):
        assert main([*map(str, arguments)]) == 0
        output, errors = capsys.readouterr()
        assert output.count('### ') == 1
        rows = [
            [cell.strip(' *') for cell in line.strip('|').split('|')]
            for line in output.splitlines()
            if line.startswith('| ')
        ]
        return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]], output + errors

    return run


def test_one_run(make_run, printed):
    (row,), text = printed(make_run('alone'))
    assert row.keys() == {'Extractor', 'n', 'AP', 'AP50', 'AP75', 'APs', 'APm', 'APl', 'AR'}
    assert float(row['AP']) > 0 and row['APl'] == '-'
    assert ONE_SEED in text
    assert '**' not in text  # nothing is best alone


def test_one_seed_has_no_verdict_and_no_p_value(make_sweep, printed, tmp_path):
    rows, text = printed(make_sweep(1), '--baseline', 'align', '--output', tmp_path / 'out')
    assert ONE_SEED in text
    assert [row['Verdict'] for row in rows] == ['-', 'one seed', 'one seed']
    assert [row['Smallest difference'] for row in rows] == ['-'] * 3
    assert rows[0]['AP difference'] == 'baseline'
    assert re.fullmatch(r'-\d+\.\d \[-\d+\.\d, -\d+\.\d\]', rows[1]['AP difference'])
    assert not re.search(r'p[-]value|p <', text)
    for name in ('compare.md', 'compare.tex'):
        written = (tmp_path / 'out' / name).read_text()
        assert 'p-value' not in written
        assert not any(re.search(rf'\b{verdict}\b', written) for verdict in VERDICTS)
    with (tmp_path / 'out' / 'compare.csv').open() as lines:
        assert all(not row['AP_difference_p'] and not row.get('verdict') for row in csv.DictReader(lines))
    record = json.loads((tmp_path / 'out' / 'compare.json').read_text())
    assert all(group['verdict'] is None for group in record['groups'])


def test_two_seeds_have_a_verdict_with_a_warning(make_sweep, printed):
    rows, text = printed(make_sweep(2), '--baseline', 'align')
    assert ONE_SEED not in text
    assert all(row['Verdict'] in VERDICTS for row in rows[1:])
    assert 'two seeds hardly tell how much seeds differ' in text


def test_three_seeds(make_sweep, printed):
    rows, text = printed(make_sweep(3), '--baseline', 'align')
    assert [row['n'] for row in rows] == ['3'] * 3
    assert rows[1]['Verdict'] == 'worse'
    assert float(rows[1]['Smallest difference']) > 0
    assert 'two seeds' not in text
    assert "Holm's correction for 2 comparisons" in text
    assert 'few images have objects of AP (5)' in text


def test_one_image_has_neither_intervals_nor_verdicts(make_sweep, printed, tmp_path):
    sweep = make_sweep(3)
    annotations = json.loads((tmp_path / 'annotations.json').read_text())
    annotations['images'] = annotations['images'][:1]
    annotations['annotations'] = [a for a in annotations['annotations'] if a['image_id'] == 1]
    write_json(tmp_path / 'annotations.json', annotations)
    for path in sweep.glob('*/predictions.bbox.json'):
        write_json(path, [found for found in json.loads(path.read_text()) if found['image_id'] == 1])
    rows, text = printed(sweep, '--baseline', 'align')
    assert [row['Verdict'] for row in rows] == ['-'] * 3
    assert '[' not in rows[1]['AP difference'] and float(rows[1]['AP difference']) < 0
    assert 'one image cannot be resampled: no intervals and no verdicts' in text


def test_no_detections(make_sweep, printed):
    sweep = make_sweep(3)
    for path in sweep.glob('pool*/predictions.bbox.json'):
        write_json(path, [])
    rows, text = printed(sweep, '--baseline', 'align')
    assert (rows[1]['AP'], rows[1]['Verdict']) == ('0.0', 'worse')
    assert text.count('has no predictions: its AP is 0') == 3


def test_seeds_of_one_extractor_alone_give_no_verdict(make_sweep, make_run, printed, tmp_path):
    make_run('sweep/late0', 0.4, extractor='late', seed=0)
    rows, text = printed(make_sweep(3), '--baseline', 'align')
    by_name = {row['Extractor']: row for row in rows}
    assert by_name['late']['Verdict'] == 'one seed'
    assert by_name['pool']['Verdict'] == 'worse'
    assert 'n = 1 is one seed: these networks only; ask for three.' in text


def test_the_verdict_is_about_the_primary_metric_and_its_margin(make_sweep, printed):
    sweep = make_sweep(3)
    comparison = compare([sweep], baseline='align', primary_metric='bbox/AP75', margin=0.3)
    _, pool, warp = comparison.groups
    differences = [group.difference_estimates.metrics.loc['AP75'] for group in (pool, warp)]
    assert [pool.verdict, warp.verdict] == judge(differences, 0.3)
    assert warp.verdict.word == 'alike'
    assert warp.verdict.smallest_difference == smallest_difference(differences[1], 2)
    table = make_headline(comparison)['Box AP'].set_index('Extractor')
    assert table.loc['pool', 'AP75 difference'].startswith(format_points(differences[0]['value'], 1, True))
    assert 'Verdict on Box AP75: alike if the interval is within ±30.0, ' in headline(comparison)

    rows, _ = printed(sweep, '--baseline', 'align', '--primary-metric', 'bbox/AP75', '--margin', 30)
    assert rows[2]['Verdict'] == 'alike'
    with pytest.raises(ComparisonError, match="'segm/AP'; expected one that the runs have: bbox/AP, "):
        compare([sweep], primary_metric='segm/AP')
    for margin in ('-1', 'nan', 'inf', '100.5', 'x'):
        with pytest.raises(SystemExit):
            main([str(sweep), '--margin', margin])


def test_all_configs_of_a_plan_share_the_correction(make_run):
    runs = [
        make_run(f'{config}-{extractor}{seed}', error, config_name=config, extractor=extractor, seed=seed)
        for config in ('c4', 'fpn')
        for extractor, error in (('align', 0.05), ('pool', 0.2))
        for seed in range(3)
    ]
    comparison = compare(runs, baseline='align')
    _, first, _, second = comparison.groups
    differences = [group.difference_estimates.metrics.loc['AP'] for group in (first, second)]
    assert first.verdict.p == pytest.approx(2 * differences[0]['p'])
    assert [first.verdict, second.verdict] == judge(differences, 0)


def test_the_best_means_are_bold(make_run):
    runs = [
        make_run(f'{config}-{name}', error, config_name=config, extractor=name, seed=0)
        for config, names in (('x', ('good', 'bad', 'twin')), ('y', ('bad', 'good')))
        for name in names
        for error in [{'bad': 0.3}.get(name, 0.05)]
    ]
    comparison = compare(runs, baseline='bad')
    table = make_headline(comparison)['Box AP']
    best = find_best(table)
    assert best['AP'].tolist() == [True, False, True, False, True]
    assert not best['APl'].any() and not best['n'].any()
    points = table['AP'][0]
    assert headline(comparison).count(f' **{points}** |') >= 3
    assert rf' & \textbf{{{points}}} & ' in to_latex(comparison)
    assert np.isfinite(float(points))


def test_files_have_the_verdict_in_full_precision(make_sweep, tmp_path):
    comparison = compare([make_sweep(3)], baseline='align', margin=0.01)
    write_comparison(comparison, tmp_path / 'out')
    verdict = comparison.groups[1].verdict
    with (tmp_path / 'out' / 'compare.csv').open() as lines:
        baseline, pool, _ = csv.DictReader(lines)
    assert (baseline['verdict'], pool['verdict']) == ('', verdict.word)
    assert pool['primary_metric'] == 'bbox/AP'
    assert float(pool['verdict_p']) == verdict.p
    assert float(pool['smallest_difference']) == pytest.approx(100 * verdict.smallest_difference, rel=1e-15)
    record = json.loads((tmp_path / 'out' / 'compare.json').read_text())
    assert (record['primary_metric'], record['margin']) == ('bbox/AP', 0.01)
    assert record['groups'][1]['verdict'] == {
        'word': verdict.word,
        'p': verdict.p,
        'smallest_difference': verdict.smallest_difference,
    }
    assert record['groups'][0]['verdict'] is None
