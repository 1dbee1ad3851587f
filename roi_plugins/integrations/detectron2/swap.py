"""Changes whatever else a config needs if a ``POOLER_TYPE`` of this package is named in it.

A YAML config gets RoI heads that take the type. In a LazyConfig, :func:`~.poolers.build_pooler` replaces
``ROIPooler``. All other settings stay. In particular, Detectron2's type ``ROIAlign`` is not aligned, so a
type that replaces it is not aligned either, unless an option says so.
"""

from __future__ import annotations

import io
import pydoc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, ProposalNetwork, SemanticSegmentor
from detectron2.modeling.meta_arch import DenseDetector
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY
from omegaconf import DictConfig, ListConfig, OmegaConf

from ..errors import RunError
from .nodes import HEADS, is_on
from .poolers import POOLER_TYPES, STOCK_POOLER_TYPES, build_pooler, needs_channels, pooler_options
from .roi_heads import pooler_nodes, register_counterpart

# The type without the shift by half a cell; Detectron2 calls the aligned one ROIAlignV2.
_UNALIGNED = 'ROIAlign'


class _WithoutOurs(CfgNode):
    """Reads config files without the types of this package that they name."""

    @classmethod
    def _open_cfg(cls, filename: str) -> io.StringIO:
        with super()._open_cfg(filename) as file:
            settings = yaml.safe_load(file)
        for head in HEADS:
            if _pooler_type(settings, head) in POOLER_TYPES:
                del settings['MODEL'][head]['POOLER_TYPE']
        return io.StringIO(yaml.safe_dump(settings))


def replaced_types(path: str, options: Sequence[str]) -> dict[str, str]:
    """The type that each head of a YAML config would have if no type of this package were named.

    Settings override each other in this order: Detectron2's default, the files from the innermost ``_BASE_``
    outwards, the options.

    Args:
        path: path of the config, which Detectron2 has read without an error.
        options: ``KEY VALUE`` pairs.

    Returns:
        A type of Detectron2 for each of ``HEADS``.
    """
    settings, defaults = _WithoutOurs.load_yaml_with_base(path), get_cfg().MODEL
    types = {head: _pooler_type(settings, head, defaults[head].POOLER_TYPE) for head in HEADS}
    for key, value in zip(options[::2], options[1::2], strict=True):
        head = key.removeprefix('MODEL.').removesuffix('.POOLER_TYPE')
        value = CfgNode._decode_cfg_value(value)
        if key == f'MODEL.{head}.POOLER_TYPE' and value not in POOLER_TYPES:
            types[head] = value
    return types


def _pooler_type(settings: Mapping, head: str, default: str | None = None) -> Any:
    node = settings.get('MODEL') or {}
    return (node.get(head) or {}).get('POOLER_TYPE', default)


def swap_yaml(cfg: CfgNode, replaced: Mapping[str, str]) -> str | None:
    """Gives a YAML config RoI heads that take the types of this package that it names.

    Args:
        cfg: the config, which is changed.
        replaced: the types that they replace, see :func:`replaced_types`.

    Returns:
        What was changed, in one line; None if nothing was.

    Raises:
        RunError: a type is named where the model has no pooler.
    """
    model = cfg.MODEL
    heads = model.ROI_HEADS.NAME
    ours = register_counterpart(heads)  # registers them, also for a saved config that names them
    asked = {head: type_ for head in HEADS if (type_ := model[head].POOLER_TYPE) in POOLER_TYPES}
    if not asked:
        return None
    _check_architecture(model.META_ARCHITECTURE, _named(asked))
    if ours is None:  # unknown heads, or the user's own, which may take these types
        return None
    read = pooler_nodes(ROI_HEADS_REGISTRY.get(ours))
    # Settings of a head that is off may be inherited from a base config.
    on = {head: type_ for head, type_ in asked.items() if is_on(cfg, head)}
    swapped = {head: type_ for head, type_ in on.items() if head in read}
    # Heads that share a pooler may all name its type.
    lost = {head: type_ for head, type_ in on.items() if type_ not in swapped.values()} if swapped else asked
    if lost:
        there = [f'MODEL.{head}' for head in read if is_on(cfg, head)]
        raise RunError(
            f'{_named(lost)}: there is no such pooler; the poolers of this model ({heads}) are those of '
            f'{" and ".join(there)}, such as {there[0]}.POOLER_TYPE {next(iter(lost.values()))}'
        )
    unaligned = []
    for head, type_ in swapped.items():
        if not replaced[head]:
            raise RunError(
                f"MODEL.{head}.POOLER_TYPE: got {type_!r}, but in the config it is '': {model[head].NAME} "
                f'reads the maps itself. Others have a pooler, such as MODEL.ROI_BOX_HEAD.POOLER_TYPE {type_}'
            )
        options = model[head].POOLER_OPTIONS
        if replaced[head] == _UNALIGNED and options.ALIGNED is None and 'aligned' in pooler_options(type_):
            options.ALIGNED = False
            unaligned.append(f'MODEL.{head}.POOLER_OPTIONS.ALIGNED')
    changes = []
    if ours != heads:
        model.ROI_HEADS.NAME = ours
        changes.append(f'MODEL.ROI_HEADS.NAME is {ours} in place of {heads}')
    if unaligned:
        changes.append(f'{" and ".join(unaligned)} False, as for the {_UNALIGNED} that it replaces')
    return f'{_named(swapped)}: {"; ".join(changes)}' if changes else None


def _named(types: Mapping[str, str]) -> str:
    return ', '.join(f'MODEL.{head}.POOLER_TYPE {type_}' for head, type_ in types.items())


def _check_architecture(name: str, named: str) -> None:
    architecture = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
    if architecture and issubclass(architecture, (DenseDetector, ProposalNetwork, SemanticSegmentor)):
        raise RunError(
            f'{named}: MODEL.META_ARCHITECTURE {name} has no RoI heads and so no pooler; GeneralizedRCNN and '
            'PanopticFPN have'
        )


def lazy_pooler_types(cfg: DictConfig) -> dict[str, Any]:
    """The types of the poolers of a LazyConfig, by their places, such as ``model.roi_heads.box_pooler``.

    Args:
        cfg: the LazyConfig.
    """
    return {where: node.get('pooler_type') for where, node in _lazy_poolers(cfg)}


def take_lazy_types(cfg: DictConfig) -> list[str]:
    """Replaces ``ROIPooler`` by :func:`~.poolers.build_pooler` for each pooler with a type of this package.

    Args:
        cfg: the LazyConfig, which is changed.

    Returns:
        The places of the poolers that were replaced.
    """
    taken = []
    for where, node in _lazy_poolers(cfg):
        if node.get('pooler_type') in POOLER_TYPES and _target(node) is ROIPooler:
            node._target_ = build_pooler
            taken.append(where)
    return taken


def swap_lazy(cfg: DictConfig, taken: Sequence[str], before: Mapping[str, Any]) -> str | None:
    """Gives the poolers with a type of this package the arguments that they need.

    Args:
        cfg: the LazyConfig with all options, after :func:`take_lazy_types`; it is changed.
        taken: the result of :func:`take_lazy_types`.
        before: the types of the file without the options, see :func:`lazy_pooler_types`. If the file itself
            names a type of this package, it is not known which type it replaced; ``aligned`` then keeps its
            default, which the returned line says.

    Returns:
        What was changed, in one line; None if nothing was.

    Raises:
        RunError: a type needs the number of channels, and the config does not tell it.
    """
    notes = []
    for where, node in _lazy_poolers(cfg):
        type_ = node.get('pooler_type')
        if type_ not in POOLER_TYPES or _target(node) is not build_pooler:
            continue
        known = pooler_options(type_)
        changes = ['build_pooler in place of ROIPooler'] * (where in taken)
        if needs_channels(type_) and node.get('channels') is None:
            node.channels = _channels(cfg, where)
            if node.channels is None:
                raise RunError(
                    f'{where}: {type_} has weights for each channel of the maps, and nothing in this config '
                    f'says how many there are; add it, such as {where}.channels=1024'
                )
            changes.append(f'channels={node.channels}')
        if 'aligned' in known and node.get('aligned') is None:
            if before.get(where) == _UNALIGNED:
                node.aligned = False
                changes.append(f'aligned=False, as for the {_UNALIGNED} that it replaces')
            elif where in taken and before.get(where) not in STOCK_POOLER_TYPES:
                changes.append(f'aligned as by default (set aligned=False if it replaces {_UNALIGNED})')
        if changes:
            notes.append(f'{where}.pooler_type={type_}: {", ".join(changes)}')
    return '; '.join(notes) or None


def _channels(cfg: DictConfig, where: str) -> int | None:
    """The channels of the maps that a pooler reads, by the neck, or without one by the head of the pooler."""
    neck = OmegaConf.select(cfg, 'model.backbone.out_channels')
    if neck is not None:
        return neck
    shape = OmegaConf.select(cfg, f'{where.removesuffix("pooler")}head.input_shape')
    return None if shape is None else shape.channels


def check_lazy_pooler(option: str, cfg: DictConfig) -> None:
    """Checks that an option ``KEY.pooler_type=TYPE`` is for a pooler.

    Args:
        option: the option.
        cfg: the LazyConfig.

    Raises:
        RunError: the model has no pooler there.
    """
    key, _, type_ = option.lstrip('+').partition('=')
    where = key.removesuffix('.pooler_type')
    if 'pooler_type' in (OmegaConf.select(cfg, where) or ()):
        return
    poolers = list(lazy_pooler_types(cfg))
    model = getattr(_target(cfg.get('model')), '__name__', 'the model')
    there = 'has no pooler; two-stage models such as GeneralizedRCNN have'
    if poolers:
        there = f'has {", ".join(poolers)}, such as {poolers[0]}.pooler_type={type_}'
    raise RunError(
        f'options: {option}: there is no pooler at {where}; there is no such head, or it reads the maps '
        f'itself. {model} {there}'
    )


def _lazy_poolers(cfg: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    found = cfg.get('model')
    return _walk('model', found) if isinstance(found, (DictConfig, ListConfig)) else iter(())


def _walk(where: str, node: DictConfig | ListConfig) -> Iterator[tuple[str, DictConfig]]:
    if isinstance(node, DictConfig) and '_target_' in node and 'pooler_type' in node:
        yield where, node
    keys: list[Any] = list(node) if isinstance(node, DictConfig) else list(range(len(node)))
    for key in keys:
        # What an interpolation refers to is found in its own place.
        if OmegaConf.is_interpolation(node, key) or OmegaConf.is_missing(node, key):
            continue
        if isinstance(child := node[key], (DictConfig, ListConfig)):
            yield from _walk(f'{where}.{key}', child)


def _target(node: Any) -> Any:
    target = node.get('_target_') if isinstance(node, DictConfig) else None
    # In YAML and in an option, the class is given by its path.
    return pydoc.locate(target) if isinstance(target, str) else target
