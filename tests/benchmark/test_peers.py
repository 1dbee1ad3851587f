"""The peers compute what the op computes, in every layout, dtype and step that they are measured in."""

import itertools
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from roi_plugins.benchmark import measure, peers
from roi_plugins.benchmark.cases import (
    ALIGN_AVG,
    ALIGN_MAX,
    BACKWARD,
    C4,
    CASES,
    FORWARD,
    FPN,
    INTEL,
    LAYOUTS,
    ONNXRUNTIME,
    OPENVINO,
    QUANTIZED_POOL,
    Case,
)
from roi_plugins.benchmark.peers import PEERS

CPU = torch.device('cpu')
WORK = [
    ('torchvision.ops.roi_align', ALIGN_AVG, C4),
    ('torchvision.ops.roi_pool', QUANTIZED_POOL, C4),
    ('mmcv.ops.RoIAlign', ALIGN_AVG, C4),
    ('mmcv.ops.RoIAlign', ALIGN_MAX, C4),
    ('torchvision.ops.MultiScaleRoIAlign', {**ALIGN_AVG, 'aligned': False}, FPN),
    ('mmdet SingleRoIExtractor', ALIGN_AVG, FPN),
    ('detectron2 ROIPooler', ALIGN_AVG, FPN),
    (INTEL, ALIGN_AVG, C4),
    (ONNXRUNTIME, ALIGN_AVG, C4),
    (ONNXRUNTIME, {**ALIGN_AVG, 'aligned': False}, C4),
    (OPENVINO, ALIGN_AVG, C4),
    (OPENVINO, {**ALIGN_AVG, 'aligned': False}, C4),
]


@pytest.mark.parametrize('name, method, strides', WORK)
def test_peers_compute_what_the_op_computes(name, method, strides):
    case = Case(
        'small', 2, FORWARD, method, strides, (), num_rois=40, channels=32, image_size=(448, 672)
    )  # fmt: skip
    rois, peer = case.make_rois(), PEERS[name]
    try:
        extract = peer(case, rois)
    except ImportError as error:
        pytest.skip(f'{name} is not installed: {error}')
    except RuntimeError as error:
        assert find_spec('intel_extension_for_pytorch') and "Intel's extension" in str(error)
        pytest.skip(str(error))
    for layout, dtype in itertools.product(peer.layouts, peer.dtypes['cpu']):
        maps = [
            map_.requires_grad_(BACKWARD in peer.steps) for map_ in case.make_features(layout, dtype, CPU)
        ]
        exact = [map_.detach().float().requires_grad_() for map_ in maps]
        output, expected = extract(maps), case.extract(exact, rois)
        assert output.dtype == maps[0].dtype
        assert_agree(output, expected)
        if BACKWARD in peer.steps:
            grad = torch.randn_like(output)
            grads = torch.autograd.grad(output, maps, grad)
            for ours, its in zip(torch.autograd.grad(expected, exact, grad.float()), grads, strict=True):
                assert_agree(its, ours)


def assert_agree(output, expected):
    """In bfloat16, Intel's extension also adds up a gradient in bfloat16, so that only its norm is tested."""
    if output.dtype == torch.float32:
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    else:
        assert (output.float() - expected).norm() < 0.02 * expected.norm()


@pytest.mark.skipif(find_spec('openvino') is None, reason='OpenVINO is not installed')
def test_openvino_leaves_the_main_thread_on_all_cores():
    """It pins its threads to cores; threads that torch starts later inherit those of the main thread."""
    code = (
        'import os\n'
        'from roi_plugins.benchmark.cases import CASES, OPENVINO\n'
        'from roi_plugins.benchmark.peers import PEERS\n'
        'import torch\n'
        'before = os.sched_getaffinity(0)\n'
        "case = CASES['cpu'][0]\n"
        "maps = case.make_features('NCHW', 'float32', torch.device('cpu'))\n"
        'PEERS[OPENVINO](case, case.make_rois())(maps)\n'
        'assert os.sched_getaffinity(0) == before\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_every_case_names_known_peers_and_aims_at_them():
    for case in (case for cases in CASES.values() for case in cases):
        assert set(case.peers) <= set(PEERS)
        for name, layout, dtype in case.targets:
            assert name in case.peers and layout in LAYOUTS and dtype in case.dtypes
            assert case.step in PEERS[name].steps


def test_torchvision_is_left_out_where_intels_extension_would_replace_its_kernel(monkeypatch):
    case = Case('tiny', 2, FORWARD, ALIGN_AVG, C4, ('torchvision.ops.roi_align',), num_rois=2, channels=3)
    monkeypatch.setattr(peers, 'find_spec', lambda name: name)
    left_out = {}
    assert measure._peer_contenders(case, case.make_rois(), CPU, left_out) == []
    assert list(left_out) == ['torchvision.ops.roi_align NCHW float32']
    assert 'replaces' in left_out['torchvision.ops.roi_align NCHW float32']


def test_intels_extension_does_replace_it():
    """If this fails, torchvision can be measured beside it."""
    if find_spec('intel_extension_for_pytorch') is None:
        pytest.skip("Intel's extension is not installed")
    code = (
        'import torch, torchvision\n'
        'import intel_extension_for_pytorch\n'
        "registered = torch._C._dispatch_dump('torchvision::roi_align')\n"
        "lines = [line for line in registered.splitlines() if line.startswith('AutogradCPU:')]\n"
        "assert any('ipex' in line for line in lines), registered\n"
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_a_peer_runs_in_all_it_supports_and_only_in_its_steps(monkeypatch):
    monkeypatch.setitem(
        PEERS,
        'fake',
        peers.Peer(
            lambda case, rois: lambda maps: case.extract(maps, rois),
            LAYOUTS,
            {'cpu': ('float32', 'bfloat16')},
            (FORWARD,),
        ),
    )
    case = Case('tiny', 2, FORWARD, ALIGN_AVG, C4, ('fake',), num_rois=2, channels=3, image_size=(96, 160))

    def measured_in(**changes):
        changed = replace(case, **changes)
        return [(c.layout, c.dtype) for c in measure._peer_contenders(changed, case.make_rois(), CPU, {})]

    assert measured_in(dtypes=('float32', 'bfloat16')) == list(
        itertools.product(LAYOUTS, ('float32', 'bfloat16'))
    )
    assert measured_in() == [(layout, 'float32') for layout in LAYOUTS]
    assert measured_in(step=BACKWARD) == []
