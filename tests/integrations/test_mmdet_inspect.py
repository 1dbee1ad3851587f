"""Which extractors a config has, in every spelling of their types."""

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmcv.ops')

from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.registry import MODELS

from roi_plugins.integrations.mmdet.inspect import find_extractors

CONFIG = """
default_scope = {scope!r}
custom_imports = dict(imports=['roi_plugins.integrations.mmdet'], allow_failed_imports=False)
model = dict(roi_head=dict(
    type='StandardRoIHead',
    bbox_head=dict(type='Shared2FCBBoxHead'),
    bbox_roi_extractor=dict({type}, featmap_strides=[16], out_channels=8)))
"""
STOCK = "roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=2)"


@MODELS.register_module(force=True)
class ReaderOfBoxes(SingleRoIExtractor):
    """An extractor whose name does not say that it is one."""


@pytest.mark.parametrize('scope', ['mmdet', None])
@pytest.mark.parametrize(
    'type_',
    [
        "type='AlignMaxRoIExtractor', output_size=7",
        "type='mmdet.AlignMaxRoIExtractor', output_size=7",
        f"type='ReaderOfBoxes', {STOCK}",
        f"type='mmdet.ReaderOfBoxes', {STOCK}",
    ],
)
def test_an_extractor_is_found_by_what_it_is(tmp_path, type_, scope):
    config = tmp_path / 'config.py'
    config.write_text(CONFIG.format(type=type_, scope=scope))
    assert list(find_extractors(config)) == ['roi_head.bbox_roi_extractor']
