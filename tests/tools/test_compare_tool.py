import json
import subprocess
import sys
from pathlib import Path

from roi_plugins.files import write_json
from roi_plugins.run_record import write_run

TOOL = Path(__file__).parents[2] / 'tools' / 'compare.py'


def test_prints_the_table_and_fails_for_a_bad_run(tmp_path):
    ann_file, run = tmp_path / 'annotations.json', tmp_path / 'stock'
    bbox = {'image_id': 1, 'category_id': 1, 'bbox': [10, 10, 50, 50]}
    write_json(
        ann_file,
        {
            'images': [{'id': 1}],
            'annotations': [{**bbox, 'id': 1, 'area': 2500, 'iscrowd': 0}],
            'categories': [{'id': 1, 'name': 'thing'}],
        },
    )
    run.mkdir()
    write_json(run / 'predictions.bbox.json', [{**bbox, 'score': 0.9}])
    write_run(run, framework='mmdet', config='c', checkpoint='x', ann_file=ann_file, command=[])
    write_json(tmp_path / 'half.json', [{**bbox, 'bbox': [10, 10, 50, 36], 'score': 0.9}])

    def tool(*arguments):
        return subprocess.run(
            [sys.executable, TOOL, *arguments], cwd=tmp_path, capture_output=True, text=True
        )

    result = tool('stock', 'half.json', '--ann-file', 'annotations.json', '--baseline', 'stock')
    assert result.returncode == 0, result.stderr
    lines = [' '.join(line.split()) for line in result.stdout.splitlines()]
    for row in (
        '| stock | 1 | **100.0** | 100.0 | **100.0** | - | **100.0** | - |',
        '| half | 1 | 50.0 | 100.0 | 0.0 | - | 50.0 | - | 50.0 | -50.0 |',  # IoU 0.72
    ):
        assert any(line.startswith(row) for line in lines), (row, lines)

    result = tool('stock', 'nowhere', '--digits', '0', '--output', 'out')
    assert result.returncode == 1
    assert result.stderr == (
        'note: one image cannot be resampled: no intervals and no verdicts\n'
        'error: nowhere: no such file or directory\n'
    )
    row = '| stock     | 1 | 100 |'
    assert row in result.stdout
    assert row in (tmp_path / 'out' / 'compare.md').read_text()


def test_bad_input_is_named_and_the_others_are_compared(tmp_path):
    """Each kind of bad run beside two good ones."""
    ann_file, other_ann_file = tmp_path / 'annotations.json', tmp_path / 'other.json'
    bbox = {'image_id': 1, 'category_id': 1, 'bbox': [10, 10, 50, 50]}
    annotations = {
        'images': [{'id': 1}, {'id': 2}],
        'annotations': [{**bbox, 'id': 1, 'area': 2500, 'iscrowd': 0}],
        'categories': [{'id': 1, 'name': 'thing'}],
    }
    write_json(ann_file, annotations)
    write_json(other_ann_file, {**annotations, 'images': [{'id': 1}]})
    detection = {**bbox, 'score': 0.9}
    for name in ('good', 'fine', 'missing', 'foreign', 'images', 'nan', 'empty'):
        run = tmp_path / name
        run.mkdir()
        write_json(run / 'predictions.bbox.json', [detection])
        annotated = other_ann_file if name == 'images' else ann_file
        write_run(run, framework='mmdet', config='c', checkpoint='x', ann_file=annotated, command=[])
    (tmp_path / 'missing' / 'predictions.bbox.json').unlink()
    for name, text in (
        ('foreign', json.dumps([{**detection, 'image_id': 77}])),
        ('nan', json.dumps([detection, {**detection, 'score': float('nan')}])),
        ('empty', '[]'),
    ):
        (tmp_path / name / 'predictions.bbox.json').write_text(text)
    result = subprocess.run(
        [sys.executable, TOOL, '.', '--baseline', 'good', '--details', '--output', 'out'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    for start, cause in (
        ('error: missing/predictions.bbox.json: ', 'missing'),
        ('error: foreign/predictions.bbox.json: prediction 0 ', 'image_id 77'),
        ('error: images: ', f'evaluated on {other_ann_file}'),
        ('error: nan/predictions.bbox.json: prediction 1 ', 'score nan'),
        ('note: empty/predictions.bbox.json: ', 'no predictions'),
        ('note: few images have objects of AP (1)', 'do not rely on them'),
    ):
        assert [line for line in lines if line.startswith(start) and cause in line], result.stderr
    assert len(lines) == 6
    record = json.loads((tmp_path / 'out' / 'compare.json').read_text())
    assert {g['extractor']: round(g['mean']['AP'], 9) for g in record['groups']} == {
        'good': 1,
        'fine': 1,
        'empty': 0,
    }
    assert len(record['problems']) == 4
