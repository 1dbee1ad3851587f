"""What is recorded of a config, and which differences confound a comparison."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roi_plugins.files import DataError
from roi_plugins.settings import (
    CHANNELS,
    CONFOUNDED,
    EXTRACTOR,
    PLACE,
    SEED,
    differences,
    flatten,
    read_settings,
    write_settings,
)

values = st.none() | st.booleans() | st.integers() | st.text() | st.floats()
configs = st.recursive(
    values, lambda child: st.lists(child) | st.dictionaries(st.text(), child) | st.tuples(child, child)
)


def kinds(base, other):
    return {difference.key: difference.kind for difference in differences(flatten(base), flatten(other))}


@given(st.dictionaries(st.text(), configs))
def test_any_config_is_recorded_as_it_was(tmp_path_factory, config):
    folder = tmp_path_factory.mktemp('run')
    write_settings(folder, config, trains=True)
    assert read_settings(folder) == flatten(config)
    assert differences(read_settings(folder), flatten(config)) == []


def test_a_training_is_not_forgotten_for_its_test(tmp_path):
    write_settings(tmp_path / 'new', {'lr': 1}, trains=True)
    write_settings(tmp_path / 'new', {'lr': 2}, trains=False)
    assert read_settings(tmp_path / 'new') == {'lr': 1}
    write_settings(tmp_path / 'new', {'lr': 3}, trains=True)  # it was resumed so
    assert read_settings(tmp_path / 'new') == {'lr': 3}
    write_settings(tmp_path / 'test', {'lr': 1}, trains=False)
    write_settings(tmp_path / 'test', {'lr': 2}, trains=False)
    assert read_settings(tmp_path / 'test') == {'lr': 2}


def test_none_and_damaged_records(tmp_path):
    assert read_settings(tmp_path) is None
    for damaged in ('[]', '{"settings": 3}', '{'):
        (tmp_path / 'settings.json').write_text(damaged)
        with pytest.raises(DataError, match=r'settings\.json'):
            read_settings(tmp_path)


def test_classes_are_recorded_by_their_names():
    assert flatten({'type': json.JSONDecoder, 'call': json.loads}) == {
        'type': 'json.decoder.JSONDecoder',
        'call': 'json.loads',
    }


def test_values_that_are_not_json_stay_apart():
    assert flatten({'a': float('inf'), 'b': {3}}) == {'a': 'inf', 'b': '{3}'}
    assert flatten({'c': object()}) == {'c': '<object object>'}  # in every process


STOCK = {
    'model': {
        'roi_head': {
            'bbox_roi_extractor': {
                'type': 'SingleRoIExtractor',
                'roi_layer': {'type': 'RoIAlign', 'output_size': 7, 'sampling_ratio': 0},
                'out_channels': 256,
                'featmap_strides': [4, 8],
            },
            'bbox_head': {'in_channels': 256, 'num_classes': 80},
        },
    },
    'randomness': {'seed': 0},
    'work_dir': 'a',
}


def changed(config, key, value):
    """A copy of a config with another value at a dotted key."""
    first, _, rest = key.partition('.')
    return {**config, first: changed(config.get(first, {}), rest, value) if rest else value}


@pytest.mark.parametrize(
    ('key', 'value', 'kind'),
    [
        ('model.roi_head.bbox_roi_extractor.type', 'AlignMaxRoIExtractor', EXTRACTOR),
        ('model.roi_head.bbox_roi_extractor.roi_layer.sampling_ratio', 2, EXTRACTOR),
        ('model.roi_head.bbox_roi_extractor.out_channels', 10, CHANNELS),
        ('model.roi_head.bbox_head.in_channels', 10, CHANNELS),
        ('model.roi_head.bbox_roi_extractor.roi_layer.output_size', 14, CONFOUNDED),
        ('model.roi_head.bbox_roi_extractor.featmap_strides', [4, 8, 16], CONFOUNDED),
        ('model.roi_head.bbox_roi_extractor.finest_scale', 28, CONFOUNDED),
        ('model.roi_head.bbox_head.num_classes', 2, CONFOUNDED),
        ('model.backbone.out_channels', 2, CONFOUNDED),
        ('randomness.seed', 1, SEED),
        ('randomness.deterministic', True, CONFOUNDED),
        ('work_dir', 'b', PLACE),
        ('load_from', 'other.pth', CONFOUNDED),
        ('custom_imports.imports', ['roi_plugins.integrations.mmdet'], EXTRACTOR),
        ('custom_imports.imports', ['roi_plugins.integrations.mmdet', 'mine'], CONFOUNDED),
        ('custom_imports.allow_failed_imports', False, EXTRACTOR),
        ('custom_imports.allow_failed_imports', True, EXTRACTOR),
        ('model.track_head.roi_extractor.type', 'AlignMaxRoIExtractor', EXTRACTOR),
        ('model.track_head.roi_extractor.roi_layer.output_size', 14, CONFOUNDED),
    ],
)
def test_what_a_difference_in_mmdetection_is_of(key, value, kind):
    assert list(kinds(STOCK, changed(STOCK, key, value)).values()) == [kind]


def test_the_long_form_has_the_size_of_the_layer_that_it_replaces():
    own = {'type': 'AlignMaxRoIExtractor', 'output_size': [7, 7]}
    own |= {'out_channels': 256, 'featmap_strides': [4, 8]}
    assert set(kinds(STOCK, changed(STOCK, 'model.roi_head.bbox_roi_extractor', own)).values()) == {EXTRACTOR}
    own['output_size'] = (7, 14)
    assert CONFOUNDED in kinds(STOCK, changed(STOCK, 'model.roi_head.bbox_roi_extractor', own)).values()


@pytest.mark.parametrize(
    ('key', 'base', 'other', 'kind'),
    [
        ('MODEL.ROI_BOX_HEAD.POOLER_TYPE', 'ROIAlignV2', 'AlignMax', EXTRACTOR),
        ('MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO', 0, 2, EXTRACTOR),
        ('MODEL.ROI_BOX_HEAD.POOLER_OPTIONS.ALIGNED', None, False, EXTRACTOR),
        ('MODEL.ROI_BOX_HEAD.POOLER_OPTIONS.DEPTH', None, 10, CHANNELS),
        ('MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION', 7, 14, CONFOUNDED),
        ('MODEL.ROI_HEADS.NAME', 'CascadeROIHeads', 'RoIPluginsCascadeROIHeads', EXTRACTOR),
        ('MODEL.ROI_HEADS.NAME', 'CascadeROIHeads', 'RoIPluginsStandardROIHeads', CONFOUNDED),
        ('SEED', 0, 1, SEED),
        ('OUTPUT_DIR', 'a', 'b', PLACE),
        ('SOLVER.BASE_LR', 0.1, 0.2, CONFOUNDED),
        ('model.roi_heads.box_pooler.pooler_type', 'ROIAlignV2', 'AlignMax', EXTRACTOR),
        ('model.roi_heads.pooler.pooler_type', 'ROIAlignV2', 'AlignMax', EXTRACTOR),
        ('model.roi_heads.box_pooler.output_size', 7, 14, CONFOUNDED),
        ('model.roi_heads.box_pooler.scales', [1], [0.5], CONFOUNDED),
        ('model.roi_heads.box_head.input_shape.channels', 256, 10, CHANNELS),
        ('model.backbone.stem.out_channels', 256, 10, CONFOUNDED),
        ('train.seed', 0, 1, SEED),
        ('train.output_dir', 'a', 'b', PLACE),
    ],
)
def test_what_a_difference_in_detectron2_is_of(key, base, other, kind):
    assert kinds({key: base}, {key: other}) == {key: kind}


def test_the_confounded_come_first_and_are_readable():
    found = differences({'SEED': 0, 'lr': 0.1}, {'SEED': 1, 'lr': 0.2, 'new': True})
    assert list(map(str, found)) == ['lr: 0.1 → 0.2', 'new: not set → True', 'SEED: 0 → 1']
