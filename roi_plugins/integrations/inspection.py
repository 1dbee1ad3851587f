"""The RoI extractors that a config of either framework builds, as extractors of this package."""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from ..extractors import RoIExtractor
from ..extractors.presets import describe
from ..needs import explain_missing
from .registry import FRAMEWORKS

# Packages and names that only occur in configs of one framework.
_OPENMMLAB = {'mmengine', 'mmcv', 'mmdet'}
_OF_MMENGINE = {'_base_', 'read_base', 'default_scope', 'custom_imports', 'train_dataloader'}
_OF_A_LAZY_CONFIG = {'LazyCall', 'LazyConfig', 'L', 'dataloader', 'lr_multiplier', 'train'}


class InspectionError(ValueError):
    """The extractors of a config cannot be read. The message names the config and the cause."""


def read_extractors(config: str | Path) -> dict[str, RoIExtractor]:
    """The extractors that a config builds.

    Args:
        config: path of an MMDetection config, or of a Detectron2 config (YAML or LazyConfig).

    Returns:
        The extractors by their places in the detector, such as ``roi_head.bbox_roi_extractor``. Those of the
        framework are given as the :class:`~roi_plugins.extractors.RoIExtractor` that computes the same.

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
        except Exception as error:  # configs are programs, which may raise anything
            if len(frameworks) == 1:
                raise
            errors.append(f'read as one of {framework}: {" ".join(str(error).split())}')
    raise InspectionError(f'{config} is a config of neither framework. {". ".join(errors)}')


def describe_modules(
    model: nn.Module,
    type_name: Callable[[nn.Module], str | None],
    as_ours: Callable[[nn.Module], RoIExtractor | None],
) -> dict[str, dict[str, Any]]:
    """Type and options of each extractor of a model.

    Args:
        model: a detector of either framework.
        type_name: what a framework calls the type of an extractor; None for any other module.
        as_ours: the extractor of this package that computes the same; None if there is none.

    Returns:
        A dict for each extractor, by its place in the model.
    """
    found = {}
    for name, module in model.named_modules():
        if type_ := type_name(module):
            extractor = as_ours(module)
            found[name] = {'type': type_, **(describe(extractor) if extractor else {})}
    return found


def guess_frameworks(config: Path) -> list[str]:
    """The frameworks that a config may be of: ``'detectron2'``, ``'mmdet'``, or both if nothing in it tells.

    Args:
        config: path of the config.

    Raises:
        InspectionError: the file is not Python code.
    """
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
    # The names that the config defines or imports.
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    names |= {alias.asname or alias.name for node in imports for alias in node.names}
    if packages & _OPENMMLAB or names & _OF_MMENGINE:
        return ['mmdet']
    # A relative import without MMEngine's read_base is one of a LazyConfig.
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
