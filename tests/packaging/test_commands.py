"""``roi-plugins`` from a wheel, outside of a checkout: the commands of a first ablation in both frameworks.

The environment is new and has the wheel; what it needs besides it takes from the one that runs the tests.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image
from wheel_building import ROOT, build, copy_sources

from roi_plugins import __version__

pytestmark = pytest.mark.slow

SIZES = ('--num-train', '4', '--num-val', '4', '--image-size', '64')
ROWS = ('align-avg', 'align-max')
BASE = 'shapes/mask-rcnn_r18-c4_*shapes.py'
MMDET = """
_base_ = {base!r}
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
test_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
train_cfg = dict(max_iters=2)
"""
DETECTRON2 = """
from detectron2.config import LazyConfig

cfg = LazyConfig.load({base!r})
model, dataloader, optimizer = cfg.model, cfg.dataloader, cfg.optimizer
lr_multiplier, train = cfg.lr_multiplier, cfg.train
train.max_iter = 2
dataloader.train.total_batch_size = 2
dataloader.train.num_workers = dataloader.test.num_workers = 0
"""


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """With the compiled op of the checkout, where there is one: to compile it takes minutes."""
    source = copy_sources(tmp_path_factory.mktemp('wheel') / 'source')
    (source / 'configs/__pycache__').mkdir()
    (source / 'configs/__pycache__/a.cpython-311.pyc').touch()
    stale = source / 'build/lib/roi_plugins/configs/removed.yaml'
    stale.parent.mkdir(parents=True)
    stale.touch()
    library = ROOT / 'roi_plugins/ops/_C.so'
    if library.exists():
        shutil.copy(library, source / 'roi_plugins/ops')
    _, built = build(source, CXX='no-such-compiler')
    return built


def test_a_wheel_has_the_configs_and_the_command(wheel):
    files = zipfile.ZipFile(wheel)
    names = set(files.namelist())
    expected = {
        f'roi_plugins/{path.relative_to(ROOT).as_posix()}'
        for suffix in ('py', 'yaml', 'pth')
        for path in (ROOT / 'configs').rglob(f'*.{suffix}')
        if '__pycache__' not in path.parts
    }
    assert len(expected) > 20
    assert {name for name in names if name.startswith('roi_plugins/configs/')} == expected
    assert {
        'roi_plugins/extractors/presets.yaml',
        'roi_plugins/ablation/report/templates/report.html',
        'roi_plugins/commands/ablate.py',
    } <= names
    info = f'roi_plugins-{__version__}.dist-info'
    entries = files.read(f'{info}/entry_points.txt').decode()
    assert entries.split('\n')[:2] == ['[console_scripts]', 'roi-plugins = roi_plugins.cli:main']
    assert 'Provides-Extra: tools' in files.read(f'{info}/METADATA').decode()


def test_the_source_distribution_has_what_the_wheel_is_made_of(tmp_path):
    source = copy_sources(tmp_path / 'source')
    (source / 'roi_plugins/ops/csrc').mkdir()
    (source / 'roi_plugins/ops/csrc/op.h').touch()
    subprocess.run(
        [sys.executable, '-c', 'from setuptools.build_meta import build_sdist as build; build("..")'],
        cwd=source,
        check=True,
        capture_output=True,
        env={**os.environ, 'CXX': 'no-such-compiler'},
    )
    shutil.unpack_archive(tmp_path / f'roi_plugins-{__version__}.tar.gz', tmp_path)
    unpacked = tmp_path / f'roi_plugins-{__version__}'
    assert (unpacked / 'roi_plugins/ops/csrc/op.h').exists()
    for folder, kind in (('configs/ablations', '*.yaml'), ('configs/trunks', '*.pth')):
        names = {path.name for path in (unpacked / folder).iterdir()}
        assert names == {path.name for path in (ROOT / folder).glob(kind)}


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """Runs a command of a new environment in a folder of its own, and returns what it prints."""
    pytest.importorskip('pip')
    folder = tmp_path_factory.mktemp('installed')
    environment, here = folder / 'environment', folder / 'here'
    here.mkdir()
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', environment], check=True)
    python = environment / 'bin/python'
    pip = [sys.executable, '-m', 'pip', '--python', python, '--disable-pip-version-check', '--quiet']
    subprocess.run([*pip, 'install', '--no-index', '--no-deps', wheel], check=True)
    (packages,) = environment.glob('lib/*/site-packages')
    # A .pth in a folder that is named so is not read: the checkout's own installation is not seen.
    (packages / 'others.pth').write_text(f'{sysconfig.get_path("purelib")}\n')
    kept = {key: value for key, value in os.environ.items() if not key.startswith(('PYTHON', 'ROI_PLUGINS_'))}

    def run(*arguments, program='roi-plugins'):
        done = subprocess.run(
            [environment / 'bin' / program, *map(str, arguments)],
            cwd=here,
            env={**kept, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONWARNINGS': 'ignore'},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f'{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
        return done.stdout

    run.here, run.packages = here, packages
    return run


@pytest.fixture(scope='module')
def folder(installed):
    """The configs of the environment, which no command adds to."""
    folder = Path(installed('configs').strip())
    before = sorted(folder.rglob('*'))
    yield folder
    assert sorted(folder.rglob('*')) == before


@pytest.fixture(scope='module')
def own_configs(installed, folder):
    """By framework: the name of a small config over one of the package, where there are images for it."""
    installed('shapes', 'data/shapes', *SIZES)
    names = {}
    for framework, text in (('mmdet', MMDET), ('detectron2', DETECTRON2)):
        if find_spec(framework) is not None:
            base = next(path for path in sorted((folder / framework).glob(BASE)) if _is_stock(path))
            names[framework] = f'own_{framework}.py'
            (installed.here / names[framework]).write_text(text.format(base=str(base)))
    if not names:
        pytest.skip('no framework is installed')
    return names


def _is_stock(path):
    return path.stem in ('mask-rcnn_r18-c4_shapes', 'mask-rcnn_r18-c4_stock_shapes')


def test_it_is_the_installed_package(installed, folder):
    program = 'import roi_plugins; print(roi_plugins.__file__)'
    path = Path(installed('-c', program, program='python').strip())
    assert path.parent == installed.packages / 'roi_plugins'
    assert folder == path.parent / 'configs'
    assert installed('--version') == f'roi_plugins {__version__}\n'


@pytest.fixture(scope='module')
def runs(installed, own_configs):
    """The work directory of an ablation of the user's own configs."""
    printed = installed('ablate', *own_configs.values(), '--extractors', *ROWS, '--work-dir', 'runs')
    assert 'Differences are to align-avg' in printed
    return installed.here / 'runs'


def test_an_ablation_of_configs_of_ones_own_and_its_comparison(installed, own_configs, runs):
    trials = {f'own_{framework}.{row}.seed0' for framework in own_configs for row in ROWS}
    assert {path.parent.name for path in runs.glob('*/metrics.json')} == trials
    assert (runs / 'plan.yaml').exists()
    outputs = ['--output', 'table', '--html', 'a.html']
    table = installed('compare', 'runs', '--baseline', 'align-avg', '--bootstrap', '10', *outputs)
    assert table.count('| align-max') >= len(own_configs)
    assert (installed.here / 'table/compare.csv').exists()
    assert 'roi-plugins compare runs --baseline' in (installed.here / 'a.html').read_text()


@pytest.mark.skipif(find_spec('mmdet') is None, reason='mmdet is not installed')
def test_a_config_of_the_package_is_found_by_its_name_and_torchrun_may_start_it(installed, folder, runs):
    base = next(path for path in (folder / 'mmdet').glob(BASE) if _is_stock(path))
    name = base.relative_to(folder).as_posix()
    start = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', 2, '-m', 'roi_plugins.cli']
    weights = runs / 'own_mmdet.align-avg.seed0'
    installed(*start, 'test', name, weights, '--launcher', 'pytorch', program='python')
    assert (installed.here / 'work_dirs' / base.stem / 'metrics.json').exists()
    Image.new('RGB', (64, 64)).save(installed.here / 'image.png')
    assert 'bbox_roi_extractor' in installed('visualize', name, 'image.png', '--box', '9,9,50,50')


@pytest.mark.skipif(find_spec('detectron2') is None, reason='detectron2 is not installed')
def test_detectron2_starts_processes_of_its_own(installed, own_configs, runs):
    weights = runs / 'own_detectron2.align-avg.seed0/model_final.pth'
    options = ['train.output_dir=evaluated', f'train.init_checkpoint={weights}']
    installed('test', '--num-gpus', 2, own_configs['detectron2'], *options)
    assert (installed.here / 'evaluated/metrics.json').exists()
