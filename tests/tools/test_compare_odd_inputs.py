"""tools/compare.py where a folder, a terminal or an option is not what it is used to."""

import io
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from roi_plugins.ablation.extractor_cost import Cost, Costs
from roi_plugins.files import write_json
from roi_plugins.run_record import write_run

TOOL = Path(__file__).parents[2] / 'tools' / 'compare.py'
COSTS = Costs('a machine', [Cost('', 'a', 8, 0.1, 0.2, 1.0, None, 0, None, None)], [])


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    box = {'image_id': 1, 'category_id': 1, 'bbox': [10, 10, 50, 50]}
    annotation = {**box, 'id': 1, 'area': 2500, 'iscrowd': 0}
    images = [{'id': i, 'width': 99, 'height': 99} for i in (1, 2)]
    categories = [{'id': 1, 'name': 'thing'}]
    write_json('ann.json', {'images': images, 'annotations': [annotation], 'categories': categories})

    def make(name):
        run = Path(os.fsdecode(name))
        run.mkdir()
        write_json(run / 'predictions.bbox.json', [{**box, 'score': 0.9}])
        write_run(
            run, framework='mmdet', config='c', checkpoint='x', ann_file=tmp_path / 'ann.json', command=[]
        )
        return str(run)

    return make


def compare(*arguments):
    return runpy.run_path(str(TOOL))['main'](arguments)


@pytest.mark.parametrize('option', ['--output', '--html'])
def test_an_output_of_the_wrong_kind_is_named(make_run, capsys, option):
    run = make_run('a')
    Path('file').touch()
    Path('folder').mkdir()
    target = 'file' if option == '--output' else 'folder'
    assert compare(run, option, target) == 1
    output, errors = capsys.readouterr()
    (error,) = [line for line in errors.splitlines() if line.startswith('error')]
    assert error.startswith(f'error: {option}: ') and target in error
    assert '| a ' in output  # what was computed is shown all the same


def test_a_folder_whose_name_is_not_utf8(make_run, capsys):
    assert compare(make_run(b'a\xff'), make_run('b'), '--html', 'out.html', '--output', 'out') == 0
    assert '<html' in Path('out.html').read_text(encoding='utf-8')
    assert 'a\ufffd' in Path('out/compare.md').read_text(encoding='utf-8')


def test_a_terminal_that_knows_ascii_alone(make_run):
    result = subprocess.run(
        [sys.executable, TOOL, make_run('größe'), '--output', 'out'],
        env={**os.environ, 'PYTHONIOENCODING': 'ascii'},
        capture_output=True,
    )
    assert result.returncode == 0, result.stderr
    assert b'| gr??e' in result.stdout
    assert Path('out/compare.csv').exists()


def test_a_closed_pipe_loses_no_file(make_run):
    read, write = os.pipe()
    os.close(read)
    run = make_run('a')
    command = [sys.executable, TOOL, run, '--output', 'out', '--html', 'out.html']
    subprocess.run(command, stdout=write, stderr=subprocess.DEVNULL)
    os.close(write)
    assert {path.suffix for path in Path('out').iterdir()} == {'.md', '.csv', '.tex', '.json', '.png', '.svg'}
    assert Path('out.html').exists()


def test_files_come_before_the_first_line(make_run, monkeypatch):
    monkeypatch.setattr('roi_plugins.ablation.extractor_cost.measure_costs', lambda runs: COSTS)
    written = []

    class Terminal(io.StringIO):
        def write(self, text):
            files = sorted(path.name for path in Path('out').iterdir())
            written.append([*files, Path('out.html').exists()])
            return len(text)

    monkeypatch.setattr(sys, 'stdout', Terminal())
    assert compare(make_run('a'), '--cost', '--output', 'out', '--html', 'out.html') == 0
    assert {'compare.md', 'cost.md', 'cost.json', True} <= set(written[0])


def test_details_print_the_tables_alone(make_run, capsys):
    assert compare(make_run('a'), '--details') == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('ann.json, 2 images')
    assert all(not line or line[0] in '|#' for line in lines[1:])


def test_a_module_is_imported_for_the_cost_alone(make_run, tmp_path, capsys):
    run = make_run('a')
    with pytest.raises(SystemExit) as exited:
        compare(run, '--import', 'mine_for_the_cost')
    assert exited.value.code == 2
    assert '--import: a comparison reads predictions' in capsys.readouterr().err
    assert compare(run, '--cost', '--import', 'mine_for_the_cost') == 1
    assert 'error: --import: mine_for_the_cost cannot be imported' in capsys.readouterr().err
    (tmp_path / 'mine_for_the_cost.py').write_text("from pathlib import Path\nPath('imported').touch()\n")
    compare(run, '--cost', '--import', 'mine_for_the_cost')
    assert Path('imported').exists()
    sys.modules.pop('mine_for_the_cost')


def test_a_cost_table_without_a_measurement_is_an_error(make_run, capsys):
    assert compare(make_run('a'), '--cost', '--output', 'out') == 1
    output, errors = capsys.readouterr()
    assert 'error: --cost: no extractor could be measured' in errors
    assert output.count('| a ') == 1
    assert not Path('out/cost.md').exists()
