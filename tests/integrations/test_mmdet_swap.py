"""The type alone over a stock config of MMDetection: what an extractor takes from ``roi_layer``."""

import subprocess
import sys

import pytest
import torch

pytest.importorskip('mmdet', reason='MMDetection is not installed')
pytest.importorskip('mmcv.ops', reason="MMCV's compiled ops are not installed")

from mmcv.ops import RoIAlign
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict

from roi_plugins.extractors import EXTRACTORS
from roi_plugins.integrations.errors import RunError
from roi_plugins.integrations.mmdet import MMDetRoIExtractor
from roi_plugins.integrations.mmdet.config import read_config
from roi_plugins.integrations.zoo import find_config

register_all_modules(init_default_scope=False)

STRIDES = [4, 8, 16, 32]
CHANNELS = 3
every_type = pytest.mark.parametrize('type_', [f'{name}RoIExtractor' for name in EXTRACTORS])


def pyramid():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, CHANNELS, 256 // s, 256 // s, generator=generator) for s in STRIDES]


def random_rois():
    generator = torch.Generator().manual_seed(1)
    corners = 200 * torch.rand(40, 2, generator=generator)
    sizes = 2 + 250 * torch.rand(40, 2, generator=generator) ** 3
    images = torch.arange(40).float()[:, None] % 2
    return torch.cat([images, corners, corners + sizes], dim=1)


def swap(stock, type_, **changes):
    """The extractor of a config that changes the type of a stock one, and no more."""
    cfg = ConfigDict(extractor=stock)
    cfg.extractor.update(type=type_, **changes)
    return MODELS.build(cfg.extractor)


def stock(layer, type_='SingleRoIExtractor', **options):
    return dict(type=type_, roi_layer=layer, out_channels=CHANNELS, featmap_strides=STRIDES, **options)


ALIGN = dict(type='RoIAlign', output_size=7, sampling_ratio=0)


@pytest.mark.parametrize(
    'layer',
    [
        ALIGN,
        dict(type='RoIAlign', output_size=(3, 5)),
        dict(type='RoIAlign', output_size=7, sampling_ratio=-1),
        dict(type='RoIAlign', output_size=7, sampling_ratio=2, aligned=False),
        dict(type=RoIAlign, out_size=7, sample_num=2, use_torchvision=True),
    ],
)
def test_the_type_alone_computes_what_the_stock_one_does(layer):
    features, rois = pyramid(), random_rois()
    expected = MODELS.build(stock(dict(layer)))(features, rois)
    ours = swap(stock(layer, finest_scale=56), 'AlignAvgRoIExtractor')(features, rois)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(swap(stock(layer), 'AlignMaxRoIExtractor')(features, rois), expected)


def test_the_type_alone_over_the_generic_extractor():
    features, rois = pyramid(), random_rois()
    generic = stock(ALIGN, 'GenericRoIExtractor', aggregation='sum')
    expected = MODELS.build(dict(generic))(features, rois)
    ours = swap(generic, 'AllLevelsRoIExtractor')(features, rois)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    with pytest.raises(TypeError, match=r'^aggregation: no option of \w+; AllLevelsRoIExtractor has it'):
        swap(generic, 'AlignMaxRoIExtractor')


@every_type
def test_every_type_stands_alone(type_):
    extractor = swap(stock(ALIGN), type_)
    assert isinstance(extractor, MMDetRoIExtractor)
    assert extractor.output_size == (7, 7)
    if 'sampling_ratio' in extractor.options():
        assert extractor.extractor.sampling_ratio == 0
    if 'aligned' in extractor.options():
        assert extractor.extractor.aligned is True
    assert extractor(pyramid(), random_rois()).shape[1:] == (CHANNELS, 7, 7)


@every_type
def test_boxes_get_no_gradient_that_the_stock_layer_does_not_give(type_):
    """Sparse R-CNN's first proposals are weights: another gradient would be another training."""
    rois = random_rois().requires_grad_()
    features = [feature.requires_grad_() for feature in pyramid()]
    swap(stock(ALIGN), type_)(features, rois).sum().backward()
    # PrRoIPool is made for boxes that are optimised, and MMCV's gives them a gradient too.
    assert (rois.grad is not None) == (type_ == 'PreciseRoIExtractor')
    assert features[0].grad is not None


def test_what_is_set_beside_the_layer_wins():
    extractor = swap(stock(ALIGN), 'AlignAvgRoIExtractor', sampling_ratio=3, aligned=False).extractor
    assert (extractor.sampling_ratio, extractor.aligned) == (3, False)


@pytest.mark.parametrize(
    ('layer', 'type_', 'options', 'error', 'message'),
    [
        (ALIGN, 'AlignMax', dict(output_size=14), ValueError, 'output_size is 14, but that of roi_layer'),
        (dict(ALIGN, pool_mode='max'), 'AlignAvg', {}, ValueError, "pool_mode of roi_layer is 'max', but Al"),
        (dict(ALIGN, gamma=0.1), 'AlignMax', {}, TypeError, 'roi_layer.gamma: an option of RoIAlign that'),
        (dict(type='RoIAlgin', output_size=7), 'AlignMax', {}, ValueError, "roi_layer.type: got 'RoIAlgin'"),
        (
            dict(type='DeformRoIPoolPack', output_size=7, output_channels=9),
            *('AlignMax', {}, ValueError, 'out_channels is 3, but output_channels of roi_layer is 9'),
        ),
        (None, 'AlignMax', {}, TypeError, 'output_size: AlignMaxRoIExtractor has none, and no roi_layer'),
    ],
)
def test_what_the_layer_and_the_type_contradict_is_named(layer, type_, options, error, message):
    with pytest.raises(error, match=message):
        swap(stock(layer), f'{type_}RoIExtractor', **options)


def test_the_maximum_of_a_layer_is_that_of_align_max():
    extractor = swap(stock(dict(ALIGN, pool_mode='max')), 'AlignMaxRoIExtractor')
    assert extractor.extractor.reduction == 'max'


def test_a_pack_and_point_sampling_give_their_size():
    pack = dict(type='DeformRoIPoolPack', output_size=7, output_channels=CHANNELS)
    assert swap(stock(pack), 'DeformableRoIExtractor').output_size == (7, 7)
    points = swap(stock(dict(type='SimpleRoIAlign', output_size=14)), 'AlignMaxRoIExtractor')
    assert (points.output_size, points.extractor.sampling_ratio) == ((14, 14), 1)


@pytest.mark.slow
def test_the_full_path_needs_no_import():
    """In MMDetection's own tools nothing of ours is imported."""
    code = (
        'from mmdet.registry import MODELS\n'
        "print(type(MODELS.build(dict(type='roi_plugins.integrations.mmdet.AlignMaxRoIExtractor', "
        "roi_layer=dict(type='RoIAlign', output_size=7), out_channels=8, featmap_strides=[4]))).__name__)"
    )
    command = [sys.executable, '-c', code]
    assert subprocess.check_output(command, text=True).splitlines()[-1] == 'AlignMaxRoIExtractor'


def test_our_tools_need_no_import_and_save_one(tmp_path):
    path = tmp_path / 'stock.py'
    stock_head = dict(type='StandardRoIHead', bbox_roi_extractor=stock(ALIGN))
    path.write_text(f'model = dict(type="MaskRCNN", roi_head={stock_head!r})\n')
    assert 'custom_imports' not in read_config(path)
    option = {'model.roi_head.bbox_roi_extractor.type': 'AlignMaxRoIExtractor'}
    read_config(path, option).dump(tmp_path / 'saved.py')
    code = (
        'from mmdet.registry import MODELS\n'
        'from mmengine.config import Config\n'
        f'cfg = Config.fromfile({str(tmp_path / "saved.py")!r})\n'
        'print(type(MODELS.build(cfg.model.roi_head.bbox_roi_extractor)).__name__)'
    )
    command = [sys.executable, '-c', code]
    assert subprocess.check_output(command, text=True).splitlines()[-1] == 'AlignMaxRoIExtractor'
    # By its full path it needs none.
    option = {'model.roi_head.bbox_roi_extractor.type': 'roi_plugins.integrations.mmdet.AlignMaxRoIExtractor'}
    assert 'custom_imports' not in read_config(path, option)


# ------------------------------------------------------------------------- a row of a comparison


ZOO = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'


def model_of(name=ZOO, **arguments):
    return read_config(find_config(name), **arguments).model


def test_a_row_swaps_every_extractor_and_nothing_else():
    stock, ours = model_of(), model_of(extractor='align-avg')
    for head in ('bbox', 'mask'):
        options = ours.roi_head.pop(f'{head}_roi_extractor')
        assert options.pop('type') == 'AlignAvgRoIExtractor'
        assert (options.pop('sampling_ratio'), options.pop('aligned')) == (2, True)
        theirs = stock.roi_head.pop(f'{head}_roi_extractor')
        assert theirs.pop('type') == 'SingleRoIExtractor'
        assert options == theirs
    assert ours == stock


def test_a_bare_type_keeps_the_sampling_of_the_config():
    options = model_of(extractor='AlignMax').roi_head.bbox_roi_extractor
    assert 'sampling_ratio' not in options
    built = MODELS.build(options)
    assert (built.extractor.sampling_ratio, built.output_size) == (0, (7, 7))


def test_stock_is_the_detector_as_it_is():
    assert model_of(extractor='stock') == model_of()


def test_a_row_in_place_for_one_head():
    row = '{name: max-4, type: AlignMax, sampling_ratio: 4}'
    head = model_of(extractor=row, heads=['mask']).roi_head
    assert head.bbox_roi_extractor.type == 'SingleRoIExtractor'
    built = MODELS.build(head.mask_roi_extractor)
    assert (type(built).__name__, built.extractor.sampling_ratio) == ('AlignMaxRoIExtractor', 4)


def test_the_extractors_of_other_heads_are_swapped_too():
    head = model_of('mmdet::htc/htc_r50_fpn_1x_coco.py', extractor='align-max').roi_head
    names = [name for name in head if name.endswith('_roi_extractor')]
    assert names == ['bbox_roi_extractor', 'mask_roi_extractor', 'semantic_roi_extractor']
    assert {head[name].type for name in names} == {'AlignMaxRoIExtractor'}
    grid = model_of('mmdet::grid_rcnn/grid-rcnn_r50_fpn_gn-head_2x_coco.py', extractor='align-max').roi_head
    assert grid.grid_roi_extractor.type == 'AlignMaxRoIExtractor'


@pytest.mark.parametrize(
    'name',
    [
        'qdtrack/qdtrack_faster-rcnn_r50_fpn_4e_base.py',
        'masktrack_rcnn/masktrack-rcnn_mask-rcnn_r50_fpn_8xb1-12e_youtubevis2019.py',
    ],
)
def test_the_extractor_of_a_tracker_is_swapped_too(name):
    """Its key is ``roi_extractor``, in the head that has it."""
    model = model_of(f'mmdet::{name}', extractor='align-max')
    assert model.track_head.roi_extractor.type == 'AlignMaxRoIExtractor'
    assert model.detector.roi_head.bbox_roi_extractor.type == 'AlignMaxRoIExtractor'
    model = model_of(f'mmdet::{name}', extractor='align-max', heads=['track'])
    assert model.track_head.roi_extractor.type == 'AlignMaxRoIExtractor'
    assert model.detector.roi_head.bbox_roi_extractor.type == 'SingleRoIExtractor'


@pytest.mark.parametrize(
    ('name', 'arguments', 'message'),
    [
        (ZOO, {'extractor': 'align-mux'}, "no extractor is named 'align-mux'; there are the rows"),
        (ZOO, {'extractor': '{type: AlignMux}'}, "type is 'AlignMux'; expected one of QuantizedPool, "),
        (ZOO, {'extractor': '{type: AlignMax, gamma: 1}'}, "AlignMax has no option 'gamma'"),
        (ZOO, {'extractor': '{type: '}, 'is not YAML'),
        (ZOO, {'extractor': 'align-max', 'heads': ['keypoint']}, r'keypoint has no extractor .* bbox, mask$'),
        ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', {'extractor': 'align-max'}, 'model is RetinaNet'),
        ('mmdet::detr/detr_r50_8xb2-150e_coco.py', {'extractor': 'AlignMax'}, 'its model is DETR'),
    ],
)
def test_a_row_that_cannot_be_is_one_line(name, arguments, message):
    with pytest.raises(RunError, match=message) as error:
        model_of(name, **arguments)
    assert '\n' not in str(error.value)
