"""Where a config is that a user names: a file, or one of a framework's model zoo."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path


def find_config(name: str) -> Path | None:
    """The file of a config of a model zoo; None for a name that is none of it.

    Args:
        name: ``mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py``, as MMEngine takes it in ``_base_``, of any
            package that has its configs with it; or ``COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml``, as
            Detectron2's ``model_zoo`` takes it.
    """
    package, separator, path = name.partition('::')
    if separator:
        # A package that is installed for development has its configs beside it.
        folders = [_folder(package) / '.mim' / 'configs', _folder(package).parent / 'configs']
    else:
        path, folders = name, [_folder('detectron2') / 'model_zoo' / 'configs']
    found = (folder / path for folder in folders)
    return next((file for file in found if os.path.isfile(file)), None)


def _folder(package: str) -> Path:
    """The folder of a package, which need not be imported; one that is not there, for none."""
    spec = find_spec(package) if package.isidentifier() else None
    return Path(spec.origin).parent if spec and spec.origin else Path('/nonexistent')
