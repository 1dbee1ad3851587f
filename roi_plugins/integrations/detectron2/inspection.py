"""The RoI extractors that a Detectron2 config builds."""

from __future__ import annotations

from pathlib import Path

from ...extractors import RoIExtractor
from ..errors import RunError
from ..inspection import InspectionError
from .checks import build_model
from .poolers import extractor_of
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
    found = {name: extractor_of(module) for name, module in model.named_modules()}
    return {name: extractor for name, extractor in found.items() if extractor}
