"""Training and testing of MMDetection configs, with the options that MMDetection's tools have.

What differs from MMDetection's own tools: a test leaves COCO predictions and ``metrics.json`` in
its work directory (see :mod:`roi_plugins.evaluation`); nothing that was computed before is
overwritten unasked; training resumes with torch's safe unpickler on; processes without a GPU are
joined by gloo.

``python -m roi_plugins.integrations.mmdet.runs train|test`` is the same as ``tools/mmdet/train.py``
and ``tools/mmdet/test.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar

import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config, DictAction
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from roi_plugins.console import print_anything
from roi_plugins.evaluation.coco import print_metrics
from roi_plugins.files import DataError, written_aside
from roi_plugins.integrations.weights import (
    ARRAY_GLOBALS,
    describe_misfit,
    first_whole,
    is_whole,
    only_data,
    saving,
)
from roi_plugins.run_record import METRICS_FILE, PREDICTION_FILES, write_run
from roi_plugins.settings import write_settings

from ..arguments import add_shared_options, as_arguments
from ..dry_run import answer
from ..errors import RunError, describe_error
from ..output import check_writable
from .checks import (
    BUILD_ERRORS,
    check_data,
    check_model,
    check_space_for_checkpoints,
    check_test,
    check_training,
    check_validation,
    has_test,
)
from .inspection import describe_extractors
from .own_files import use_files
from .reading import read_config
from .registered import check_registered, explain_unregistered

MODULE = 'roi_plugins.integrations.mmdet.runs'
LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')

_SECTIONS = (
    *('model', 'optim_wrapper', 'default_hooks'),
    *(f'{phase}_{part}' for phase in ('train', 'val', 'test') for part in ('dataloader', 'cfg')),
)


@register_backend('atomic_local', force=True)
class AtomicLocalBackend(LocalBackend):
    """MMEngine's local files, but written aside and renamed: an interrupted save leaves the old.

    So does what MMEngine removes before a save, to make room for it: it is removed after.
    """

    _outdated: ClassVar[list[str | Path]] = []

    def remove(self, filepath: str | Path) -> None:
        """Removes the file ``filepath`` once another one is written."""
        self._outdated.append(filepath)

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes ``obj`` to the file ``filepath``, and makes its folder if needed."""
        with saving(filepath):
            Path(filepath).parent.mkdir(parents=True, exist_ok=True)
            with written_aside(filepath) as aside:
                aside.write_bytes(obj)
        while self._outdated:
            if (old := self._outdated.pop()) != filepath:
                super().remove(old)


@contextlib.contextmanager
def named_images() -> Iterator[None]:
    """Lets errors of MMCV's ``LoadImageFromFile`` name the image, whatever a config calls this class."""
    load = LoadImageFromFile.transform

    def transform(self: LoadImageFromFile, results: dict) -> dict | None:
        try:
            return load(self, results)
        except Exception as error:
            raise OSError(f'the image {results["img_path"]} cannot be read: {error}') from error

    # Of the class: a config may name it with a scope, as an object, or by a subclass.
    LoadImageFromFile.transform = transform
    try:
        yield
    finally:
        LoadImageFromFile.transform = load


class RandomState(Hook):
    """Lets a resumed training draw what it would have drawn: torch's random numbers, of the first process.

    MMEngine goes on with the right data, but samples the boxes of the heads as at the start.
    """

    _state: list[torch.Tensor] | None = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint['random_state'] = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if runner.cfg.get('resume'):
            self._state = checkpoint.get('random_state')

    def before_train_epoch(self, runner: Runner) -> None:
        if self._state and len(self._state) == 1 + torch.cuda.device_count():
            torch.set_rng_state(self._state[0].cpu())
            torch.cuda.set_rng_state_all([state.cpu() for state in self._state[1:]])
        self._state = None


class CheckpointFits(Hook):
    """Raises RunError on weights that are not the model's, before they are loaded."""

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        expected = _unwrapped(runner.model).state_dict()
        weights = checkpoint.get('state_dict', checkpoint)
        given = {name.removeprefix('module.'): value for name, value in weights.items()}
        misfit = describe_misfit(
            # Models of old versions of torch did not count their batches, and nothing needs it.
            [n for n in expected if n not in given and not n.endswith('.num_batches_tracked')],
            [name for name in given if name not in expected],
            [n for n, value in expected.items() if n in given and given[n].shape != value.shape],
        )
        if misfit:
            raise RunError(
                f'the checkpoint {runner.cfg.load_from} does not fit the config: {misfit}. Give the '
                'config of the detector that it was trained for'
            )


def train(
    config: str | Path,
    *,
    work_dir: str | Path | None = None,
    amp: bool = False,
    resume: str | Path | None = None,
    max_dets: int | None = None,
    cfg_options: Mapping[str, Any] | None = None,
    launcher: str = 'none',
    imports: Sequence[str] = (),
    extractor: str | None = None,
    heads: Sequence[str] = (),
    train_data: Sequence[str | Path] | None = None,
    test_data: Sequence[str | Path] | None = None,
    dry_run: bool = False,
) -> None:
    """Trains a detector.

    Args:
        config: path of an MMDetection config.
        work_dir: where checkpoints and logs go; by default the config's ``work_dir``, else
            ``work_dirs/{name of the config}``.
        amp: mixed precision.
        resume: a checkpoint, or ``'auto'`` for the last one in the work directory, if any.
        max_dets: what the test will be given.
        cfg_options: config options, ``{'dotted.key': value}``.
        launcher: how the processes were started, one of ``LAUNCHERS``.
        imports: modules to import first, see :func:`~roi_plugins.integrations.modules.import_modules`.
        extractor: a row of a comparison in the place of the config's extractors, see
            :func:`~roi_plugins.extractors.presets.parse_preset`.
        heads: those whose extractors are swapped; by default all.
        train_data, test_data: COCO annotations and the folder of their images, in place of the config's.
        dry_run: look at all that a training and its test need, and stop.

    Raises:
        RunError: an input is missing; the test of the config would fail, or report another AP than
            MMDetection's own; the work directory holds checkpoints and ``resume`` is not
            given; or a checkpoint to be resumed is damaged or holds more than data. With ``'auto'``,
            damaged ones are left out as long as there is one before.
    """
    cfg = _read_config(config, work_dir, cfg_options, launcher, imports, extractor, heads)
    for setting in ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper'):
        if cfg.get(setting) is None:
            raise RunError(f'the config {config} has no {setting}, which a training needs')
    check_registered(cfg, 'train_dataloader', 'val_dataloader', 'test_dataloader')
    use_files(cfg, 'train', train_data)
    use_files(cfg, 'test', test_data)
    check_writable(cfg.work_dir, 'work_dir')
    check_data(cfg, 'train_dataloader', 'val_dataloader')
    check_validation(cfg)
    # What would fail after the training is an error before it.
    check_training(cfg, check_test(cfg, max_dets) if has_test(cfg) else None)
    if amp:
        if not torch.cuda.is_available():
            raise RunError('--amp: MMEngine trains in mixed precision on a GPU only; there is none')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    settings = cfg.to_dict()  # what is resumed from is none of them
    if resume is None and cfg.get('resume'):
        resume = cfg.get('load_from') or 'auto'
    last = last_checkpoint(cfg.work_dir)
    if resume is None:
        if last is not None:
            raise RunError(
                f'{cfg.work_dir} holds the checkpoint {last.name} of an earlier training: give '
                '--resume to continue it, or another --work-dir'
            )
    elif resume == 'auto':
        try:
            last = first_whole(_checkpoints(cfg.work_dir))
        except ValueError as error:
            raise RunError(str(error)) from None
        if last is not None:
            ends = [f'{unit}_{cfg.train_cfg.get(f"max_{unit}s")}' for unit in ('iter', 'epoch')]
            if last.stem in ends:  # MMEngine would load the data of all steps, to skip them
                print(f'{last} is of the last step: nothing is left to train')
                return
            cfg.resume, cfg.load_from = True, str(last)
    else:
        cfg.resume, cfg.load_from = True, str(_check_file(resume, 'checkpoint'))
    if cfg.get('default_hooks') is None:
        cfg.default_hooks = {}
    hooks = cfg.default_hooks
    hooks.setdefault('checkpoint', {'type': 'CheckpointHook'})
    if hooks.checkpoint is not None:
        hooks.checkpoint.setdefault('backend_args', {'backend': 'atomic_local'})
    if cfg.get('load_from'):
        _check_file(cfg.load_from, 'checkpoint')
    done = last.stem.rpartition('_')[2] if cfg.get('resume') and last is not None else '0'
    check_space_for_checkpoints(cfg, check_model(cfg), int(done) if done.isdecimal() else 0)
    if not dry_run:
        write_settings(cfg.work_dir, settings, trains=True)  # the same by each process
        _run(cfg, 'train')


def test(
    config: str | Path,
    checkpoint: str | Path,
    *,
    work_dir: str | Path | None = None,
    overwrite: bool = False,
    max_dets: int | None = None,
    cfg_options: Mapping[str, Any] | None = None,
    launcher: str = 'none',
    imports: Sequence[str] = (),
    extractor: str | None = None,
    heads: Sequence[str] = (),
    train_data: Sequence[str | Path] | None = None,
    test_data: Sequence[str | Path] | None = None,
    dry_run: bool = False,
) -> dict[str, Any] | None:
    """Evaluates a detector on the test set of its config, which must be in COCO format.

    Args:
        config: path of an MMDetection config.
        checkpoint: a checkpoint, or the work directory of a training for the last one in it.
        work_dir: where the predictions and ``metrics.json`` go; by default the config's
            ``work_dir``, else ``work_dirs/{name of the config}``.
        overwrite: replace the result of another config, checkpoint or options in ``work_dir``.
        max_dets: how many detections of each class count in an image, those with the highest scores; by
            default the AP is MMDetection's own.
        cfg_options: config options, ``{'dotted.key': value}``.
        launcher: how the processes were started, one of ``LAUNCHERS``.
        imports, extractor, heads, test_data: as of :func:`train`.
        train_data: as of :func:`train`, for the config that is saved in ``work_dir``; it changes no result.
        dry_run: look at all that a test needs, and stop.

    Returns:
        The content of ``metrics.json``; None in processes other than the first, and of a dry run.

    Raises:
        RunError: an input is missing, the checkpoint is not of the config's detector, its AP
            would be another than MMDetection's own, or the work directory holds another result.
        DataError: the annotations cannot be evaluated.
    """
    cfg = _read_config(config, work_dir, cfg_options, launcher, imports, extractor, heads)
    check_registered(cfg, 'test_dataloader')
    use_files(cfg, 'train', train_data)
    use_files(cfg, 'test', test_data)
    settings = cfg.to_dict()
    if Path(checkpoint).is_dir():
        last = last_checkpoint(checkpoint)
        if last is None:
            raise RunError(f'{checkpoint} holds no checkpoint: train first, or name a .pth file')
        checkpoint = last
    cfg.resume, cfg.load_from = False, str(_check_file(checkpoint, 'checkpoint'))
    evaluation = check_test(cfg, max_dets)
    run_dir = Path(cfg.work_dir)
    check_writable(run_dir, 'work_dir')
    check_model(cfg)
    command = ['python', '-m', MODULE, 'test', str(config), str(checkpoint)]
    command += as_arguments(train_data=train_data)
    command += ['--work-dir', str(run_dir), '--launcher', launcher]
    command += as_arguments(imports, None, test_data, max_dets, extractor, heads)
    if cfg_options:
        command += ['--cfg-options', *(f'{key}={value}' for key, value in cfg_options.items())]
    if not overwrite:
        _check_same_result(run_dir, config, checkpoint, command)
    if dry_run:
        return None

    # One place evaluates, for every framework: the metric writes the predictions, and no more. They
    # come aside first, for a test that is stopped half-way must leave an earlier result as it was.
    aside = run_dir / 'predictions.partial'
    shutil.rmtree(aside, ignore_errors=True)  # of a test that was stopped
    writer = {**evaluation.metric, 'format_only': True, 'outfile_prefix': str(aside / 'predictions')}
    cfg.test_evaluator = [writer, *evaluation.other_metrics]
    model = _run(cfg, 'test')
    if not is_main_process():
        return None
    (run_dir / METRICS_FILE).unlink(missing_ok=True)
    for iou_type, name in PREDICTION_FILES.items():
        # CocoMetric writes boxes, and masks where there are any, whichever are evaluated.
        if iou_type in evaluation.iou_types:
            os.replace(aside / name, run_dir / name)
        else:
            (run_dir / name).unlink(missing_ok=True)
    shutil.rmtree(aside)
    write_settings(run_dir, settings, trains=False)
    return write_run(
        run_dir,
        framework='mmdet',
        config=config,
        checkpoint=checkpoint,
        ann_file=evaluation.ann_file,
        category_ids=evaluation.category_ids,
        max_dets=evaluation.max_dets,
        image_dir=evaluation.image_dir,
        command=command,
        extractors=describe_extractors(model),
    )


def last_checkpoint(work_dir: str | Path) -> Path | None:
    """The newest checkpoint that a training has left in its work directory, if any."""
    return next(iter(_checkpoints(work_dir)), None)


def _checkpoints(work_dir: str | Path) -> list[Path]:
    """The last one first."""
    work_dir = Path(work_dir)
    try:
        named = Path((work_dir / 'last_checkpoint').read_text(encoding='utf-8').strip())
    except FileNotFoundError:
        named = Path()
    # MMEngine wrote an absolute path, which is wrong once the folder is moved; and it removes old
    # checkpoints before it writes this file, so that after a crash the named one may be gone.
    saved = {*work_dir.glob('iter_*.pth'), *work_dir.glob('epoch_*.pth')}
    if (work_dir / named.name).is_file():
        saved.add(work_dir / named.name)
    return sorted(saved, key=lambda path: (path.name == named.name, path.stat().st_mtime), reverse=True)


def allow_mmengine_checkpoints() -> None:
    """Lets ``torch.load(weights_only=True)`` read what MMEngine saves beside tensors.

    That is the history of the logged values: numpy arrays and :class:`HistoryBuffer`. The safe
    unpickler stays on; all that is allowed here holds data and runs no code of the file's choice.
    """
    named = {**ARRAY_GLOBALS, 'builtins.getattr': _history_statistic}
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            *(type(np.dtype(code)) for code in '?bBhHiIlLqQefd'),
            *(value if isinstance(value, type) else _under(name, value) for name, value in named.items()),
        ]
    )


def _under(name: str, function: Callable) -> Callable:
    """A function that is known by another name; torch 2.4 has no other way to allow it under that."""

    def call(*arguments: Any) -> Any:
        return function(*arguments)

    call.__module__, _, call.__qualname__ = name.rpartition('.')
    call.__name__ = call.__qualname__
    return call


def _history_statistic(owner: Any, name: str) -> Any:
    """Stands for ``getattr``, by which a pickled HistoryBuffer refers to its four methods."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed')
    return getattr(owner, name)


def _run(cfg: Config, phase: str) -> torch.nn.Module:
    """Trains or tests, as ``phase`` says. Returns the model."""
    _join_processes(cfg)
    allow_mmengine_checkpoints()
    runner = _build_runner(cfg, phase)
    if phase == 'train':
        runner.register_hook(RandomState())
    else:
        # After the hooks that change what is loaded, such as the EMA's.
        runner.register_hook(CheckpointFits(), 'LOWEST')
    try:
        with only_data(), named_images():
            getattr(runner, phase)()
    except KeyError as error:  # of what is built last, such as a transform in a transform
        if not (message := explain_unregistered(error)):
            raise
        raise RunError(message) from error
    except pickle.UnpicklingError as error:
        if not cfg.load_from:  # it is of the config's own pretrained weights
            raise
        raise RunError(
            f'the checkpoint {cfg.load_from} was not loaded, for it is damaged or holds objects '
            f'that could run code: {_unsafe_objects(cfg.load_from) or error}. Give one that was '
            'saved by MMEngine'
        ) from error
    return _unwrapped(runner.model)


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    return model.module if is_model_wrapper(model) else model


def _build_runner(cfg: Config, phase: str) -> Runner:
    """The runner, with what it builds at its start: what fails here is the config's fault."""
    build = RUNNERS.build if 'runner_type' in cfg else Runner.from_cfg
    try:
        with only_data():
            runner = build(cfg)
            getattr(runner, f'{phase}_loop')  # builds it with its data, once
            if phase == 'train' and isinstance(runner, Runner):
                runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    except BUILD_ERRORS as error:
        message = explain_unregistered(error) or describe_error(error)
        raise RunError(f'the config {cfg.filename} cannot be built: {message}') from error
    return runner


def _unsafe_objects(checkpoint: str) -> str:
    try:
        return ', '.join(torch.serialization.get_unsafe_globals_in_checkpoint(checkpoint))
    except Exception:  # a damaged file, or not a local one: the caller has the first error
        return ''


def _join_processes(cfg: Config) -> None:
    """Without a GPU, joins the processes by gloo, which MMEngine then leaves alone.

    MMEngine itself would choose a GPU for each process.
    """
    if cfg.launcher == 'pytorch' and 'RANK' not in os.environ:
        raise RunError(
            '--launcher pytorch: this process was not started by torchrun; use '
            'torchrun --nproc_per_node N ... --launcher pytorch'
        )
    if cfg.launcher == 'none' or torch.cuda.is_available():
        return
    if cfg.launcher != 'pytorch':
        raise RunError(
            f'--launcher {cfg.launcher} needs a GPU for each process and there is none; start with '
            'torchrun and --launcher pytorch'
        )
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    # MMEngine's defaults, but for the GPU.
    cfg.setdefault(
        'model_wrapper_cfg',
        {
            'type': 'MMDistributedDataParallel',
            'device_ids': None,
            'broadcast_buffers': False,
            'find_unused_parameters': cfg.get('find_unused_parameters', False),
        },
    )


def _read_config(
    path: str | Path,
    work_dir: str | Path | None,
    cfg_options: Mapping[str, Any] | None,
    launcher: str,
    imports: Sequence[str],
    extractor: str | None,
    heads: Sequence[str],
) -> Config:
    if launcher not in LAUNCHERS:
        raise RunError(f'launcher is {launcher!r}; expected one of {", ".join(LAUNCHERS)}')
    _check_file(path, 'config')
    cfg = read_config(path, cfg_options, imports, extractor, heads)
    for setting in _SECTIONS:
        if not isinstance(cfg.get(setting, {}), (Mapping, NoneType)):
            raise RunError(f'the config {path}: {setting} is {cfg[setting]!r}; expected a dict')
    cfg.launcher = launcher
    default = cfg.get('work_dir') or Path('work_dirs') / Path(path).stem
    cfg.work_dir = str(work_dir or default)
    return cfg


def _check_file(path: str | Path, what: str) -> str | Path:
    if '://' not in str(path) and not Path(path).is_file():
        raise RunError(f'the {what} {path} does not exist')
    if what == 'checkpoint' and '://' not in str(path) and not is_whole(path):
        raise RunError(f'the checkpoint {path} is damaged: it is not as torch.save wrote it')
    return path


def _check_same_result(
    run_dir: Path, config: str | Path, checkpoint: str | Path, command: Sequence[str]
) -> None:
    try:
        found = json.loads((run_dir / METRICS_FILE).read_text(encoding='utf-8'))
    except FileNotFoundError:
        return

    def identity(config: str | Path, checkpoint: str | Path, command: Sequence[str]) -> tuple:
        options = command[command.index('--launcher') + 2 :]  # what comes before decides nothing
        return os.path.realpath(config), os.path.realpath(checkpoint), sorted(options)

    new = identity(config, checkpoint, command)
    if identity(found['config'], found['checkpoint'], found['command']) != new:
        raise RunError(
            f'{run_dir} holds the result of another test, of the checkpoint {found["checkpoint"]} '
            f'with the config {found["config"]} ({" ".join(found["command"])}). Give another '
            '--work-dir, or --overwrite to replace it'
        )


def train_main(argv: Sequence[str] | None = None) -> int:
    """The command line of :func:`train`."""
    return _main(train, _parse_training(argv))


def _parse_training(argv: Sequence[str] | None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description='Train a detector of MMDetection.')
    parser.add_argument('config', help='path of the config')
    parser.add_argument('--work-dir', help='where checkpoints and logs go')
    parser.add_argument('--amp', action='store_true', help='train in mixed precision')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from a checkpoint; without a path, from the last one in the work directory',
    )
    return _parse(parser, argv)


def test_main(argv: Sequence[str] | None = None) -> int:
    """The command line of :func:`test`."""
    return _main(test, _parse_test(argv))


def _parse_test(argv: Sequence[str] | None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description='Evaluate a detector of MMDetection: writes COCO predictions and metrics.json.'
    )
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='a checkpoint, or a work directory for its last one')
    parser.add_argument('--work-dir', help='where predictions and metrics.json go')
    parser.add_argument(
        '--overwrite', action='store_true', help='replace another result in the work directory'
    )
    return _parse(parser, argv)


def check(argv: Sequence[str]) -> None:
    """Raises RunError or DataError where the command line could not come to its end; it runs nothing.

    Args:
        argv: of the module: ``train`` or ``test``, and what follows it.
    """
    phase, *rest = argv
    if phase == 'train':
        train(**_parse_training(rest), dry_run=True)
    else:
        test(**_parse_test(rest), dry_run=True)


class _Options(DictAction):
    """MMEngine's, which fails on an option without a value."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, *rest: Any) -> None:
        for pair in values:
            if '=' not in pair:
                parser.error(f'--cfg-options: {pair!r} is not of the form KEY=VALUE')
        super().__call__(parser, namespace, values, *rest)


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> dict[str, Any]:
    add_shared_options(parser)
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_Options,
        metavar='KEY=VALUE',
        help='override settings of the config, e.g. train_cfg.max_epochs=1 key="[a,b]"',
    )
    parser.add_argument(
        '--launcher', choices=LAUNCHERS, default='none', help='how the processes were started'
    )
    # torch.distributed.launch gives it; torchrun sets the environment variable.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    args = vars(parser.parse_args(argv))
    os.environ.setdefault('LOCAL_RANK', str(args.pop('local_rank')))
    return args


def _main(function: Any, args: dict[str, Any]) -> int:
    print_anything()
    try:
        result = function(**args)
        # The first process still evaluates and writes when the others are done. One that leaves takes
        # its end of the connections with it, and torchrun ends all when one does not leave cleanly.
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
    except (RunError, DataError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if result:
        print_metrics(result['metrics'])
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of this module: ``train`` or ``test``, and what follows."""
    given = list(sys.argv[1:] if argv is None else argv)
    commands = {'train': train_main, 'test': test_main}
    if given[:1] == [] or given[0] not in commands:
        print(f'usage: python -m {MODULE} train|test ...', file=sys.stderr)
        return 1
    return commands[given[0]](given[1:])


if __name__ == '__main__':
    sys.exit(answer(check) if sys.argv[1:] == ['check'] else main())
