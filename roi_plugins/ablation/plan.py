"""The plan of an ablation: a YAML file that names the configs, the extractors and the seeds to run.

::

    name: embedded
    work_dir: work_dirs/embedded          # relative to the current directory
    baseline: align-avg                   # the extractor that the others are compared with
    configs:
      mask_rcnn_r50:                      # one or more configs, each under a name that you choose
        path: mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py
        heads: [bbox]                     # optional: the heads whose extractors are swapped; default: all
        row_paths:                        # optional: configs of the rows that need one of their own
          r-fcn: r-fcn_r50.py             # it is used unchanged: nothing in it is swapped
        cfg_options: {train_cfg.max_epochs: 1}   # optional: config options of this config's trials
    extractors:                           # rows of roi_plugins/extractors/presets.yaml
      - stock                             # the detector as its config builds it
      - align-avg
      - align-max
      - {name: align-max-4, type: AlignMax, sampling_ratio: 4}   # a row that is written in place
      - r-fcn
    seeds: [0, 1, 2]
    cfg_options: {default_hooks.logger.interval: 10}   # optional: config options of all trials
    num_gpus: 8                           # optional: GPUs of each trial; default: 1
    primary_metric: bbox/AP75             # optional: what the verdicts are about; default: bbox/AP
    margin: 0.5                           # optional: differences up to this, in points, do not matter

A ``path`` is a file, relative to the plan or to the folder that ``roi-plugins configs`` prints. It can also
be the name of a config in a model zoo: ``mmdet::...``, or a name that Detectron2's ``model_zoo`` takes. The
framework is recognised from the config. If both frameworks could read it, ``framework: mmdet`` decides.

Some rows change more of a detector than its extractors: a position-sensitive extractor needs another box
head. Give such a row a config of its own in ``row_paths``; the row can have any name. If every row has a
config of its own, put ``{extractor}`` into ``path``: it stands for the name of the row. All of these configs
are used unchanged.

A trial is one config with one extractor and one seed. The ``cfg_options`` of a config win over those of all
trials. If a plan has configs of both frameworks, give each config its own options, because their names
differ. Without a GPU, ``num_gpus`` is the number of processes on the CPU. MMDetection's batch size is the
batch size of each process.

You can add data and modules of your own, for all trials or for one config. Those of the config win. Paths
are relative to the plan. ::

    imports: [my_datasets, heads.py]         # names of modules, or files; they are imported first
    train_data: [train.json, images/train]   # COCO annotations and the folder of the images;
    test_data: [val.json, images/val]        # they replace the data of the config
    max_dets: 300                            # for all trials only: how many detections of each class
                                             # count in an image; default: 100, as in COCO

A config with ``checkpoints`` is not trained. Each checkpoint is tested with each extractor. ::

      mask_rcnn_r18:
        framework: mmdet
        path: ../mmdet/shapes/mask-rcnn_r18-c4_shapes.py
        checkpoints:
          align-avg: ../embedded/mask_rcnn_r18.align-avg.seed{seed}   # relative to the work directory

The key names the extractor that the checkpoint was trained with. The value is the path of the weights, or of
a finished run, such as a trial of another plan. ``{seed}`` stands for each seed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from roi_plugins.ablation.trial import Trial
from roi_plugins.evaluation.coco import PRIMARY_METRICS
from roi_plugins.extractors.presets import PresetError, parse_preset
from roi_plugins.integrations.base import Inputs
from roi_plugins.integrations.inspection import InspectionError, guess_frameworks
from roi_plugins.integrations.registry import FRAMEWORKS
from roi_plugins.integrations.zoo import find_config, where_was_looked

_INPUTS = ('imports', 'train_data', 'test_data')
"""Keys that a plan and each of its configs may have. They become the :class:`Inputs` of a trial."""


class PlanError(ValueError):
    """A plan cannot be run. The message names the file, the key and what was expected."""


@dataclass(frozen=True)
class Plan:
    """What :func:`load_plan` reads.

    The trials are ordered so that a complete comparison is finished early: every config and extractor with
    the first seed, then with the second, and so on.

    Attributes:
        name: the name of the plan.
        work_dir: the folder in which the run directories are made.
        baseline: the name of the row that the others are compared with.
        trials: the trials in the order in which they run.
        num_gpus: how many GPUs each trial uses, over all its machines. With 0 it is one process on the CPU.
        num_nodes: how many machines each trial uses. A plan does not say this; its executor does.
        primary_metric: what the verdicts are about, of ``PRIMARY_METRICS``; None for the AP of boxes, or of
            masks if there are no boxes.
        margin: differences up to this fraction do not matter for the verdicts.
        tracker: the experiment tracker that the trials log to, of ``roi_plugins.tracking.TRACKERS``; None for
            none. A plan does not say this; the command line does.
    """

    name: str
    work_dir: Path
    baseline: str
    trials: tuple[Trial, ...]
    num_gpus: int = 1
    num_nodes: int = 1
    primary_metric: str | None = None
    margin: float = 0
    tracker: str | None = None


def load_plan(path: str | os.PathLike) -> Plan:
    """Reads and checks a plan. The docstring of this module describes the format.

    Args:
        path: the YAML file.

    Returns:
        The plan with all its trials.

    Raises:
        PlanError: the file is missing or is not a plan, or a config that it names does not exist.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise PlanError(f'{path}: the plan does not exist') from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        # A ValueError is bad UTF-8, an impossible date, or a number with too many digits.
        message = ' '.join(str(error).split())
        raise PlanError(f'{path}: the plan cannot be read: {message}') from None
    try:
        return parse_plan(tree, path.parent)
    except PlanError as error:
        raise PlanError(f'{path}: {error}') from None


def check_cfg_options(options: Any, where: str = 'cfg_options') -> dict[str, Any]:
    """Checks config options: a mapping of dotted keys to scalars or lists.

    Args:
        options: the options, as YAML gives them.
        where: the key or option of the user that holds them, for errors.

    Returns:
        The options.

    Raises:
        PlanError: they are not such a mapping.
    """
    if not isinstance(options, Mapping):
        raise PlanError(f'{where} is {options!r}; expected a mapping of dotted keys to values')
    for key, value in options.items():
        if not isinstance(key, str):
            raise PlanError(f'{where}: the key {key!r} is not a string')
        if isinstance(value, Mapping):
            raise PlanError(
                f'{where}: {key} is a mapping; write one dotted key for each value, '
                f'e.g. {key}.{next(iter(value), "name")}'
            )
    return dict(options)


def check_common_options(options: Any, frameworks: Sequence[str], where: str) -> None:
    """Checks that config options for all trials are not given to trials of several frameworks.

    MMEngine takes an option of any name. It would silently ignore an option that is meant for Detectron2.

    Args:
        options: the options for all trials.
        frameworks: the frameworks of the trials.
        where: the key or option of the user that holds them, for errors.

    Raises:
        PlanError: there are options, and trials of more than one framework.
    """
    if options and len(frameworks) > 1:
        raise PlanError(
            f'{where}: got {", ".join(options)} for all trials, but the plan is of {", ".join(frameworks)}, '
            'whose options have different names; give each config its own, configs.NAME.cfg_options'
        )


def check_free_options(options: Mapping[str, Any], frameworks: Iterable[str], where: str) -> None:
    """Checks that config options are none of those that a plan sets itself and would silently override.

    Args:
        options: the options by their dotted keys.
        frameworks: the frameworks of the trials that get them.
        where: the key or option of the user that holds them, for errors.

    Raises:
        PlanError: the plan sets one of them.
    """
    for name in frameworks:
        framework = FRAMEWORKS[name]
        taken = {framework.seed_option: "the plan's seeds", **framework.plan_options}
        for option in options:
            for key, instead in taken.items():
                if f'{option}.'.startswith(f'{key}.') or f'{key}.'.startswith(f'{option}.'):
                    raise PlanError(f'{where}: {option} is set by the plan itself; give {instead}')


def expand_home(path: str, where: str) -> Path:
    """Replaces ``~`` at the start of a path by the home directory, as a shell does.

    Args:
        path: the path as the user wrote it.
        where: the key or option of the user that holds it, for errors.

    Raises:
        PlanError: the home directory is not known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise PlanError(f'{where}: {path!r}: {error}') from None


def short_path(path: Path) -> Path:
    """Removes ``..`` from a path, because the folders before it may not exist yet.

    Where the folder before ``..`` is a symbolic link, the path is resolved instead: there, removing ``..``
    from the text would lead to another file.
    """
    short = Path(os.path.normpath(path))
    real_folder = os.path.realpath(path.parent)
    return short if os.path.realpath(short.parent) == real_folder else Path(real_folder, path.name)


def parse_plan(tree: Any, folder: Path) -> Plan:
    """Makes a plan of what its YAML file says, and checks it.

    Args:
        tree: the content of the file, as YAML gives it.
        folder: the folder that the paths in it are relative to.

    Returns:
        The plan with all its trials.

    Raises:
        PlanError: see :func:`load_plan`.
    """
    _check_keys(
        tree,
        'the plan',
        required=('name', 'work_dir', 'baseline', 'configs', 'extractors', 'seeds'),
        optional=('cfg_options', 'num_gpus', 'max_dets', 'primary_metric', 'margin', *_INPUTS),
    )
    for key in ('name', 'work_dir'):
        if not isinstance(tree[key], str) or not tree[key] or '\0' in tree[key]:
            raise PlanError(f'{key} is {tree[key]!r}; expected a string')
    rows = _rows(tree['extractors'])
    seeds = _check_list(tree, 'seeds', _is_count, 'integers >= 0')
    num_gpus = tree.get('num_gpus', 1)
    if not _is_count(num_gpus) or num_gpus < 1:
        raise PlanError(f'num_gpus is {num_gpus!r}; expected an integer >= 1')
    if tree['baseline'] not in list(rows):  # a list, because YAML can give a value without a hash
        raise PlanError(f'baseline is {tree["baseline"]!r}; expected one of the extractors {", ".join(rows)}')
    if not isinstance(tree['configs'], Mapping) or not tree['configs']:
        raise PlanError(f'configs is {tree["configs"]!r}; expected a mapping of names to configs')
    primary_metric = tree.get('primary_metric')
    if primary_metric is not None and primary_metric not in list(PRIMARY_METRICS):
        raise PlanError(f'primary_metric is {primary_metric!r}; expected one of {", ".join(PRIMARY_METRICS)}')
    margin = tree.get('margin', 0)
    if not isinstance(margin, (int, float)) or isinstance(margin, bool) or not 0 <= margin <= 100:
        raise PlanError(f'margin is {margin!r}; expected a number of points from 0 to 100')
    common = check_cfg_options(tree.get('cfg_options', {}))
    max_dets = tree.get('max_dets')
    if max_dets is not None and (not _is_count(max_dets) or max_dets < 1):
        raise PlanError(f'max_dets is {max_dets!r}; expected an integer >= 1')
    common_inputs = replace(Inputs(max_dets=max_dets), **_inputs(tree, folder, ''))
    options, inputs, swaps, paths, framework_of = {}, {}, {}, {}, {}
    for name, config in tree['configs'].items():
        _check_config(name, config, seeds)
        _check_row_paths(config, rows, f'configs.{name}.row_paths')
        swaps[name] = _swaps(config, rows, f'configs.{name}')
        paths[name] = {row: _config_path(folder, config['path'], row, f'configs.{name}.path') for row in rows}
        framework_of[name] = config.get('framework') or _framework(paths[name], f'configs.{name}')
        paths[name] |= _row_paths(folder, config, framework_of[name], f'configs.{name}.row_paths')
        own = check_cfg_options(config.get('cfg_options', {}), f'configs.{name}.cfg_options')
        options[name] = {**common, **own}
        inputs[name] = replace(common_inputs, **_inputs(config, folder, f'configs.{name}.'))
    frameworks = sorted(set(framework_of.values()))
    check_common_options(common, frameworks, 'cfg_options')
    check_free_options(common, frameworks, 'cfg_options')
    for name, config in tree['configs'].items():
        own = config.get('cfg_options', {})
        check_free_options(own, [framework_of[name]], f'configs.{name}.cfg_options')
    trials = tuple(
        Trial(
            config_name=name,
            framework=framework_of[name],
            config=paths[name][extractor],
            extractor=extractor,
            seed=seed,
            cfg_options=options[name],
            inputs=replace(inputs[name], **swaps[name].get(extractor, {})),
            checkpoint=checkpoint
            and expand_home(checkpoint.replace('{seed}', str(seed)), f'configs.{name}.checkpoints'),
            trained_with=trained_with,
        )
        for seed in seeds
        for name, config in tree['configs'].items()
        for trained_with, checkpoint in config.get('checkpoints', {None: None}).items()
        for extractor in rows
    )
    return Plan(
        name=tree['name'],
        work_dir=expand_home(tree['work_dir'], 'work_dir'),
        baseline=tree['baseline'],
        trials=trials,
        num_gpus=num_gpus,
        primary_metric=primary_metric,
        margin=margin / 100,
    )


def _rows(extractors: Any) -> dict[str, str]:
    """Maps the name of each extractor to its row: the name itself, or the JSON of a row written in place."""
    expected = 'a list of names of letters, digits, - and _, or of rows {name: NAME, type: TYPE, ...}'
    if not isinstance(extractors, list) or not extractors:
        raise PlanError(f'extractors is {extractors!r}; expected {expected}')
    rows: dict[str, str] = {}
    for entry in extractors:
        name = entry.get('name') if isinstance(entry, Mapping) else entry
        if not isinstance(name, str) or not _is_name(name):
            raise PlanError(f'extractors is {extractors!r}; expected {expected}')
        if name in rows:
            raise PlanError(f'extractors is {extractors!r}; each may be there only once')
        rows[name] = json.dumps(entry) if isinstance(entry, Mapping) else name
    return rows


def _swaps(config: Mapping[str, Any], rows: Mapping[str, str], where: str) -> dict[str, dict[str, Any]]:
    """Maps the names of the rows that are swapped in, and have no own config, to fields of ``Inputs``."""
    heads = config.get('heads', [])
    if not isinstance(heads, list) or not all(map(_is_name, heads)):
        raise PlanError(f'{where}.heads is {heads!r}; expected a list of heads, such as [bbox, mask]')
    if '{extractor}' in config['path']:
        in_place = [name for name, row in rows.items() if row != name]
        if heads or in_place:
            what = f'{where}.heads is {heads}' if heads else f'the row {in_place[0]} is written in place'
            raise PlanError(
                f'{what}, but {where}.path has {{extractor}}: these configs are used unchanged; name one '
                'config, in which the extractors are swapped'
            )
        return {}
    with_own_config = config.get('row_paths', {})
    swapped = {name: row for name, row in rows.items() if name not in with_own_config}
    for row in swapped.values():
        try:
            parse_preset(row)
        except PresetError as error:
            raise PlanError(
                f'extractors: {error}. If the row needs a config of its own, name it in {where}.row_paths; '
                f'if every row has its own config, put {{extractor}} into {where}.path'
            ) from None
    return {name: {'extractor': row, 'heads': tuple(heads)} for name, row in swapped.items()}


def _check_row_paths(config: Mapping[str, Any], rows: Mapping[str, str], where: str) -> None:
    row_paths = config.get('row_paths', {})
    if not isinstance(row_paths, Mapping):
        raise PlanError(f'{where} is {row_paths!r}; expected a mapping of rows to the configs that they need')
    if row_paths and '{extractor}' in config['path']:
        raise PlanError(f'{where}: the path has {{extractor}}, a config for each row; give one of the two')
    for row, path in row_paths.items():
        if row not in rows:
            raise PlanError(f'{where} has {row!r}, which is not one of the extractors {", ".join(rows)}')
        if rows[row] != row:
            raise PlanError(
                f'{where}.{row}: this row is written in place, with a type to swap in; give only its name'
            )
        if not isinstance(path, str):
            raise PlanError(f'{where}.{row} is {path!r}; expected a string, the path of a config')


def _row_paths(folder: Path, config: Mapping[str, Any], framework: str, where: str) -> dict[str, Path]:
    """Maps the names of the rows that have their own config to its path."""
    found = {}
    for row, pattern in config.get('row_paths', {}).items():
        found[row] = path = _config_path(folder, pattern, row, f'{where}.{row}')
        try:
            frameworks = guess_frameworks(path)
        except InspectionError as error:
            raise PlanError(f'{where}.{row}: {error}') from None
        if framework not in frameworks:
            raise PlanError(
                f'{where}.{row}: {path} is of {" or ".join(frameworks)}, the other rows are of {framework}'
            )
    return found


def _framework(paths: Mapping[str, Path], where: str) -> str:
    """Tells which framework reads these configs, from the first of them."""
    path = next(iter(paths.values()))
    try:
        found = guess_frameworks(path)
    except InspectionError as error:
        raise PlanError(f'{where}.path: {error}') from None
    if len(found) > 1:
        raise PlanError(f'{where}.path: {path} may be of {" or ".join(found)}; set {where}.framework')
    return found[0]


def _check_config(name: Any, config: Any, seeds: Sequence) -> None:
    if not _is_name(name):
        raise PlanError(f'configs: {name!r} is not a name of letters, digits, - and _')
    where = f'configs.{name}'
    _check_keys(
        config,
        where,
        required=('path',),
        optional=('framework', 'heads', 'row_paths', 'cfg_options', 'checkpoints', *_INPUTS),
    )
    # A list, because YAML can give a value without a hash.
    if 'framework' in config and config['framework'] not in list(FRAMEWORKS):
        raise PlanError(
            f'{where}.framework is {config["framework"]!r}; expected one of {", ".join(FRAMEWORKS)}'
        )
    if not isinstance(config['path'], str):
        raise PlanError(f'{where}.path is {config["path"]!r}; expected a string')
    if 'checkpoints' in config:
        _check_checkpoints(config['checkpoints'], f'{where}.checkpoints', seeds)


def _check_checkpoints(checkpoints: Any, where: str, seeds: Sequence) -> None:
    if not isinstance(checkpoints, Mapping) or not checkpoints:
        raise PlanError(
            f'{where} is {checkpoints!r}; expected a mapping of extractors to the paths of the '
            'checkpoints that were trained with them'
        )
    for trained_with, path in checkpoints.items():
        if not _is_name(trained_with):
            raise PlanError(f'{where}: {trained_with!r} is not a name of letters, digits, - and _')
        if not isinstance(path, str) or '://' in path or '\0' in path:
            raise PlanError(
                f'{where}.{trained_with} is {path!r}; expected the path of a checkpoint or of a run '
                'directory on this machine'
            )
        if len(seeds) > 1 and '{seed}' not in path:
            raise PlanError(
                f'{where}.{trained_with} is {path!r}, the same checkpoint for every seed, so all '
                'seeds would have one result; put {seed} where their paths differ, or give one seed'
            )


def _inputs(tree: Mapping[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """Reads those of ``_INPUTS`` that a plan or one of its configs gives."""
    found = {}
    for key in _INPUTS:
        if key not in tree:
            continue
        value, files = tree[key], key != 'imports'
        is_list = isinstance(value, list) and all(isinstance(p, str) and p and '\0' not in p for p in value)
        if not is_list or (files and len(value) != 2):
            expected = 'two paths, [ANNOTATIONS, IMAGES]' if files else 'a list of modules'
            raise PlanError(f'{where}{key} is {value!r}; expected {expected}')
        found[key] = tuple(
            str(short_path(folder / expand_home(part, f'{where}{key}')))
            if files or part.endswith('.py')
            else part
            for part in value
        )
    return found


def _config_path(folder: Path, pattern: str, extractor: str, where: str) -> Path:
    if '\0' in pattern:
        raise PlanError(f'{where} is {pattern!r}; expected a path')
    name = pattern.replace('{extractor}', extractor)
    path = short_path(folder / expand_home(name, where))
    if not os.path.isfile(path):  # Path.is_file raises on a path that is too long
        path = find_config(name) or path
    if not os.path.isfile(path):
        with_extractor = f' with the extractor {extractor}' if name != pattern else ''
        raise PlanError(f'{where}{with_extractor}: there is no config {path}: {where_was_looked(name)}')
    return path


def _check_keys(value: Any, where: str, required: Iterable[str], optional: Iterable[str] = ()) -> None:
    known = [*required, *optional]
    if not isinstance(value, Mapping):
        raise PlanError(f'{where} is {value!r}; expected a mapping with {", ".join(known)}')
    for key in value:
        if key not in known:
            raise PlanError(f'{where} has the unknown key {key!r}; known are {", ".join(known)}')
    for key in required:
        if key not in value:
            raise PlanError(f'{where} lacks {key}')


def _check_list(tree: Mapping, key: str, is_valid: Any, expected: str) -> list:
    values = tree[key]
    if not isinstance(values, list) or not values or not all(map(is_valid, values)):
        raise PlanError(f'{key} is {values!r}; expected a list of {expected}')
    if len(set(values)) < len(values):
        raise PlanError(f'{key} is {values!r}; each may be there only once')
    return values


def _is_name(value: Any) -> bool:
    # The name of a run directory is made of such names, with dots between them.
    return isinstance(value, str) and re.fullmatch(r'[\w-]+', value) is not None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
