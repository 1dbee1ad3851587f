import json

from roi_plugins.ablation.compare import compare
from roi_plugins.ablation.records import read_record
from roi_plugins.ablation.report.formats import to_dict
from roi_plugins.ablation.results import Run, find_runs
from roi_plugins.files import write_json


def test_a_trial_and_a_run_of_no_plan(make_run, tmp_path):
    trial = make_run('sweep/a', seed=3, extractor='align-max')
    run = make_run('mine')
    found = find_runs([trial, run, trial])
    ann_file = tmp_path / 'annotations.json'
    predictions = {'bbox': trial / 'predictions.bbox.json'}
    assert found.runs == [
        Run(str(trial), 'align-max', 'mask_rcnn', 3, 'mmdet', ann_file, predictions),
        Run(str(run), 'mine', '', None, 'mmdet', ann_file, {'bbox': run / 'predictions.bbox.json'}),
    ]
    assert not found.problems + found.notes


def test_a_sweep_is_in_the_order_of_its_plan_without_unfinished_trials(make_run, tmp_path):
    make_run('sweep/b', extractor='first', started='2026-01-01T00:00:00')
    make_run('sweep/a', extractor='second', started='2026-01-01T00:01:00')
    pending = make_run('sweep/c', extractor='third', state='failed', started='2026')
    (pending / 'metrics.json').unlink()
    (tmp_path / 'sweep' / 'notes').mkdir()
    found = find_runs([tmp_path / 'sweep'])
    assert [run.extractor for run in found.runs] == ['first', 'second']
    assert found.notes == [f'{pending}: not finished (state: failed); left out']
    assert not found.problems
    assert 'not evaluated' in find_runs([pending]).problems[0]


def test_records_of_an_earlier_version_are_read(make_run, tmp_path):
    """Which called a trial a cell."""
    expected = find_runs([make_run('sweep/a', seed=3, extractor='align-max')]).runs
    record = tmp_path / 'sweep/a/trial.json'
    record.rename(record.with_name('cell.json'))
    assert find_runs([tmp_path / 'sweep']).runs == expected
    (tmp_path / 'sweep/a/metrics.json').unlink()
    assert 'not finished (state: finished)' in find_runs([tmp_path / 'sweep']).notes[0]


def test_runs_of_the_same_name_keep_apart(make_run):
    first, second = make_run('x/test'), make_run('y/test')
    assert [run.extractor for run in find_runs([first, second]).runs] == [str(first), str(second)]


def test_prediction_files(make_run, tmp_path):
    make_run('r')
    boxes = (tmp_path / 'r' / 'predictions.bbox.json').rename(tmp_path / 'stock.bbox.json')
    masks = tmp_path / 'stock.segm.json'
    masks.write_text('[]')
    both = tmp_path / 'coco_instances_results.json'
    both.write_text(json.dumps([{'bbox': [], 'segmentation': {}}]))
    found = find_runs([boxes, masks, both], 'a.json')
    assert [(run.extractor, run.predictions) for run in found.runs] == [
        ('stock', {'bbox': boxes, 'segm': masks}),
        ('coco_instances_results', {'bbox': both, 'segm': both}),
    ]
    assert 'needs --ann-file' in find_runs([boxes]).problems[0]


def test_what_cannot_be_read_is_a_problem_and_the_others_are_read(make_run, tmp_path):
    good = make_run('good')
    no_predictions = make_run('no_predictions')
    (no_predictions / 'predictions.bbox.json').unlink()
    no_annotations = make_run('no_annotations')
    record = json.loads((no_annotations / 'metrics.json').read_text())
    write_json(no_annotations / 'metrics.json', {**record, 'ann_file': 'gone.json'})
    broken = make_run('broken')
    (broken / 'metrics.json').write_text('{')
    no_seed = make_run('no_seed')
    write_json(no_seed / 'trial.json', {'format': 1, 'extractor': 'x', 'config_name': 'y'})
    future = make_run('future')
    write_json(future / 'metrics.json', {**record, 'format': 2})
    bad = [no_predictions, no_annotations, broken, no_seed, future, tmp_path / 'nowhere']
    found = find_runs([*bad, good])
    assert [run.name for run in found.runs] == [str(good)]
    for path, problem, cause in zip(
        bad,
        found.problems,
        ['missing', 'gone.json.*--ann-file', 'not JSON', 'lacks seed', 'format 1', 'no such file'],
        strict=True,
    ):
        assert problem.startswith(str(path))
        assert all(part in problem for part in cause.split('.*'))
    assert len(find_runs([no_annotations], tmp_path / 'annotations.json').runs) == 1


def test_what_only_tested_a_checkpoint_says_what_it_was_trained_with(make_run):
    trained = make_run('mask_rcnn.align-avg.seed0', extractor='align-avg')
    swapped = make_run('mask_rcnn.align-avg.align-max.seed0', extractor='align-max', trained_with='align-avg')
    runs = find_runs([trained, swapped]).runs
    assert [run.config_name for run in runs] == ['mask_rcnn', 'mask_rcnn, trained with align-avg']
    assert [run.extractor for run in runs] == ['align-avg', 'align-max']


def make_stock_detectron2_run(make_run, folder):
    """What a script of one's own leaves with Detectron2's DefaultTrainer and COCOEvaluator."""
    run = make_run(folder)
    (run / 'inference').mkdir()
    (run / 'predictions.bbox.json').rename(run / 'inference' / 'coco_instances_results.json')
    (run / 'metrics.json').write_text('{"iteration": 19, "loss": 1.5}\n{"iteration": 39, "loss": 1.2}\n')
    return run


def test_runs_of_detectron2s_own_evaluator_are_recognised(make_run, tmp_path):
    runs = [make_stock_detectron2_run(make_run, f'mine/{name}') for name in ('one', 'two')]
    ann_file = tmp_path / 'annotations.json'
    found = find_runs([tmp_path / 'mine'], ann_file)
    assert not found.problems
    assert sorted((run.extractor, run.framework) for run in found.runs) == [
        ('one', 'detectron2'),
        ('two', 'detectron2'),
    ]
    files = [run / 'inference' / 'coco_instances_results.json' for run in runs]
    found = find_runs(files, ann_file)
    assert [run.extractor for run in found.runs] == ['one', 'two']
    (problem,) = find_runs([runs[0]]).problems
    assert 'needs --ann-file' in problem


def test_a_detectron2_run_is_its_output_directory_or_the_folder_inference(make_run, tmp_path):
    run = make_stock_detectron2_run(make_run, 'mine')
    (run / 'inference' / 'instances_predictions.pth').write_bytes(b'')
    ann_file = tmp_path / 'annotations.json'
    for path, name in ((run, 'align'), (run / 'inference', 'align'), (run / 'inference', None)):
        found = find_runs([f'{name}={path}' if name else path], ann_file)
        assert not found.problems
        (read,) = found.runs
        assert (read.extractor, read.framework, read.seed) == (name or 'mine', 'detectron2', None)
        assert read.predictions == {'bbox': run / 'inference' / 'coco_instances_results.json'}
        assert read_record(read) is None


def test_a_detectron2_training_without_predictions_says_what_is_missing(make_run, tmp_path):
    run = make_stock_detectron2_run(make_run, 'mine')
    (run / 'inference' / 'coco_instances_results.json').unlink()
    (problem,) = find_runs([f'align={run}'], tmp_path / 'annotations.json').problems
    assert problem.startswith(str(run))
    assert 'expected inference/coco_instances_results.json' in problem
    assert '--eval-only' in problem


def make_stock_mmdet_run(make_run, folder, prefix='results'):
    """What MMDetection's tools leave with ``CocoMetric.outfile_prefix``."""
    run = make_run(folder)
    (run / 'predictions.bbox.json').rename(run / f'{prefix}.bbox.json')
    (run / f'{prefix}.segm.json').write_text('[]')
    (run / 'metrics.json').unlink()
    log = run / '20260101_000000'
    (log / 'vis_data').mkdir(parents=True)
    for file in (log / '20260101_000000.json', log / 'vis_data' / 'scalars.json'):
        file.write_text('{"coco/bbox_mAP": 0.1}\n')
    return run


def test_a_folder_of_mmdetections_predictions_is_a_run(make_run, tmp_path):
    run = make_stock_mmdet_run(make_run, 'x/mine', 'any.thing')
    ann_file = tmp_path / 'annotations.json'
    predictions = {iou_type: run / f'any.thing.{iou_type}.json' for iou_type in ('bbox', 'segm')}
    for path, name in ((f'align={run}', 'align'), (run, 'mine'), (tmp_path / 'x', 'mine')):
        found = find_runs([path], ann_file)
        assert not found.problems
        assert found.runs == [Run(str(run), name, '', None, 'mmdet', ann_file, predictions)]
        assert read_record(found.runs[0]) is None
    assert 'needs --ann-file' in find_runs([run]).problems[0]


def test_predictions_of_two_prefixes_are_not_mixed(make_run, tmp_path):
    run = make_stock_mmdet_run(make_run, 'mine', 'first')
    (run / 'second.segm.json').write_text('[]')
    found = find_runs([f'align={run}'], tmp_path / 'annotations.json')
    assert not found.runs
    (problem,) = found.problems
    assert '2 prefixes (first, second)' in problem
    assert 'give one file of each' in problem


def test_an_unfinished_trial_is_no_folder_of_mmdetections_predictions(make_run, tmp_path):
    trial = make_run('sweep/a', extractor='pool', state='failed')
    (trial / 'metrics.json').unlink()
    found = find_runs([tmp_path / 'sweep'], tmp_path / 'annotations.json')
    assert not found.runs + found.problems
    assert len(found.notes) == 1


def test_runs_with_one_label_are_the_seeds_of_an_extractor_without_partners(make_run, tmp_path):
    runs = {
        (label, i): make_stock_detectron2_run(make_run, f'{label}{i}') for label in 'ab' for i in range(2)
    }
    paths = [f'{label}={run}' for (label, _), run in runs.items()]
    comparison = compare(paths, tmp_path / 'annotations.json', baseline='a', resamples=20)
    assert not comparison.problems
    groups = {group.extractor: group for group in comparison.groups}
    assert [(name, list(group.runs.index)) for name, group in groups.items()] == [
        (label, [str(runs[label, i]) for i in range(2)]) for label in 'ab'
    ]
    # Nobody said which seeds belong together: not one difference for each seed.
    assert groups['b'].difference_std.isna().all()
    assert groups['b'].difference_estimates.metrics['seed_se'].notna().any()
    assert json.loads(json.dumps(to_dict(comparison)))['groups'][1]['seeds'] == list(groups['b'].runs.index)


def test_a_label_is_kept_beside_a_folder_of_that_name(make_run, tmp_path):
    first, second = (make_stock_detectron2_run(make_run, name) for name in ('x/one', 'y/a'))
    found = find_runs([f'a={first}', second], tmp_path / 'annotations.json')
    assert [run.extractor for run in found.runs] == ['a', str(second)]


def test_the_files_of_one_run_can_be_labelled(make_run, tmp_path):
    run = make_stock_mmdet_run(make_run, 'mine')
    files = [f'align={run}/results.{iou_type}.json' for iou_type in ('bbox', 'segm')]
    (read,) = find_runs(files, tmp_path / 'annotations.json').runs
    assert (read.extractor, list(read.predictions)) == ('align', ['bbox', 'segm'])


def test_a_run_can_be_labelled(make_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run('a')
    make_run('sweep/b', extractor='pool')
    make_run('sweep/c', extractor='warp')
    make_run('d=e')
    found = find_runs(['mine=a', 'theirs=sweep/b', 'd=e'])
    assert [run.extractor for run in found.runs] == ['mine', 'theirs', 'd=e']
    (problem,) = find_runs(['x=sweep']).problems
    assert 'x=sweep: sweep holds 2 runs' in problem
    assert 'give each, as in x=sweep/' in problem
