"""The RoI extractors that a Detectron2 config builds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler
from torch import nn
from torchvision.ops import RoIPool

from ...extractors import RoIExtractor
from ..errors import RunError
from ..inspection import InspectionError, describe_modules
from .check_model import build_model
from .config import read_config
from .describe import describe
from .poolers import Detectron2LevelRule, RoIPluginsPooler
from .saved_config import read_saved_config


def find_extractors(config: Path) -> dict[str, RoIExtractor]:
    """The extractors of a config, see :func:`roi_plugins.integrations.inspection.read_extractors`."""
    try:
        # A YAML file may be the config that the training of a LazyConfig has saved.
        cfg = read_config(config) if config.suffix == '.py' else read_saved_config(config)
        model = build_model(describe(cfg))
    except RunError as error:
        raise InspectionError(f'{config}: {error}') from error
    found = {name: _as_ours(module) for name, module in model.named_modules()}
    return {name: extractor for name, extractor in found.items() if extractor}


def describe_extractors(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Type and options of each pooler of a model.

    Args:
        model: a detector of Detectron2.

    Returns:
        A dict for each pooler, by its place in the model, such as ``roi_heads.box_pooler``.
    """
    return describe_modules(model, _type_name, _as_ours)


def _type_name(module: nn.Module) -> str | None:
    if isinstance(module, RoIPluginsPooler):
        return module.pooler_type
    if isinstance(module, ROIPooler):
        return f'ROIPooler of {type(module.level_poolers[0]).__name__}'
    return None


def _as_ours(module: nn.Module) -> RoIExtractor | None:
    """The extractor in a pooler, or the extractor of this package that computes the same.

    None if the module is not a pooler, or a pooler of Detectron2 for rotated boxes.
    """
    if isinstance(module, RoIPluginsPooler):
        return module.extractor
    if not isinstance(module, ROIPooler):
        return None
    layer = module.level_poolers[0]
    if isinstance(layer, ROIAlign):
        method = {'sampling_ratio': layer.sampling_ratio, 'aligned': layer.aligned}
    elif isinstance(layer, RoIPool):
        method = {'region': 'round', 'sampling_ratio': None, 'reduction': 'max'}
    else:
        return None
    return RoIExtractor(
        module.output_size,
        [1 / layer.spatial_scale for layer in module.level_poolers],
        level_rule=Detectron2LevelRule(module.min_level, module.canonical_box_size, module.canonical_level),
        **method,
    )
