"""The rooms of the package import each other in one direction, as docs/architecture.md draws it."""

import graphlib
from pathlib import Path

import grimp
import pytest

PACKAGE = 'roi_plugins'
PAGE = Path(__file__).resolve().parents[1] / 'docs/architecture.md'
# The upper may import the lower, never the other way round; those of one line are independent.
LAYERS = [
    {'cli'},
    {'commands'},
    {'ablation'},
    {'benchmark'},
    {'integrations', 'visualization', 'onnx'},
    {'run_record'},
    {'evaluation', 'settings', 'extractors', 'datasets', 'tracking'},
    {'ops', 'names', 'console', 'needs', 'hardware', 'files'},
]


@pytest.fixture(scope='module')
def graph():
    return grimp.build_graph(PACKAGE, cache_dir=None)


def room(module):
    return module.removeprefix(PACKAGE).strip('.').partition('.')[0]


def test_rooms_import_in_one_direction(graph):
    rooms = {room(module) for module in graph.modules} - {''}
    assert rooms == set.union(*LAYERS)
    illegal = graph.find_illegal_dependencies_for_layers(
        [grimp.Layer(*(f'{PACKAGE}.{name}' for name in layer)) for layer in LAYERS]
    )
    assert not illegal, [f'{found.importer} imports {found.imported}' for found in illegal]


def test_no_modules_import_each_other_in_a_circle(graph):
    """At their start; a function may import what imports its module."""
    order = {
        importer: {
            imported
            for imported in graph.find_modules_directly_imported_by(importer)
            if not all(i['is_lazy'] for i in graph.get_import_details(importer=importer, imported=imported))
        }
        for importer in graph.modules
    }
    assert len(list(graphlib.TopologicalSorter(order).static_order())) == len(order)


def test_the_page_draws_the_imports(graph):
    arrows = {
        (room(importer), room(imported))
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
        if room(importer) != room(imported) and room(imported)
    }
    drawn = {
        (name.strip(' `'), other.strip(' `'))
        for line in PAGE.read_text(encoding='utf-8').splitlines()
        if line.startswith('| `')
        for name, _, others in [line.strip('| ').split('|')]
        for other in others.split(',')
        if other.strip(' `-')
    }
    assert drawn == {(a, b) for a, b in arrows if a}
