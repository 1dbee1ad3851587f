"""Shared by tools/zoo_swap.py and its parts for MMDetection and Detectron2."""

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
        config: the config that is run, as a path in the zoo.
        alike: how many configs are of this kind.
        heads: the types of the model and its heads.
        stock: the framework's own extractors.
        same: config options for a type of ours that computes the same as the stock extractor.
        different: config options for a type of ours that does not.
        is_exact: whether ``same`` is meant to compute exactly the same.
        problem: why the config cannot be read; empty if it can.
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
        losses: the losses of a training step, by name.
        gradient: the norm of the gradient of all weights.
        detections: ``(N, D)``: label, score, box as a share of the image, and the share of the image that the
            mask covers.
    """

    losses: dict[str, float]
    gradient: float
    detections: Tensor


def image_size(num_maps: int) -> int:
    """Returns a size of images, in pixels, at which bins have several samples, so that the maximum differs.

    Args:
        num_maps: how many maps the RoIs read. A single map is a coarse one, and needs larger images.
    """
    return 128 if num_maps > 1 else 256


def seed_everything() -> None:
    """Seeds the three generators that samplers draw from."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def losses_apart(found: Mapping[str, float], expected: Mapping[str, float]) -> float:
    """Returns the largest relative difference of two models' losses; infinity if a loss is not finite."""
    if found.keys() != expected.keys() or not np.isfinite([*found.values(), *expected.values()]).all():
        return float('inf')
    return max(abs(found[name] - loss) / max(abs(loss), 1e-6) for name, loss in expected.items())


def detections_apart(found: Tensor, expected: Tensor) -> float:
    """Returns the largest distance from a detection of one model to the nearest detection of the other.

    So the order of the detections does not matter, nor does a duplicate. Rounding decides both.
    """
    if len(found) == 0 or len(expected) == 0:
        return 0.0 if len(found) == len(expected) else float('inf')
    distances = torch.cdist(found, expected, p=float('inf'))
    return max(distances.amin(0).max().item(), distances.amin(1).max().item())
