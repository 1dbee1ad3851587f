"""The RoI extractors that a config of either framework builds, as those of this package."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

from ..extractors import RoIExtractor
from ..needs import explain_missing
from .registry import FRAMEWORKS

# Packages and names that a config of one framework has, and none of the other.
_OPENMMLAB = {'mmengine', 'mmcv', 'mmdet'}
_OF_MMENGINE = {'_base_', 'read_base', 'default_scope', 'custom_imports', 'train_dataloader'}
_OF_A_LAZY_CONFIG = {'LazyCall', 'LazyConfig', 'L', 'dataloader', 'lr_multiplier', 'train'}


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
    frameworks = guess_frameworks(config)
    errors = []
    for framework in frameworks:
        try:
            return _read_extractors(config, framework)
        except Exception as error:  # configs are programs: anything can happen in them
            if len(frameworks) == 1:
                raise
            errors.append(f'read as one of {framework}: {" ".join(str(error).split())}')
    raise InspectionError(f'{config} is a config of neither framework. {". ".join(errors)}')


def guess_frameworks(config: Path) -> list[str]:
    """Whose config it is: ``'detectron2'`` or ``'mmdet'``, or both where nothing in it tells."""
    if config.suffix != '.py':
        return ['detectron2']
    try:
        tree = ast.parse(config.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise InspectionError(f'the config {config} cannot be read: {error}') from None
    nodes = list(ast.walk(tree))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    imported = [node.module or '' for node in imports if node.level == 0]
    imported += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    packages = {name.partition('.')[0] for name in imported}
    # What the config has: of its own, and of the modules that it takes it from.
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    names |= {alias.asname or alias.name for node in imports for alias in node.names}
    if packages & _OPENMMLAB or names & _OF_MMENGINE:
        return ['mmdet']
    # Both frameworks' configs may import others by relative paths, MMEngine's under its read_base.
    if 'detectron2' in packages or names & _OF_A_LAZY_CONFIG or any(node.level > 0 for node in imports):
        return ['detectron2']
    return ['mmdet', 'detectron2'] if packages else ['mmdet']


def _read_extractors(config: Path, framework: str) -> dict[str, RoIExtractor]:
    module = FRAMEWORKS[framework].inspection
    if module is None:
        raise InspectionError(f'{config} is a config of {framework}, whose extractors cannot be read')
    try:
        inspection = import_module(module)
    except ImportError as error:
        missing = explain_missing(error)
        if missing:
            raise InspectionError(f'{config} needs {missing}') from error
        raise InspectionError(
            f'{config} is a config of {framework}, which cannot be imported here: {error}'
        ) from error
    found = inspection.find_extractors(config)
    if not found:
        raise InspectionError(
            f'{config}: has no RoI extractor of upright boxes that is known here; '
            'expected the config of a two-stage detector such as Faster or Mask R-CNN'
        )
    return found
