"""docs/results/README.md shows what the files beside it hold, which the tools have written."""

import csv
import importlib.util
import re
import sys
from pathlib import Path

import pytest

RESULTS = Path(__file__).resolve().parents[1] / 'docs/results'
PUBLISHED = RESULTS / 'published'
SHORT = {'bbox': 'box', 'segm': 'mask'}


@pytest.fixture(scope='module')
def script():
    spec = importlib.util.spec_from_file_location('published', RESULTS / 'published.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclass looks for its module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def tables():
    """The rows of each table of published.md under its title, as ``{column: cell}``."""
    found = {}
    for part in (PUBLISHED / 'published.md').read_text().split('### ')[1:]:
        title, *lines = part.strip().splitlines()
        header, _, *rows = ([cell.strip() for cell in line[1:-1].split('|')] for line in lines if line)
        found[title] = [dict(zip(header, row, strict=True)) for row in rows]
    return found


def rows_of(folder):
    """The rows of a ``compare.csv``, as text."""
    with open(RESULTS / folder / 'compare.csv', newline='') as file:
        return list(csv.DictReader(file))


def differences(row):
    """Each metric's difference to the baseline with its interval, as a cell of the page."""
    cells = []
    for metric in (column.removesuffix('_std') for column in row if re.fullmatch(r'AP[^_]*_std', column)):
        keys = ('difference', 'difference_low', 'difference_high')
        value, low, high = (f'{float(row[f"{metric}_{key}"]):+.1f}' for key in keys)
        cells.append(f'{value} [{low}, {high}]')
    return cells


def test_the_page_has_the_tables_that_were_written():
    page = (RESULTS / 'README.md').read_text()
    parts = (PUBLISHED / 'published.md').read_text().split('### ')[1:]
    parts += (RESULTS / 'test_only/published.md').read_text().split('### ')[1:]
    assert len(parts) == 4
    for part in parts:
        table = part.partition('\n\n')[2].strip()
        assert table.startswith('|') and table in page


def test_the_differences_of_content_adaptive_are_those_of_compare():
    page = (RESULTS / 'README.md').read_text()
    shown = [row for row in rows_of('content_adaptive') if row['extractor'] == 'content-adaptive']
    assert len(shown) == 4
    for row in shown:
        where = f'stride {row["config"].removeprefix("stride_")}'
        line = [f'{where}, {SHORT[row["iou_type"]]}', row['n'], *differences(row)]
        assert f'| {" | ".join(line)} |' in page


def test_the_differences_of_the_family_are_those_of_compare():
    page = (RESULTS / 'README.md').read_text()
    shown = [row for row in rows_of('family') if row['extractor'] != 'align-avg']
    assert len(shown) == 2 * 10
    for row in shown:
        line = [f'{row["extractor"]}, {SHORT[row["iou_type"]]}', row['n'], *differences(row)]
        assert f'| {" | ".join(line)} |' in page


def test_the_tables_are_those_of_compare(script, tables):
    shown = {(stride, row['extractor']): row for stride in ('16', '32') for row in tables[f'Stride {stride}']}
    rows = rows_of('published')
    assert len(rows) == 2 * len(shown)
    for compared in rows:
        row = shown[compared['config'].removeprefix('stride_'), compared['extractor']]
        assert row['seeds'] == compared['n']
        for metric in ('AP', 'AP50', 'AP75'):
            mean, _, std = row[f'{script.NAMES[compared["iou_type"]]} {metric}'].partition(' ± ')
            assert (mean, std) == (compared[metric], compared[f'{metric}_std'])


def test_the_claims_are_judged_as_their_intervals_say(script, tables):
    rows = tables['The claims']
    claims = list(script.claims())
    assert [(row['claim'], row['where']) for row in rows] == [(claim.text, claim.where) for claim in claims]
    for row, claim in zip(rows, claims, strict=True):
        for name in script.NAMES.values():
            _, low, high = map(float, re.findall(r'[+-]\d+\.\d', row[name]))
            assert row[f'{name}: verdict'] == script.verdict(claim, low, high)


def test_a_claim_is_the_difference_that_compare_gives(script, tables):
    pool = [row for row in rows_of('published') if row['extractor'] == script.POOL]
    compared = {(row['iou_type'], row['config']): row for row in pool}
    found = [
        row
        for row in tables['The claims']
        if row['claim'] == 'RoIAlign above RoIPool' and row['where'].startswith('AP75')
    ]
    assert len(found) == 2
    for row in found:
        config = {stride: config for config, stride in script.STRIDES.items()}[row['where'][6:]]
        for iou_type, name in script.NAMES.items():
            keys = ('AP75_difference', 'AP75_difference_high', 'AP75_difference_low')
            value, low, high = (f'{-float(compared[iou_type, config][key]):+.1f}' for key in keys)
            assert row[name] == f'{value} [{low}, {high}]'


@pytest.mark.parametrize(
    'alike, low, high, verdict',
    [
        (False, 0.1, 2.0, 'shown'),
        (False, -0.1, 2.0, 'open'),
        (False, -2.0, -0.1, 'the opposite'),
        (True, -1.9, 2.0, 'shown'),
        (True, 0.5, 1.5, 'shown'),
        (True, -3.0, 0.5, 'open'),
        (True, 0.5, 2.5, 'open'),
        (True, 2.1, 4.5, 'not alike'),
        (True, -4.5, -2.1, 'not alike'),
    ],
)
def test_a_claim_is_judged_by_its_interval(script, alike, low, high, verdict):
    claim = script.Claim('', '', {}, alike)
    assert script.verdict(claim, low, high) == verdict


def test_the_papers_differences_are_taken_as_ours(script):
    table_2c = script.gap('stride_16', 'align-avg', script.POOL, 'AP75')
    assert script.paper_value(table_2c, 'segm') == 5.1  # 31.5 - 26.4
    assert script.paper_value(table_2c, 'bbox') is None  # not in the table
    lead = script.minus(
        script.gap('stride_32', 'align-avg', script.POOL, 'AP'),
        script.gap('stride_16', 'align-avg', script.POOL, 'AP'),
    )
    assert script.paper_value(lead, 'segm') == 3.9  # 7.3 - 3.4
