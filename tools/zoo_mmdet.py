"""The part of tools/zoo_swap.py for MMDetection: finds the kinds in its zoo, and runs a model of a kind."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mmdet
import torch
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs, demo_mm_proposals, demo_track_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from zoo_kinds import Computed, Kind, image_size, seed_everything

from roi_plugins.extractors.presets import Preset
from roi_plugins.integrations.errors import RunError
from roi_plugins.integrations.mmdet.config import read_config
from roi_plugins.integrations.mmdet.registered import type_name
from roi_plugins.integrations.mmdet.swap import swap_extractors

register_all_modules(init_default_scope=False)

ZOO = Path(mmdet.__file__).parent / '.mim' / 'configs'
IMAGES = 2
PROPOSALS = 32
# The numbers of proposals and detections. They only cost time and memory.
_LIMITS = {'nms_pre': 200, 'max_per_img': PROPOSALS, 'num': 32}
_PACKS = ('DeformRoIPoolPack', 'ModulatedDeformRoIPoolPack')


def find_kinds(pattern: str = '**/*.py') -> list[Kind]:
    """Finds the kinds of configs with RoI extractors.

    If a kind has a config with a ResNet-50, this one is run. A config that cannot be read is a kind of its
    own.

    Args:
        pattern: a glob pattern of the paths of the configs in the zoo.
    """
    found: dict[str, Kind] = {}
    paths = [path for path in ZOO.glob(pattern) if '_base_' not in path.parts]
    for path in sorted(paths, key=lambda path: (path.parent, 'r50' not in path.name, path.name)):
        name = path.relative_to(ZOO).as_posix()
        try:
            # The modules that a config imports need not be installed just to look at it.
            cfg = Config.fromfile(path, import_custom_modules=False)
            extractors = _extractors(cfg)
        except RunError:
            continue  # it has no extractors
        except Exception as error:  # configs are programs: anything can happen in them
            found[name] = Kind('mmdet', name, problem=str(error))
            continue
        heads = [type_name(cfg.model), *dict.fromkeys(_heads(cfg.model))]
        key = str((path.parent, heads, extractors))
        if key in found:
            found[key].alike += 1
            continue
        found[key] = kind = Kind('mmdet', name, heads=', '.join(heads))
        kind.stock = ', '.join(dict.fromkeys(map(_describe, extractors.values())))
        kind.is_exact = all(options['roi_layer']['type'] == 'RoIAlign' for options in extractors.values())
        for where, options in extractors.items():
            same, different = _types(options)
            kind.same |= {f'{where}.{key}': value for key, value in same.items()}
            kind.different |= {f'{where}.{key}': value for key, value in different.items()}
    return list(found.values())


def _extractors(cfg: Config) -> dict[str, Mapping[str, Any]]:
    """Returns the options of the extractors of a config, by the dotted key of each extractor."""
    settings = swap_extractors(copy.deepcopy(cfg), Preset('AlignAvg', 'AlignAvg'))
    found = {}
    for setting in settings:
        node = cfg
        for part in setting.split('.'):
            node = node[int(part) if part.isdecimal() else part]
        found[setting] = node
    return found


def _heads(node: Any) -> Iterator[str]:
    """Yields the types of the heads in a part of a model, except the head that makes the proposals."""
    for key, part in node.items():
        for stage in part if isinstance(part, (list, tuple)) else [part]:
            if isinstance(stage, Mapping) and key != 'rpn_head':
                if key.endswith('_head'):
                    yield type_name(stage)
                yield from _heads(stage)


def _describe(options: Mapping[str, Any]) -> str:
    return f'{type_name(options)} of {type_name(options["roi_layer"])}'


def _types(options: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the options for an extractor of ours that computes the same, and for one that does not."""
    if type_name(options) == 'GenericRoIExtractor':
        # AlignMax reads one map; it cannot combine maps.
        every = {'type': 'AllLevelsRoIExtractor'}
        return every, {**every, 'reduction': 'max'}
    align_max = {'type': 'AlignMaxRoIExtractor'}
    if type_name(options['roi_layer']) in _PACKS:
        return {'type': 'DeformableRoIExtractor'}, align_max
    return {'type': 'AlignAvgRoIExtractor'}, align_max


def random_weights(kind: Kind, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """Makes weights for the model of a kind, with these config options.

    BatchNorm gets the statistics of the images. Otherwise the features would grow from block to block.
    """
    cfg, size = _read(kind, options)
    model = _build(cfg)
    model.init_weights()
    for norm in _norms(model.train()):
        norm.train().momentum = 1.0  # even if the config freezes it
    with torch.no_grad():
        model(**_training_data(model, cfg, size), mode='loss')
        for norm in _norms(model):
            norm.running_var.clamp_(min=1.0)  # so as not to amplify tiny differences
    return model.state_dict()


def compute(kind: Kind, options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Computed:
    """Runs the model of a kind, with these config options and weights."""
    cfg, size = _read(kind, options)
    model = _build(cfg)
    model.load_state_dict(weights, strict=kind.is_exact)
    data = _training_data(model, cfg, size)
    for norm in _norms(model.train()):
        norm.eval()  # two images are too few for statistics
    loss, losses = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    gradient = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    if _is_sparse(cfg.model):
        model.roi_head.mask_head = None  # pasting masks does not work in double precision
    seed_everything()
    with torch.inference_mode():
        samples = model.eval().test_step(_inputs(cfg.model, size, training=False))
    return Computed(
        {name: value.item() for name, value in losses.items() if 'loss' in name},
        gradient.item(),
        torch.cat([_detections(sample, size) for sample in samples]),
    )


def _read(kind: Kind, options: Mapping[str, Any]) -> tuple[Config, int]:
    """Reads the config of a kind, makes its model cheap, and returns it with the size of its images."""
    cfg = read_config(ZOO / kind.config, options)
    _shrink(cfg.model, {} if _is_sparse(cfg.model) else _LIMITS)
    return cfg, image_size(max(len(extractor.featmap_strides) for extractor in _extractors(cfg).values()))


def _build(cfg: Config) -> nn.Module:
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    seed_everything()
    model = revert_sync_batchnorm(MODELS.build(cfg.model))  # as MMEngine does with one process
    return model.double() if _is_sparse(cfg.model) else model


def _is_sparse(detector: Mapping[str, Any]) -> bool:
    """Tells whether a detector has a fixed number of learned proposals.

    Its six stages amplify a rounding error of 1e-7 to 1e-2, so it runs in double precision.
    """
    return 'num_proposals' in detector.get('rpn_head', {})


def _norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def _training_data(model: nn.Module, cfg: Config, size: int) -> dict[str, Any]:
    seed_everything()
    return model.data_preprocessor(_inputs(cfg.model, size, training=True), training=True)


def _shrink(node: Any, limits: Mapping[str, int]) -> None:
    """Makes a model cheap without changing its layers: no downloads, and few proposals."""
    for key, part in list(node.items()):
        is_pretrained = key == 'pretrained' or (key == 'init_cfg' and type_name(part) == 'Pretrained')
        if is_pretrained or key == 'batch_augments':  # batch augmentations pad images to the training size
            node[key] = None
        elif key in limits and isinstance(part, int):
            node[key] = min(part, limits[key])
        elif part == 'MMSyncBN':  # asks for other processes while it is built
            node[key] = 'BN'
        elif key == 'score_thr':  # random weights give low scores
            node[key] = -1.0
        for child in part if isinstance(part, (list, tuple)) else [part]:
            if isinstance(child, Mapping):
                _shrink(child, limits)


def _inputs(model: Mapping[str, Any], size: int, training: bool) -> dict[str, Any]:
    """Makes images and annotations of noise, as the preprocessor of a model takes them."""
    detector = model.get('detector', model)
    heads = detector.roi_head.bbox_head
    num_classes = (heads[0] if isinstance(heads, (list, tuple)) else heads).num_classes
    if type_name(model.data_preprocessor) == 'TrackDataPreprocessor':
        frames = dict(num_frames=2, key_frames_inds=[0]) if training else dict(num_frames=1)
        frames |= dict(image_shapes=(3, size, size), num_classes=num_classes)
        return demo_track_inputs(with_mask=True, **frames)
    if type_name(model.data_preprocessor) == 'MultiBranchDataPreprocessor' and training:
        names = ('sup', 'unsup_teacher', 'unsup_student')
        branches = {name: _images(detector, size, num_classes) for name in names}
        return {
            part: {name: images[part] for name, images in branches.items()}
            for part in ('inputs', 'data_samples')
        }
    # Guided anchors can be predicted for only one image at a time.
    return _images(detector, size, num_classes, number=IMAGES if training else 1)


def _images(detector: Mapping[str, Any], size: int, num_classes: int, number: int = IMAGES) -> dict[str, Any]:
    data = demo_mm_inputs(
        number,
        (3, size, size),
        num_items=[4] * number,
        with_mask=True,
        with_semantic=True,
        # The semantic branch of RoI heads learns at the stride of its map.
        sem_seg_output_strides=8 if 'semantic_head' in detector.roi_head else 1,
    )
    proposals = demo_mm_proposals([(3, size, size)] * number, PROPOSALS)
    for sample, given in zip(data['data_samples'], proposals, strict=True):
        sample.gt_instances.labels %= num_classes
        if _is_sparse(detector):
            sample.gt_instances.bboxes = sample.gt_instances.bboxes.double()
        sample.set_metainfo({'homography_matrix': torch.eye(3).numpy()})
        if 'rpn_head' not in detector:
            sample.proposals = given
    return data


def _detections(sample: Any, size: int) -> Tensor:
    """Returns the detections as in :class:`Computed`, or the labels and shares of panoptic segments."""
    if 'video_data_samples' in sample:
        (sample,) = sample.video_data_samples
    if 'pred_panoptic_seg' in sample:
        segments, pixels = sample.pred_panoptic_seg.sem_seg.unique(return_counts=True)
        return torch.stack([segments % INSTANCE_OFFSET, pixels / pixels.sum()], dim=1)
    found = sample.pred_instances
    columns = [found.labels[:, None], found.scores[:, None], found.bboxes / size]
    if 'masks' in found:
        columns.append(found.masks.float().mean((1, 2))[:, None])
    return torch.cat(columns, dim=1)
