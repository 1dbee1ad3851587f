"""The options of tools/compare.py that write a page and measure costs."""

import runpy
from pathlib import Path

import pytest

from roi_plugins.files import write_json

TOOL = Path(__file__).parents[2] / 'tools/compare.py'


@pytest.fixture
def tool(tmp_path, monkeypatch):
    bbox = {'image_id': 1, 'category_id': 1, 'bbox': [10, 10, 50, 50]}
    annotation = {**bbox, 'id': 1, 'area': 2500, 'iscrowd': 0}
    categories = [{'id': 1, 'name': 'thing'}]
    # An image of unknown size, which cannot be drawn.
    write_json(
        tmp_path / 'annotations.json',
        {'images': [{'id': 1}], 'annotations': [annotation], 'categories': categories},
    )
    write_json(tmp_path / 'whole.json', [{**bbox, 'score': 0.9}])
    write_json(tmp_path / 'half.json', [{**bbox, 'bbox': [10, 10, 50, 36], 'score': 0.9}])
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(TOOL))['main']
    return lambda *options: main(['whole.json', 'half.json', '--ann-file', 'annotations.json', *options])


def test_html_writes_the_page_with_its_command(tool, tmp_path):
    assert tool('--baseline', 'whole', '--html', 'pages/report.html') == 0
    text = (tmp_path / 'pages/report.html').read_text()
    assert 'Box AP, difference to whole' in text
    assert '--ann-file annotations.json --baseline whole --html pages/report.html' in text
    assert [path.name for path in (tmp_path / 'pages').iterdir()] == ['report.html']


def test_html_that_cannot_be_written_is_an_error(tool, tmp_path, capsys):
    (tmp_path / 'taken').write_text('')
    assert tool('--html', 'taken/report.html') == 1
    assert 'taken' in capsys.readouterr().err
    assert (tmp_path / 'taken').read_text() == ''


def test_cost_of_bare_predictions_is_an_error_beside_the_table(tool, tmp_path, capsys):
    assert tool('--cost', '--html', 'report.html', '--output', 'out') == 1
    out, err = capsys.readouterr()
    assert '### Box AP' in out
    assert err.count('its cost is not measured: predictions alone tell nothing of it') == 2
    assert 'its cost is not measured' in (tmp_path / 'report.html').read_text()
    assert 'no extractor could be measured' in err
    assert not (tmp_path / 'out/cost.json').exists()
