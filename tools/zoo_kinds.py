"""What tools/zoo_swap.py and its two parts, of MMDetection and of Detectron2, have in common."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass
class Kind:
    """Configs of a model zoo that have the same heads and RoI extractors.

    Attributes:
        framework: ``'mmdet'`` or ``'detectron2'``.
        config: the one that is run, as a path in the zoo.
        alike: how many there are.
        heads: of the model.
        stock: the framework's own extractors.
        same: options of the config, for a type of ours that computes what the stock one does.
        different: options for a type that does not.
        is_exact: whether ``same`` is meant to compute exactly what the stock one does.
        problem: why it cannot be read.
    """

    framework: str
    config: str
    alike: int = 1
    heads: str = ''
    stock: str = ''
    same: dict[str, str] = field(default_factory=dict)
    different: dict[str, str] = field(default_factory=dict)
    is_exact: bool = True
    problem: str = ''


@dataclass
class Computed:
    """What a model of fixed weights computes.

    Attributes:
        losses: of a training step, by name.
        gradient: norm of the gradient of all weights.
        detections: ``(N, D)``: label, score, box as a share of the image, share of the image that is mask.
    """

    losses: dict[str, float]
    gradient: float
    detections: Tensor


def image_size(num_maps: int) -> int:
    """Width and height of images in which boxes have more than one sample a bin, whose maximum differs.

    Args:
        num_maps: how many the RoIs read; a single map is a coarse one.
    """
    return 128 if num_maps > 1 else 256


def seed_everything() -> None:
    """Samplers draw from any of the three."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def losses_apart(found: Mapping[str, float], expected: Mapping[str, float]) -> float:
    """The largest relative difference of two models' losses; infinity, where one is no number."""
    if found.keys() != expected.keys() or not np.isfinite([*found.values(), *expected.values()]).all():
        return float('inf')
    return max(abs(found[name] - loss) / max(abs(loss), 1e-6) for name, loss in expected.items())


def detections_apart(found: Tensor, expected: Tensor) -> float:
    """How far the detection is that is farthest from any of the other model, in either direction.

    So neither the order nor one more of two equal detections matters, which rounding decides.
    """
    if len(found) == 0 or len(expected) == 0:
        return 0.0 if len(found) == len(expected) else float('inf')
    distances = torch.cdist(found, expected, p=float('inf'))
    return max(distances.amin(0).max().item(), distances.amin(1).max().item())
