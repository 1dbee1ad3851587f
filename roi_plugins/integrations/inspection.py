"""The RoI extractors that a config of either framework builds, as those of this package."""

from __future__ import annotations

import ast
from pathlib import Path

from ..extractors import RoIExtractor


class InspectionError(ValueError):
    """A config whose extractors cannot be had; the message names it and the cause."""


def read_extractors(config: str | Path) -> dict[str, RoIExtractor]:
    """The extractors of a config, by where they are in the detector, e.g. ``roi_head.bbox_roi_extractor``.

    The frameworks' own are given as the :class:`~roi_plugins.extractors.RoIExtractor` that computes
    the same.

    Args:
        config: an MMDetection config, or a Detectron2 config (YAML or LazyConfig).

    Raises:
        InspectionError: the config is missing, cannot be read, or has no extractor of upright boxes.
    """
    config = Path(config)
    if not config.is_file():
        raise InspectionError(f'the config {config} does not exist')
    framework = guess_framework(config)
    try:
        if framework == 'mmdet':
            from .mmdet.inspection import find_extractors
        else:
            from .detectron2.inspection import find_extractors
    except ImportError as error:
        raise InspectionError(
            f'{config} is a config of {framework}, which cannot be imported here: {error}'
        ) from error
    found = find_extractors(config)
    if not found:
        raise InspectionError(
            f'{config}: has no RoI extractor of upright boxes that is known here; '
            'expected the config of a two-stage detector such as Faster or Mask R-CNN'
        )
    return found


def guess_framework(config: Path) -> str:
    """``'detectron2'`` for YAML and for a LazyConfig, which imports it or neighbours; else ``'mmdet'``."""
    if config.suffix != '.py':
        return 'detectron2'
    try:
        tree = ast.parse(config.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise InspectionError(f'the config {config} cannot be read: {error}') from None
    nodes = list(ast.walk(tree))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    names = [node.module or '' for node in imports if node.level == 0]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    packages = {name.partition('.')[0] for name in names}
    # Both frameworks' configs may import others by relative paths, MMEngine's under its read_base.
    is_relative = any(node.level > 0 for node in imports)
    is_lazy = 'detectron2' in packages or (is_relative and 'mmengine' not in packages)
    return 'detectron2' if is_lazy else 'mmdet'
