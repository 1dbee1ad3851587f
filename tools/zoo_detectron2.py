"""The part of tools/zoo_swap.py for Detectron2: finds the kinds in its zoo, and runs a model of a kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from zoo_kinds import Computed, Kind, image_size, seed_everything

from roi_plugins.extractors.presets import Preset
from roi_plugins.integrations.detectron2.config import read_config
from roi_plugins.integrations.detectron2.nodes import HEADS, is_on
from roi_plugins.integrations.detectron2.rows import row_options
from roi_plugins.integrations.detectron2.swap import lazy_pooler_types

ZOO = Path(model_zoo.get_config_file('Base-RCNN-FPN.yaml')).parent
PROPOSALS = 16
# The numbers of proposals and detections. They only cost time and memory.
_YAML_LIMITS = {
    'MODEL.DEVICE': 'cpu',
    'MODEL.RPN.POST_NMS_TOPK_TRAIN': PROPOSALS,
    'MODEL.RPN.POST_NMS_TOPK_TEST': PROPOSALS,
    'MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE': PROPOSALS,
    'MODEL.ROI_HEADS.SCORE_THRESH_TEST': 0.0,  # random weights give low scores
    'TEST.DETECTIONS_PER_IMAGE': PROPOSALS,
}
_LAZY_LIMITS = {
    'model.proposal_generator.post_nms_topk': [PROPOSALS, PROPOSALS],
    'model.roi_heads.batch_size_per_image': PROPOSALS,
    # There is a single predictor, or one for each stage of a cascade.
    **{
        f'model.roi_heads.{predictor}.{argument}': value
        for predictor in ('box_predictor', *(f'box_predictors.{stage}' for stage in range(3)))
        for argument, value in (('test_score_thresh', 0.0), ('test_topk_per_image', PROPOSALS))
    },
}
_TWO_STAGES = ('GeneralizedRCNN', 'PanopticFPN')
# The last convolution of a residual block.
_ENDS = ('.conv3.weight', '.c.weight')


def find_kinds(pattern: str = '**/*.*') -> list[Kind]:
    """Finds the kinds of configs with poolers, in YAML or Python.

    If a kind has a config with a ResNet-50, this one is run.

    Args:
        pattern: a glob pattern of the paths of the configs in the zoo.
    """
    found: dict[str, Kind] = {}
    paths = [path for path in ZOO.glob(pattern) if path.suffix in ('.yaml', '.py')]
    for path in sorted(paths, key=lambda path: ('R_50' not in path.name, path)):
        cfg = _read_stock(path)
        if cfg is None:
            continue
        heads, poolers = _describe_lazy(cfg) if isinstance(cfg, DictConfig) else _describe_yaml(cfg)
        key = str((path.suffix, heads, poolers))
        if key in found:
            found[key].alike += 1
            continue
        found[key] = kind = Kind('detectron2', path.relative_to(ZOO).as_posix(), heads=', '.join(heads))
        kind.stock = 'ROIPooler of ' + ', '.join(dict.fromkeys(pooler['type'] for pooler in poolers))
        kind.same, kind.different = _options(cfg, 'AlignAvg'), _options(cfg, 'AlignMax')
    return list(found.values())


def _read_stock(path: Path) -> CfgNode | DictConfig | None:
    """Reads a config as Detectron2 itself does. Returns None for a config without poolers."""
    if path.suffix == '.py':
        cfg = LazyConfig.load(str(path))
        return cfg if 'model' in cfg and lazy_pooler_types(cfg) else None
    cfg = get_cfg()
    cfg.merge_from_file(str(path), allow_unsafe=True)
    return cfg if cfg.MODEL.META_ARCHITECTURE in _TWO_STAGES else None


def _describe_yaml(cfg: CfgNode) -> tuple[list[str], list[dict[str, Any]]]:
    """Returns the heads of a model, and the options of its poolers."""
    names, poolers = [cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME], []
    for head in HEADS:
        node = cfg.MODEL[head]
        if is_on(cfg, head):
            names += [node.NAME] if node.NAME else []
            poolers.append(
                {
                    'type': node.POOLER_TYPE,
                    'size': node.POOLER_RESOLUTION,
                    'samples': node.POOLER_SAMPLING_RATIO,
                    'maps': cfg.MODEL.ROI_HEADS.IN_FEATURES,
                }
            )
    return names, poolers


def _describe_lazy(cfg: DictConfig) -> tuple[list[str], list[dict[str, Any]]]:
    """See :func:`_describe_yaml`."""
    roi_heads = cfg.model.roi_heads
    heads = [part for key, part in roi_heads.items() if key.endswith('_head')]
    heads += [stage for key, stages in roi_heads.items() if key.endswith('_heads') for stage in stages]
    names = dict.fromkeys(part._target_.__name__ for part in (cfg.model, roi_heads, *heads))
    poolers = []
    for where, type_ in lazy_pooler_types(cfg).items():
        node = OmegaConf.select(cfg, where)
        size, samples, scales = node.output_size, node.sampling_ratio, node.scales
        poolers.append({'type': type_, 'size': size, 'samples': samples, 'scales': scales})
    return list(names), poolers


def _options(cfg: CfgNode | DictConfig, type_: str) -> dict[str, str]:
    """Returns the config options that give every pooler a type of ours."""
    options = row_options(cfg, Preset(type_, type_))
    if isinstance(cfg, DictConfig):
        return dict(option.split('=') for option in options)
    return dict(zip(options[::2], options[1::2], strict=True))


def random_weights(kind: Kind, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """Makes weights for the model of a kind, with these config options.

    The last layers of residual blocks are scaled down. Otherwise the features would grow from block to block,
    because BatchNorm has no statistics of images.
    """
    model = _build(kind, options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(_ENDS):
                parameter /= 16
    return model.state_dict()


def compute(kind: Kind, options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Computed:
    """Runs the model of a kind, with these config options and weights."""
    model = _build(kind, options)
    model.load_state_dict(weights)
    data = _inputs(model)
    seed_everything()
    with EventStorage():
        losses = model.train()(data)
    sum(losses.values()).backward()
    gradient = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    seed_everything()
    with torch.inference_mode():
        (output,) = model.eval()(data)
    return Computed(
        {name: loss.item() for name, loss in losses.items()},
        gradient.item(),
        _detections(output['instances']),
    )


def _build(kind: Kind, options: Mapping[str, Any]) -> nn.Module:
    path = ZOO / kind.config
    seed_everything()
    if path.suffix == '.py':
        there = LazyConfig.load(str(path))
        limits = {k: v for k, v in _LAZY_LIMITS.items() if OmegaConf.select(there, k.rpartition('.')[0])}
        pairs = {**limits, **options}.items()
        model = instantiate(read_config(path, [f'{key}={value}' for key, value in pairs]).model)
    else:
        pairs = {**_YAML_LIMITS, **options}.items()
        model = build_model(read_config(path, [str(part) for pair in pairs for part in pair]))
    return FrozenBatchNorm2d.convert_frozen_batchnorm(model)  # SyncBN needs GPUs


def _inputs(model: nn.Module) -> list[dict[str, Any]]:
    """Makes an image of noise with annotations."""
    generator = torch.Generator().manual_seed(0)
    size = image_size(len(model.roi_heads.in_features))

    def boxes(number: int) -> Boxes:
        corners = torch.rand(number, 2, 2, generator=generator) * size
        return Boxes(torch.cat([corners.amin(1), corners.amax(1) + 4], dim=1).clamp(max=size))

    target = Instances((size, size))
    target.gt_boxes = boxes(4)
    target.gt_classes = torch.zeros(4, dtype=torch.long)
    target.gt_masks = BitMasks(torch.rand(4, size, size, generator=generator) > 0.3)
    points = torch.rand(4, 17, 2, generator=generator) * size
    target.gt_keypoints = Keypoints(torch.cat([points, torch.full((4, 17, 1), 2.0)], dim=2))
    proposals = Instances((size, size))  # for Fast R-CNN
    proposals.proposal_boxes = boxes(PROPOSALS)
    proposals.objectness_logits = torch.rand(PROPOSALS, generator=generator)
    # Noise in blocks, which are still different in the coarsest map.
    noise = torch.randn(3, size // 16, size // 16, generator=generator)
    noise = noise.repeat_interleave(16, 1).repeat_interleave(16, 2)
    image = {
        'image': model.pixel_mean + model.pixel_std * noise,
        'instances': target,
        'proposals': proposals,
        'sem_seg': torch.zeros(size, size, dtype=torch.long),
    }
    return [image]


def _detections(found: Instances) -> Tensor:
    """See :class:`Computed`."""
    size = max(found.image_size)
    columns = [found.pred_classes[:, None], found.scores[:, None], found.pred_boxes.tensor / size]
    if found.has('pred_masks'):
        columns.append(found.pred_masks.float().mean((1, 2))[:, None])
    if found.has('pred_keypoints'):
        columns.append(found.pred_keypoints[:, :, :2].flatten(1) / size)
    return torch.cat(columns, dim=1)
