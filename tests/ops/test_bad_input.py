"""Every row of the contract's table of bad input: an error that names the argument, or a sane answer.

What is an empty output or a NaN of one RoI rather than an error is in test_roi_extract.py.
"""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from cases import fitted

from roi_plugins.ops import layers, reference, roi_extract

ERRORS = (ValueError, TypeError, RuntimeError, IndexError)


@pytest.fixture(params=[roi_extract, reference.roi_extract], ids=['op', 'reference'], scope='module')
def extract(request):
    return request.param


def good(device, **changes):
    arguments = {
        'features': torch.ones(2, 3, 8, 8, device=device),
        'rois': torch.tensor([[0.0, 1, 1, 6, 6], [1, 0, 0, 4, 8]], device=device),
        'output_size': (2, 2),
        'spatial_scale': 1.0,
    }
    for name, value in changes.items():
        arguments[name] = value(device) if callable(value) else value
    return arguments


def pyramid(device, **changes):
    return good(
        device,
        **{
            'features': [torch.ones(2, 3, n, n, device=device) for n in (8, 4)],
            'spatial_scale': [1.0, 0.5],
            'levels': torch.tensor([0, 1], device=device),
            **changes,
        },
    )


def maps(*shapes, dtypes=(torch.float32, torch.float32)):
    return lambda device: [
        torch.ones(shape, device=device, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=False)
    ]


def ones(*shape, dtype=torch.float32):
    return lambda device: torch.ones(shape, device=device, dtype=dtype)


def test_the_good_arguments_are_good(device, extract):
    assert extract(**good(device)).shape == (2, 3, 2, 2)
    assert extract(**pyramid(device)).shape == (2, 3, 2, 2)


# Changed argument(s), and what the message says: the argument, and what came (if it is one thing).
SINGLE = {
    'features of rank 3': ({'features': ones(3, 8, 8)}, 'features', '3, 8, 8'),
    'features of rank 5': ({'features': ones(1, 2, 3, 8, 8)}, 'features', '1, 2, 3, 8, 8'),
    'integer features': ({'features': ones(2, 3, 8, 8, dtype=torch.int32)}, 'features', 'int'),
    'complex features': (
        {'features': ones(2, 3, 8, 8, dtype=torch.complex64)}, 'features', 'complex',
    ),
    'a map without rows': ({'features': ones(2, 3, 0, 8)}, 'features', '2, 3, 0, 8'),
    'a map without columns': ({'features': ones(2, 3, 8, 0)}, 'features', '2, 3, 8, 0'),
    'RoIs on an empty batch': ({'features': ones(0, 3, 8, 8)}, 'features', 'empty|0, 3, 8, 8'),
    'rois of rank 1': ({'rois': ones(5)}, 'rois', '5'),
    'rois of width 4': ({'rois': ones(2, 4)}, 'rois', '2, 4'),
    'rois of width 7': ({'rois': ones(2, 7)}, 'rois', '2, 7'),
    'integer rois': ({'rois': ones(2, 5, dtype=torch.int64)}, 'rois', 'int64|Long'),
    'rois on another device': ({'rois': torch.ones(2, 5, device='meta')}, 'rois', 'meta'),
    'an output_size of 0': ({'output_size': 0}, 'output_size', '0'),
    'a negative output_size': ({'output_size': (2, -1)}, 'output_size', '-1'),
    'an output_size of three': ({'output_size': (2, 2, 2)}, 'output_size', '2, 2, 2'),
    'an output_size of one': ({'output_size': (2,)}, 'output_size', '2'),
    'a spatial_scale of 0': ({'spatial_scale': 0.0}, 'spatial_scale', '0'),
    'a negative spatial_scale': ({'spatial_scale': -0.25}, 'spatial_scale', '-0.25'),
    'a spatial_scale of NaN': ({'spatial_scale': float('nan')}, 'spatial_scale', 'nan'),
    'an infinite spatial_scale': ({'spatial_scale': float('inf')}, 'spatial_scale', 'inf'),
    'two scales for one map': ({'spatial_scale': [1.0, 0.5]}, 'spatial_scale', '2'),
    'an unknown region': ({'region': 'rounded'}, 'region', 'rounded'),
    'an unknown reduction': ({'reduction': 'mean'}, 'reduction', 'mean'),
    'a negative sampling_ratio': ({'sampling_ratio': -1}, 'sampling_ratio', '-1'),
    'a sampling_ratio without end': ({'sampling_ratio': 2**14 + 1}, 'sampling_ratio', '16385.*16384'),
    'min_samples without end': (
        {'sampling_ratio': 0, 'min_samples': 2**14 + 1}, 'min_samples', '16385.*16384',
    ),
    'bounds that exclude each other': (
        {'sampling_ratio': 0, 'min_samples': 4, 'max_samples': 2}, 'max_samples', '4.*2',
    ),
    'a max_samples of 0': ({'sampling_ratio': 0, 'max_samples': 0}, 'max_samples', '0'),
    'levels of the wrong length': (
        {'levels': ones(3, dtype=torch.int64)}, 'levels', '3',
    ),
    'offsets of rank 3': ({'offsets': ones(2, 2, 4)}, 'offsets', '2, 2, 4'),
    'offsets of other bins': ({'offsets': ones(2, 2, 2, 3)}, 'offsets', '2, 2, 2, 3'),
    'offsets of other RoIs': ({'offsets': ones(3, 2, 2, 2)}, 'offsets', '3, 2, 2, 2'),
    'integer offsets': ({'offsets': ones(2, 2, 2, 2, dtype=torch.int32)}, 'offsets', 'int'),
    'offsets on another device': (
        {'offsets': torch.ones(2, 2, 2, 2, device='meta')}, 'offsets', 'meta',
    ),
    'offsets with a maximum': ({'offsets': ones(2, 2, 2, 2), 'reduction': 'max'}, 'offsets', ''),
    'offsets with a quantised region': (
        {'offsets': ones(2, 2, 2, 2), 'region': 'round'}, 'offsets', '',
    ),
    'offsets with an integral': (
        {'offsets': ones(2, 2, 2, 2), 'sampling_ratio': None, 'reduction': 'integral'},
        'offsets', '',
    ),
    'offsets with rotated rois': (
        {'offsets': ones(2, 2, 2, 2), 'rois': ones(2, 6)}, 'offsets', '',
    ),
    'offsets with channel groups': (
        {'offsets': ones(2, 2, 2, 2), 'position_sensitive': True, 'features': ones(2, 4, 8, 8)},
        'offsets', 'position_sensitive',
    ),
    'a seed with cells': (
        {'seed': 1, 'region': 'round', 'sampling_ratio': None}, 'seed', '',
    ),
    'a seed with an integral': (
        {'seed': 1, 'reduction': 'integral', 'sampling_ratio': None}, 'seed', '',
    ),
    'two seeds': ({'seed': ones(2, dtype=torch.int64)}, 'seed', '2'),
    'a seed that is no integer': ({'seed': ones(1)}, 'seed', 'float'),
    'a seed on another device': (
        {'seed': torch.ones(1, dtype=torch.int64, device='meta')}, 'seed', 'meta',
    ),
    'channels without a group for each bin': (
        {'position_sensitive': True, 'features': ones(2, 6, 8, 8)}, 'features', '6.*4',
    ),
    'channel groups with a maximum': (
        {'position_sensitive': True, 'reduction': 'max', 'features': ones(2, 4, 8, 8)},
        'position_sensitive', 'max',
    ),
    'channel groups with floor': (
        {'position_sensitive': True, 'region': 'floor', 'sampling_ratio': None,
         'features': ones(2, 4, 8, 8)},
        'position_sensitive', 'floor',
    ),
    'channel groups with bins': (
        {'position_sensitive': True, 'region': 'bins', 'sampling_ratio': None,
         'features': ones(2, 4, 8, 8)},
        'position_sensitive', 'bins',
    ),
    'channel groups with a warp': (
        {'position_sensitive': True, 'region': 'round', 'features': ones(2, 4, 8, 8)},
        'position_sensitive', 'round',
    ),
    'channel groups with rotated rois': (
        {'position_sensitive': True, 'rois': ones(2, 6), 'features': ones(2, 4, 8, 8)},
        'rois', 'position_sensitive',
    ),
    'rotated rois with a quantised region': (
        {'rois': ones(2, 6), 'region': 'round', 'sampling_ratio': None}, 'rois', 'region',
    ),
    'rotated rois with a warp': ({'rois': ones(2, 6), 'region': 'round'}, 'rois', 'region'),
}  # fmt: skip
PYRAMID = {
    'no levels': ({'levels': None}, 'levels', 'None'),
    'levels of the wrong length': ({'levels': ones(3, dtype=torch.int64)}, 'levels', '3'),
    'levels of rank 2': ({'levels': ones(2, 1, dtype=torch.int64)}, 'levels', '2, 1'),
    'boolean levels': ({'levels': ones(2, dtype=torch.bool)}, 'levels', 'bool'),
    'levels on another device': (
        {'levels': torch.ones(2, dtype=torch.int64, device='meta')}, 'levels', 'meta',
    ),
    'too few scales': ({'spatial_scale': [1.0]}, 'spatial_scale', '1'),
    'too many scales': ({'spatial_scale': [1.0, 0.5, 0.25]}, 'spatial_scale', '3'),
    'one scale for two maps': ({'spatial_scale': 1.0}, 'spatial_scale', '1'),
    'one bad scale': ({'spatial_scale': [1.0, 0.0]}, 'spatial_scale', '0'),
    'no maps': ({'features': [], 'spatial_scale': []}, 'features', '0'),
    'maps of different channels': (
        {'features': maps((2, 3, 8, 8), (2, 4, 4, 4))}, 'features', '2, 4, 4, 4',
    ),
    'maps of different batches': (
        {'features': maps((2, 3, 8, 8), (1, 3, 4, 4))}, 'features', '1, 3, 4, 4',
    ),
    'maps of different dtypes': (
        {'features': maps((2, 3, 8, 8), (2, 3, 4, 4), dtypes=(torch.float32, torch.float16))},
        'features', 'float16|Half',
    ),
    'one map without rows': (
        {'features': maps((2, 3, 8, 8), (2, 3, 0, 4))}, 'features', '2, 3, 0, 4',
    ),
    'one map of rank 3': ({'features': maps((2, 3, 8, 8), (3, 4, 4))}, 'features', '3, 4, 4'),
}  # fmt: skip


def assert_told(error, argument, got):
    """The message names the argument, what came, and what is expected."""
    message = str(error.value)
    assert re.search(rf'\b{argument}\b', message), message
    assert re.search(got, message, re.IGNORECASE), message
    assert re.search('expected', message, re.IGNORECASE), message


@pytest.mark.parametrize(('changes', 'argument', 'got'), SINGLE.values(), ids=SINGLE)
def test_one_map(device, extract, changes, argument, got):
    with pytest.raises(ERRORS) as error:
        extract(**good(device, **changes))
    assert_told(error, argument, got)


@pytest.mark.parametrize(('changes', 'argument', 'got'), PYRAMID.values(), ids=PYRAMID)
def test_a_list_of_maps(device, extract, changes, argument, got):
    with pytest.raises(ERRORS) as error:
        extract(**pyramid(device, **changes))
    assert_told(error, argument, got)


@pytest.mark.parametrize(
    ('argument', 'value'),
    [
        ('features', np.ones((2, 3, 8, 8))),
        ('features', None),
        ('rois', [[0, 1, 1, 6, 6]]),
        ('rois', None),
        ('output_size', (2.5, 2)),
        ('output_size', None),
        ('spatial_scale', None),
    ],
    ids=['features', 'no features', 'rois', 'no rois', 'output_size', 'no output_size', 'scale'],
)
def test_what_is_of_another_type(device, argument, value):
    with pytest.raises(ERRORS, match=argument):
        roi_extract(**good(device, **{argument: value}))


@pytest.mark.parametrize(
    ('region', 'sampling_ratio'),
    [('none', None), ('floor', 2), ('floor', 0), ('bins', 2), ('bins', 0)],
)
def test_pairs_that_do_not_go_together(device, extract, region, sampling_ratio):
    with pytest.raises(ERRORS) as error:
        extract(**good(device), region=region, sampling_ratio=sampling_ratio)
    message = str(error.value)
    assert 'region' in message
    assert 'sampling_ratio' in message
    for valid in ("'none'", "'round'", "'floor'", "'bins'"):  # the pairs that exist
        assert valid in message, message


@pytest.mark.parametrize(
    ('region', 'sampling_ratio'), [('none', 2), ('none', 0), ('round', None), ('floor', None), ('round', 1)]
)
def test_an_integral_takes_no_samples_and_no_cells(device, extract, region, sampling_ratio):
    with pytest.raises(ERRORS) as error:
        extract(**good(device), region=region, sampling_ratio=sampling_ratio, reduction='integral')
    assert_told(error, 'region, sampling_ratio', f"'{region}' and {sampling_ratio}.*expected 'none' and None")


NO_IMAGE = [2.0, -1.0, 0.5, 1e30, float('nan'), float('inf'), -0.25]


@pytest.mark.parametrize('index', NO_IMAGE, ids=str)
@pytest.mark.parametrize(
    'method',
    [{}, {'region': 'round', 'sampling_ratio': None}, {'rotated': True}, {'deformable': True}],
    ids=str,
)
def test_batch_index_out_of_range(device, extract, index, method):
    """CPU: an error that names the RoI. CUDA: NaN for that RoI, no synchronisation, no wild read."""
    rois = torch.tensor([[0.0, 1, 1, 6, 6]] * 5, device=device)
    rois[3, 0] = index
    _, rois, method = fitted(method, torch.ones(2, 3, 8, 8, device=device), rois, (2, 2))
    arguments = good(device, rois=rois)
    if device.type == 'cpu':
        with pytest.raises(ERRORS) as error:
            extract(**arguments, **method)
        message = str(error.value)
        assert re.search(r'\b3\b', message), message
        assert 'batch' in message, message
        assert 'rois' in message, message
        return
    arguments['features'].requires_grad_()
    output = extract(**arguments, **method)
    assert output[3].isnan().all()
    assert output[[0, 1, 2, 4]].isfinite().all()
    output.backward(torch.ones_like(output))
    assert arguments['features'].grad.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='checks on the GPU need a GPU')
def test_batch_index_is_checked_on_cuda_on_request():
    program = (
        'import torch; from roi_plugins.ops import roi_extract\n'
        'rois = torch.tensor([[0.0, 1, 1, 6, 6], [2, 1, 1, 6, 6]], device="cuda")\n'
        'roi_extract(torch.ones(2, 3, 8, 8, device="cuda"), rois, 2, 1.0)\n'
    )
    run = subprocess.run(
        [sys.executable, '-c', program],
        env={**os.environ, 'ROI_PLUGINS_CHECK': '1'},
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0
    assert re.search(r'rois.*batch', run.stderr), run.stderr


def test_boxes_of_images_of_the_wrong_width(device):
    layer = layers.RoIAlign(2, 1.0, 2)
    boxes = [torch.ones(2, 4, device=device), torch.ones(1, 5, device=device)]
    with pytest.raises(ERRORS) as error:
        layer(torch.ones(2, 3, 8, 8, device=device), boxes)
    assert_told(error, 'rois', '1, 5')


@pytest.mark.parametrize('pool_mode', ['mean', None])
def test_an_unknown_pool_mode(pool_mode):
    with pytest.raises(ERRORS) as error:
        layers.MMCVRoIAlign(2, pool_mode=pool_mode)
    assert_told(error, 'pool_mode', str(pool_mode))
