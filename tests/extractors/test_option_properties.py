"""Whatever options a config gives an extractor: it is built and works, or an error names the option."""

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roi_plugins.extractors import EXTRACTORS

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 20),
    st.sampled_from(
        ['', 'avg', 'max', 'integral', 'none', 'round', 'floor', 'bins', 'sum', 'concat', 'align']
    ),
    st.sampled_from(['pool', float('nan'), float('inf'), 0.5, 100, 'seven', {}, [], ['avg'], [7, 7]]),
    st.lists(st.integers(-1, 8), max_size=3),
)


@pytest.mark.parametrize('name', EXTRACTORS)
@given(data=st.data())
def test_any_options(name, data):
    extractor = EXTRACTORS[name]
    known = inspect.signature(extractor).parameters
    options = {'output_size': 3, 'featmap_strides': [4, 8]}
    if 'channels' in known:
        options['channels'] = 3
    # What is no value of a config: functions and modules.
    names = sorted(known.keys() - {'level_rule', 'pre_module', 'post_module'} | {'sampling'})
    changed = data.draw(st.dictionaries(st.sampled_from(names), values, min_size=1, max_size=3))
    options |= changed
    try:
        module = extractor(**options).eval()
    except (ValueError, TypeError) as error:
        # Of bounds and pairs of options both are named, one of which is perhaps not changed.
        assert any(option in str(error) for option in names), error
        return
    if max(module.output_size) > 20 or (module.sampling_ratio or module.min_samples) > 20:
        return  # built, but long to run
    channels = options.get('channels', 3)
    maps = [torch.ones(1, channels, 8, 8) for _ in module.featmap_strides]
    rois = torch.tensor([[0.0, 0, 0, 20, 20]])
    with torch.no_grad():
        assert module(maps, rois).shape[-2:] == module.output_size
