"""Datasets of one's own in Detectron2: modules that register them, and COCO files by their names."""

import json
import os

import pytest

pytest.importorskip('detectron2', reason='Detectron2 is not installed')

from detectron2.data import DatasetCatalog, MetadataCatalog

from roi_plugins.integrations.detectron2.datasets import coco_files, import_modules, register_coco_files
from roi_plugins.integrations.errors import RunError

MODULE = """
from detectron2.data.datasets import register_coco_instances
register_coco_instances({name!r}, {{}}, 'annotations.json', 'images')
"""


def test_a_module_of_the_current_folder(tmp_path, monkeypatch):
    """A tool's own folder is on Python's path, not the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data_of_mine.py').write_text(MODULE.format(name='mine_by_module'))
    import_modules(['data_of_mine'])
    import_modules(['data_of_mine'])
    assert MetadataCatalog.get('mine_by_module').json_file == 'annotations.json'


def test_a_file_anywhere(tmp_path):
    path = tmp_path / 'data_in_a_file.py'
    path.write_text(MODULE.format(name='mine_by_file'))
    import_modules([str(path)])
    import_modules([str(path)])
    assert 'mine_by_file' in DatasetCatalog


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('nowhere.to_be_found', None, "nowhere.to_be_found cannot be imported: No module named 'nowhere'"),
        ('nowhere.py', None, 'nowhere.py cannot be imported: .*No such file'),
        ('json.py', '', 'there is another module json already'),
        ('fails.py', 'a = 1\nb = c', r'fails.py cannot be imported: NameError: .*\(line 2 of .*fails\.py\)'),
        ('typo.py', 'a =', r'typo.py cannot be imported: SyntaxError: invalid syntax \(typo\.py, line 1\)$'),
        ('needs.py', 'import what_is_not_there', "needs.py cannot be imported: No module named 'what_is"),
    ],
)
def test_what_cannot_be_imported_is_said(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(RunError, match=message):
        import_modules([str(tmp_path / name) if name.endswith('.py') else name])


def test_coco_files_by_their_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = {'id': 7, 'file_name': 'a.jpg', 'height': 4, 'width': 6}
    found = {'images': [image], 'annotations': [], 'categories': [{'id': 3, 'name': 'cat'}]}
    (tmp_path / 'mine.json').write_text(json.dumps(found))
    name = coco_files('mine.json', 'images')
    assert name == f'{tmp_path}/mine.json@{tmp_path}/images'
    before = set(DatasetCatalog)
    register_coco_files(['coco_2017_val', name])
    register_coco_files([name])
    assert set(DatasetCatalog) - before == {name}
    (record,) = DatasetCatalog.get(name)
    assert record['file_name'] == os.path.join(tmp_path, 'images', 'a.jpg')
    assert MetadataCatalog.get(name).thing_classes == ['cat']
    with pytest.raises(RunError, match=r'not a \.json file'):
        coco_files('mine.txt', 'images')
