"""The RoI extractors that a Detectron2 config builds."""

from __future__ import annotations

from pathlib import Path

from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor, nn
from torchvision.ops import RoIPool

from ...extractors import RoIExtractor
from ...ops import assign_levels_detectron2
from ..inspection import InspectionError
from .poolers import RoIPluginsPooler
from .runs import RunError, describe, read_config


def find_extractors(config: Path) -> dict[str, RoIExtractor]:
    """See :func:`roi_plugins.integrations.inspection.read_extractors`."""
    try:
        model = describe(read_config(config)).model()
    except (RunError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InspectionError(f'{config}: {error.args[0] if error.args else error}') from error
    found = {name: _as_ours(module) for name, module in model.named_modules()}
    return {name: extractor for name, extractor in found.items() if extractor}


def _as_ours(module: nn.Module) -> RoIExtractor | None:
    if isinstance(module, RoIPluginsPooler):
        scales = module._scales
        method = {
            name: getattr(module, f'_{name}')
            for name in ('region', 'sampling_ratio', 'reduction', 'aligned', 'min_samples', 'max_samples')
        }
    elif isinstance(module, ROIPooler):
        scales = [layer.spatial_scale for layer in module.level_poolers]
        layer = module.level_poolers[0]
        if isinstance(layer, ROIAlign):
            method = {'sampling_ratio': max(layer.sampling_ratio, 0), 'aligned': layer.aligned}
        elif isinstance(layer, RoIPool):
            method = {'region': 'round', 'sampling_ratio': None, 'reduction': 'max'}
        else:
            return None  # of rotated boxes
    else:
        return None

    def level_rule(rois: Tensor, num_levels: int) -> Tensor:
        return assign_levels_detectron2(
            rois,
            module.min_level,
            module.max_level,
            module.canonical_box_size,
            module.canonical_level,
        )

    strides = [1 / scale for scale in scales]
    return RoIExtractor(module.output_size, strides, level_rule=level_rule, **method)
