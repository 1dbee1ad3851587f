"""docs/results/README.md shows what the files beside it hold, which the tools have written."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

RESULTS = Path(__file__).resolve().parents[1] / 'docs/results'
PUBLISHED = RESULTS / 'published'


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


def points(fraction, sign=''):
    return f'{100 * fraction:{sign}.1f}'


def differences(group):
    """Each metric's difference to the baseline with its interval, as a cell of the page."""
    return [
        f'{points(row["value"], "+")} [{points(row["low"], "+")}, {points(row["high"], "+")}]'
        for row in group['difference_estimates']['metrics']
    ]


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
    groups = json.loads((RESULTS / 'content_adaptive/compare.json').read_text())['groups']
    shown = [group for group in groups if group['extractor'] == 'content-adaptive']
    assert len(shown) == 4
    for group in shown:
        where = f'stride {group["config_name"].removeprefix("stride_")}'
        name = {'bbox': 'box', 'segm': 'mask'}[group['iou_type']]
        row = [f'{where}, {name}', str(len(group['seeds'])), *differences(group)]
        assert f'| {" | ".join(row)} |' in page


def test_the_differences_of_the_family_are_those_of_compare():
    page = (RESULTS / 'README.md').read_text()
    groups = json.loads((RESULTS / 'family/compare.json').read_text())['groups']
    shown = [group for group in groups if group['extractor'] != 'align-avg']
    assert len(shown) == 2 * 10
    for group in shown:
        name = {'bbox': 'box', 'segm': 'mask'}[group['iou_type']]
        row = [f'{group["extractor"]}, {name}', str(len(group['seeds'])), *differences(group)]
        assert f'| {" | ".join(row)} |' in page


def test_the_tables_are_those_of_compare(script, tables):
    groups = json.loads((PUBLISHED / 'compare.json').read_text())['groups']
    shown = {(stride, row['extractor']): row for stride in ('16', '32') for row in tables[f'Stride {stride}']}
    assert len(groups) == 2 * len(shown)
    for group in groups:
        row = shown[group['config_name'].removeprefix('stride_'), group['extractor']]
        assert row['seeds'] == str(len(group['seeds']))
        for metric in ('AP', 'AP50', 'AP75'):
            mean, _, std = row[f'{script.NAMES[group["iou_type"]]} {metric}'].partition(' ± ')
            assert mean == points(group['mean'][metric])
            assert std == (points(group['std'][metric]) if len(group['seeds']) > 1 else '')


def test_the_claims_are_those_of_the_file(script, tables):
    judged = json.loads((PUBLISHED / 'published.json').read_text())
    assert judged['margin'] == script.MARGIN
    assert tables['The claims'] == script.claim_rows(judged['claims'])
    expected = [(claim.text, claim.where) for claim in script.claims()]
    assert [(row['claim'], row['where']) for row in tables['The claims']] == expected


def test_a_claim_is_the_difference_that_compare_gives(script):
    groups = json.loads((PUBLISHED / 'compare.json').read_text())['groups']
    judged = json.loads((PUBLISHED / 'published.json').read_text())['claims']
    compared = {
        (group['iou_type'], group['config_name']): row
        for group in groups
        if group['extractor'] == 'quantized-pool'
        for row in group['difference_estimates']['metrics']
        if row['metric'] == 'AP75'
    }
    for found in judged:
        if found['claim'] == 'RoIAlign above RoIPool' and found['where'].startswith('AP75'):
            config = {stride: config for config, stride in script.STRIDES.items()}[found['where'][6:]]
            row = compared[found['iou_type'], config]
            assert found['value'] == pytest.approx(-row['value'])
            assert (found['low'], found['high']) == pytest.approx((-row['high'], -row['low']))


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
