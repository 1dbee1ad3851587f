"""The extractors inside `torch.compile(fullgraph=True)`, where MMDetection's RoI head calls them."""

import pytest
import torch

pytest.importorskip('mmdet', reason='MMDetection is not installed')
pytest.importorskip('mmcv.ops', reason="MMCV's compiled ops are not installed")

from mmdet.registry import MODELS
from mmdet.utils import register_all_modules

import roi_plugins.integrations.mmdet  # noqa: F401  registers the extractors
from roi_plugins.extractors import EXTRACTORS

pytestmark = pytest.mark.slow

register_all_modules(init_default_scope=False)

STRIDES = [4, 8, 16, 32]
IMAGE = 256


def roi_head(type_):
    torch.manual_seed(0)
    return MODELS.build(
        dict(
            type='StandardRoIHead',
            bbox_roi_extractor=dict(type=type_, output_size=3, out_channels=4, featmap_strides=STRIDES),
            bbox_head=dict(
                type='Shared2FCBBoxHead', in_channels=4, fc_out_channels=8, roi_feat_size=3, num_classes=3
            ),
        )
    )


def inputs(num_rois):
    """The five maps of a neck, of which the head takes four, and RoIs in the form of ``bbox2roi``."""
    generator = torch.Generator().manual_seed(num_rois)
    shapes = [(2, 4, IMAGE // stride, IMAGE // stride) for stride in [*STRIDES, 64]]
    maps = tuple(torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)
    corners = torch.rand(2, num_rois, 2, generator=generator) * 1.2 * IMAGE - 0.1 * IMAGE
    index = torch.arange(num_rois)[:, None] % 2
    return maps, torch.cat([index, corners.amin(0), corners.amax(0)], dim=1)


def results(forward, num_rois):
    maps, rois = inputs(num_rois)
    torch.manual_seed(0)  # of RandomSampling
    outputs = forward(maps, rois)
    sum(output.square().sum() for output in outputs.values()).backward()
    return [*outputs.values(), *(map_.grad for map_ in maps[: len(STRIDES)])]


@pytest.mark.parametrize('name', EXTRACTORS)
def test_the_box_branch_is_one_graph_for_any_number_of_rois(name):
    torch._dynamo.reset()
    forward = roi_head(f'{name}RoIExtractor')._bbox_forward
    compiled = torch.compile(forward, fullgraph=True, dynamic=True, backend='aot_eager')
    results(compiled, 40)
    with torch.compiler.set_stance('fail_on_recompile'):
        for num_rois in (40, 13, 200):
            torch.testing.assert_close(results(compiled, num_rois), results(forward, num_rois))


@pytest.mark.parametrize('name', ['AlignAvg', 'AlignMax'])
def test_images_without_rois_and_boxes_grown_about_their_centres(name):
    torch._dynamo.reset()
    extractor = roi_head(f'{name}RoIExtractor').bbox_roi_extractor

    def grown(maps, rois):
        return {'features': extractor(maps[: len(STRIDES)], rois, roi_scale_factor=1.4)}

    compiled = torch.compile(grown, fullgraph=True, dynamic=True, backend='aot_eager')
    for num_rois in (30, 1, 0):
        torch.testing.assert_close(results(compiled, num_rois), results(grown, num_rois))
