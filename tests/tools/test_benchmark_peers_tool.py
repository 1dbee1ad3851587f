"""What `make benchmark-peers` installs and runs; the installing itself takes gigabytes and is not tested."""

import importlib
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / 'tools'


@pytest.fixture
def tool(monkeypatch, tmp_path):
    """The tool, with a log of what it would do."""
    monkeypatch.syspath_prepend(TOOLS)
    monkeypatch.setenv('ROI_PLUGINS_CUDA', '1')
    module = importlib.import_module('benchmark_peers')
    module.log = []

    def environment(path, python, *requirements):
        path.mkdir(parents=True, exist_ok=True)
        module.log.append(('environment', path.name, requirements))

    def build_wheel(interpreter, out):
        module.log.append(('build', interpreter.parents[1].name))
        return out / 'a.whl'

    monkeypatch.setattr(module, 'KEPT', tmp_path / 'kept')
    monkeypatch.setattr(module, 'environment', environment)
    monkeypatch.setattr(module, 'build_wheel', build_wheel)
    monkeypatch.setattr(module, 'install', lambda path, *what: module.log.append(('install', path.name)))
    monkeypatch.setattr(module, 'run', lambda *command, cwd: module.log.append((*map(str, command[1:]), cwd)))
    return module


def test_an_environment_is_made_once_and_the_package_built_in_each_run(tool, tmp_path):
    out = tmp_path / 'out'
    measured = ('benchmark', '--device', 'cpu', '--out', 'intel', '--quick', '--threads', '1', out)
    for _ in range(2):
        tool.main(['--only', 'intel', '--out', str(out), '--quick', '--threads', '1'])
    made, *first = tool.log
    assert made[:2] == ('environment', 'intel')
    assert first == 2 * [('build', 'intel'), ('install', 'intel'), measured]
    assert out.is_dir()


def test_another_pin_makes_the_environment_anew(tool, tmp_path, monkeypatch):
    tool.main(['--only', 'intel', '--out', str(tmp_path)])
    monkeypatch.setitem(tool.ENVIRONMENTS, 'intel', ('torch==2.8.1',))
    tool.main(['--only', 'intel', '--out', str(tmp_path)])
    first, second = (entry for entry in tool.log if entry[0] == 'environment')
    assert 'torch==2.8.0' in first[2] and 'torch==2.8.1' in second[2]


def test_all_are_measured_with_what_the_benchmark_needs(tool, tmp_path):
    tool.main(['--out', str(tmp_path)])
    made = {entry[1]: entry[2] for entry in tool.log if entry[0] == 'environment'}
    assert list(made) == ['intel', 'newest']
    for requirements in made.values():
        names = {requirement.partition('==')[0] for requirement in requirements}
        assert names.issuperset(tool.COMMON)


def test_without_uv_the_tool_says_so(tool, tmp_path, monkeypatch):
    def missing(*arguments):
        raise FileNotFoundError(2, 'No such file or directory', 'uv')

    monkeypatch.setattr(tool, 'environment', missing)
    with pytest.raises(SystemExit, match='uv was not found'):
        tool.main(['--out', str(tmp_path)])
