"""Checks that the model of a run can be built, and that its predictions can be evaluated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import ProposalNetwork, SemanticSegmentor
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, RROIHeads
from omegaconf import DictConfig

from ..errors import RunError, ask_for_near, explain_unknown
from .nodes import HEADS, is_on
from .poolers import POOLER_TYPES, STOCK_POOLER_TYPES
from .roi_heads import STOCK_HEADS, pooler_nodes
from .run import Run


def build_model(run: Run) -> torch.nn.Module:
    """Builds the model of a run; a RunError if the config does not make one."""
    return build('model', run.model)


def build(what: str, make: Callable[[], Any]) -> Any:
    """Builds a part of a run.

    Args:
        what: the part, for the error.
        make: builds it.

    Raises:
        RunError: it cannot be built.
    """
    try:
        return make()
    except (
        AssertionError,
        AttributeError,
        ImportError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        message = str(error.args[0] if error.args else error) or type(error).__name__
        if 'Unknown pooler type' in message:
            # Detectron2's message does not list the types that exist.
            message = f'{message}; {_explain_type(message.rpartition(" ")[2])}'
        raise RunError(f"the config's {what} cannot be built: {message}") from error


def _explain_type(name: str) -> str:
    """What the user can do about a type that Detectron2's own pooler does not know."""
    if name in POOLER_TYPES:
        return (
            f'{name}, of this package, needs RoI heads that are {" or ".join(STOCK_HEADS)} or made of one of '
            'them; in a LazyConfig, L(build_pooler) for a pooler'
        )
    return (
        f"{ask_for_near(name, [*POOLER_TYPES, *STOCK_POOLER_TYPES])}Detectron2's own are "
        f'{", ".join(STOCK_POOLER_TYPES)}, those of this package {", ".join(POOLER_TYPES)}, such as '
        'MODEL.ROI_BOX_HEAD.POOLER_TYPE AlignMax, or model.roi_heads.box_pooler.pooler_type=AlignMax in a '
        'LazyConfig'
    )


def check_model(run: Run, model: torch.nn.Module) -> None:
    """Checks that the predictions of a model can be evaluated.

    Raises:
        RunError: the model predicts no boxes, or rotated ones, or another number of keypoints than there are
            OKS sigmas.
    """
    if isinstance(model, (ProposalNetwork, SemanticSegmentor)):
        raise RunError(
            f'{run.settings["model"]} is {type(model).__name__}, which predicts no objects; this tool '
            'computes AP of boxes, masks and keypoints'
        )
    heads = getattr(model, 'roi_heads', None)
    if isinstance(heads, RROIHeads):
        raise RunError(
            f'{run.settings["heads"]} is {type(heads).__name__}, of rotated boxes, which this tool cannot '
            'evaluate'
        )
    found = num_keypoints(model)
    if found is not None and found != len(run.sigmas):
        raise RunError(
            f'{run.settings["keypoints"]} is {found}, but there are {len(run.sigmas)} OKS sigmas: set '
            f'{run.settings["sigmas"]} to one for each keypoint'
        )


def check_max_dets(run: Run, model: torch.nn.Module, max_dets: int) -> None:
    """Checks that the model can give as many detections as count in an image.

    Args:
        run: the run.
        model: its model.
        max_dets: how many detections of each class count in an image.

    Raises:
        RunError: the model gives fewer.
    """
    predictor = getattr(getattr(model, 'roi_heads', None), 'box_predictor', model)
    if isinstance(predictor, (list, torch.nn.ModuleList)):
        predictor = predictor[-1]  # the last stage of a cascade gives the detections
    for attribute in ('test_topk_per_image', 'max_detections_per_image'):
        most = getattr(predictor, attribute, -1)
        if 0 <= most < max_dets:
            setting = 'TEST.DETECTIONS_PER_IMAGE'
            if isinstance(run.cfg, DictConfig):
                setting = f"{attribute} of the model's {type(predictor).__name__}"
            raise RunError(
                f'--max-dets is {max_dets}, but the model gives at most {most} detections an image: set '
                f'{setting} to {max_dets} too'
            )


def has_head(model: torch.nn.Module, what: str) -> bool:
    """Whether a model has a head for masks (``'mask'``) or keypoints (``'keypoint'``)."""
    return bool(getattr(getattr(model, 'roi_heads', None), f'{what}_on', False))


def num_keypoints(model: torch.nn.Module) -> int | None:
    """How many keypoints a model predicts of each object; None if it has no head for them."""
    head = getattr(getattr(model, 'roi_heads', None), 'keypoint_head', None)
    return getattr(head, 'num_keypoints', None)


def check_num_classes(run: Run, model: torch.nn.Module, dataset: str, expected: int) -> None:
    """Checks that a model is for as many classes as a dataset has.

    Args:
        run: the run.
        model: its model.
        dataset: the name of the dataset.
        expected: its number of classes.

    Raises:
        RunError: the model is for another number of classes.
    """
    # A one-stage detector has no heads; it has num_classes itself.
    heads, setting = getattr(model, 'roi_heads', model), run.settings['classes']
    if heads is model:
        setting = run.settings['dense_classes']
    predictors = getattr(heads, 'box_predictor', [])
    if not isinstance(predictors, (list, torch.nn.ModuleList)):
        predictors = [predictors]
    for part in (heads, *predictors):
        found = getattr(part, 'num_classes', expected)
        if found != expected:
            raise RunError(f'{setting}: got {found}, but the dataset {dataset} has {expected} classes')


def check_pooler_options(cfg: CfgNode) -> None:
    """Checks that each option in ``POOLER_OPTIONS`` is read by a pooler.

    Raises:
        RunError: an option would have no effect.
    """
    heads = cfg.MODEL.ROI_HEADS.NAME
    if heads not in ROI_HEADS_REGISTRY:
        known = [name for name, _ in ROI_HEADS_REGISTRY]
        raise RunError(f'MODEL.ROI_HEADS.NAME: got {heads!r}; {explain_unknown(heads, known)}')
    read = pooler_nodes(ROI_HEADS_REGISTRY.get(heads))
    for head in HEADS:
        node = cfg.MODEL[head]
        given = [key for key, value in node.POOLER_OPTIONS.items() if value is not None]
        if not given or not is_on(cfg, head) or (head in read and node.POOLER_TYPE):
            continue
        names = ', '.join(f'MODEL.{head}.POOLER_OPTIONS.{key}' for key in given)
        if not read:
            raise RunError(
                f'{names}: MODEL.ROI_HEADS.NAME {heads} does not read it; a type of this package would, such '
                f'as MODEL.{head}.POOLER_TYPE AlignMax'
            )
        if head not in read:
            raise RunError(f'{names}: {heads} does not read it; its pooler reads MODEL.{" and ".join(read)}')
        raise RunError(f'{names}: without a MODEL.{head}.POOLER_TYPE the head has no pooler to read it')
