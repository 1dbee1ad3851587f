"""What a run needs, looked at before it starts: data, classes, evaluator, model, output folder, disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import ProposalNetwork, SemanticSegmentor
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, RROIHeads
from omegaconf import DictConfig, ListConfig, OmegaConf

from roi_plugins.evaluation.coco_files import check_annotations
from roi_plugins.files import Folders

from ..errors import RunError, ask_for_near, explain_unknown
from ..output import check_space, checkpoint_bytes
from .checkpoints import saved_checkpoints
from .config import HEADS, is_on
from .datasets import is_coco_files
from .poolers import POOLER_TYPES, STOCK_POOLER_TYPES
from .roi_heads import STOCK_HEADS, pooler_nodes
from .run import Run

_WHERE = (
    'Put it there, or say where it is: DETECTRON2_DATASETS is the folder of coco/, ROI_PLUGINS_SHAPES the '
    'one of the generated images'
)
_OWN = (
    'COCO files of your own are named by --{half}-data ANNOTATIONS.json IMAGES, a module that registers '
    'datasets by --import MODULE'
)


def check_run(
    run: Run,
    *,
    eval_only: bool,
    resume: bool,
    num_processes: int,
    saves: bool,
    max_dets: int | None = None,
) -> None:
    """Raises RunError or DataError where a run could not come to its end.

    Args:
        run: made for the CPU, where its model is built and dropped again.
        eval_only, resume: the options of that name.
        num_processes: those that train together, on all machines.
        saves: whether this machine saves the checkpoints.
        max_dets: the option of that name.
    """
    _check_settings(run)
    _check_weights(run, eval_only, resume)
    if not eval_only:
        _check_training(run, num_processes)
        # A loader of a LazyConfig may have data that has no name.
        if not run.train_datasets and isinstance(run.cfg, CfgNode):
            raise RunError(f'{run.settings["train"]}: got none, expected at least one dataset')
        for name in run.train_datasets:
            check_registered(name, run.settings['train'], 'train')
    test = _check_evaluator(run)
    model = build_model(run)
    _check_model(run, model)
    if max_dets is not None:
        _check_max_dets(run, model, max_dets)
    classes = _check_test_set(run, test, _has(model, 'mask'))
    _check_num_classes(run, model, test, len(classes))
    if not eval_only:
        _check_training_sets(run, model, test, classes)
        optimizer = build('optimiser', lambda: run.optimizer(model))
        build('schedule', lambda: run.scheduler(optimizer))
        if saves:
            _check_space(run, model, optimizer, resume)


def build_model(run: Run) -> torch.nn.Module:
    """The model of a run; a RunError where the config does not make one."""
    return build('model', run.model)


def build(what: str, make: Callable[[], Any]) -> Any:
    """What a config makes; a RunError where it does not."""
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
            # It names the type, but neither those that there are, nor which heads ours need.
            message = f'{message}; {_explain_type(message.rpartition(" ")[2])}'
        raise RunError(f'the config makes no {what}: {message}') from error


def _explain_type(name: str) -> str:
    """What to give in place of a type that Detectron2's own pooler does not know."""
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


def check_registered(name: str, setting: str, half: str) -> None:
    """Raises RunError on a dataset that is not in Detectron2's catalogue, or whose annotations are not there.

    Args:
        setting: the config option that names it.
        half: what it is for, ``'train'`` or ``'test'``.
    """
    own = _OWN.format(half=half)
    if name not in DatasetCatalog:
        known = explain_unknown(name, DatasetCatalog)
        raise RunError(f'{setting}: the dataset {name!r} is not registered; {known}. {own}')
    annotations = MetadataCatalog.get(name).get('json_file')
    if annotations and '://' not in str(annotations) and not os.path.isfile(annotations):
        where = '' if is_coco_files(name) else f'. {_WHERE}. {own}'
        raise RunError(f'{setting}: the dataset {name} is not there: {annotations} does not exist{where}')


def _check_settings(run: Run) -> None:
    """Settings that this tool would not do as Detectron2's own does."""
    cfg = run.cfg
    if not isinstance(cfg, CfgNode):
        return
    for name, node in (('TEST.AUG', cfg.TEST.AUG), ('TEST.PRECISE_BN', cfg.TEST.PRECISE_BN)):
        if node.ENABLED:
            raise RunError(f"{name}.ENABLED is True, which this tool cannot do; Detectron2's can")
    if cfg.TEST.EXPECTED_RESULTS:
        raise RunError("TEST.EXPECTED_RESULTS is set, which this tool does not verify; Detectron2's does")
    _check_pooler_options(cfg)


def _check_pooler_options(cfg: CfgNode) -> None:
    """Options of poolers that no head would read."""
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
            raise RunError(f'{names}: {heads} does not read it; its pooler is of MODEL.{" and ".join(read)}')
        raise RunError(f'{names}: without a MODEL.{head}.POOLER_TYPE the head has no pooler to read it')


def _check_weights(run: Run, eval_only: bool, resume: bool) -> None:
    name = run.settings['weights']
    if eval_only and not run.weights:
        raise RunError(f'--eval-only: {name} names no checkpoint')
    if not eval_only and resume and saved_checkpoints(run.output_dir, run.prefix):
        return  # it starts from there
    if run.weights and '://' not in run.weights and not os.path.isfile(run.weights):
        raise RunError(
            f'{"--eval-only: the checkpoint" if eval_only else f"{name}:"} {run.weights} does not exist'
        )


def _check_training(run: Run, num_processes: int) -> None:
    if run.max_iter < 1:
        raise RunError(f'{run.settings["max_iter"]}: got {run.max_iter}, expected at least 1')
    batch = run.batch_size
    if batch is not None and (batch < num_processes or batch % num_processes):
        raise RunError(
            f'{run.settings["batch"]}: got {batch}, expected a multiple of the {num_processes} processes '
            'that share it'
        )
    if isinstance(run.cfg, CfgNode):
        if run.cfg.MODEL.LOAD_PROPOSALS:
            for path in run.cfg.DATASETS.PROPOSAL_FILES_TRAIN:
                if '://' not in path and not os.path.isfile(path):
                    raise RunError(f'DATASETS.PROPOSAL_FILES_TRAIN: {path} does not exist')
        size = run.cfg.SOLVER.REFERENCE_WORLD_SIZE
        if size not in (0, num_processes):
            raise RunError(
                f'SOLVER.REFERENCE_WORLD_SIZE is {size} and there are {num_processes} processes, but this '
                'tool does not scale batch and schedule: set them for that many, and it to 0'
            )
    else:
        for key in ('dataloader.train', 'optimizer', 'lr_multiplier'):
            if OmegaConf.select(run.cfg, key) is None:
                raise RunError(f'the LazyConfig has no {key}, which a training needs')


def _check_evaluator(run: Run) -> str:
    """The test dataset, if its evaluation here gives what Detectron2's own would."""
    setting, names = run.settings['test'], run.test_datasets
    if len(names) != 1:
        raise RunError(f'{setting}: got {list(names)}, expected one dataset, whose result it is')
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
    """The limit of detections that the evaluators of a LazyConfig name, if they do.

    Raises:
        RunError: they name several, or one below 10, for which Detectron2 has no AP.
    """
    named = {
        f'{where}.max_dets_per_image': evaluator.max_dets_per_image
        for where, evaluator in _lazy_evaluators(cfg)
        if isinstance(evaluator, DictConfig) and evaluator.get('max_dets_per_image') is not None
    }
    limits = set(named.values())
    if not limits:
        return None
    setting, limit = next(iter(named.items()))
    if len(limits) > 1:
        raise RunError(f'{", ".join(named)} are {", ".join(map(str, named.values()))}; this tool reports one')
    if not isinstance(limit, int) or limit < 10:
        # COCOeval sorts 1, 10 and the limit, and takes the AP at the third.
        raise RunError(
            f'{setting} is {limit!r}; expected a number of at least 10, as Detectron2 has no AP at a lower '
            'one: --max-dets does'
        )
    return limit


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
        raise RunError(f'{where} is {target}; this tool computes what COCOEvaluator does, and no other')
    if evaluator.get('dataset_name', dataset) != dataset:
        raise RunError(
            f'{where}.dataset_name is {evaluator.dataset_name}, but the images are those of {dataset}, '
            'dataloader.test.dataset.names'
        )
    if 'keypoints' in (evaluator.get('tasks') or ()):
        raise RunError(f'{where}.tasks has keypoints, whose AP this tool does not compute')


def _check_model(run: Run, model: torch.nn.Module) -> None:
    """Models whose predictions cannot be evaluated here."""
    if isinstance(model, (ProposalNetwork, SemanticSegmentor)):
        raise RunError(
            f'{run.settings["model"]} is {type(model).__name__}, which predicts no objects; this tool '
            'computes AP of boxes and masks'
        )
    heads = getattr(model, 'roi_heads', None)
    if isinstance(heads, RROIHeads):
        raise RunError(
            f'{run.settings["heads"]} is {type(heads).__name__}, of rotated boxes, which this tool cannot '
            'evaluate'
        )
    if _has(model, 'keypoint'):
        print('warning: the keypoints are trained, but their AP is not computed', file=sys.stderr)


def _check_max_dets(run: Run, model: torch.nn.Module, max_dets: int) -> None:
    """Raises RunError where the model does not give as many detections as are to count."""
    predictor = getattr(getattr(model, 'roi_heads', None), 'box_predictor', model)
    if isinstance(predictor, (list, torch.nn.ModuleList)):
        predictor = predictor[-1]  # the last stage of a cascade has the last word
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


def _has(model: torch.nn.Module, what: str) -> bool:
    """Whether a model has a head of masks (``'mask'``) or keypoints (``'keypoint'``)."""
    return bool(getattr(getattr(model, 'roi_heads', None), f'{what}_on', False))


def _check_test_set(run: Run, name: str, masks: bool) -> list[str]:
    """Names of the categories that the evaluation is of, by rising id, if the dataset can be evaluated."""
    coco = check_annotations(MetadataCatalog.get(name).json_file, ('bbox', 'segm') if masks else ('bbox',))
    _check_images(name, _records(name, run.settings['test']))
    categories = sorted(coco.dataset['categories'], key=lambda entry: entry['id'])
    return [category.get('name', '') for category in categories]


def _train_classes(name: str, records: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    found = MetadataCatalog.get(name).get('thing_classes')
    if found is not None:
        return found
    labels = [a['category_id'] for record in records for a in record.get('annotations', ())]
    return [''] * (max(labels, default=-1) + 1)


def _records(name: str, setting: str) -> Sequence[Mapping[str, Any]]:
    """What Detectron2 reads of a dataset; empty for one that is not a list of images."""
    try:
        found = DatasetCatalog.get(name)
    except (AssertionError, KeyError, IndexError, OSError, TypeError, ValueError) as error:
        source = MetadataCatalog.get(name).get('json_file', 'it')
        message = error if isinstance(error, OSError) else error.args[0] if error.args else error
        kind = type(error).__name__
        raise RunError(
            f'{setting}: the dataset {name} cannot be read from {source}: {kind}: {message}'
        ) from error
    if not isinstance(found, list):
        return ()
    if not found:
        raise RunError(f'{setting}: the dataset {name} is empty: it has no images')
    return found


def _check_training_sets(run: Run, model: torch.nn.Module, test: str, test_classes: Sequence[str]) -> None:
    """Raises RunError on training data that is not whole, or of other classes than model and test."""
    classes: dict[str, Sequence[str]] = {}
    for name in run.train_datasets:
        records = _records(name, run.settings['train'])
        _check_training_set(name, records, model)
        classes[name] = _train_classes(name, records)
        _check_num_classes(run, model, name, len(classes[name]))
        _check_order(name, classes[name], test, test_classes)
    for name, found in classes.items():
        if list(found) != list(classes[run.train_datasets[0]]):
            raise RunError(
                f'{run.settings["train"]}: the classes of {name} and {run.train_datasets[0]} have other '
                'names, but they are trained as one'
            )


def _check_training_set(name: str, records: Sequence[Mapping[str, Any]], model: torch.nn.Module) -> None:
    annotated = [record for record in records if 'annotations' in record]
    objects = [a for record in annotated for a in record['annotations'] if not a.get('iscrowd', 0)]
    if annotated and not objects:
        raise RunError(f'the dataset {name} has {len(records)} images, but no object to train on')
    if objects and _has(model, 'keypoint') and not any('keypoints' in found for found in objects):
        raise RunError(f'the dataset {name} has no keypoints, which the keypoint head is trained on')
    without = sum('segmentation' not in found for found in objects)
    if _has(model, 'mask') and without:
        raise RunError(
            f'the dataset {name} has no segmentation for {without} of its {len(objects)} objects, which the '
            'mask head is trained on'
        )
    _check_images(name, records)


def _check_images(name: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Raises RunError on images that are not there."""
    folders = Folders()
    paths = (str(record.get('file_name', '')) for record in records)
    missing = [path for path in paths if path and '://' not in path and not folders.has(path)]
    if missing:
        raise RunError(
            f'{len(missing)} of the {len(records)} images of the dataset {name} are not there, such as '
            f'{missing[0]}'
        )


def _check_num_classes(run: Run, model: torch.nn.Module, dataset: str, expected: int) -> None:
    # A detector of one stage has its classes itself.
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


def _check_order(train: str, found: Sequence[str], test: str, expected: Sequence[str]) -> None:
    """Labels are the places of the classes: a class in two places would be taken for another."""
    for place, name in enumerate(found):
        if name and name in expected and expected[place] != name:
            raise RunError(
                f'the datasets {train} and {test} number their classes differently: by rising category id, '
                f'{name!r} is class {place} of the first and {list(expected).index(name)} of the second'
            )


def _check_space(run: Run, model: torch.nn.Module, optimizer: torch.optim.Optimizer, resume: bool) -> None:
    """Raises RunError where the checkpoints of a training would fill the disk."""
    saved = saved_checkpoints(run.output_dir, run.prefix) if resume else []
    period, keep = run.checkpoints['period'], run.checkpoints.get('max_to_keep')
    done = 0
    if saved:
        step = saved[0].stem.removeprefix(f'{run.prefix}_')
        done = int(step) + 1 if step.isdecimal() else run.max_iter
    if done >= run.max_iter:
        return
    count = run.max_iter // period - done // period if period > 0 else 0
    # One more is written before the oldest goes, and the last is saved once more, as final.
    count = (count if keep is None else min(count, keep + 1)) + 1
    check_space(
        run.output_dir,
        checkpoint_bytes(model, optimizer),
        count,
        setting=run.settings['output'],
        count_setting=run.settings['period'],
    )
