"""Finds the config that a user names: a file, a config of this package or of a framework's model zoo."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from .errors import RunError, ask_for_near

_SUFFIXES = ('.py', '.yaml', '.yml', '.json')


def configs_folder() -> Path:
    """The folder of the configs and plans of this package.

    It is inside an installed package, and beside the package in a checkout.
    """
    package = Path(__file__).absolute().parents[1]
    inside = package / 'configs'
    return inside if inside.is_dir() else package.parent / 'configs'


def find_config(name: str) -> Path | None:
    """The file of a config that comes with a package.

    Args:
        name: one of

            - a path in :func:`configs_folder`, such as ``mmdet/mask_rcnn/mask-rcnn_r50-fpn_1x_coco.py`` or
              ``ablations/demo.yaml``;
            - a package and a path in its configs, as in MMEngine's ``_base_``, such as
              ``mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py``;
            - a name in Detectron2's ``model_zoo``, such as ``COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml``.

    Returns:
        Its path; None if there is no such config.
    """
    package, separator, path = name.partition('::')
    if not separator:
        path, folders = name, [configs_folder(), _folder('detectron2') / 'model_zoo' / 'configs']
    elif package == 'roi_plugins':
        folders = [configs_folder()]
    else:
        # A package in development mode has its configs beside it.
        folders = [_folder(package) / '.mim' / 'configs', _folder(package).parent / 'configs']
    found = (folder / path for folder in folders)
    return next((file for file in found if os.path.isfile(file)), None)


def locate_config(name: str, what: str = 'config') -> Path:
    """The file of a config or plan: ``name`` itself if it is a file, else what :func:`find_config` finds.

    Args:
        name: a path, or a name for :func:`find_config`.
        what: ``'config'`` or ``'plan'``, for the error.

    Returns:
        The path of the file.

    Raises:
        RunError: there is no such file. The message names the folders that were searched.
    """
    if os.path.isfile(name):
        return Path(name)
    found = find_config(name)
    if found is None:
        raise RunError(f'the {what} {name} does not exist: {where_was_looked(name)}')
    return found


def where_was_looked(name: str) -> str:
    """The end of an error message: the folders that were searched for ``name``, and similar names in them."""
    package, separator, _ = name.partition('::')
    if separator:
        if package != 'roi_plugins' and not _folder(package).is_dir():
            return f'there is no package {package} here'
        return f'it is none of the configs of {package}'
    folder = configs_folder()
    files = (path for path in folder.rglob('*') if path.suffix in _SUFFIXES and path.is_file())
    near = ask_for_near(name, [path.relative_to(folder).as_posix() for path in files]).strip()
    looked = f"it is neither a file, nor in {folder}, nor in Detectron2's model zoo"
    return f'{looked}; {near}' if near else looked


def _folder(package: str) -> Path:
    """The folder of a package, without importing it; a folder that does not exist if there is none."""
    spec = find_spec(package) if package.isidentifier() else None
    return Path(spec.origin).parent if spec and spec.origin else Path('/nonexistent')
