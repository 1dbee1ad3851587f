"""What comes from elsewhere is data: checkpoints, plans, records, annotations. None of it runs or escapes."""

import ast
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import roi_plugins
from roi_plugins.ablation.compare import compare
from roi_plugins.ablation.plan import PlanError, load_plan
from roi_plugins.ablation.report.formats import to_latex, to_markdown, write_comparison
from roi_plugins.ablation.report.page import write_report
from roi_plugins.ablation.results import find_runs
from roi_plugins.files import write_json
from roi_plugins.integrations.checkpoints import check_pickle, is_whole, weights_only
from roi_plugins.integrations.errors import RunError
from roi_plugins.run_record import write_run

PACKAGE = Path(roi_plugins.__file__).parent
FORBIDDEN = {
    'eval', 'exec', 'pickle.load', 'pickle.loads', 'yaml.load', 'yaml.unsafe_load', 'yaml.full_load',
    'torch.load', 'np.load', 'os.system', 'os.popen', 'marshal.loads', 'shelve.open', 'LazyConfig.load_rel',
}  # fmt: skip


class Attack:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f'touch {self.file}',)


@pytest.fixture
def trap(tmp_path):
    """A file that is there once an attack has run."""
    path = tmp_path / 'attacked'
    yield path
    assert not path.exists()


def test_no_source_calls_what_runs_foreign_data():
    sources = [*PACKAGE.rglob('*.py'), *(PACKAGE.parent / 'tools').rglob('*.py')]
    assert len(sources) > 50
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in FORBIDDEN, f'{source}:{node.lineno}'
                assert not any(
                    keyword.arg == 'shell' or (keyword.arg == 'weights_only' and not keyword.value.value)
                    for keyword in node.keywords
                ), f'{source}:{node.lineno}'


@pytest.mark.parametrize('off', [False, True])
def test_torch_load_is_safe_even_where_the_environment_turns_it_off(tmp_path, trap, monkeypatch, off):
    torch.save({'model': {}, 'more': Attack(trap)}, tmp_path / 'bad.pth')
    torch.save({'model': {'weight': torch.ones(2)}}, tmp_path / 'good.pth')
    if off:
        monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    before = dict(os.environ)
    with weights_only():
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / 'bad.pth')
        assert torch.load(tmp_path / 'good.pth')['model']['weight'].tolist() == [1, 1]
    assert dict(os.environ) == before


def test_pickles_of_weights_are_of_arrays_alone(tmp_path, trap):
    """Detectron2's model zoo has such files, some written by Python 2."""
    weights = OrderedDict(conv1_w=np.ones((2, 3), 'float32'), step=np.float64(3))
    for protocol in (2, 4):
        (tmp_path / 'good.pkl').write_bytes(pickle.dumps({'model': weights, '__author__': 'x'}, protocol))
        check_pickle(tmp_path / 'good.pkl')
        (tmp_path / 'bad.pkl').write_bytes(pickle.dumps({**weights, 'more': Attack(trap)}, protocol))
        with pytest.raises(pickle.UnpicklingError, match=r'system is not allowed'):
            check_pickle(tmp_path / 'bad.pkl')


class TestDetectron2:
    @pytest.fixture(autouse=True)
    def modules(self):
        pytest.importorskip('detectron2', reason='Detectron2 is not installed')
        from roi_plugins.integrations.detectron2 import checkpoints, config

        self.checkpoints, self.config = checkpoints, config

    @pytest.mark.parametrize('suffix', ['pth', 'pkl', 'pyth'])
    def test_a_checkpoint_that_runs_code_is_refused(self, tmp_path, trap, suffix):
        content = {'model': {}, 'model_state': {}, '__author__': 'x', 'more': Attack(trap)}
        path = tmp_path / f'bad.{suffix}'
        if suffix == 'pkl':
            path.write_bytes(pickle.dumps(content))
        else:
            torch.save(content, path)
        with pytest.raises(RunError, match=rf'bad\.{suffix} was not loaded'):
            self.checkpoints.DataCheckpointer(torch.nn.Linear(2, 2)).load(str(path))

    def test_weights_of_the_model_zoo_are_read(self, tmp_path):
        model = torch.nn.Linear(2, 2)
        weights = {'weight': np.full((2, 2), 3, 'float32'), 'bias': np.zeros(2, 'float32')}
        (tmp_path / 'R-50.pkl').write_bytes(pickle.dumps({'model': weights, '__author__': 'zoo'}, 2))
        self.checkpoints.DataCheckpointer(model).load(str(tmp_path / 'R-50.pkl'))
        assert model.weight.tolist() == [[3, 3], [3, 3]]

    def test_a_yaml_config_that_runs_code_is_refused(self, tmp_path, trap):
        path = tmp_path / 'config.yaml'
        path.write_text(f'OUTPUT_DIR: !!python/object/apply:os.system ["touch {trap}"]')
        with pytest.raises(RunError, match='cannot be read: '):
            self.config.read_config(path)


ODD_NAMES = ['../up', '/etc/x', 'a/b', 'a\nb', 'a\n', '..', '.', '', 'a b', '<b>', 'a\0']


@pytest.mark.parametrize('name', ODD_NAMES)
@pytest.mark.parametrize('where', ['extractors', 'configs', 'checkpoints'])
def test_names_in_a_plan_cannot_leave_the_work_directory(tmp_path, name, where):
    (tmp_path / 'c.py').touch()
    config = {'framework': 'mmdet', 'path': 'c.py', 'checkpoints': {'avg': 'weights.pth'}}
    if where == 'checkpoints':
        config['checkpoints'] = {name: 'weights.pth'}
    extractor = name if where == 'extractors' else 'avg'
    plan = {
        'name': 'plan',
        'work_dir': 'work',
        'baseline': extractor,
        'configs': {name if where == 'configs' else 'c': config},
        'extractors': [extractor],
        'seeds': [0],
    }
    (tmp_path / 'plan.yaml').write_text(yaml.safe_dump(plan))
    with pytest.raises(PlanError, match=r'letters, digits, - and _'):
        load_plan(tmp_path / 'plan.yaml')


SCRIPT = '<script>alert(1)</script>'
NAMES = {'extractor': f'{SCRIPT}$\\frac$', 'config_name': f'a\n\n# heading | {SCRIPT} $$'}


@pytest.fixture
def hostile_run(tmp_path):
    """A run of elsewhere whose classes, files and names are markup, or lead out of its folder."""
    data = tmp_path / 'data'
    (data / 'annotations').mkdir(parents=True)
    Image.new('RGB', (32, 32), 'red').save(tmp_path / 'secret.png')
    box = [4, 4, 20, 20]
    names = ['../secret.png', str(tmp_path / 'secret.png'), f'{SCRIPT}.png']
    ann_file = data / 'annotations/instances_val.json'
    write_json(
        ann_file,
        {
            'images': [
                {'id': i, 'width': 32, 'height': 32, 'file_name': name} for i, name in enumerate(names)
            ],
            'categories': [{'id': 1, 'name': f'{SCRIPT}\n| x |'}],
            'annotations': [
                {'id': i + 1, 'image_id': i, 'category_id': 1, 'bbox': box, 'area': 400, 'iscrowd': 0}
                for i in range(3)
            ],
        },
    )

    def make(name, width, **labels):
        run_dir = tmp_path / name
        run_dir.mkdir()
        found = [{'image_id': i, 'category_id': 1, 'score': 0.9, 'bbox': [4, 4, width, 20]} for i in range(3)]
        write_json(run_dir / 'predictions.bbox.json', found)
        trial = {'format': 1, 'seed': 0, 'state': 'finished', 'started': '', **labels}
        write_json(run_dir / 'trial.json', trial)
        write_run(run_dir, framework='x', config='c', checkpoint='x', ann_file=ann_file, command=[SCRIPT])
        return run_dir

    return make


def test_names_are_text_in_every_table_and_lead_to_no_file(hostile_run, tmp_path):
    runs = [hostile_run('a', 20, **NAMES), hostile_run('b', 15, **{**NAMES, 'extractor': 'plain'})]
    comparison = compare(runs, baseline='plain', resamples=10, details=True)
    write_report(comparison, tmp_path / 'report.html', ['compare', SCRIPT])
    page = (tmp_path / 'report.html').read_text()
    assert SCRIPT not in page
    assert '&lt;script&gt;alert(1)' in page
    assert page.count('its file was not found') == 3
    assert 'data:image/' not in page.partition('<script>')[0]
    markdown = to_markdown(comparison)
    assert SCRIPT not in markdown.replace('\\<', '')
    lines = [line for line in markdown.splitlines() if line]
    assert not any(line.startswith(('# heading', '| x')) for line in lines)
    starts = '|', '### ', 'instances_val.json', 'Intervals of classes'
    assert all(line.startswith(starts) for line in lines)
    assert '\n\n#' not in to_latex(comparison).replace('\n\n\\begin', '')
    write_comparison(comparison, tmp_path / 'compare')  # the figure too: $ is no mathematics
    assert {path.name for path in tmp_path.iterdir()} == {
        'a', 'b', 'data', 'secret.png', 'report.html', 'compare',
    }  # fmt: skip


@pytest.mark.parametrize('name', ['../b/predictions.bbox.json', '/etc/passwd', 'a/../x'])
def test_a_record_names_no_predictions_elsewhere(hostile_run, name):
    run_dir = hostile_run('a', 20, extractor='x', config_name='c')
    record = json.loads((run_dir / 'metrics.json').read_text())
    write_json(run_dir / 'metrics.json', {**record, 'predictions': {'bbox': name}})
    (problem,) = find_runs([run_dir]).problems
    assert 'expected a file beside it' in problem


def test_a_damaged_file_is_not_whole(tmp_path):
    torch.save({'weight': torch.ones(1000)}, tmp_path / 'good.pth')
    good = (tmp_path / 'good.pth').read_bytes()
    assert is_whole(tmp_path / 'good.pth')
    flipped = bytearray(good)
    flipped[good.index(b'\0\0\x80\x3f' * 100) + 200] ^= 1  # of one weight: torch.load would take it
    for damaged in (good[:-1], good[: len(good) // 2], b'', b'\0' * len(good), bytes(flipped)):
        (tmp_path / 'bad.pth').write_bytes(damaged)
        assert not is_whole(tmp_path / 'bad.pth')
    assert not is_whole(tmp_path / 'none.pth')
