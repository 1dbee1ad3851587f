"""A training step of the embedded detector, with the op and with MMCV's in its place."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from roi_plugins.benchmark.measure import OURS, Contender, Effort, interleave

NAME = 'train-step'
TARGET = 1.7

_ROOT = Path(__file__).parents[2]
_CONFIGS = _ROOT / 'configs' / 'mmdet' / 'shapes'
_PEER = 'mmcv.ops.RoIAlign'
_PEER_ADAPTIVE = 'mmcv.ops.RoIAlign, adaptive grid'


def measure_train_step(device: torch.device, effort: Effort) -> dict[str, Any]:
    """Measures forward, losses, backward and optimiser of the Mask R-CNN that learns the shapes.

    The config is that of align-avg. The peer is the stock extractor with MMCV's op on the same 2x2
    points a bin; beside it the stock config as it is, with an adaptive grid, which reads other points.
    Each has a model of its own, from the same initial weights and on the same images.

    Returns:
        A record as :func:`~roi_plugins.benchmark.measure.measure_case` gives, without floor and memory.
    """
    record: dict[str, Any] = {
        'name': NAME,
        'step': NAME,
        'copy_bytes_per_second': None,
        'targets': [[_PEER, 'NCHW', 'float32', TARGET]],
        'measurements': [],
        'left_out': {},
    }
    if not _CONFIGS.is_dir():
        record['left_out'][NAME] = f'needs a checkout of the repository; there is no {_CONFIGS}'
        return record
    points = {
        f'model.roi_head.{head}_roi_extractor.roi_layer.sampling_ratio': 2 for head in ('bbox', 'mask')
    }
    try:
        from mmengine.logging import MMLogger

        # A line for each weight, and COCO's greetings, would hide the table.
        MMLogger.get_current_instance().setLevel('WARNING')
        with contextlib.redirect_stdout(io.StringIO()):
            contenders = [
                Contender(name, 'NCHW', 'float32', _make_step(config, options, device))
                for name, config, options in (
                    (OURS, 'align-avg', {}),
                    (_PEER, 'stock', points),
                    (_PEER_ADAPTIVE, 'stock', {}),
                )
            ]
    except ImportError as error:
        record['left_out'][NAME] = f'mmdet is not installed ({error})'
        return record
    for contender, seconds in zip(contenders, interleave(contenders, device, effort), strict=True):
        record['measurements'].append(
            {
                'name': contender.name,
                'layout': contender.layout,
                'dtype': contender.dtype,
                'variant': '',
                'seconds': seconds,
                'floor_seconds': None,
                'peak_bytes': None,
                'synchronises': None,
            }
        )
    return record


def _make_step(extractor: str, options: dict[str, Any], device: torch.device) -> Callable[[], object]:
    from mmengine.config import Config

    from roi_plugins.datasets import generate_shapes
    from roi_plugins.integrations.mmdet.steps import build_step

    data_root = generate_shapes(_ROOT / 'data' / 'shapes')
    config = Config.fromfile(_CONFIGS / f'mask-rcnn_r18-c4_{extractor}_shapes.py')
    config.merge_from_dict({**options, 'train_dataloader.dataset.data_root': f'{data_root}/'})
    return build_step(config, device, num_batches=4)[1]
