"""Every link of a page leads to a file, and links from the index lead to every page of docs/."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / 'docs'
OTHERS = [ROOT / name for name in ('README.md', 'README_zh-CN.md', 'CONTRIBUTING.md')]
PAGES = [*OTHERS, *sorted(DOCS.rglob('*.md'))]


def links(page):
    """The files that a page links to, outside of its code; not addresses, nor parts of the page itself."""
    text = re.sub(r'^```.*?^```$', '', page.read_text(encoding='utf-8'), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r'\]\(([^)\s]+)\)|\bsrc="([^"]+)"', re.sub(r'`[^`\n]*`', '', text))
    paths = [unquote((target or source).partition('#')[0]) for target, source in targets]
    return [(page.parent / path).resolve() for path in paths if path and not re.match(r'\w+:', path)]


def test_the_links_are_seen():
    assert DOCS / 'op.md' in links(ROOT / 'README.md')
    assert ROOT / 'CONTRIBUTING.md' in links(DOCS / 'README.md')


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_is_to_a_file_that_is_there(page):
    assert [target for target in links(page) if not target.exists()] == []


def test_every_page_can_be_reached_from_the_index():
    reached, todo = set(), [DOCS / 'README.md']
    while todo:
        page = todo.pop()
        if page not in reached and page.is_file():
            reached.add(page)
            todo += [target for target in links(page) if target.suffix == '.md']
    assert [page for page in PAGES if page.is_relative_to(DOCS) and page not in reached] == []


# The configs that docs/zoo.md names are the zoos'.
SOURCES = [page for page in PAGES if page.name != 'zoo.md']


@pytest.mark.parametrize('page', SOURCES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_source_that_is_named_is_there(page):
    """Such as `roi_plugins/files.py`; those of tests/ also without their first folder."""
    named = re.findall(r'`((?:[\w-]+/)+\w+\.(?:py|sh|h|cpp|cu))\b', page.read_text(encoding='utf-8'))
    roots = (ROOT, ROOT / 'tests', ROOT / 'roi_plugins', ROOT / 'roi_plugins/ops')
    assert [path for path in named if not any((root / path).is_file() for root in roots)] == []
