"""MMDetection configs from files and options, with the modules that they need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from mmengine.config import Config

from roi_plugins.extractors import EXTRACTORS

from ..errors import RunError, describe_error
from ..modules import absolute_modules, import_modules
from ..rows import read_row
from .swap import swap_extractors

_OURS = {f'{name}RoIExtractor' for name in EXTRACTORS}

IMPORTED_FILES = 'imported_files'
"""The setting for imported ``.py`` files. MMEngine's ``custom_imports`` takes names of modules only."""

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')

_SECTIONS = (
    *('model', 'optim_wrapper', 'default_hooks'),
    *(f'{phase}_{part}' for phase in ('train', 'val', 'test') for part in ('dataloader', 'cfg')),
)


def read_config(
    path: str | Path,
    options: Mapping[str, Any] | None = None,
    imports: Sequence[str] = (),
    extractor: str | None = None,
    heads: Sequence[str] = (),
) -> Config:
    """Reads a config.

    The modules that were imported for it are added to its ``custom_imports``, so that the config can be read
    again once it is saved. If it has an extractor of this package, the package is added too.

    Args:
        path: path of an MMDetection config.
        options: config options, ``{'dotted.key': value}``.
        imports: modules to import first, see :func:`~roi_plugins.integrations.modules.import_modules`.
        extractor: a row of a comparison that replaces the extractors of the config, see
            :func:`~roi_plugins.extractors.presets.parse_preset`.
        heads: the heads whose extractors are replaced; by default all.

    Returns:
        The config.

    Raises:
        RunError: the config, a base of it or a module cannot be read.
    """
    import_modules(imports)
    try:
        cfg = Config.fromfile(path)
        cfg.merge_from_dict(dict(options or {}))
    except Exception as error:  # configs are programs, which may raise anything
        # MMEngine's own message about a failed import lists the whole search path.
        cause = error.__cause__ if isinstance(error, ImportError) and error.__cause__ else error
        raise RunError(f'the config {path} cannot be read: {describe_error(cause)}') from error
    if extractor is not None:
        swap_extractors(cfg, read_row(extractor), heads)
    files = cfg.get(IMPORTED_FILES) or []
    import_modules(files, f'{IMPORTED_FILES} of the config {path}')
    given = absolute_modules(imports)
    if by_file := [module for module in given if module.endswith('.py') and module not in files]:
        cfg[IMPORTED_FILES] = [*files, *by_file]
    by_name = [module for module in given if not module.endswith('.py')]
    if _names_ours(cfg.get('model')):
        by_name.append(__package__)
    if by_name:
        add_imports(cfg, by_name)
    return cfg


def add_imports(cfg: Config, modules: Sequence[str]) -> None:
    """Adds modules to the ``custom_imports`` of a config, unless they are there.

    Args:
        cfg: the config, which is changed.
        modules: the names of the modules.
    """
    custom = dict(cfg.get('custom_imports') or {'allow_failed_imports': False})
    names = custom.get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    custom['imports'] = [*names, *(name for name in modules if name not in names)]
    cfg.custom_imports = custom


def read_run_config(
    path: str | Path,
    work_dir: str | Path | None,
    cfg_options: Mapping[str, Any] | None,
    launcher: str,
    imports: Sequence[str],
    extractor: str | None,
    heads: Sequence[str],
) -> Config:
    """Reads the config of a training or a test, and sets its launcher and work directory.

    Args:
        path, cfg_options, imports, extractor, heads: see :func:`read_config`.
        work_dir: the work directory; by default the config's ``work_dir``, else ``work_dirs/NAME``
            with the name of the config.
        launcher: how the processes were started, one of ``LAUNCHERS``.

    Returns:
        The config.

    Raises:
        RunError: the config does not exist or cannot be read, or a section of it is not a dict.
    """
    if launcher not in LAUNCHERS:
        raise RunError(f'launcher is {launcher!r}; expected one of {", ".join(LAUNCHERS)}')
    if '://' not in str(path) and not Path(path).is_file():
        raise RunError(f'the config {path} does not exist')
    cfg = read_config(path, cfg_options, imports, extractor, heads)
    for setting in _SECTIONS:
        if not isinstance(cfg.get(setting, {}), (Mapping, NoneType)):
            raise RunError(f'the config {path}: {setting} is {cfg[setting]!r}; expected a dict')
    cfg.launcher = launcher
    default = cfg.get('work_dir') or Path('work_dirs') / Path(path).stem
    cfg.work_dir = str(work_dir or default)
    return cfg


def _names_ours(node: Any) -> bool:
    """Whether a part of a config names an extractor of this package by its registered name."""
    if isinstance(node, Mapping):
        return node.get('type') in _OURS or any(map(_names_ours, node.values()))
    return isinstance(node, (list, tuple)) and any(map(_names_ours, node))
