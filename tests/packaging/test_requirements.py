"""requirements.txt pins all that the package and its frameworks need: nothing else is installed with it."""

import ast
import configparser
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from roi_plugins.needs import TOOLS

ROOT = Path(__file__).resolve().parents[2]


def plain(name):
    return re.sub(r'[-_.]+', '-', re.match(r'[\w.-]+', name.strip()).group()).lower()


def pinned():
    lines = (ROOT / 'requirements.txt').read_text().splitlines()
    return {plain(line): line.partition('==')[2] for line in lines if not line.startswith('#')}


def extras():
    """By name: the packages of each extra itself, and the extras that it takes over."""
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    found = {}
    for extra, text in config['options.extras_require'].items():
        lines = text.strip().splitlines()
        others = [match.group(1) for line in lines if (match := re.fullmatch(r'roi_plugins\[(.+)]', line))]
        own = [line for line in lines if not line.startswith('roi_plugins[')]
        found[extra] = own, [name for names in others for name in names.split(',')]
    return found


def packages(extra):
    """All that are installed with an extra, as often as they are listed."""
    own, others = extras()[extra]
    return [*map(plain, own), *(name for other in others for name in packages(other))]


def test_every_extra_is_pinned_and_lists_nothing_twice():
    assert {'tools', 'mmdet', 'detectron2', 'docs', 'test'} <= extras().keys()
    for extra in extras().keys() - {'tracking'}:  # two of its packages bring dozens, and no test needs them
        names = packages(extra)
        assert names, extra
        assert set(names) <= pinned().keys(), extra
        if extra != 'test':  # which takes over several that have the tools in common
            assert len(names) == len(set(names)), extra
    assert 'tensorboard' in packages('detectron2')  # which DefaultTrainer writes to, unasked
    for extra in ('mmdet', 'detectron2', 'benchmark', 'test'):
        assert set(packages('tools')) <= set(packages(extra))


def test_the_extra_of_the_tools_is_what_they_import():
    """But for torch, which the package needs, the frameworks and what other extras have."""
    assert set(TOOLS.values()) == set(packages('tools'))
    elsewhere = {'torch', 'torchvision', 'faster_coco_eval', 'mmengine'}  # the last reads mmdet's configs
    elsewhere |= set(packages('tracking'))
    sources = [ROOT / 'roi_plugins/cli.py', *(ROOT / 'roi_plugins').glob('*.py')]
    for folder in ('commands', 'ablation', 'datasets', 'benchmark', 'evaluation'):
        sources += (ROOT / 'roi_plugins' / folder).rglob('*.py')
    imported = set()
    for source in sources:
        if source.name in ('onnx.py', 'peers.py'):
            continue
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.partition('.')[0])
    others = imported - set(sys.stdlib_module_names) - {'roi_plugins', 'detectron2', 'contourpy'} - elsewhere
    assert others == TOOLS.keys()


@pytest.mark.parametrize('package', ['tensorboard', 'sphinx', 'myst-parser'])
def test_all_that_a_package_needs_is_pinned(package):
    """A pin whose own requirements are left out is imported, and fails at its first use."""
    assert plain(package) in pinned()
    todo, seen = [package], set()
    while todo:
        name = todo.pop()
        seen.add(name)
        try:
            assert metadata.version(name) == pinned()[name]
        except metadata.PackageNotFoundError:
            pytest.skip(f'{name} is not installed: run make setup')
        needed = [Requirement(text) for text in metadata.requires(name) or []]
        wanted = {plain(n.name) for n in needed if n.marker is None or n.marker.evaluate({'extra': ''})}
        assert wanted <= pinned().keys(), name
        todo += wanted - seen
