import json

from roi_plugins.ablation.learning_curves import read_learning_curve


def write_log(path, points, keys=('step', 'loss')):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(dict(zip(keys, point, strict=True))) + '\n' for point in points))
    return path


def test_a_resumed_training_goes_on_at_its_checkpoint(tmp_path):
    write_log(tmp_path / '20260102_000000/vis_data/scalars.json', [(20, 1.5), (30, 1.2)])
    write_log(tmp_path / '20260101_000000/vis_data/scalars.json', [(10, 3), (20, 2), (30, 9), (40, 9)])
    # An evaluation has no loss.
    write_log(tmp_path / '20260103_000000/vis_data/scalars.json', [(1, 0.4)], ('step', 'coco/bbox_mAP'))
    losses, notes = read_learning_curve(tmp_path)
    assert losses.to_dict() == {10: 3, 20: 1.5, 30: 1.2}
    assert not notes


def test_detectron2_appends_to_its_log_when_it_resumes(tmp_path):
    points = [(19, 3), (39, 9), (19, 2), (39, 1)]
    write_log(tmp_path / 'training.json', points, ('iteration', 'total_loss'))
    assert read_learning_curve(tmp_path)[0].to_dict() == {19: 2, 39: 1}


def test_the_log_of_a_stock_training_is_metrics_json(tmp_path):
    write_log(tmp_path / 'metrics.json', [(19, 3), (39, 2)], ('iteration', 'total_loss'))
    assert read_learning_curve(tmp_path)[0].empty  # metrics.json may be ours
    results = tmp_path / 'inference/coco_instances_results.json'
    results.parent.mkdir()
    results.write_text('[]')
    assert read_learning_curve(tmp_path)[0].to_dict() == {19: 3, 39: 2}


def test_a_run_without_logs_has_no_curve(tmp_path):
    assert read_learning_curve(tmp_path)[0].empty
    assert read_learning_curve(tmp_path / 'gone')[0].empty


def test_damaged_lines_are_left_out_with_a_note(tmp_path):
    log = write_log(tmp_path / '1/vis_data/scalars.json', [(10, 3), (20, 2)])
    with log.open('ab') as file:
        file.write(b'{"step": 30, "lo\n[1]\n{"step": "x", "loss": 1}\n{"step": 40, "loss": null}\n\xff\n\n')
        file.write(b'{"step": 50, "loss": NaN}\n')
    losses, (note,) = read_learning_curve(tmp_path)
    assert losses.dropna().to_dict() == {10: 3, 20: 2}
    assert list(losses.index) == [10, 20, 50]
    assert note.startswith(str(log))
    assert '5 of 9 lines' in note
