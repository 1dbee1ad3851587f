"""Checks that the model of an MMDetection config can be built, and for how many classes."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, Registry

from ..errors import RunError, describe_error
from .registered import class_of, enter_scope, explain_unregistered

_HEADS = ('bbox_head', 'mask_head', 'mask_iou_head', 'point_head')

BUILD_ERRORS = (
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def build(registry: Registry, setting: str, options: Mapping[str, Any]) -> Any:
    """Builds a part of a config.

    Args:
        registry: the registry of the part.
        setting: the name of the part in the config, for the error.
        options: the part; it is not changed.

    Returns:
        What the registry builds.

    Raises:
        RunError: it cannot be built.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            return registry.build(copy.deepcopy(options))
    except BUILD_ERRORS as error:
        message = explain_unregistered(error) or describe_error(error)
        raise RunError(f'{setting}: {message}') from error


def check_model(cfg: Config) -> torch.nn.Module:
    """Builds the model of a config, without initialising its weights.

    Raises:
        RunError: the model cannot be built.
    """
    enter_scope(cfg)
    return build(MODELS, 'model', cfg.model)


def check_num_classes(cfg: Config, expected: int, setting: str, ann_file: str) -> None:
    """Checks that all heads of the model are for as many classes as a dataset has.

    Args:
        cfg: the config.
        expected: the number of classes of the dataset.
        setting: the setting of the dataset, for the error.
        ann_file: the annotations of the dataset, for the error.

    Raises:
        RunError: a head is for another number of classes.
    """
    misfits = {name: found for name, found in _num_classes(cfg.get('model') or {}) if found != expected}
    if misfits:
        name, found = next(iter(misfits.items()))
        options = ' '.join(f'{name}={expected}' for name in misfits)
        raise RunError(
            f'{name} is {found}, but {expected} categories of {ann_file} are among '
            f'{setting}.metainfo.classes: give --cfg-options {options}'
        )


def _num_classes(model: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Setting and value of ``num_classes`` of each head of a detector of one or two stages."""
    for where, heads in (('model', model), ('model.roi_head', model.get('roi_head') or {})):
        for key in _HEADS:
            head = heads.get(key) or {}
            stages = {f'{where}.{key}': head}
            if isinstance(head, (list, tuple)):
                stages = {f'{where}.{key}.{stage}': options for stage, options in enumerate(head)}
            for name, options in stages.items():
                found = options.get('num_classes', _default(options.get('type'), 'num_classes'))
                if found is not None and not options.get('class_agnostic'):
                    yield f'{name}.num_classes', found


def _default(kind: Any, option: str) -> Any:
    """The default of an option of a part of a model; None if it is not known."""
    found = class_of(MODELS, kind) if kind else None
    for owner in getattr(found, '__mro__', ()):
        parameter = inspect.signature(owner).parameters.get(option)
        if parameter is not None:
            return None if parameter.default is inspect.Parameter.empty else parameter.default
    return None
