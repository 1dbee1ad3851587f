"""Training and evaluation of Detectron2 configs, YAML or LazyConfig, with the options of ``train_net.py``.

What differs from Detectron2's own tools: an evaluation leaves COCO predictions and ``metrics.json`` in
the output folder (see :mod:`roi_plugins.evaluation`), once, at the end; the figures of the training,
and of evaluations during it (``TEST.EVAL_PERIOD``, ``train.eval_period``), go to ``training.json``
instead; nothing that was computed before is overwritten; and without a GPU the processes that
``--num-gpus`` asks for work on the CPU. ``torchrun`` may start the processes in Detectron2's place. A type of
ours is enough to swap a pooler, ``MODEL.ROI_BOX_HEAD.POOLER_TYPE AlignMax``; see :mod:`.swap`.

``python -m roi_plugins.integrations.detectron2.runs`` is the same as ``tools/detectron2/train_net.py``.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, instantiate
from detectron2.data import (
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.engine import (
    DEFAULT_TIMEOUT,
    AMPTrainer,
    SimpleTrainer,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    hooks,
    launch,
)
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import build_model as build_yaml_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.multiprocessing import ProcessExitedException

from roi_plugins.console import print_anything
from roi_plugins.evaluation.coco import METRICS, print_metrics
from roi_plugins.evaluation.coco import evaluate as compute_metrics
from roi_plugins.evaluation.matching import MAX_DETS
from roi_plugins.files import DataError, write_json
from roi_plugins.run_record import METRICS_FILE, PREDICTION_FILES, write_run
from roi_plugins.settings import write_settings

from ..arguments import add_shared_options, as_arguments
from ..dry_run import answer
from ..errors import RunError, describe_error
from ..output import check_writable
from ..rows import read_row
from .checkpoints import Checkpointer, StrictCheckpointer, saved_checkpoints
from .checks import build, build_model, check_run, evaluator_max_dets
from .datasets import coco_files, import_modules, register_coco_files
from .poolers import describe_poolers
from .reading import as_settings, read_config
from .rows import row_options
from .run import Run

COMMAND = ['python', '-m', 'roi_plugins.integrations.detectron2.runs']
"""The start of the command that ``metrics.json`` has."""

# The parts of a LazyConfig's node `train` that there has to be.
_TRAIN = (
    *('output_dir', 'init_checkpoint', 'max_iter', 'amp.enabled', 'ddp', 'checkpointer.period'),
    *('eval_period', 'log_period'),
)
_YAML_SETTINGS = {
    'train': 'DATASETS.TRAIN',
    'test': 'DATASETS.TEST',
    'classes': 'MODEL.ROI_HEADS.NUM_CLASSES',
    'dense_classes': 'MODEL.RETINANET.NUM_CLASSES',
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
    'heads': 'model.roi_heads',
    'model': 'model',
    'weights': 'train.init_checkpoint',
    'batch': 'dataloader.train.total_batch_size',
    'output': 'train.output_dir',
    'max_iter': 'train.max_iter',
    'period': 'train.checkpointer.period, max_to_keep',
}


class NamedImages:
    """A dataset mapper whose error names the image that cannot be read."""

    def __init__(self, mapper: Callable[[dict], Any]):
        self._mapper = mapper

    def __call__(self, sample: dict) -> Any:
        try:
            return self._mapper(sample)
        except OSError as error:
            raise OSError(f'the image {sample["file_name"]} cannot be read: {error}') from error


class Predictions(DatasetEvaluator):
    """Gathers predictions of all processes in COCO's format; it computes no figure."""

    def __init__(self, dataset: str):
        ids = MetadataCatalog.get(dataset).get('thing_dataset_id_to_contiguous_id', {})
        self._category_ids = {contiguous: id_ for id_, contiguous in ids.items()}

    def reset(self) -> None:
        self._found: list[dict] = []
        self._masks = False

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            instances = output['instances'].to('cpu')
            # Even where no mask is predicted, its file tells that masks were asked for.
            self._masks |= instances.has('pred_masks')
            for found in instances_to_coco_json(instances, image['image_id']):
                label = found['category_id']
                found['category_id'] = self._category_ids.get(label, label)
                self._found.append(found)

    def evaluate(self) -> dict[str, list[dict]] | None:
        """Results lists under ``bbox`` and ``segm``; None in processes other than the first."""
        gathered = comm.gather((self._found, self._masks))
        if not comm.is_main_process():
            return None
        found = list(itertools.chain.from_iterable(found for found, _ in gathered))
        fields = {'bbox': 'bbox'}
        if any(masks for _, masks in gathered):
            fields['segm'] = 'segmentation'
        common = ('image_id', 'category_id', 'score')
        return {
            iou_type: [{key: result[key] for key in (*common, field)} for result in found]
            for iou_type, field in fields.items()
        }


def describe(cfg: CfgNode | DictConfig, device: str | None = None, max_dets: int | None = None) -> Run:
    """The run that a config says.

    COCO files that it names as datasets are registered, so that every process can read them.

    Args:
        device: where, in place of what the config says; without a GPU it is the CPU anyway.
        max_dets: how many detections of each class count in an image, in place of what the evaluator of a
            LazyConfig says.

    Raises:
        RunError: a LazyConfig lacks what Detectron2's own tool needs of it.
    """
    try:
        run = _describe_yaml(cfg, device) if isinstance(cfg, CfgNode) else _describe_lazy(cfg, device)
    except OmegaConfBaseException as error:  # such as of an interpolation
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
    )


def _describe_lazy(cfg: DictConfig, device: str | None) -> Run:
    # Detectron2's own tool reads them too. What a training needs besides is looked at before it.
    for key in ('model', *(f'train.{name}' for name in _TRAIN)):
        if OmegaConf.select(cfg, key, default=...) is ...:
            raise RunError(
                f'the LazyConfig has no {key}; it needs model, dataloader, optimizer, lr_multiplier and '
                "train, of which model_zoo.get_config('common/train.py').train has all"
            )
    for name in ('max_iter', 'checkpointer.period', 'eval_period', 'log_period'):
        value = OmegaConf.select(cfg, f'train.{name}')
        if not isinstance(value, int):
            raise RunError(f'train.{name} is {value!r}; expected a whole number')

    def optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
        cfg.optimizer.params.model = model
        return instantiate(cfg.optimizer)

    def loader(node: DictConfig) -> Any:
        if 'mapper' not in node:  # a loader of the user's own
            return instantiate(node)
        mapper = NamedImages(instantiate(node.mapper))
        node = copy.deepcopy(node)  # what is saved is the config as it was given
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
        # The hook makes a schedule of it that knows where the training stands.
        scheduler=lambda optimizer: instantiate(cfg.lr_multiplier),
        batch_size=OmegaConf.select(cfg, 'dataloader.train.total_batch_size'),
        max_iter=cfg.train.max_iter,
        checkpoints=cfg.train.checkpointer,
        amp=cfg.train.amp.enabled,
        ddp=cfg.train.ddp,
        log_period=cfg.train.log_period,
        eval_period=cfg.train.eval_period,
        max_dets=evaluator_max_dets(cfg) or MAX_DETS,
    )


def train(run: Run, resume: bool) -> torch.nn.Module:
    """Trains up to ``run.max_iter``; with ``resume``, from the last checkpoint, if there is one."""
    saved = saved_checkpoints(run.output_dir, run.prefix) if resume else []
    model = build_model(run)
    optimizer = run.optimizer(model)
    loader = build('loader of the training data', run.train_loader)
    wrapped = _distributed(model, run.ddp)
    trainer = (AMPTrainer if run.amp else SimpleTrainer)(wrapped, loader, optimizer)
    checkpointer = Checkpointer(wrapped, str(run.output_dir), prefix=run.prefix, trainer=trainer)
    trainer.register_hooks([hooks.IterationTimer(), hooks.LRScheduler(optimizer, run.scheduler(optimizer))])
    # Of all processes, and before the figures are written, so that those of an evaluation are.
    trainer.register_hooks(
        [hooks.EvalHook(run.eval_period, lambda: _metrics(run, model), eval_after_train=False)]
    )
    if comm.is_main_process():
        writers = [
            CommonMetricPrinter(run.max_iter),
            # Not metrics.json, Detectron2's name for it: that is the result.
            JSONWriter(str(run.output_dir / 'training.json')),
        ]
        if find_spec('tensorboard'):
            writers.append(TensorboardXWriter(str(run.output_dir)))
        trainer.register_hooks(
            [
                hooks.PeriodicCheckpointer(checkpointer, **run.checkpoints),
                hooks.PeriodicWriter(writers, period=run.log_period),
            ]
        )
    if len(set(comm.all_gather(bool(saved)))) > 1:
        raise RunError(
            f'--resume: not every machine sees the last checkpoint in {run.output_dir}, which has to '
            'be on storage that they share'
        )
    checkpointer.resume_or_load(run.weights, resume=resume)
    start = trainer.iter + 1 if saved else 0
    if start < run.max_iter:
        trainer.train(start, run.max_iter)
    return model


def evaluate(
    run: Run, model: torch.nn.Module, *, config: str, checkpoint: str, command: Sequence[str]
) -> dict[str, Any] | None:
    """Leaves predictions and ``metrics.json`` in ``run.output_dir``.

    Returns:
        The content of ``metrics.json``; None in processes other than the first.
    """
    predictions = _predict(run, model)
    if not comm.is_main_process():
        return None
    # Aside first: one that is stopped half-way leaves an earlier result as it was.
    aside = run.output_dir / 'predictions.partial'
    shutil.rmtree(aside, ignore_errors=True)  # of an evaluation that was stopped
    aside.mkdir(parents=True)
    for iou_type, results in predictions.items():
        write_json(aside / PREDICTION_FILES[iou_type], results)
    (run.output_dir / METRICS_FILE).unlink(missing_ok=True)
    for name in PREDICTION_FILES.values():
        if (aside / name).exists():
            os.replace(aside / name, run.output_dir / name)
        else:
            (run.output_dir / name).unlink(missing_ok=True)
    aside.rmdir()
    return write_run(
        run.output_dir,
        framework='detectron2',
        config=config,
        checkpoint=checkpoint,
        ann_file=_ann_file(run),
        command=command,
        max_dets=run.max_dets,
        image_dir=MetadataCatalog.get(run.test_datasets[0]).get('image_root'),
        extractors=describe_poolers(model),
    )


def _predict(run: Run, model: torch.nn.Module) -> dict[str, list[dict]]:
    """What :class:`Predictions` gathers; nothing in processes other than the first."""
    (dataset,) = run.test_datasets
    loader = run.test_loader()  # reads the dataset, whose category ids Predictions takes
    return inference_on_dataset(model, loader, Predictions(dataset))


def _metrics(run: Run, model: torch.nn.Module) -> dict[str, dict[str, float]]:
    """What an evaluation during the training shows: the figures that ``metrics.json`` would have."""
    metrics = {}
    for iou_type, predictions in _predict(run, model).items():
        found = compute_metrics(_ann_file(run), predictions, iou_type, run.max_dets)
        metrics[iou_type] = {name: found[name] for name in METRICS}
    print_metrics(metrics)
    return metrics


def _ann_file(run: Run) -> str:
    (dataset,) = run.test_datasets
    return MetadataCatalog.get(dataset).json_file


def _distributed(model: torch.nn.Module, options: Mapping[str, Any]) -> torch.nn.Module:
    """As ``create_ddp_model``, which takes for granted that each process has a GPU."""
    if next(model.parameters()).device.type == 'cpu':
        options = {**options, 'device_ids': None}
    return create_ddp_model(model, **options)


def _check_processes(args: argparse.Namespace) -> None:
    """Raises RunError on numbers of machines and processes that make no sense together."""
    if args.num_machines < 1:
        raise RunError(f'--num-machines: got {args.num_machines}, expected at least 1')
    # On one machine, 0 is Detectron2's other word for one process.
    fewest = 0 if args.num_machines == 1 else 1
    if args.num_gpus < fewest:
        raise RunError(
            f'--num-gpus: got {args.num_gpus}, expected at least {fewest} on each machine; where there '
            'is no GPU it is the number of processes on the CPU'
        )
    if torch.cuda.is_available() and args.num_gpus > torch.cuda.device_count():
        raise RunError(f'--num-gpus: got {args.num_gpus}, but this machine has {torch.cuda.device_count()}')
    if not 0 <= args.machine_rank < args.num_machines:
        raise RunError(
            f'--machine-rank: got {args.machine_rank}, expected 0 to {args.num_machines - 1}, for '
            f'--num-machines is {args.num_machines}'
        )
    if args.num_machines > 1 and not re.fullmatch(r'tcp://.+:\d+|file://.+', args.dist_url):
        raise RunError(
            f'--dist-url: got {args.dist_url!r}, expected tcp://HOST:PORT, the same on all machines: '
            'an address of the machine of rank 0 and a port that is free there'
        )


def _take_processes_from_torchrun(args: argparse.Namespace) -> None:
    """Sets the numbers of machines and processes to those that torchrun has started."""
    given = [args.num_gpus, args.num_machines, args.machine_rank]
    if given != [1, 1, 0]:
        raise RunError(
            f'got --num-gpus {given[0]}, --num-machines {given[1]} and --machine-rank {given[2]}, but the '
            'processes were started by torchrun, which says how many there are; leave these options out'
        )
    args.num_gpus = int(os.environ['LOCAL_WORLD_SIZE'])
    args.num_machines = int(os.environ['GROUP_WORLD_SIZE'])
    args.machine_rank = int(os.environ['GROUP_RANK'])


def _work_under_torchrun(args: argparse.Namespace) -> None:
    """What Detectron2's ``launch`` does in a process that it has started."""
    on_gpu = torch.cuda.is_available()
    torch.distributed.init_process_group('nccl' if on_gpu else 'gloo', timeout=DEFAULT_TIMEOUT)
    try:
        comm.create_local_process_group(args.num_gpus)
        if on_gpu:
            torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
        comm.synchronize()
        _work(args)
        # The first process still evaluates when the others are done, and torchrun ends all when one leaves.
        comm.synchronize()
    finally:
        torch.distributed.destroy_process_group()


def _configure(args: argparse.Namespace, notes: list[str] | None = None) -> CfgNode | DictConfig:
    """The config of a command line, with what it imports imported and the data that it names."""
    import_modules(args.imports)
    options = list(args.opts)
    if args.extractor is not None:
        cfg = read_config(args.config_file, options)
        options += row_options(cfg, read_row(args.extractor), args.heads)
    cfg = read_config(args.config_file, options, notes)
    for half in ('train', 'test'):
        files = getattr(args, f'{half}_data')
        if files is None:
            continue
        name = coco_files(*files)
        if isinstance(cfg, CfgNode):
            cfg.DATASETS[half.upper()] = (name,)
        elif OmegaConf.select(cfg, f'dataloader.{half}.dataset.names') is None:
            raise RunError(
                f'--{half}-data: the LazyConfig has no dataloader.{half}.dataset.names to be replaced'
            )
        else:
            cfg.dataloader[half].dataset.names = name
    return cfg


def _check(run: Run, args: argparse.Namespace) -> None:
    """Raises RunError where the run cannot be, before any process is started."""
    check_writable(run.output_dir, run.settings['output'])
    _check_output(run, args)
    check_run(
        run,
        eval_only=args.eval_only,
        resume=args.resume,
        num_processes=max(args.num_gpus, 1) * args.num_machines,
        saves=args.machine_rank == 0,
        max_dets=args.max_dets,
    )


def _check_output(run: Run, args: argparse.Namespace) -> None:
    """Raises RunError on an output folder that holds what would be replaced."""
    saved = saved_checkpoints(run.output_dir, run.prefix)
    if saved and not args.resume and not args.eval_only:
        raise RunError(
            f'{run.output_dir} holds the checkpoint {saved[0].name} of an earlier training: give --resume '
            'to continue it, or another OUTPUT_DIR (train.output_dir)'
        )
    try:
        found = json.loads((run.output_dir / METRICS_FILE).read_text(encoding='utf-8'))
    except FileNotFoundError:
        return
    if _identity(found['command']) != _identity(_command(args)):
        raise RunError(
            f'{run.output_dir} holds the result of another run ({" ".join(found["command"])}). Give '
            f'another OUTPUT_DIR (train.output_dir), or move its {METRICS_FILE} and predictions away'
        )


def _command(args: argparse.Namespace) -> list[str]:
    command = [*COMMAND, '--num-gpus', str(args.num_gpus)]
    command += ['--num-machines', str(args.num_machines), '--config-file', args.config_file]
    data = args.train_data, args.test_data
    command += as_arguments(args.imports, *data, args.max_dets, args.extractor, args.heads)
    return [*command, *(['--eval-only'] if args.eval_only else []), *args.opts]


def _identity(command: Sequence[str]) -> Sequence[str]:
    """What decides the result: not how many processes made it."""
    return command[command.index('--config-file') :] if '--config-file' in command else command


def _work(args: argparse.Namespace) -> None:
    """What each process does."""
    print_anything()
    run = describe(_configure(args), max_dets=args.max_dets)
    settings = as_settings(run.cfg)
    default_setup(run.cfg, args)
    if args.eval_only:
        model, checkpoint = build_model(run), run.weights
        StrictCheckpointer(model).load(checkpoint)
    else:
        if comm.is_main_process():
            write_settings(run.output_dir, settings, trains=True)
        model = train(run, args.resume)
        checkpoint = ''  # the first process alone names it: it has written it, maybe elsewhere
        if comm.is_main_process():
            checkpoint = str(saved_checkpoints(run.output_dir, run.prefix)[0])
    result = evaluate(run, model, config=args.config_file, checkpoint=checkpoint, command=_command(args))
    if result is not None:
        if args.eval_only:
            del settings[run.settings['weights']]  # what is tested is no part of how it was made
            write_settings(run.output_dir, settings, trains=False)
        print_metrics(result['metrics'])


def _print_error(error: Exception) -> None:
    """In one line, also where the message of a library is in it."""
    print('error:', ' '.join(map(str.strip, str(error).splitlines())), file=sys.stderr, flush=True)


def _work_of_process(args: argparse.Namespace) -> None:
    """Of a process that Detectron2's ``launch`` has started, or of the only one."""
    try:
        _work(args)
    except (RunError, DataError) as error:
        if torch.multiprocessing.parent_process() is None:
            raise
        # What it raised would come out of the parent as a traceback.
        _print_error(error)
        sys.exit(2)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line, which are those of Detectron2's tool and where one's own data is."""
    parser = default_argument_parser()
    add_shared_options(parser)
    args = parser.parse_args(argv)
    for option in args.opts:
        # argparse takes all that comes after the first config option for others.
        if option.startswith('--'):
            parser.error(f'{option} has to stand before the options of the config, {" ".join(args.opts)}')
    return args


def check(argv: Sequence[str]) -> None:
    """Raises RunError or DataError where the command line could not come to its end; it runs nothing."""
    args = parse_arguments(argv)
    _check(describe(_configure(args), 'cpu', args.max_dets), args)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: trains, then evaluates; with ``--eval-only``, evaluates."""
    args = parse_arguments(argv)
    under_torchrun = torch.distributed.is_torchelastic_launched()
    try:
        if under_torchrun:
            _take_processes_from_torchrun(args)
        else:
            _check_processes(args)
        # One process of each machine; the others wait for it to join them.
        if not under_torchrun or os.environ['LOCAL_RANK'] == '0':
            notes: list[str] = []
            _check(describe(_configure(args, notes), 'cpu', args.max_dets), args)
            if args.machine_rank == 0:
                print(*notes, sep='\n', end='\n' * bool(notes), file=sys.stderr, flush=True)
        if under_torchrun:
            _work_under_torchrun(args)
            return 0
        launch(
            _work_of_process,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url='auto' if args.num_machines == 1 else args.dist_url,
            args=(args,),
        )
    except (RunError, DataError) as error:
        _print_error(error)
        return 2
    except ProcessExitedException as error:
        if error.exit_code != 2:  # killed, say
            raise
        return 2  # after it has said why
    return 0


if __name__ == '__main__':
    sys.exit(answer(check) if sys.argv[1:] == ['check'] else main())
