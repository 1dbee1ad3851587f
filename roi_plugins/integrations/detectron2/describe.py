"""The run that a Detectron2 config describes, YAML or LazyConfig."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, instantiate
from detectron2.data import DatasetMapper, build_detection_test_loader, build_detection_train_loader
from detectron2.modeling import build_model as build_yaml_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from roi_plugins.evaluation.matching import COCO_SIGMAS, MAX_DETS

from ..errors import RunError, describe_error
from .check_test import evaluator_max_dets, evaluator_sigmas
from .datasets import register_coco_files
from .run import Run

# The keys that the node `train` of a LazyConfig must have.
_TRAIN = (
    *('output_dir', 'init_checkpoint', 'max_iter', 'amp.enabled', 'ddp', 'checkpointer.period'),
    *('eval_period', 'log_period'),
)

_YAML_SETTINGS = {
    'train': 'DATASETS.TRAIN',
    'test': 'DATASETS.TEST',
    'classes': 'MODEL.ROI_HEADS.NUM_CLASSES',
    'dense_classes': 'MODEL.RETINANET.NUM_CLASSES',
    'keypoints': 'MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS',
    'sigmas': 'TEST.KEYPOINT_OKS_SIGMAS',
    'heads': 'MODEL.ROI_HEADS.NAME',
    'model': 'MODEL.META_ARCHITECTURE',
    'weights': 'MODEL.WEIGHTS',
    'batch': 'SOLVER.IMS_PER_BATCH',
    'output': 'OUTPUT_DIR',
    'max_iter': 'SOLVER.MAX_ITER',
    'period': 'SOLVER.CHECKPOINT_PERIOD',
}

_LAZY_SETTINGS = {
    'train': 'dataloader.train.dataset.names',
    'test': 'dataloader.test.dataset.names',
    'classes': 'model.roi_heads.num_classes',
    'dense_classes': 'model.num_classes',
    'keypoints': 'model.roi_heads.keypoint_head.num_keypoints',
    'sigmas': 'dataloader.evaluator.kpt_oks_sigmas',
    'heads': 'model.roi_heads',
    'model': 'model',
    'weights': 'train.init_checkpoint',
    'batch': 'dataloader.train.total_batch_size',
    'output': 'train.output_dir',
    'max_iter': 'train.max_iter',
    'period': 'train.checkpointer.period, max_to_keep',
}


class NamedImages:
    """A dataset mapper whose error names the image that cannot be read.

    Args:
        mapper: the mapper that reads an image.
    """

    def __init__(self, mapper: Callable[[dict], Any]):
        self._mapper = mapper

    def __call__(self, sample: dict) -> Any:
        try:
            return self._mapper(sample)
        except OSError as error:
            raise OSError(f'the image {sample["file_name"]} cannot be read: {error}') from error


def describe(cfg: CfgNode | DictConfig, device: str | None = None, max_dets: int | None = None) -> Run:
    """Describes the run of a config, and registers the COCO files that it names as datasets.

    Args:
        cfg: the config; its device is changed.
        device: the device of the run; by default that of the config, or the CPU if there is no GPU.
        max_dets: how many detections of each class count in an image; by default the limit of a LazyConfig's
            evaluator, else 100.

    Raises:
        RunError: a LazyConfig does not have what Detectron2's own tool needs.
    """
    try:
        run = _describe_yaml(cfg, device) if isinstance(cfg, CfgNode) else _describe_lazy(cfg, device)
    except OmegaConfBaseException as error:  # such as an unresolved interpolation
        raise RunError(f'the LazyConfig cannot be read: {describe_error(error)}') from error
    run.max_dets = max_dets or run.max_dets
    register_coco_files([*run.train_datasets, *run.test_datasets])
    return run


def _describe_yaml(cfg: CfgNode, device: str | None) -> Run:
    if device or not torch.cuda.is_available():
        cfg.MODEL.DEVICE = device or 'cpu'
    return Run(
        cfg=cfg,
        output_dir=Path(cfg.OUTPUT_DIR),
        weights=cfg.MODEL.WEIGHTS,
        train_datasets=cfg.DATASETS.TRAIN,
        test_datasets=cfg.DATASETS.TEST,
        settings=_YAML_SETTINGS,
        model=lambda: build_yaml_model(cfg),
        train_loader=lambda: build_detection_train_loader(cfg, mapper=NamedImages(DatasetMapper(cfg, True))),
        test_loader=lambda: build_detection_test_loader(
            cfg, cfg.DATASETS.TEST[0], mapper=NamedImages(DatasetMapper(cfg, False))
        ),
        optimizer=lambda model: build_optimizer(cfg, model),
        scheduler=lambda optimizer: build_lr_scheduler(cfg, optimizer),
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        max_iter=cfg.SOLVER.MAX_ITER,
        checkpoints={'period': cfg.SOLVER.CHECKPOINT_PERIOD},
        amp=cfg.SOLVER.AMP.ENABLED,
        ddp={'broadcast_buffers': False},
        log_period=20,
        eval_period=cfg.TEST.EVAL_PERIOD,
        sigmas=tuple(cfg.TEST.KEYPOINT_OKS_SIGMAS) or COCO_SIGMAS,
    )


def _describe_lazy(cfg: DictConfig, device: str | None) -> Run:
    # Detectron2's own tool reads these too. check_run checks what only a training needs.
    for key in ('model', *(f'train.{name}' for name in _TRAIN)):
        if OmegaConf.select(cfg, key, default=...) is ...:
            raise RunError(
                f'the LazyConfig has no {key}; it needs model, dataloader, optimizer, lr_multiplier and '
                "train; model_zoo.get_config('common/train.py').train is a complete train"
            )
    for name in ('max_iter', 'checkpointer.period', 'eval_period', 'log_period'):
        value = OmegaConf.select(cfg, f'train.{name}')
        if not isinstance(value, int):
            raise RunError(f'train.{name} is {value!r}; expected a whole number')

    def optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
        cfg.optimizer.params.model = model
        return instantiate(cfg.optimizer)

    def loader(node: DictConfig) -> Any:
        if 'mapper' not in node:  # the user's own loader
            return instantiate(node)
        mapper = NamedImages(instantiate(node.mapper))
        node = copy.deepcopy(node)  # the config is saved as it was given
        node.mapper = mapper
        return instantiate(node)

    def names(half: str) -> list[str]:
        found = OmegaConf.select(cfg, f'dataloader.{half}.dataset.names', default=[])
        if not isinstance(found, (str, list, tuple, ListConfig)):
            raise RunError(f'dataloader.{half}.dataset.names is {found!r}; expected names of datasets')
        return [found] if isinstance(found, str) else list(found)

    if device or not torch.cuda.is_available():
        cfg.train.device = device or 'cpu'
    return Run(
        cfg=cfg,
        output_dir=Path(cfg.train.output_dir),
        weights=cfg.train.init_checkpoint or '',
        train_datasets=names('train'),
        test_datasets=names('test'),
        settings=_LAZY_SETTINGS,
        model=lambda: instantiate(cfg.model).to(cfg.train.device),
        train_loader=lambda: loader(cfg.dataloader.train),
        test_loader=lambda: loader(cfg.dataloader.test),
        optimizer=optimizer,
        # LRScheduler, the hook, makes a scheduler of this multiplier.
        scheduler=lambda optimizer: instantiate(cfg.lr_multiplier),
        batch_size=OmegaConf.select(cfg, 'dataloader.train.total_batch_size'),
        max_iter=cfg.train.max_iter,
        checkpoints=cfg.train.checkpointer,
        amp=cfg.train.amp.enabled,
        ddp=cfg.train.ddp,
        log_period=cfg.train.log_period,
        eval_period=cfg.train.eval_period,
        max_dets=evaluator_max_dets(cfg) or MAX_DETS,
        sigmas=evaluator_sigmas(cfg) or COCO_SIGMAS,
    )
