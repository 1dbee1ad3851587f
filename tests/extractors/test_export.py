"""`torch.export` of every extractor: a node for each call of the op, any number of RoIs, files to keep."""

import io

import pytest
import torch
from building import build_extractor

from roi_plugins.extractors import EXTRACTORS

pytestmark = pytest.mark.skipif(
    not hasattr(torch.export.Dim, 'AUTO'),
    reason='this torch exports no extractor for maps of any size, nor for no RoIs at all (2.4 does not)',
)

STRIDES = [4, 8, 16]
SIZE = (3, 2)
OP = torch.ops.roi_plugins.roi_extract.default
CALLS = {'Deformable': 2, 'ContentAdaptive': 2}  # of the others one


def pyramid(num_maps, height=96, width=128):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, height // stride, width // stride) for stride in STRIDES[:num_maps]]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def random_rois(num_rois):
    """Boxes of all levels; some are inverted, some reach out of the image."""
    corners = torch.rand(num_rois, 4, generator=torch.Generator().manual_seed(1)) * 160 - 16
    return torch.cat([torch.arange(num_rois)[:, None] % 2, corners], dim=1)


def exported(extractor, num_maps):
    size = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    return torch.export.export(
        extractor,
        (pyramid(num_maps), random_rois(7)),
        dynamic_shapes={
            'features': [size] * num_maps,
            'rois': {0: torch.export.Dim('num_rois', min=0, max=4096)},
        },
    )


def calls_of_the_op(program):
    return sum(node.target is OP for node in program.graph.nodes)


@pytest.mark.parametrize('name', EXTRACTORS)
@pytest.mark.parametrize('num_maps', [1, 3])
def test_export(name, num_maps):
    extractor = build_extractor(name, SIZE, STRIDES)
    program = exported(extractor, num_maps)
    calls = calls_of_the_op(program), calls_of_the_op(program.run_decompositions())
    assert calls == (CALLS.get(name, 1),) * 2
    model = program.module()
    for num_rois, size in ((7, (96, 128)), (50, (96, 128)), (1, (96, 128)), (0, (96, 128)), (9, (64, 160))):
        arguments = pyramid(num_maps, *size), random_rois(num_rois)
        assert torch.equal(model(*arguments), extractor(*arguments))


@pytest.mark.parametrize('name', EXTRACTORS)
def test_an_exported_extractor_survives_a_file(name):
    extractor = build_extractor(name, SIZE, STRIDES)
    file = io.BytesIO()
    torch.export.save(exported(extractor, 3), file)
    file.seek(0)
    arguments = pyramid(3), random_rois(20)
    assert torch.equal(torch.export.load(file).module()(*arguments), extractor(*arguments))
