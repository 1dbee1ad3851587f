"""requirements.txt pins all that the package and its frameworks need: nothing else is installed with it."""

import configparser
import re
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def plain(name):
    return re.sub(r'[-_.]+', '-', re.match(r'[\w.-]+', name.strip()).group()).lower()


def pinned():
    lines = (ROOT / 'requirements.txt').read_text().splitlines()
    return {plain(line): line.partition('==')[2] for line in lines if not line.startswith('#')}


def test_every_extra_is_pinned():
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    extras = config['options.extras_require']
    missing = {
        (extra, name)
        for extra in extras
        for name in extras[extra].strip().splitlines()
        if plain(name) not in pinned()
    }
    assert not missing
    assert 'tensorboard' in extras['detectron2'].split()  # which DefaultTrainer writes to, unasked


def test_what_tensorboard_needs_is_pinned():
    """A pin whose own requirements are left out is imported, and fails at its first use."""
    if find_spec('tensorboard') is None:
        pytest.skip('tensorboard is not installed: run make setup')
    assert metadata.version('tensorboard') == pinned()['tensorboard']
    needed = {plain(name) for name in metadata.requires('tensorboard') if 'extra ==' not in name}
    assert needed <= pinned().keys()
