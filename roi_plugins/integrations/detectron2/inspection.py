"""The RoI extractors that a Detectron2 config builds."""

from __future__ import annotations

from pathlib import Path

from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler
from torch import nn
from torchvision.ops import RoIPool

from ...extractors import RoIExtractor
from ..errors import RunError
from ..inspection import InspectionError
from .checks import build_model
from .poolers import Detectron2LevelRule, RoIPluginsPooler
from .reading import read_config, read_saved_config
from .runs import describe


def find_extractors(config: Path) -> dict[str, RoIExtractor]:
    """See :func:`roi_plugins.integrations.inspection.read_extractors`."""
    try:
        # YAML may be what a training has left of a LazyConfig.
        cfg = read_config(config) if config.suffix == '.py' else read_saved_config(config)
        model = build_model(describe(cfg))
    except RunError as error:
        raise InspectionError(f'{config}: {error}') from error
    found = {name: _as_ours(module) for name, module in model.named_modules()}
    return {name: extractor for name, extractor in found.items() if extractor}


def _as_ours(module: nn.Module) -> RoIExtractor | None:
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
        return None  # of rotated boxes
    return RoIExtractor(
        module.output_size,
        [1 / layer.spatial_scale for layer in module.level_poolers],
        level_rule=Detectron2LevelRule(module.min_level, module.canonical_box_size, module.canonical_level),
        **method,
    )
