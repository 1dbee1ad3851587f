"""What the trials of the plans in configs/ablations are, once their configs are read and their models built.

``trials.json`` holds what they were when each extractor still had a config of its own; test_trials.py
compares the plans of today with it, so that published results stay reproducible. How it was written:

    python tests/configs/resolved_trials.py
"""

import copy
import functools
import hashlib
import json
from pathlib import Path

import torch
from detectron2.config import CfgNode, instantiate
from detectron2.modeling import build_model
from detectron2.modeling.poolers import ROIPooler
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from omegaconf import OmegaConf

from roi_plugins.ablation.plan import load_plan
from roi_plugins.integrations.detectron2.config import read_config as read_detectron2
from roi_plugins.integrations.detectron2.poolers import RoIPluginsPooler
from roi_plugins.integrations.detectron2.rows import row_options
from roi_plugins.integrations.mmdet import MMDetRoIExtractor
from roi_plugins.integrations.mmdet.config import read_config as read_mmdet
from roi_plugins.integrations.rows import read_row

ROOT = Path(__file__).resolve().parents[2]
TRIALS = Path(__file__).with_name('trials.json')
PLANS = sorted((ROOT / 'configs/ablations').glob('*.yaml'))

# Configs that change more than an extractor, and stand in no plan or on others.
OTHERS = (
    'mmdet/faster_rcnn/faster-rcnn_r50-fpn_1x_position-sensitive_coco.py',
    'mmdet/r_fcn/r-fcn_r18-c4_shapes.py',
    'detectron2/faster_rcnn/faster-rcnn_r50-fpn_1x_position-sensitive_coco.yaml',
    'detectron2/r_fcn/r-fcn_r50w16-c4_shapes.yaml',
    'detectron2/rotated/faster-rcnn_r50w16-c4_align-avg_rotated.yaml',
)

_EXTRACTORS = (MMDetRoIExtractor, BaseRoIExtractor, RoIPluginsPooler, ROIPooler)
_MMDET_DATA = ('dataloader', 'evaluator', 'pipeline', 'dataset_type', 'data_root', 'classes', 'image_scale')

# That of each stride, and what matters in training alone.
_SAID_OTHERWISE = ('spatial_scales', 'training', 'init_cfg')


def resolve_plan(path):
    """``{'plan/config/extractor': what it is}`` for each config and extractor of a plan.

    The seed and the checkpoint, which the plan and not the config says, are left out.
    """
    trials = {}
    for trial in load_plan(path).trials:
        name = f'{path.stem}/{trial.config_name}/{trial.extractor}'
        if name not in trials:
            options = json.dumps(dict(trial.cfg_options), sort_keys=True)
            inputs = trial.inputs
            trials[name] = resolve(trial.framework, trial.config, options, inputs.extractor, inputs.heads)
    return trials


def resolve_config(path):
    """What a config is, by its path in configs/, without a plan."""
    return resolve(path.partition('/')[0], ROOT / 'configs' / path, '{}', None, ())


@functools.cache
def resolve(framework, config, options, extractor, heads):
    """What one trial is: its extractors in words, all else as digests.

    - ``extractors``: each by where it is in the model, with every option of the op;
    - ``weights``: names and shapes of the model's parameters and buffers;
    - ``model``: its config without the extractors, with ``train_cfg`` and ``test_cfg`` or their like;
    - ``data``: the data sets, how they are loaded and evaluated;
    - ``schedule``: everything else, such as optimizer, schedule, hooks.
    """
    read = _read_mmdet if framework == 'mmdet' else _read_detectron2
    model, parts = read(config, json.loads(options), extractor, heads)
    weights = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    return {
        'extractors': _find_extractors(model),
        'weights': _digest(weights),
        **{name: _digest(part) for name, part in parts.items()},
    }


def _read_mmdet(config, options, extractor, heads):
    register_all_modules(init_default_scope=False)
    with _each_file_once():
        cfg = read_mmdet(config, options, extractor=extractor, heads=heads).to_dict()
    model = cfg.pop('model')
    with torch.device('meta'):
        built = MODELS.build(ConfigDict(_without(model, lambda key: key == 'init_cfg')))
    cfg.pop('custom_imports', None)
    is_data = {key: any(part in key for part in _MMDET_DATA) for key in cfg}
    return built, {
        'model': _without(model, lambda key: key.endswith('_roi_extractor')),
        'data': {key: value for key, value in cfg.items() if is_data[key]},
        'schedule': {key: value for key, value in cfg.items() if not is_data[key]},
    }


class _each_file_once:
    """MMEngine reads MMDetection's whole model zoo for each config that has a base in it."""

    def __enter__(self):
        self.read = Config.fromfile
        Config.fromfile = staticmethod(lambda path: copy.deepcopy(_read_once(self.read, path)))

    def __exit__(self, *_):
        Config.fromfile = staticmethod(self.read)


@functools.cache
def _read_once(read, path):
    return read(path)


def _read_detectron2(config, options, extractor, heads):
    assert not options, 'the plans of Detectron2 have had no options: say how they are given'
    given = []
    if extractor is not None:
        given += row_options(read_detectron2(config, given), read_row(extractor), heads)
    cfg = read_detectron2(config, given)
    if isinstance(cfg, CfgNode):
        cfg.MODEL.DEVICE = 'meta'
        with torch.device('meta'):
            built = build_model(cfg)
        cfg = _plain(cfg)
        model, schedule = cfg.pop('MODEL'), {'SOLVER': cfg.pop('SOLVER')}
        # Ours take the same options and have the same layers; the extractors tell them apart.
        model['ROI_HEADS']['NAME'] = model['ROI_HEADS']['NAME'].removeprefix('RoIPlugins')
        model = _without(model, lambda key: key.startswith('POOLER_'))
        return built, {'model': model, 'data': cfg, 'schedule': schedule}
    with torch.device('meta'):
        built = instantiate(cfg.model)
    cfg = OmegaConf.to_container(cfg)
    model, data = cfg.pop('model'), cfg.pop('dataloader')
    return built, {
        'model': _without(model, lambda key: key.endswith('_pooler')),
        'data': data,
        'schedule': cfg,
    }


def _find_extractors(model):
    modules = [(name, module) for name, module in model.named_modules() if isinstance(module, _EXTRACTORS)]
    return {name: _describe(module) for name, module in modules}


def _describe(module):
    """The type of a module with all plain values that it holds, and its parts, where they hold any."""
    said = [
        f'{name}={_plain(value)!r}'
        for name, value in vars(module).items()
        if name[0] != '_' and name not in _SAID_OTHERWISE and _is_plain(value)
    ]
    for name, part in module.named_children():
        if not (described := _describe(part)).endswith('()'):
            said.append(f'{name}: {described}')
    return f'{type(module).__name__}({", ".join(said)})'


def _is_plain(value):
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _without(node, is_left_out):
    if isinstance(node, dict):
        return {key: _without(value, is_left_out) for key, value in node.items() if not is_left_out(str(key))}
    if isinstance(node, (list, tuple)):
        return [_without(value, is_left_out) for value in node]
    return node


def _plain(node):
    """The same of what JSON can say; an object by its text, a class or function by its name."""
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_plain(value) for value in node]
    if _is_plain(node):
        return node
    if isinstance(node, Path):
        return str(node)
    text = f'{node.__module__}.{node.__qualname__}' if hasattr(node, '__qualname__') else repr(node)
    assert ' at 0x' not in text, text  # of this process alone
    return text


def _digest(part):
    # Without the folder of the checkout, in which the trunk of the demo lies.
    text = json.dumps(_plain(part), sort_keys=True).replace(f'{ROOT}/', '')
    return hashlib.sha256(text.encode()).hexdigest()[:16]


if __name__ == '__main__':
    resolved = {name: trial for path in PLANS for name, trial in resolve_plan(path).items()}
    resolved |= {path: resolve_config(path) for path in OTHERS}
    TRIALS.write_text(json.dumps(resolved, indent=1) + '\n', encoding='utf-8')
