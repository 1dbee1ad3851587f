"""Checks that the evaluation of a run gives what Detectron2's own evaluator would give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from omegaconf import DictConfig, ListConfig, OmegaConf

from ..errors import RunError
from .check_data import check_registered
from .run import Run


def check_evaluator(run: Run) -> str:
    """Checks that the evaluation here gives what Detectron2's own would give.

    Returns:
        The name of the test dataset.

    Raises:
        RunError: it would not, or there is not exactly one test dataset.
    """
    setting, names = run.settings['test'], run.test_datasets
    if len(names) != 1:
        raise RunError(f'{setting}: got {list(names)}, expected one dataset')
    (name,) = names
    check_registered(name, setting, 'test')
    metadata = MetadataCatalog.get(name)
    if metadata.get('json_file') is None:
        raise RunError(f'{setting}: the test dataset {name!r} is not one in COCO format with annotations')
    kind = metadata.get('evaluator_type', 'coco')
    if kind != 'coco':
        raise RunError(
            f'{setting}: {name} is evaluated by the rules of {kind}, and this tool computes those of COCO'
        )
    if isinstance(run.cfg, DictConfig):
        if OmegaConf.select(run.cfg, 'dataloader.test') is None:
            raise RunError('the LazyConfig has no dataloader.test, which the evaluation needs')
        for where, evaluator in _lazy_evaluators(run.cfg):
            _check_lazy_evaluator(where, evaluator, name)
    return name


def evaluator_max_dets(cfg: DictConfig) -> int | None:
    """``max_dets_per_image`` of the evaluators of a LazyConfig.

    Args:
        cfg: the LazyConfig.

    Returns:
        The limit; None if no evaluator sets it.

    Raises:
        RunError: evaluators set different limits, or one below 10, at which Detectron2 computes no AP.
    """
    setting, limit = _evaluator_option(cfg, 'max_dets_per_image')
    if limit is None:
        return None
    if not isinstance(limit, int) or limit < 10:
        # COCOeval sorts 1, 10 and the limit, and computes AP at the third of them.
        raise RunError(
            f'{setting} is {limit!r}; expected a number of at least 10, as Detectron2 computes no AP at a '
            'lower one; --max-dets does'
        )
    return limit


def evaluator_sigmas(cfg: DictConfig) -> tuple[float, ...]:
    """``kpt_oks_sigmas`` of the evaluators of a LazyConfig.

    Args:
        cfg: the LazyConfig.

    Returns:
        The OKS sigma of each keypoint; empty if no evaluator sets them.

    Raises:
        RunError: evaluators set different ones.
    """
    return tuple(_evaluator_option(cfg, 'kpt_oks_sigmas')[1] or ())


def _evaluator_option(cfg: DictConfig, option: str) -> tuple[str, Any]:
    """An option of the evaluators of a LazyConfig, where it is set and its value; None if it is not.

    Raises RunError if evaluators set it to different values.
    """
    named = {
        f'{where}.{option}': evaluator[option]
        for where, evaluator in _lazy_evaluators(cfg)
        if isinstance(evaluator, DictConfig) and evaluator.get(option) is not None
    }
    if len(set(map(str, named.values()))) > 1:
        raise RunError(f'{", ".join(named)} are {", ".join(map(str, named.values()))}; this tool reports one')
    return next(iter(named.items()), (option, None))


def _lazy_evaluators(cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    found = OmegaConf.select(cfg, 'dataloader.evaluator')
    if isinstance(found, ListConfig):
        for index, evaluator in enumerate(found):
            yield f'dataloader.evaluator.{index}', evaluator
    elif found is not None:
        yield 'dataloader.evaluator', found


def _check_lazy_evaluator(where: str, evaluator: DictConfig, dataset: str) -> None:
    target = evaluator.get('_target_')
    own = f'{COCOEvaluator.__module__}.{COCOEvaluator.__qualname__}'
    if target not in (COCOEvaluator, own, 'detectron2.evaluation.COCOEvaluator'):
        raise RunError(f'{where} is {target}; this tool only computes what COCOEvaluator does')
    if evaluator.get('dataset_name', dataset) != dataset:
        raise RunError(
            f'{where}.dataset_name is {evaluator.dataset_name}, but the images are those of {dataset}, '
            'dataloader.test.dataset.names'
        )
