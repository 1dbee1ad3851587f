"""The RoI extractors that a Detectron2 config builds."""

from __future__ import annotations

from pathlib import Path

from ...extractors import RoIExtractor
from ..errors import RunError
from ..inspection import InspectionError
from .check_model import build_model
from .config import read_config
from .describe import describe
from .poolers import extractor_of
from .saved_config import read_saved_config


def find_extractors(config: Path) -> dict[str, RoIExtractor]:
    """The extractors of a config, see :func:`roi_plugins.integrations.inspection.read_extractors`."""
    try:
        # A YAML file may be the config that the training of a LazyConfig has saved.
        cfg = read_config(config) if config.suffix == '.py' else read_saved_config(config)
        model = build_model(describe(cfg))
    except RunError as error:
        raise InspectionError(f'{config}: {error}') from error
    found = {name: extractor_of(module) for name, module in model.named_modules()}
    return {name: extractor for name, extractor in found.items() if extractor}
