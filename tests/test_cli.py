"""``roi-plugins``: which command and which framework's tool is called, and with what."""

import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from roi_plugins import __version__, cli
from roi_plugins.commands import train
from roi_plugins.integrations import zoo
from roi_plugins.integrations.errors import RunError

ROOT = Path(__file__).resolve().parents[1]
TOOLS = {
    'tools/ablate.py': ['--extractors', '--seeds', '--dry-run'],
    'tools/benchmark.py': ['--quick'],
    'tools/compare.py': ['--baseline'],
    'tools/make_shapes.py': ['--num-train'],
    'tools/visualize.py': ['--box'],
    'tools/mmdet/train.py': ['--work-dir', '--amp'],
    'tools/mmdet/test.py': ['--overwrite'],
    'tools/detectron2/train_net.py': ['--config-file', '--num-gpus', '--eval-only'],
}
TOOLS_HINT = ", which is not installed. pip install 'roi_plugins[tools]'"
MMDET_HINT = ', which is not installed. MMDetection, with MMEngine and MMCV, runs this config: pip install '
DETECTRON2_HINT = ', which is not installed. Detectron2 runs this config: pip install '
CONFIGS = {
    'mm.py': "_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'\n",
    'd2.yaml': 'MODEL: {}\n',
    'lazy.py': 'from detectron2.config import LazyCall as L\n',
    'either.py': 'from my_models import model\n',
}


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """The current folder, with a config of each kind."""
    for name, text in CONFIGS.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def called(configs, monkeypatch):
    """Calls a command; returns framework, phase and arguments of the tool. No framework is imported."""

    def call(*arguments):
        calls = []
        modules = []
        tool = SimpleNamespace(main=lambda arguments: calls.append(arguments) or 3)
        monkeypatch.setattr(train, 'import_module', lambda name: modules.append(name) or tool)
        assert cli.main(arguments) == 3
        framework = modules[0].split('.')[2]
        if framework == 'mmdet':  # whose module takes the phase first
            return framework, calls[0][0], calls[0][1:]
        return framework, arguments[0], calls[0]

    return call


def status_of(arguments):
    try:
        return cli.main(arguments)
    except SystemExit as exit_:
        return exit_.code


def test_the_help_lists_the_commands(capsys):
    assert status_of(['--help']) == 0
    shown = capsys.readouterr().out
    for name, (_, what) in cli.COMMANDS.items():
        assert f'  {name:<10} {what}\n' in shown
    assert status_of(['--version']) == 0
    assert capsys.readouterr().out == f'roi_plugins {__version__}\n'


@pytest.mark.parametrize('command', cli.COMMANDS)
def test_each_command_has_its_own_help(command, capsys):
    assert status_of([command, '--help']) == 0
    assert capsys.readouterr().out.startswith(f'usage: roi-plugins {command} ')


@pytest.mark.parametrize('path', TOOLS)
def test_the_tools_of_a_checkout_are_the_same(path, monkeypatch, capsys):
    framework = path.split('/')[1]
    if '/' in path.removeprefix('tools/') and find_spec(framework) is None:
        pytest.skip(f'{framework} is not installed')
    monkeypatch.setattr(sys, 'argv', [path, '--help'])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(ROOT / path), run_name='__main__')
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith((f'usage: {path} ', f'usage: {Path(path).name} '))  # the frameworks' own
    assert all(option in shown for option in TOOLS[path])


def test_an_unknown_command_is_answered_by_those_that_exist(capsys):
    assert status_of(['tain']) == 2
    said = capsys.readouterr().err
    assert "'tain'" in said and all(name in said for name in cli.COMMANDS)
    assert status_of([]) == 2
    assert 'COMMAND' in capsys.readouterr().err


def test_dispatch_and_the_folder_of_the_configs_need_no_torch():
    program = (
        'import sys; from roi_plugins.cli import main; main(["configs"]); '
        'print(*{"torch", "numpy", "mmengine", "mmdet", "detectron2"} & sys.modules.keys())'
    )
    run = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
    assert run.stdout == f'{zoo.configs_folder()}\n\n'


@pytest.mark.slow
@pytest.mark.parametrize(
    ('arguments', 'missing', 'sentence'),
    [
        (['shapes', 'out'], 'shapely', f'roi-plugins shapes needs shapely{TOOLS_HINT}'),
        (['ablate', 'a.yaml'], 'yaml', f'roi-plugins ablate needs yaml{TOOLS_HINT}'),
        (['compare', 'runs'], 'pycocotools', f'roi-plugins compare needs pycocotools{TOOLS_HINT}'),
        (['visualize', 'a.py', 'a.png'], 'PIL', f'roi-plugins visualize needs PIL{TOOLS_HINT}'),
        (['train', 'mm.py'], 'mmcv', f'roi-plugins train needs mmcv{MMDET_HINT}'),
        (['test', 'd2.yaml'], 'detectron2', f'roi-plugins test needs detectron2{DETECTRON2_HINT}'),
        (['ablate', 'mm.py', '--extractors', 'stock'], 'mmengine', f'seed0 needs mmengine{MMDET_HINT}'),
        (['visualize', 'd2.yaml', 'a.png', '--box=1,1,9,9'], 'detectron2', 'd2.yaml needs detectron2'),
    ],
)  # fmt: skip
def test_what_is_not_installed_is_one_sentence(configs, arguments, missing, sentence):
    Image.new('RGB', (16, 16)).save('a.png')
    program = (
        f'import sys; sys.modules[{missing!r}] = None; from roi_plugins.cli import main; '
        f'sys.exit(main({arguments!r}))'
    )
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', program], capture_output=True, text=True)
    assert run.returncode == 2, run.stderr
    assert sentence in run.stderr and run.stderr.startswith('error: ') and run.stderr.count('\n') == 1


@pytest.mark.parametrize(
    ('arguments', 'framework', 'passed'),
    [
        ('train mm.py --amp', 'mmdet', 'mm.py --amp'),
        ('train --work-dir d mm.py --cfg-options a=1 b', 'mmdet', 'mm.py --work-dir d --cfg-options a=1 b'),
        ('train --local-rank=0 mm.py --launcher pytorch', 'mmdet', 'mm.py --local-rank=0 --launcher pytorch'),
        ('train --config-file mm.py --resume', 'mmdet', 'mm.py --resume'),
        ('train mm.py --resume a.pth', 'mmdet', 'mm.py --resume a.pth'),
        ('test mm.py runs/a --work-dir d', 'mmdet', 'mm.py runs/a --work-dir d'),
        ('test --train-data a b mm.py c.pth', 'mmdet', 'mm.py --train-data a b c.pth'),
        ('train d2.yaml SEED 3', 'detectron2', '--config-file d2.yaml SEED 3'),
        ('train --num-gpus 8 --config-file d2.yaml', 'detectron2', '--config-file d2.yaml --num-gpus 8'),
        ('train --config-file=d2.yaml SEED 3', 'detectron2', '--config-file d2.yaml SEED 3'),
        ('train --resume d2.yaml SEED 3', 'detectron2', '--config-file d2.yaml --resume SEED 3'),
        ('train d2.yaml --eval-only', 'detectron2', '--config-file d2.yaml --eval-only'),
        ('test d2.yaml WEIGHTS a.pth', 'detectron2', '--config-file d2.yaml --eval-only WEIGHTS a.pth'),
        ('train lazy.py train.max_iter=3', 'detectron2', '--config-file lazy.py train.max_iter=3'),
        ('train --framework detectron2 either.py', 'detectron2', '--config-file either.py'),
        ('train either.py --framework=mmdet --amp', 'mmdet', 'either.py --amp'),
        ('test --framework mmdet --help', 'mmdet', '--help'),
        ('train d2.yaml --help', 'detectron2', '--config-file d2.yaml --help'),
    ],
)  # fmt: skip
def test_the_framework_is_seen_from_the_config(called, arguments, framework, passed):
    phase = arguments.partition(' ')[0]
    assert called(*arguments.split()) == (framework, phase, passed.split())


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['train'], 'no config is given'),
        (['train', '--framework', 'jax', 'mm.py'], "invalid choice: 'jax'"),
        (['train', 'either.py'], 'either.py may be a config of mmdet or detectron2; say which with --'),
        (['test', 'gone.py', 'a.pth'], 'the config gone.py does not exist: it is neither a file, nor in /'),
        (['ablate', 'gone.yaml'], 'the plan gone.yaml does not exist: it is neither a file, nor in /'),
        (['ablate', 'mmdet::gone.py', '--extractors', 'stock'], 'it is none of the configs of mmdet'),
        (['ablate', 'gone::a.py', '--extractors', 'stock'], 'there is no package gone here'),
    ],
)
def test_a_config_that_is_not_there_is_one_line(configs, capsys, arguments, message):
    assert status_of(arguments) == 2
    said = capsys.readouterr().err
    assert message in said and 'Traceback' not in said


def test_a_tool_is_called_by_its_name_in_its_help(configs, monkeypatch):
    names = []
    tool = SimpleNamespace(main=lambda arguments: names.append(sys.argv[0]))
    monkeypatch.setattr(train, 'import_module', lambda name: tool)
    before = list(sys.argv)
    cli.main(['train', 'mm.py'])
    assert names == ['roi-plugins train'] and sys.argv == before


class TestNames:
    @pytest.fixture(autouse=True)
    def folder(self, configs, monkeypatch):
        folder = configs / 'installed'
        (folder / 'mmdet').mkdir(parents=True)
        (folder / 'mmdet/a.py').touch()
        monkeypatch.setattr(zoo, 'configs_folder', lambda: folder)
        return folder

    @pytest.mark.parametrize('name', ['mmdet/a.py', 'roi_plugins::mmdet/a.py'])
    def test_a_config_of_the_package(self, folder, name):
        assert zoo.locate_config(name) == folder / 'mmdet/a.py'

    def test_a_file_here_wins(self, configs):
        (configs / 'mmdet').mkdir()
        (configs / 'mmdet/a.py').touch()
        assert zoo.locate_config('mmdet/a.py') == Path('mmdet/a.py')

    @pytest.mark.skipif(find_spec('mmdet') is None, reason='mmdet is not installed')
    def test_a_config_of_a_zoo(self):
        assert zoo.locate_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py').is_file()

    def test_where_was_looked(self, folder):
        with pytest.raises(RunError) as raised:
            zoo.locate_config('mmdet/b.py')
        assert str(raised.value) == (
            f'the config mmdet/b.py does not exist: it is neither a file, nor in {folder}, nor in '
            "Detectron2's model zoo; did you mean mmdet/a.py?"
        )
        with pytest.raises(RunError, match='it is none of the configs of roi_plugins'):
            zoo.locate_config('roi_plugins::mmdet/b.py')


def test_a_checkout_has_its_configs_beside_the_package():
    if not (ROOT / 'roi_plugins/configs').exists():  # a wheel that is unpacked here has them inside
        assert zoo.configs_folder() == ROOT / 'configs'
    assert list(zoo.configs_folder().glob('ablations/*.yaml'))
