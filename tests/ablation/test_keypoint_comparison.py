"""Keypoint AP goes through the comparison like that of boxes and masks: tables, intervals and verdicts."""

import json

import numpy as np
import pytest

from roi_plugins.ablation.compare import compare
from roi_plugins.ablation.report.formats import write_comparison
from roi_plugins.ablation.report.page import write_report
from roi_plugins.ablation.report.tables import make_headline, make_tables
from roi_plugins.evaluation.coco import METRICS, evaluate, format_points
from roi_plugins.files import write_json
from roi_plugins.run_record import write_run

SIGMAS = (0.1, 0.05)


@pytest.fixture
def make_run(tmp_path):
    """Makes runs that find two keypoints of each of 60 objects; a higher error is a lower AP."""
    rng = np.random.default_rng(0)
    annotations = [
        {
            'id': i + 1,
            'image_id': 1 + i // 2,
            'category_id': 1,
            'bbox': [50 * (i % 2), 0, 40, 40],
            'area': 1600,
            'iscrowd': 0,
            'keypoints': [50 * (i % 2) + 5, 5, 2, 50 * (i % 2) + 35, 35, 2],
            'num_keypoints': 2,
        }
        for i in range(60)
    ]
    images = [{'id': i, 'height': 100, 'width': 100} for i in range(1, 31)]
    ann_file = tmp_path / 'annotations.json'
    categories = [{'id': 1, 'name': 'thing'}]
    write_json(ann_file, {'images': images, 'annotations': annotations, 'categories': categories})

    def make(name, error, sigmas=SIGMAS, boxes=True, **trial):
        run_dir = tmp_path / name
        run_dir.mkdir(parents=True)
        found = []
        for a in annotations:
            shift = rng.normal(0, error, 6) * [1, 1, 0, 1, 1, 0]
            keypoints = (np.array(a['keypoints']) + shift).tolist()
            common = {key: a[key] for key in ('image_id', 'category_id', 'bbox')}
            found.append({**common, 'score': float(rng.random()), 'keypoints': keypoints})
        write_json(run_dir / 'predictions.keypoints.json', found)
        if boxes:
            write_json(run_dir / 'predictions.bbox.json', found)
        record = {'format': 1, 'config_name': 'tiny', 'state': 'finished', 'started': '', **trial}
        write_json(run_dir / 'trial.json', record)
        options = {'config': 'c', 'checkpoint': 'x', 'ann_file': ann_file, 'command': []}
        write_run(run_dir, framework='detectron2', **options, sigmas=sigmas)
        return run_dir

    return make


def test_tables_intervals_and_verdicts(make_run, tmp_path):
    for seed in range(3):
        make_run(f'sweep/a{seed}', 2, extractor='align-avg', seed=seed)
        make_run(f'sweep/b{seed}', 4, extractor='pool', seed=seed)
    comparison = compare(
        [tmp_path / 'sweep'], baseline='align-avg', primary_metric='keypoints/AP', margin=0.02, details=True
    )
    assert not comparison.problems
    groups = [group for group in comparison.groups if group.iou_type == 'keypoints']
    assert [group.extractor for group in groups] == ['align-avg', 'pool']
    expected = [
        evaluate(
            tmp_path / 'annotations.json',
            tmp_path / f'sweep/b{seed}/predictions.keypoints.json',
            'keypoints',
            sigmas=SIGMAS,
        )['AP']
        for seed in range(3)
    ]
    assert groups[1].runs['AP'].tolist() == expected
    assert groups[1].verdict.word == 'worse'
    interval = groups[1].difference_estimates.metrics.loc['AP']
    assert interval['low'] < interval['value'] < interval['high'] < 0
    # The errors by kind are of boxes and masks.
    assert not groups[1].errors

    headline = make_headline(comparison)
    assert list(headline)[-1] == 'Keypoint AP'
    row = headline['Keypoint AP'].set_index('Extractor').loc['pool']
    assert format_points(float(np.mean(expected)), 1) in row['AP']
    assert {'Verdict'} <= set(headline['Keypoint AP'].columns) - set(headline['Box AP'].columns)
    assert 'Keypoint AP, difference to align-avg' in make_tables(comparison)
    write_comparison(comparison, tmp_path / 'out')
    record = json.loads((tmp_path / 'out/compare.json').read_text())
    assert record['runs'][0]['metrics']['keypoints'].keys() >= set(METRICS)
    write_report(comparison, tmp_path / 'report.html', ['x'])
    page = (tmp_path / 'report.html').read_text()
    assert 'Keypoint AP' in page
    assert 'keypoints</' in page and 'm-3 -3v6' in page  # crosses in the pictures


def test_runs_of_other_sigmas_are_not_compared(make_run):
    runs = [
        make_run('a', 2, extractor='a', seed=0),
        make_run('b', 2, extractor='b', seed=0, sigmas=(0.1, 0.1)),
        make_run('c', 2, extractor='c', seed=0),
    ]
    comparison = compare(runs)
    (problem,) = comparison.problems
    assert str(runs[1]) in problem and 'other OKS sigmas' in problem
    assert [run.extractor for run, _ in comparison.metrics] == ['a', 'c']


def test_keypoints_alone_are_the_primary_metric(make_run):
    runs = [make_run(name, 2, extractor=name, seed=0, boxes=False) for name in 'ab']
    assert compare(runs).primary_metric == 'keypoints/AP'


def test_a_file_of_detectron2s_own_evaluator_has_boxes_and_keypoints(make_run, tmp_path):
    """COCO's 17 keypoints; those of another number have sigmas that such a file does not tell."""
    run = make_run('a', 2, extractor='a', seed=0)
    found = json.loads((run / 'predictions.keypoints.json').read_text())
    (tmp_path / 'stock/inference').mkdir(parents=True)
    write_json(tmp_path / 'stock/inference/coco_instances_results.json', found)
    with pytest.raises(ValueError, match=r'keypoints of 6 numbers.*17 keypoints'):
        compare([tmp_path / 'stock'], tmp_path / 'annotations.json')
    dataset = json.loads((tmp_path / 'annotations.json').read_text())
    for entry in (*found, *dataset['annotations']):
        entry['keypoints'] = (entry['keypoints'] * 9)[:51]
    write_json(tmp_path / 'stock/inference/coco_instances_results.json', found)
    write_json(tmp_path / 'annotations.json', dataset)
    ((_, metrics),) = compare([tmp_path / 'stock'], tmp_path / 'annotations.json').metrics
    assert metrics.keys() == {'bbox', 'keypoints'}
