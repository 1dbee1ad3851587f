"""The extractors: each is the method it is named after, and a module like any other."""

import copy
import inspect
import math
import pickle

import pytest
import torch
import torchvision
from building import STARTING_AS_ALIGN_AVG, WITH_WEIGHTS, build_extractor

from roi_plugins.extractors import (
    EXTRACTORS,
    AdaptiveSampling,
    AlignAvg,
    AllLevels,
    Precise,
    QuantizedPool,
    RandomSampling,
    RoIExtractor,
    RoIWarp,
)
from roi_plugins.ops import assign_levels_mmdet, roi_extract

STRIDES = [4, 8, 16]
IMAGE = 256
OUTPUT_SIZE = (3, 2)

# (extractor, its options, what they mean to the op)
METHODS = [
    ('QuantizedPool', {}, dict(region='round', sampling_ratio=None, reduction='max')),
    (
        'QuantizedPool',
        dict(region='floor', reduction='avg'),
        dict(region='floor', sampling_ratio=None, reduction='avg'),
    ),
    (
        'QuantizedPool',
        dict(region='bins'),
        dict(region='bins', sampling_ratio=None, reduction='max'),
    ),
    ('RoIWarp', {}, dict(region='round', sampling_ratio=2, reduction='avg')),
    (
        'RoIWarp',
        dict(reduction='max', sampling_ratio=0),
        dict(region='round', sampling_ratio=0, reduction='max'),
    ),
    ('AlignMax', {}, dict(sampling_ratio=2, reduction='max')),
    ('AlignMax', dict(sampling_ratio=3), dict(sampling_ratio=3, reduction='max')),
    ('AlignAvg', {}, dict(sampling_ratio=2, reduction='avg')),
    (
        'AlignAvg',
        dict(sampling_ratio=0, aligned=False),
        dict(sampling_ratio=0, reduction='avg', aligned=False),
    ),
    ('AdaptiveSampling', {}, dict(sampling_ratio=0, reduction='avg')),
    (
        'AdaptiveSampling',
        dict(reduction='max', min_samples=2, max_samples=4, aligned=False),
        dict(sampling_ratio=0, reduction='max', min_samples=2, max_samples=4, aligned=False),
    ),
    ('Precise', {}, dict(sampling_ratio=None, reduction='integral', aligned=False)),
    ('Precise', dict(aligned=True), dict(sampling_ratio=None, reduction='integral')),
]
methods = pytest.mark.parametrize(
    ('name', 'options', 'method'),
    METHODS,
    ids=['-'.join([name, *map(str, options.values())]) for name, options, _ in METHODS],
)
every_extractor = pytest.mark.parametrize('name', EXTRACTORS)
# Those that are more than a call of the op with options, which have tests of their own.
OTHERS = ('RandomSampling', 'Deformable', 'PositionSensitive', 'ContentAdaptive', 'AllLevels')


def build(name, device='cpu'):
    return build_extractor(name, OUTPUT_SIZE, STRIDES).to(device)


class CentrePoint(RoIExtractor):
    """What somebody would write who wants an extractor of their own: one sample a bin."""

    def __init__(self, output_size, featmap_strides, reduction='avg', **kwargs):
        super().__init__(output_size, featmap_strides, sampling_ratio=1, reduction=reduction, **kwargs)


def pyramid(device='cpu', channels=3, strides=STRIDES):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, channels, IMAGE // stride, IMAGE // stride) for stride in strides]
    return [torch.randn(shape, generator=generator).to(device) for shape in shapes]


def boxes(sides, device='cpu'):
    """A square RoI of each side, in pixels, at corners that are on no grid."""
    generator = torch.Generator().manual_seed(1)
    sides = torch.tensor(sides)[:, None]
    corners = torch.rand(len(sides), 2, generator=generator) * (IMAGE - sides)
    index = torch.arange(len(sides))[:, None] % 2
    return torch.cat([index, corners, corners + sides], dim=1).to(device)


def rois_on_every_level(device='cpu'):
    rois = boxes([0.5, 9.0, 30.0, 111.0, 113.0, 170.0, 223.0, 225.0, 250.0], device)
    assert set(assign_levels_mmdet(rois, len(STRIDES)).tolist()) == {0, 1, 2}
    return rois


def scales(strides):
    return [1 / stride for stride in strides]


def assert_equal(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_every_extractor_of_the_table_is_tested():
    assert {name for name, _, _ in METHODS} == set(EXTRACTORS) - set(OTHERS)


@methods
def test_a_pyramid_is_the_op(device, name, options, method):
    features, rois = pyramid(device), rois_on_every_level(device)
    levels = assign_levels_mmdet(rois, len(features))
    assert_equal(
        EXTRACTORS[name](OUTPUT_SIZE, STRIDES, **options)(features, rois),
        roi_extract(features, rois, OUTPUT_SIZE, scales(STRIDES), levels=levels, **method),
    )


@methods
def test_one_map_is_the_op(device, name, options, method):
    features, rois = pyramid(device, strides=[8]), rois_on_every_level(device)
    # An inverted box has no level in a pyramid; one map needs none.
    rois = torch.cat([rois, rois[-1:, [0, 3, 2, 1, 4]]])
    assert_equal(
        EXTRACTORS[name](OUTPUT_SIZE, [8], **options)(features, rois),
        roi_extract(features[0], rois, OUTPUT_SIZE, 1 / 8, **method),
    )


def test_one_number_is_both_sides_of_the_output():
    assert AlignAvg(7, STRIDES)(pyramid(), rois_on_every_level()).shape == (9, 3, 7, 7)


def test_fewer_maps_are_the_finest():
    features, rois = pyramid()[:2], rois_on_every_level()
    assert_equal(
        AlignAvg(OUTPUT_SIZE, STRIDES)(features, rois),
        AlignAvg(OUTPUT_SIZE, STRIDES[:2])(features, rois),
    )


def test_more_maps_than_strides():
    with pytest.raises(ValueError, match=r'features: got 3 maps.*featmap_strides \[4, 8\]'):
        AlignAvg(OUTPUT_SIZE, [4, 8])(pyramid(), rois_on_every_level())


def test_no_maps():
    with pytest.raises(ValueError, match='features: got 0 maps'):
        AlignAvg(OUTPUT_SIZE, STRIDES)([], rois_on_every_level())


@pytest.mark.parametrize(('dtype', 'images'), [(torch.bfloat16, 258), (torch.float16, 2050)], ids=str)
def test_rois_of_a_type_without_a_number_for_every_image(dtype, images):
    features = [torch.zeros(images, 1, 1, 1)] * 2
    with pytest.raises(ValueError, match=f'rois: got dtype {dtype} for {images} images'):
        AlignAvg(OUTPUT_SIZE, STRIDES)(features, torch.zeros(1, 5, dtype=dtype))


@pytest.mark.parametrize('extractor', [RoIExtractor, AllLevels], ids=lambda extractor: extractor.__name__)
def test_what_is_not_stated_is_as_in_the_op(extractor):
    method = extractor(OUTPUT_SIZE, STRIDES).method
    given = inspect.signature(roi_extract).parameters
    assert method == {name: given[name].default for name in method}


def test_levels_come_from_the_rule_unless_given():
    features, rois = pyramid(), rois_on_every_level()
    levels = torch.arange(len(rois)) % 3
    asked = []

    def rule(rois, num_levels):
        asked.append(num_levels)
        return levels

    expected = roi_extract(features, rois, OUTPUT_SIZE, scales(STRIDES), levels=levels)
    assert_equal(AlignAvg(OUTPUT_SIZE, STRIDES, level_rule=rule)(features, rois), expected)
    assert asked == [3]
    assert_equal(AlignAvg(OUTPUT_SIZE, STRIDES)(features, rois, levels), expected)


@pytest.mark.parametrize('reduction', ['avg', 'max'])
class TestBoundsOfAdaptiveSampling:
    SMALL = boxes([1.0, 5.0, 7.5])  # less than a cell of stride 4 in a bin: one sample
    LARGE = boxes([100.0, 170.0, 250.0])  # more than 8 cells in a bin

    def assert_fixed(self, rois, sampling_ratio, reduction, **bounds):
        """The bounds leave a grid of that many samples: same output, same gradient."""
        adaptive = AdaptiveSampling(OUTPUT_SIZE, [4], reduction=reduction, **bounds)
        fixed = AlignAvg if reduction == 'avg' else EXTRACTORS['AlignMax']
        outputs, gradients = [], []
        for extractor in (adaptive, fixed(OUTPUT_SIZE, [4], sampling_ratio=sampling_ratio)):
            (feature,) = pyramid(strides=[4])
            output = extractor([feature.requires_grad_()], rois)
            output.square().sum().backward()
            outputs.append(output)
            gradients.append(feature.grad)
        torch.testing.assert_close(*outputs)
        torch.testing.assert_close(*gradients)

    def test_equal_bounds_are_a_fixed_grid(self, reduction):
        rois = torch.cat([self.SMALL, self.LARGE])
        self.assert_fixed(rois, 3, reduction, min_samples=3, max_samples=3)

    def test_a_lower_bound_acts_on_small_rois(self, reduction):
        self.assert_fixed(self.SMALL, 1, reduction)
        self.assert_fixed(self.SMALL, 4, reduction, min_samples=4)

    def test_an_upper_bound_acts_on_large_rois(self, reduction):
        with pytest.raises(AssertionError):
            self.assert_fixed(self.LARGE, 2, reduction)
        self.assert_fixed(self.LARGE, 2, reduction, max_samples=2)


@pytest.mark.parametrize('name', [name for name in EXTRACTORS if name != 'AllLevels'])
def test_every_level_gets_a_gradient(device, name):
    features = [map_.requires_grad_() for map_ in pyramid(device)]
    rois = boxes([30.0, 40.0], device)  # level 0
    build(name, device)(features, rois).sum().backward()
    assert features[0].grad.any()
    for map_ in features[1:]:
        assert_equal(map_.grad, torch.zeros_like(map_))


@every_extractor
@pytest.mark.parametrize('num_maps', [1, 3])
def test_no_rois(device, name, num_maps):
    features = [map_.requires_grad_() for map_ in pyramid(device)[:num_maps]]
    extractor = build(name, device)
    output = extractor(features, torch.zeros(0, 5, device=device))
    assert output.shape == (0, 3, *OUTPUT_SIZE)
    output.sum().backward()
    for tensor in (*features, *extractor.parameters()):
        assert_equal(tensor.grad, torch.zeros_like(tensor))


@pytest.mark.parametrize(
    ('extractor', 'option', 'value'),
    [
        (AlignAvg, 'output_size', 0),
        (AlignAvg, 'output_size', 7.0),
        (AlignAvg, 'output_size', (7, 7.5)),
        (AlignAvg, 'output_size', (7, 7, 7)),
        (AlignAvg, 'featmap_strides', 4),
        (AlignAvg, 'featmap_strides', []),
        (AlignAvg, 'featmap_strides', [4, 0]),
        (AlignAvg, 'featmap_strides', [4, -8]),
        (AlignAvg, 'featmap_strides', [4, math.inf]),
        (AlignAvg, 'featmap_strides', ['4']),
        (AlignAvg, 'sampling_ratio', 2.5),
        (AlignAvg, 'sampling_ratio', '2'),
        (AlignAvg, 'sampling_ratio', None),
        (AlignAvg, 'aligned', 'yes'),
        (RoIWarp, 'reduction', 'sum'),
        (RoIWarp, 'sampling_ratio', 2**14 + 1),
        (QuantizedPool, 'region', 'nearest'),
        (QuantizedPool, 'region', 'none'),
        (QuantizedPool, 'reduction', None),
        (AdaptiveSampling, 'min_samples', 0),
        (AdaptiveSampling, 'max_samples', 0),
        (AdaptiveSampling, 'max_samples', 2.5),
        (AdaptiveSampling, 'max_samples', 'all'),
        (Precise, 'aligned', 0.5),
        (RandomSampling, 'sampling_ratio', None),
        (RandomSampling, 'reduction', 'sum'),
    ],
)
def test_a_bad_value_is_named_at_construction(extractor, option, value):
    options = dict(output_size=7, featmap_strides=STRIDES) | {option: value}
    with pytest.raises(ValueError, match=rf'^[\w, ]*\b{option}\b.*: '):
        extractor(**options)


@pytest.mark.parametrize(
    ('name', 'option'),
    [
        ('AlignAvg', 'sampling_rate'),
        ('AlignAvg', 'reduction'),
        ('AlignMax', 'reduction'),
        ('QuantizedPool', 'sampling_ratio'),
        ('RoIWarp', 'region'),
        ('AdaptiveSampling', 'sampling_ratio'),
        ('Precise', 'sampling_ratio'),
        ('RandomSampling', 'region'),
    ],
)
def test_an_option_of_another_extractor_is_named(name, option):
    with pytest.raises(TypeError, match=f"'{option}'"):
        EXTRACTORS[name](7, STRIDES, **{option: 'avg'})


@every_extractor
@pytest.mark.parametrize(
    'copied',
    [copy.deepcopy, lambda extractor: pickle.loads(pickle.dumps(extractor))],
    ids=['deepcopy', 'pickle'],
)
def test_copies(name, copied):
    extractor = build(name)
    features, rois = pyramid(), rois_on_every_level()
    assert_equal(copied(extractor)(features, rois), extractor(features, rois))


@pytest.mark.parametrize('name', [name for name in EXTRACTORS if name not in WITH_WEIGHTS])
def test_a_checkpoint_holds_nothing_of_it(name):
    """So that checkpoints move freely between extractors, in both directions."""
    assert not build(name).state_dict()


@pytest.mark.parametrize('name', STARTING_AS_ALIGN_AVG)
def test_one_with_weights_leaves_the_random_numbers_alone(name):
    """Models of one seed start from the same weights, whatever their extractor."""
    state = torch.get_rng_state()
    assert list(EXTRACTORS[name](OUTPUT_SIZE, STRIDES, channels=3).parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize('name', EXTRACTORS)
def test_what_a_type_declares_is_what_it_takes(name):
    parameters = inspect.signature(EXTRACTORS[name]).parameters
    assert EXTRACTORS[name].needs_channels == ('channels' in parameters) == (name in WITH_WEIGHTS)
    assert EXTRACTORS[name].changes_channels == ('depth' in parameters)


@pytest.mark.parametrize('name', WITH_WEIGHTS)
def test_the_channels_are_asked_for(name):
    with pytest.raises(TypeError, match="'channels'"):
        EXTRACTORS[name](OUTPUT_SIZE, STRIDES)


@every_extractor
def test_repr_says_how_it_reads(name):
    text = repr(build(name))
    assert all(part in text for part in (f'{name}(', '(3, 2)', '[4, 8, 16]', 'sampling_ratio='))


@every_extractor
def test_compiles_without_a_graph_break(device, name):
    torch.compiler.reset()  # they share code, of which dynamo compiles but so many versions
    extractor = build(name, device)
    results = []
    for run in (extractor, torch.compile(extractor, fullgraph=True, backend='aot_eager')):
        features = [map_.requires_grad_() for map_ in pyramid(device)]
        output = run(features, rois_on_every_level(device))
        output.square().sum().backward()
        results.append([output, *(map_.grad for map_ in features)])
    assert_equal(*results)


@every_extractor
@pytest.mark.parametrize('num_maps', [1, 3])
def test_scripts(device, name, num_maps):
    extractor = build(name, device)
    scripted = torch.jit.script(extractor)
    features, rois = pyramid(device)[:num_maps], rois_on_every_level(device)
    assert_equal(scripted(features, rois), extractor(features, rois))
    # Of a rule in floating point.
    levels = torch.arange(len(rois), device=device) / 2 % num_maps
    assert_equal(scripted(features, rois, levels), extractor(features, rois, levels))
    with pytest.raises(torch.jit.Error, match='features: got 4 maps'):
        scripted([*pyramid(device), *pyramid(device)[:1]], rois)


def test_one_of_your_own_is_a_class():
    extractor = pickle.loads(pickle.dumps(CentrePoint(OUTPUT_SIZE, STRIDES, reduction='max')))
    features, rois = pyramid(), rois_on_every_level()
    # With one sample a bin there is nothing to reduce.
    torch.testing.assert_close(
        extractor(features, rois),
        AlignAvg(OUTPUT_SIZE, STRIDES, sampling_ratio=1)(features, rois),
    )
    with pytest.raises(ValueError, match='reduction'):
        CentrePoint(OUTPUT_SIZE, STRIDES, reduction='median')


@pytest.mark.parametrize('name', EXTRACTORS)
@pytest.mark.parametrize('sampling_ratio', [-1, -7])
def test_a_sampling_ratio_below_zero_is_the_adaptive_grid(name, sampling_ratio):
    """As torchvision, MMCV and Detectron2 take it; torchvision's own default is -1."""
    if 'sampling_ratio' not in inspect.signature(EXTRACTORS[name]).parameters:
        pytest.skip('takes no sampling ratio')
    features, rois = pyramid(), rois_on_every_level()
    negative, zero = (
        build_extractor(name, OUTPUT_SIZE, STRIDES, channels=features[0].shape[1], sampling_ratio=ratio)
        for ratio in (sampling_ratio, 0)
    )
    assert torch.equal(negative(features, rois), zero(features, rois))
    assert repr(negative) == repr(zero)
    assert negative.sampling_ratio == 0


def test_a_sampling_ratio_below_zero_is_torchvisions():
    features, rois = pyramid(), rois_on_every_level()
    output = AlignAvg(OUTPUT_SIZE, STRIDES[:1], sampling_ratio=-1)(features[:1], rois)
    expected = torchvision.ops.roi_align(
        features[0], rois, OUTPUT_SIZE, 1 / STRIDES[0], sampling_ratio=-1, aligned=True
    )
    torch.testing.assert_close(output, expected)
