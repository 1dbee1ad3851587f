"""Measures whole training steps of detectors (forward, losses, backward, optimiser) with and without the op.

Every contender has a model of its own, with the same initial weights and the same images.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from roi_plugins.benchmark.cases import ALIGN_AVG, BOTH, FPN, Case
from roi_plugins.benchmark.measure import OURS, Contender, Effort, interleave, measurement

if TYPE_CHECKING:
    from detectron2.config import CfgNode

MMDET, DETECTRON2 = 'train-step', 'detectron2-train-step'
TARGET = 1.7

_ROOT = Path(__file__).parents[2]
_CONFIGS = _ROOT / 'configs' / 'mmdet' / 'shapes'
_PEER = 'mmcv.ops.RoIAlign'
_PEER_ADAPTIVE = 'mmcv.ops.RoIAlign, adaptive grid'
_DETECTRON2_PEER = 'detectron2 ROIPooler'
_DETECTRON2_CONFIG = 'COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml'


def measure_mmdet_step(device: torch.device, effort: Effort) -> dict[str, Any]:
    """Measures a training step of MMDetection's Mask R-CNN on the dataset of shapes.

    Our extractor is that of the row align-avg. The peer is the stock extractor with MMCV's op on the same 2x2
    points per bin. The unchanged stock config is measured too. It reads other points, in an adaptive grid.

    Args:
        device: where to measure.
        effort: how long to measure.

    Returns:
        A record as :func:`~roi_plugins.benchmark.measure.measure_case` gives, without floor and memory.
    """
    record = _start_record(MMDET, [[_PEER, 'NCHW', 'float32', TARGET]])
    if not _CONFIGS.is_dir():
        record['left_out'][MMDET] = 'needs configs/mmdet/shapes of a checkout of the repository'
        return record
    return _measure(record, lambda: _mmdet_contenders(device), device, effort)


def measure_detectron2_step(
    device: torch.device,
    effort: Effort,
    image_size: tuple[int, int] = (800, 1344),
    options: Sequence[str] = (),
) -> dict[str, Any]:
    """Measures a step of Detectron2's Mask R-CNN R-50-FPN, in float32 and under autocast to float16.

    A step has two random images with 20 boxes and polygons each. AlignAvg reads the points that the stock
    ROIAlignV2 reads.

    Args:
        device: where to measure.
        effort: how long to measure.
        image_size: (height, width) of the images, pixels.
        options: changes of the config, as Detectron2's command line takes them: ``KEY VALUE ...``.

    Returns:
        A record as :func:`~roi_plugins.benchmark.measure.measure_case` gives, without floor and memory.
    """
    record = _start_record(DETECTRON2, [])
    return _measure(record, lambda: _detectron2_contenders(device, image_size, options), device, effort)


def _start_record(name: str, targets: list[list[Any]]) -> dict[str, Any]:
    return {
        'name': name,
        'step': name,
        'copy_bytes_per_second': None,
        'targets': targets,
        'measurements': [],
        'left_out': {},
    }


def _measure(
    record: dict[str, Any],
    make_contenders: Callable[[], list[Contender]],
    device: torch.device,
    effort: Effort,
) -> dict[str, Any]:
    try:
        contenders = make_contenders()
    except ImportError as error:
        record['left_out'][record['name']] = f'its framework cannot be imported ({error})'
        return record
    samples = interleave(contenders, device, effort)
    record['measurements'] = [
        measurement(contender, seconds) for contender, seconds in zip(contenders, samples, strict=True)
    ]
    return record


def _mmdet_contenders(device: torch.device) -> list[Contender]:
    from mmengine.config import Config
    from mmengine.logging import MMLogger

    from roi_plugins.datasets import generate_shapes
    from roi_plugins.extractors.presets import find_preset
    from roi_plugins.integrations.mmdet.swap import swap_extractors
    from roi_plugins.integrations.mmdet.train_step import build_step

    def make_step(extractor: str, options: dict[str, Any]) -> Callable[[], object]:
        config = Config.fromfile(_CONFIGS / 'mask-rcnn_r18-c4_shapes.py')
        config.merge_from_dict({**options, 'train_dataloader.dataset.data_root': f'{data_root}/'})
        swap_extractors(config, find_preset(extractor))
        return build_step(config, device, num_batches=4)[1]

    points = {f'model.roi_head.{head}_roi_extractor.roi_layer.sampling_ratio': 2 for head in ('bbox', 'mask')}
    # MMEngine's line for each weight and pycocotools' progress would hide the table.
    MMLogger.get_current_instance().setLevel('WARNING')
    with contextlib.redirect_stdout(io.StringIO()):
        data_root = generate_shapes(_ROOT / 'data' / 'shapes')
        return [
            Contender(name, 'NCHW', 'float32', make_step(config, options))
            for name, config, options in (
                (OURS, 'align-avg', {}),
                (_PEER, 'stock', points),
                (_PEER_ADAPTIVE, 'stock', {}),
            )
        ]


def _detectron2_contenders(
    device: torch.device, image_size: tuple[int, int], options: Sequence[str]
) -> list[Contender]:
    from detectron2 import model_zoo

    from roi_plugins.integrations.detectron2 import add_roi_plugins_config

    stock = model_zoo.get_config(_DETECTRON2_CONFIG)
    add_roi_plugins_config(stock)
    stock.MODEL.DEVICE = str(device)
    stock.MODEL.PIXEL_STD = [57.375, 57.12, 58.395]  # trained weights would include this scale
    stock.SOLVER.BASE_LR = 0.0  # the weights do not change, and so the proposals do not either
    stock.merge_from_list(list(options))
    ours = stock.clone()
    ours.MODEL.ROI_HEADS.NAME = 'RoIPluginsStandardROIHeads'
    ours.MODEL.ROI_BOX_HEAD.POOLER_TYPE = 'AlignAvg'
    ours.MODEL.ROI_MASK_HEAD.POOLER_TYPE = 'AlignAvg'
    data = _detectron2_inputs(image_size)
    return [
        Contender(name, 'NCHW', dtype, _detectron2_step(cfg, data, amp))
        for dtype, amp in (('float32', False), ('autocast float16', True))
        for name, cfg in ((OURS, ours), (_DETECTRON2_PEER, stock))
    ]


def _detectron2_step(cfg: CfgNode, data: list[dict[str, Any]], amp: bool) -> Callable[[], torch.Tensor]:
    from detectron2.modeling import build_model
    from detectron2.modeling.backbone.resnet import BottleneckBlock
    from detectron2.solver import build_optimizer
    from detectron2.utils.events import EventStorage

    torch.manual_seed(0)
    model = build_model(cfg).train()
    # Without trained statistics, the frozen normalisation does not normalise: the maps would grow from block
    # to block, and the proposals would leave their anchors. So the residual branches start at zero. The work
    # is the same.
    for module in model.backbone.modules():
        if isinstance(module, BottleneckBlock):
            module.conv3.norm.weight.zero_()
    optimizer = build_optimizer(cfg, model)
    scaler = torch.amp.GradScaler(cfg.MODEL.DEVICE, enabled=amp)

    def step() -> torch.Tensor:
        with EventStorage(), torch.autocast(cfg.MODEL.DEVICE, torch.float16, enabled=amp):
            loss = sum(model(data).values())
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    return step


def _detectron2_inputs(image_size: tuple[int, int]) -> list[dict[str, Any]]:
    """Makes two random images, each with 20 octagons of mixed sizes as its objects."""
    from detectron2.structures import Boxes, Instances, PolygonMasks

    objects = Case(DETECTRON2, 7, BOTH, ALIGN_AVG, FPN, (), num_rois=40, image_size=image_size)
    rois = objects.make_rois()
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for index in range(objects.images):
        boxes = rois[rois[:, 0] == index, 1:]
        instances = Instances(image_size)
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.randint(0, 80, (len(boxes),), generator=generator)
        instances.gt_masks = PolygonMasks([[_octagon(*box)] for box in boxes.tolist()])
        image = torch.randint(0, 256, (3, *image_size), generator=generator, dtype=torch.uint8)
        inputs.append(
            {'image': image, 'instances': instances, 'height': image_size[0], 'width': image_size[1]}
        )
    return inputs


def _octagon(left: float, top: float, right: float, bottom: float) -> list[float]:
    """Makes the octagon that is left of a box without its corners, as a list of x and y in turn."""
    x, y = (right - left) / 4, (bottom - top) / 4
    return [
        left + x, top, right - x, top, right, top + y, right, bottom - y,
        right - x, bottom, left + x, bottom, left, bottom - y, left, top + y,
    ]  # fmt: skip
