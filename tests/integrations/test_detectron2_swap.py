"""The type alone over the two-stage configs of Detectron2's model zoo: what it changes, and what it keeps."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip('detectron2', reason='Detectron2 is not installed')

from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, ROIHeads
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig, OmegaConf

from roi_plugins.integrations.detectron2 import POOLER_TYPES, RoIPluginsPooler
from roi_plugins.integrations.detectron2.check_model import build_model
from roi_plugins.integrations.detectron2.config import read_config
from roi_plugins.integrations.detectron2.describe import describe
from roi_plugins.integrations.detectron2.swap import lazy_pooler_types, swap_yaml
from roi_plugins.integrations.errors import RunError

ROOT = Path(__file__).resolve().parents[2]
ZOO = Path(model_zoo.get_config_file('Base-RCNN-FPN.yaml')).parent
FPN = 'COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x'
HEADS = ('ROI_BOX_HEAD', 'ROI_MASK_HEAD', 'ROI_KEYPOINT_HEAD')

# Every other two-stage config of the zoo is the same as one of these once it is small.
YAML_KINDS = [
    'COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml',
    'COCO-Detection/faster_rcnn_R_50_C4_1x.yaml',
    'COCO-Detection/faster_rcnn_R_50_DC5_1x.yaml',
    'COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml',
    'COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml',
    'COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x.yaml',
    'COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml',
    'COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x_giou.yaml',
    'COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml',
    'COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml',
    'Detectron1-Comparisons/faster_rcnn_R_50_FPN_noaug_1x.yaml',
    'Detectron1-Comparisons/keypoint_rcnn_R_50_FPN_1x.yaml',
    'Detectron1-Comparisons/mask_rcnn_R_50_FPN_noaug_1x.yaml',
    'Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml',
    'Misc/cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv.yaml',
    'Misc/mask_rcnn_R_50_FPN_1x_cls_agnostic.yaml',
    'Misc/mask_rcnn_R_50_FPN_3x_gn.yaml',
    'Misc/mask_rcnn_R_50_FPN_3x_syncbn.yaml',
    'Misc/panoptic_fpn_R_101_dconv_cascade_gn_3x.yaml',
    'quick_schedules/keypoint_rcnn_R_50_FPN_instant_test.yaml',
    'quick_schedules/keypoint_rcnn_R_50_FPN_normalized_training_acc_test.yaml',
    'quick_schedules/keypoint_rcnn_R_50_FPN_training_acc_test.yaml',
    'quick_schedules/mask_rcnn_R_50_FPN_pred_boxes_training_acc_test.yaml',
]
LAZY_KINDS = [
    'COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.py',
    'COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py',
    'COCO-InstanceSegmentation/mask_rcnn_regnetx_4gf_dds_fpn_1x.py',
    'COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.py',
    'COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.py',
    'common/models/cascade_rcnn.py',
    pytest.param(
        'common/models/mask_rcnn_vitdet.py',
        marks=pytest.mark.skipif(find_spec('timm') is None, reason='its ViT needs timm'),
    ),
    'new_baselines/mask_rcnn_R_50_FPN_50ep_LSJ.py',
]
# Without RoI heads. (RetinaNet's YAML runs Python besides, which our reader does not.)
ONE_STAGE = ('retinanet', 'fcos', 'rpn_', 'Base-RetinaNet', 'semantic_')
# A model of MMDetection's in a wrapper, whose extractors are named as there; and no detector.
OTHERS = ('mmdet_', 'torchvision_imagenet')

IMAGE = (96, 128)
SMALL = {
    'MODEL.WEIGHTS': '',
    'MODEL.BACKBONE.FREEZE_AT': 0,
    'MODEL.PIXEL_MEAN': [110.0] * 3,
    'MODEL.PIXEL_STD': [60.0] * 3,
    'MODEL.RESNETS.DEPTH': 50,  # in place of 101 and 152: the poolers see the same
    'MODEL.RESNETS.NUM_GROUPS': 1,
    'MODEL.RESNETS.STRIDE_IN_1X1': True,
    # GroupNorm has 32 groups.
    'MODEL.RESNETS.STEM_OUT_CHANNELS': 32,
    'MODEL.RESNETS.WIDTH_PER_GROUP': 32,
    'MODEL.RESNETS.RES2_OUT_CHANNELS': 32,
    'MODEL.FPN.OUT_CHANNELS': 32,
    'MODEL.SEM_SEG_HEAD.CONVS_DIM': 32,
    'MODEL.ROI_BOX_HEAD.CONV_DIM': 32,
    'MODEL.ROI_BOX_HEAD.FC_DIM': 32,
    'MODEL.ROI_MASK_HEAD.CONV_DIM': 32,
    'MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS': [16],
    'MODEL.ROI_HEADS.NUM_CLASSES': 3,
    'MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE': 16,
    'MODEL.ROI_HEADS.SCORE_THRESH_TEST': 0.0,  # an untrained classifier is sure of nothing
    'MODEL.RPN.PRE_NMS_TOPK_TRAIN': 50,
    'MODEL.RPN.PRE_NMS_TOPK_TEST': 50,
    'MODEL.RPN.POST_NMS_TOPK_TRAIN': 20,
    'MODEL.RPN.POST_NMS_TOPK_TEST': 20,
    'TEST.DETECTIONS_PER_IMAGE': 8,
    # By its size a small RoI has one sample a bin, of which maximum and average are the same.
    **{f'MODEL.{head}.POOLER_SAMPLING_RATIO': 2 for head in HEADS},
    # Deformable convolutions, of the backbone, are compiled, and Detectron2 may be installed without.
    'MODEL.RESNETS.DEFORM_ON_PER_STAGE': [False] * 4,
}
# As far as a LazyConfig has these keys.
LAZY_SMALL = {
    'model.backbone.net.depth': 2,
    'model.backbone.net.embed_dim': 32,
    'model.backbone.net.num_heads': 2,
    'model.backbone.net.img_size': 128,
    'model.backbone.square_pad': 128,
    'model.proposal_generator.pre_nms_topk': [50, 50],
    'model.proposal_generator.post_nms_topk': [20, 20],
    'model.roi_heads.batch_size_per_image': 16,
    'model.roi_heads.num_classes': 3,
    'model.roi_heads.res5.num_blocks': 1,
    'model.roi_heads.res5.stride_per_block': [2],
    'model.roi_heads.box_predictor.test_score_thresh': 0.0,
    'model.roi_heads.box_predictor.test_topk_per_image': 8,
    'model.roi_heads.mask_head.conv_dims': [32, 32],
    'model.roi_heads.keypoint_head.conv_dims': [16],
}


def zoo(suffix):
    found = [path for path in ZOO.rglob(f'*.{suffix}') if not path.name.startswith((*ONE_STAGE, *OTHERS))]
    # Data, optimisers and schedules are no configs of models.
    return sorted(path for path in found if suffix == 'yaml' or path.parent.name not in ('common', 'data'))


def small(path, type_=None, notes=None):
    """A config of the zoo, made small, with the type of every pooler that it has swapped."""
    if str(path).endswith('.py'):
        return small_lazy(path, type_, notes)
    swapped = {f'MODEL.{head}.POOLER_TYPE': type_ for head in HEADS} if type_ else {}
    options = [str(part) for pair in {**SMALL, **swapped}.items() for part in pair]
    cfg = read_config(ZOO / path, options, notes)
    for node in ('FPN', 'RESNETS', 'ROI_BOX_HEAD', 'ROI_MASK_HEAD'):
        if cfg.MODEL[node].NORM == 'SyncBN':  # is for GPUs; of one process it is BatchNorm
            cfg.MODEL[node].NORM = 'BN'
    return cfg


def small_lazy(path, type_, notes):
    stock = read_config(ZOO / path)
    options = {k: v for k, v in LAZY_SMALL.items() if OmegaConf.select(stock, k) is not None}
    for where in lazy_pooler_types(stock):
        options[f'{where}.sampling_ratio'] = 2
        if type_:
            options[f'{where}.pooler_type'] = type_
    cfg = read_config(ZOO / path, [f'{key}={value}' for key, value in options.items()], notes)
    heads = cfg.model.roi_heads
    for head in (heads.get('box_head'), *heads.get('box_heads', ())):
        if head:
            head.fc_dims = [32] * len(head.fc_dims)
            for predictor in heads.get('box_predictors', [heads.get('box_predictor')]):
                predictor.input_shape = ShapeSpec(channels=32)
    stages = OmegaConf.select(cfg, 'model.backbone.bottom_up.stages')
    if stages:
        stages.depth = 18
        stages.pop('stride_in_1x1', None)  # of bottlenecks
    for node in (cfg.model.backbone, cfg.model.backbone.get('bottom_up', {})):
        for part in (node, node.get('stem', {}), node.get('stages', {})):
            if isinstance(part, DictConfig) and part.get('norm') == 'SyncBN':
                part.norm = 'BN'
    if 'train' not in cfg:  # common/models has models alone
        cfg.train = read_config(ZOO / 'common/train.py').train
    return cfg


def batch():
    generator = torch.Generator().manual_seed(0)
    target = Instances(IMAGE)
    target.gt_boxes = Boxes(torch.tensor([[8.0, 8, 60, 50], [70, 20, 120, 90]]))
    target.gt_classes = torch.tensor([0, 0])
    target.gt_masks = BitMasks(torch.ones(2, *IMAGE, dtype=torch.bool))
    target.gt_keypoints = Keypoints(torch.tensor([30.0, 30, 2]).expand(2, 17, 3))
    corners = torch.rand(2, 20, 2, generator=generator) * 90
    proposals = Instances(IMAGE)  # of Fast R-CNN
    proposals.proposal_boxes = Boxes(torch.cat([corners.amin(0), corners.amax(0) + 4], dim=1))
    proposals.objectness_logits = torch.rand(20, generator=generator)
    # Of blocks, which the coarsest map still tells apart.
    image = torch.rand(3, 6, 8, generator=generator).repeat_interleave(16, 1).repeat_interleave(16, 2) * 255
    sem_seg = torch.zeros(IMAGE, dtype=torch.long)
    return [{'image': image, 'instances': target, 'proposals': proposals, 'sem_seg': sem_seg}]


def run(cfg, step=False):
    """Losses, detections and poolers of random weights and samples that every type shares."""
    torch.manual_seed(0)
    model = build_model(describe(cfg, 'cpu'))
    parameters = dict(model.named_parameters())
    # The last convolution of a residual block: in RegNet, in bottlenecks, in basic blocks.
    ends = ('.c.weight', '.conv3.weight', '.conv2.weight')
    last = next((end for end in ends if any('backbone' in n and n.endswith(end) for n in parameters)), '-')
    with torch.no_grad():
        for name, parameter in parameters.items():
            if 'backbone' in name and name.endswith(last):
                parameter /= 16  # without statistics to normalise by, features would grow and grow
            elif 'cls_score' in name or 'bbox_pred' in name:
                parameter *= 30  # by which a detection depends on what its RoI holds
    torch.manual_seed(0)
    with EventStorage():
        losses = model.train()(batch())
    with torch.inference_mode():
        (found,) = model.eval()(batch())
    if step:
        sum(losses.values()).backward()
        torch.optim.SGD(model.parameters(), lr=1e-4).step()
    poolers = [m for m in model.modules() if isinstance(m, (ROIPooler, RoIPluginsPooler))]
    return {name: loss.item() for name, loss in losses.items()}, found['instances'], poolers


def assert_same(found, expected):
    losses, instances = found[:2]
    assert losses == pytest.approx(expected[0], rel=1e-5, abs=1e-5)
    torch.testing.assert_close(instances.scores, expected[1].scores, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        instances.pred_boxes.tensor, expected[1].pred_boxes.tensor, rtol=1e-5, atol=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize('path', [*YAML_KINDS, *LAZY_KINDS])
def test_the_type_alone(path):
    stock = run(small(path))
    assert all(type(pooler) is ROIPooler for pooler in stock[2])
    ours = run(small(path, 'AlignAvg'))
    assert len(ours[2]) == len(stock[2]) > 0
    assert all(type(pooler) is RoIPluginsPooler for pooler in ours[2])
    assert_same(ours, stock)
    maximum = run(small(path, 'AlignMax'), step=True)
    assert maximum[0] != pytest.approx(stock[0], rel=1e-4, abs=1e-4)
    for pooler, expected in zip(maximum[2], stock[2], strict=True):
        assert pooler.output_size == expected.output_size
        assert pooler.extractor.spatial_scales == [level.spatial_scale for level in expected.level_poolers]
        assert pooler.extractor.sampling_ratio == max(expected.level_poolers[0].sampling_ratio, 0)
        assert pooler.extractor.aligned == expected.level_poolers[0].aligned


@pytest.mark.slow
def test_every_yaml_of_the_zoo():
    """Is read with a type of ours, which one line says, and is of a kind whose models are run here."""
    kinds = {small(path, 'AlignMax').MODEL.dump() for path in YAML_KINDS}
    others = []
    for path in zoo('yaml'):
        notes = []
        if small(path, 'AlignMax', notes).MODEL.dump() not in kinds:
            others.append(str(path.relative_to(ZOO)))
        assert len(notes) == 1 and len(notes[0].splitlines()) == 1
        assert 'MODEL.ROI_HEADS.NAME is RoIPlugins' in notes[0]
    assert others == []


@pytest.mark.slow
def test_every_lazy_config_of_the_zoo():
    for path in zoo('py'):
        stock = lazy_pooler_types(read_config(path))
        notes = []
        cfg = read_config(path, [f'{where}.pooler_type=AlignMax' for where in stock], notes)
        assert lazy_pooler_types(cfg) == dict.fromkeys(stock, 'AlignMax') != {}
        assert len(notes) == 1 and len(notes[0].splitlines()) == 1
        poolers = [OmegaConf.select(cfg, where) for where in stock]
        assert all(type(instantiate(pooler)) is RoIPluginsPooler for pooler in poolers)


def test_rotated_heads():
    path = ROOT / 'configs/detectron2/rotated/faster-rcnn_r50w16-c4_align-avg_rotated.yaml'
    cfg = read_config(path, ['MODEL.ROI_HEADS.NAME', 'RROIHeads'])
    assert cfg.MODEL.ROI_HEADS.NAME == 'RoIPluginsRROIHeads'
    assert build_model(describe(cfg, 'cpu')).roi_heads.box_pooler.pooler_type == 'AlignAvg'


# ------------------------------------------------------------------- what the type leaves as it was

LEGACY = 'Detectron1-Comparisons/mask_rcnn_R_50_FPN_noaug_1x.yaml'
BOX = 'MODEL.ROI_BOX_HEAD.POOLER_TYPE'
ALIGNED = 'MODEL.ROI_BOX_HEAD.POOLER_OPTIONS.ALIGNED'


@pytest.mark.parametrize(
    ('base', 'own', 'options', 'aligned'),
    [
        (LEGACY, None, [BOX, 'AlignMax'], False),
        (LEGACY, None, [BOX, "'AlignMax'"], False),
        (LEGACY, 'AlignMax', [], False),  # in a file over it
        (LEGACY, 'AlignMax', [BOX, 'AlignAvg'], False),
        (LEGACY, 'ROIAlignV2', [BOX, 'AlignMax'], None),
        (LEGACY, None, [BOX, 'ROIAlignV2', BOX, 'AlignMax'], None),
        (LEGACY, None, [BOX, 'AlignMax', ALIGNED, 'True'], True),
        (LEGACY, None, [BOX, 'QuantizedPool'], None),  # has no such option
        (f'{FPN}.yaml', None, [BOX, 'AlignMax'], None),
        (f'{FPN}.yaml', 'AlignMax', [], None),
        (f'{FPN}.yaml', 'ROIAlign', [BOX, 'AlignMax'], False),
    ],
)
def test_what_replaces_the_legacy_align_is_not_aligned_either(tmp_path, base, own, options, aligned):
    path = ZOO / base
    if own:
        path = tmp_path / 'own.yaml'
        path.write_text(f'_BASE_: {ZOO / base}\nMODEL: {{ROI_BOX_HEAD: {{POOLER_TYPE: {own}}}}}\n')
    notes = []
    cfg = read_config(path, options, notes)
    assert cfg.MODEL.ROI_BOX_HEAD.POOLER_OPTIONS.ALIGNED is aligned
    assert cfg.MODEL.ROI_MASK_HEAD.POOLER_OPTIONS.ALIGNED is None  # is not swapped
    assert (f'{ALIGNED} False, as for the ROIAlign that it replaces' in notes[0]) == (aligned is False)
    # What is saved says it itself.
    saved = tmp_path / 'config.yaml'
    saved.write_text(cfg.dump())
    assert yaml.safe_load(read_config(saved, [], again := []).dump()) == yaml.safe_load(cfg.dump())
    assert again == []


@pytest.mark.parametrize(
    ('line', 'options', 'aligned', 'note'),
    [
        ('', [], None, 'build_pooler in place of ROIPooler'),
        ("{box}.pooler_type = 'ROIAlign'", [], False, 'aligned=False, as for the ROIAlign that it replaces'),
        ("{box}.pooler_type = 'ROIAlign'", ['{box}.aligned=True'], True, 'in place of ROIPooler'),
        ("{box}.pooler_type = 'AlignAvg'", [], None, 'set aligned=False if it replaces ROIAlign'),
    ],
)
def test_the_legacy_align_of_a_lazy_config(tmp_path, line, options, aligned, note):
    box = 'model.roi_heads.box_pooler'
    path = tmp_path / 'own.py'
    path.write_text(
        'from detectron2 import model_zoo\n'
        f"model = model_zoo.get_config('{FPN}.py').model\n{line.format(box=box)}\n"
    )
    options = [f'{box}.pooler_type=AlignMax', *(option.format(box=box) for option in options)]
    cfg = read_config(path, options, notes := [])
    assert cfg.model.roi_heads.box_pooler.get('aligned') is aligned
    assert note in notes[0] and ('aligned' in notes[0]) == ('aligned' in note)


@pytest.mark.parametrize('type_', POOLER_TYPES)
def test_every_type_stands_alone(type_):
    for path in (f'{FPN}.yaml', f'{FPN}.py'):
        heads = build_model(describe(small(path, type_), 'cpu')).roi_heads
        for pooler, size in ((heads.box_pooler, 7), (heads.mask_pooler, 14)):
            assert (pooler.pooler_type, pooler.output_size) == (type_, (size, size))
            assert getattr(pooler.extractor, 'aligned', True) is (type_ != 'Precise')


def test_weights_for_channels_that_nothing_gives():
    path, pooler = ZOO / 'COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.py', 'model.roi_heads.pooler'
    options = [f'{pooler}.pooler_type=Deformable']
    with pytest.raises(RunError, match=rf'{pooler}: Deformable has weights .* as {pooler}\.channels=1024'):
        read_config(path, options)
    cfg = read_config(path, [*options, f'{pooler}.channels=1024'])
    assert instantiate(cfg.model.roi_heads.pooler).pooler_type == 'Deformable'


# ------------------------------------------------------------------- heads of projects


@pytest.fixture
def pointrend():
    """The zoo's Mask R-CNN with PointRend's heads, as its project configures it."""
    from detectron2.projects.point_rend import add_pointrend_config

    def make(box, mask=''):
        cfg = read_config(ZOO / f'{FPN}.yaml')
        add_pointrend_config(cfg)
        cfg.MODEL.ROI_HEADS.NAME = 'PointRendROIHeads'
        cfg.MODEL.ROI_MASK_HEAD.NAME = 'PointRendMaskHead'
        cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE, cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE = box, mask
        cfg.MODEL.WEIGHTS = ''
        return cfg

    return make


STOCK = {'ROI_BOX_HEAD': 'ROIAlignV2', 'ROI_MASK_HEAD': '', 'ROI_KEYPOINT_HEAD': 'ROIAlignV2'}


def test_heads_of_a_project(pointrend):
    from detectron2.projects.point_rend.roi_heads import PointRendROIHeads

    cfg = pointrend('AlignMax')
    assert 'is RoIPluginsPointRendROIHeads in place of PointRendROIHeads' in swap_yaml(cfg, STOCK)
    assert swap_yaml(cfg, STOCK) is None  # as a saved config is read
    heads = build_model(describe(cfg, 'cpu')).roi_heads
    assert isinstance(heads, PointRendROIHeads) and type(heads).__name__ == 'RoIPluginsPointRendROIHeads'
    assert heads.box_pooler.pooler_type == 'AlignMax' and heads.mask_pooler is None
    stock = build_model(describe(pointrend('ROIAlignV2'), 'cpu')).roi_heads
    assert stock.state_dict().keys() == heads.state_dict().keys()


def test_a_mask_head_that_pools_by_itself_is_refused(pointrend):
    message = "got 'AlignMax', but in the config it is '': PointRendMaskHead reads the maps itself"
    with pytest.raises(RunError, match=message):
        swap_yaml(pointrend('ROIAlignV2', 'AlignMax'), STOCK)
    # Its old name, of which the project takes the pooler away while it is built.
    cfg = pointrend('AlignMax', 'AlignMax')
    cfg.MODEL.ROI_MASK_HEAD.NAME = 'CoarseMaskHead'
    swap_yaml(cfg, dict.fromkeys(STOCK, 'ROIAlignV2'))
    with pytest.raises(RunError, match='builds no pooler there: the head reads the maps itself'):
        build_model(describe(cfg, 'cpu'))


def test_a_config_of_a_project(tmp_path):
    """Has keys that are known once the project is imported, as by ``--import``."""
    from detectron2.projects import point_rend  # noqa: F401  its heads register themselves

    path = tmp_path / 'pointrend.yaml'
    path.write_text(
        f'_BASE_: {ZOO / FPN}.yaml\n'
        'MODEL:\n'
        '  ROI_HEADS: {NAME: PointRendROIHeads}\n'
        "  ROI_MASK_HEAD: {NAME: PointRendMaskHead, POOLER_TYPE: '', POINT_HEAD_ON: True}\n"
        '  POINT_HEAD: {NUM_CLASSES: 80}\n'
    )
    cfg = read_config(path, [BOX, 'AlignMax'])
    assert cfg.MODEL.ROI_HEADS.NAME == 'RoIPluginsPointRendROIHeads'
    (tmp_path / 'config.yaml').write_text(cfg.dump())
    heads = build_model(describe(read_config(tmp_path / 'config.yaml'), 'cpu')).roi_heads
    assert heads.box_pooler.pooler_type == 'AlignMax' and heads.mask_pooler is None
    message = "MODEL.ROI_MASK_HEAD.POOLER_TYPE: got 'AlignMax', but in the config it is '': PointRendMaskHead"
    with pytest.raises(RunError, match=message):
        read_config(path, ['MODEL.ROI_MASK_HEAD.POOLER_TYPE', 'AlignMax'])


# ------------------------------------------------------------------- errors

LAZY_BOX = 'model.roi_heads.box_pooler'


@pytest.mark.parametrize(
    ('path', 'option', 'message'),
    [
        (
            'COCO-Detection/rpn_R_50_FPN_1x.yaml',
            f'{BOX} AlignMax',
            f'{BOX} AlignMax: MODEL.META_ARCHITECTURE ProposalNetwork has no RoI heads and so no pooler; '
            'GeneralizedRCNN and PanopticFPN have',
        ),
        (
            'COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml',
            'MODEL.ROI_MASK_HEAD.POOLER_TYPE AlignMax',
            'MODEL.ROI_MASK_HEAD.POOLER_TYPE AlignMax: there is no such pooler; the poolers of this model '
            f'(StandardROIHeads) are those of MODEL.ROI_BOX_HEAD, such as {BOX} AlignMax',
        ),
        (
            'COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml',
            'MODEL.ROI_MASK_HEAD.POOLER_TYPE AlignMax',
            f'this model (Res5ROIHeads) are those of MODEL.ROI_BOX_HEAD, such as {BOX} AlignMax',
        ),
        (
            'COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml',
            f'{BOX} AlignMax MODEL.ROI_MASK_HEAD.POOLER_TYPE AlignAvg',
            'MODEL.ROI_MASK_HEAD.POOLER_TYPE AlignAvg: there is no such pooler; the poolers of this model',
        ),
        (
            f'{FPN}.py',
            'model.roi_heads.keypoint_pooler.pooler_type=AlignMax',
            'no pooler at model.roi_heads.keypoint_pooler; there is no such head, or it reads the maps '
            f'itself. GeneralizedRCNN has {LAZY_BOX}, model.roi_heads.mask_pooler, such as '
            f'{LAZY_BOX}.pooler_type=AlignMax',
        ),
        (
            'COCO-Detection/retinanet_R_50_FPN_1x.py',
            f'{LAZY_BOX}.pooler_type=AlignMax',
            f'no pooler at {LAZY_BOX}; there is no such head, or it reads the maps itself. RetinaNet '
            'has no pooler; two-stage models such as GeneralizedRCNN have',
        ),
    ],
)
def test_a_type_that_no_pooler_takes(path, option, message):
    with pytest.raises(RunError) as error:
        read_config(ZOO / path, option.split())
    assert message in str(error.value)
    assert not str(error.value).startswith(f'{BOX} AlignMax, ')


def test_one_stage_yaml_is_refused(tmp_path):
    path = tmp_path / 'retinanet.yaml'
    path.write_text('MODEL: {META_ARCHITECTURE: RetinaNet}\n')
    with pytest.raises(RunError, match='META_ARCHITECTURE RetinaNet has no RoI heads and so no pooler'):
        read_config(path, [BOX, 'AlignMax'])


@pytest.mark.parametrize('path', [f'{FPN}.yaml', f'{FPN}.py'])
def test_an_unknown_type_names_what_is_near_and_what_there_is(path):
    with pytest.raises(RunError) as error:
        build_model(describe(small(path, 'AlignMex'), 'cpu'))
    message = str(error.value)
    assert 'Unknown pooler type: AlignMex; did you mean AlignMax' in message
    assert all(type_ in message for type_ in (*POOLER_TYPES, 'ROIAlignV2', 'ROIPool'))
    assert f'such as {BOX} AlignMax, or {LAZY_BOX}.pooler_type=AlignMax in a LazyConfig' in message


def test_heads_that_are_made_of_none_of_detectron2s():
    @ROI_HEADS_REGISTRY.register()
    class HeadsOfTheTest(ROIHeads):
        @classmethod
        def from_config(cls, cfg, input_shape):
            node = cfg.MODEL.ROI_BOX_HEAD
            return {'pooler': ROIPooler(node.POOLER_RESOLUTION, [1 / 4], 0, node.POOLER_TYPE)}

    cfg = small(f'{FPN}.yaml', 'ROIAlignV2')
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = 'HeadsOfTheTest', 'AlignMax'
    assert swap_yaml(cfg, STOCK) is None  # they may know our types
    with pytest.raises(RunError, match='AlignMax, of this package, needs RoI heads that are StandardROIH'):
        build_model(describe(cfg, 'cpu'))
