"""The extractors in MMDetection's registry, as ``<name>RoIExtractor``."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn.bricks import build_plugin_layer
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor

from ...extractors import EXTRACTORS, AllLevels, RoIExtractor
from ...extractors.presets import extractor_options
from ...ops import assign_levels_mmdet
from ...ops.arguments import as_pair, widened
from ...ops.checks import check_indices
from .roi_layer import inherited_options

_INHERITED = ('output_size', 'clockwise')


class MMDetRoIExtractor(BaseModule):
    """A drop-in replacement of ``SingleRoIExtractor`` with an extractor of this package.

    Level assignment, ``roi_scale_factor``, empty RoIs and gradients for every level match
    ``SingleRoIExtractor``. Under AMP, RoIs are not cast to the dtype of the features, which would move them.
    RoIs get no gradient, except with ``Precise``, which matches MMCV's ``PrRoIPool``.

    A config that changes the ``type`` alone keeps the other options of the stock extractor. Its ``roi_layer``
    then gives ``output_size`` and, with the layer's own defaults, every option that this extractor has too.
    An option that is set beside ``roi_layer`` wins.

    Args:
        output_size: bins ``(height, width)``, or one number for both; by default that of ``roi_layer``.
        out_channels: channels of the output; for most extractors also the channels of every map.
        featmap_strides: input pixels per cell of each map, finest first.
        finest_scale: RoIs with sqrt(area) below twice this number of pixels read the finest map.
        clockwise: whether the angles of rotated RoIs turn clockwise, as in MMCV's ``RoIAlignRotated``;
            MMRotate sets it. By default that of ``roi_layer``, else False.
        roi_layer: the config of a layer of ``mmcv.ops``.
        init_cfg: the weight initialisation, as for every MMEngine module.
        options: the options of the extractor, see :mod:`roi_plugins.extractors`. If the output may have other
            channels than the maps, ``in_channels`` is the number of channels of the maps, by default
            ``out_channels``.

    Raises:
        TypeError: the extractor does not have an option, given here or in ``roi_layer``; or there is no
            ``output_size``.
        ValueError: the value of an option is invalid, or contradicts ``roi_layer``.
    """

    extractor_type: type[RoIExtractor]

    def __init__(
        self,
        output_size: int | Sequence[int] | None = None,
        *,
        out_channels: int,
        featmap_strides: Sequence[float],
        finest_scale: float = 56,
        clockwise: bool | None = None,
        roi_layer: Mapping[str, Any] | None = None,
        init_cfg: dict | None = None,
        **options: Any,
    ):
        super().__init__(init_cfg=init_cfg)
        self._check_known(options)
        if roi_layer is not None:
            inherited = inherited_options(roi_layer, [*_INHERITED, *self.options()])
            layer_size = inherited.pop('output_size')
            if output_size is not None and as_pair(output_size) != as_pair(layer_size):
                raise ValueError(
                    f'output_size is {output_size}, but that of roi_layer is {layer_size}; leave one out, '
                    'the latter by roi_layer=None'
                )
            output_size = layer_size
            layer_clockwise = inherited.pop('clockwise', None)
            clockwise = layer_clockwise if clockwise is None else clockwise
            options = {**inherited, **options}
        if output_size is None:
            raise TypeError(
                f'output_size: {type(self).__name__} has none, and no roi_layer to take it from; give '
                'output_size=7, say, or the type alone over a config that has a roi_layer'
            )
        if not (isinstance(finest_scale, (int, float)) and finest_scale > 0):
            raise ValueError(f'finest_scale: got {finest_scale!r}, expected a positive number of pixels')
        if self.extractor_type.changes_channels:
            options['depth'] = out_channels
        if self.extractor_type.needs_channels:
            options['channels'] = options.pop('in_channels', out_channels)
        self.extractor = self.extractor_type(
            output_size,
            featmap_strides,
            level_rule=functools.partial(assign_levels_mmdet, finest_scale=finest_scale),
            **options,
        )
        if roi_layer is not None:
            self._check_layer(roi_layer, out_channels)
        self.out_channels = out_channels
        self.finest_scale = finest_scale
        self.clockwise = bool(clockwise)

    def _check_known(self, options: Mapping[str, Any]) -> None:
        known = self.options()
        for name in sorted(set(options) - set(known)):
            owners = [other.__name__ for other in REGISTERED.values() if name in other.options()]
            theirs = f'; {" and ".join(owners)} {"has" if len(owners) == 1 else "have"} it' if owners else ''
            raise TypeError(
                f'{name}: no option of {type(self).__name__}{theirs}; its options are '
                f'output_size, out_channels, featmap_strides, finest_scale, clockwise, {", ".join(known)}'
            )

    def _check_layer(self, roi_layer: Mapping[str, Any], out_channels: int) -> None:
        """Raises ValueError if the layer has another ``output_channels`` or ``pool_mode``."""
        channels = roi_layer.get('output_channels', out_channels)
        if channels != out_channels:
            raise ValueError(
                f'out_channels is {out_channels}, but output_channels of roi_layer is {channels}'
            )
        if roi_layer.get('pool_mode') == 'max' and self.extractor.reduction != 'max':
            raise ValueError(
                f"pool_mode of roi_layer is 'max', but {type(self).__name__} takes no maximum; "
                'AlignMaxRoIExtractor does'
            )

    @classmethod
    def options(cls) -> list[str]:
        """Names of the options that this extractor has beyond those of every extractor."""
        return ['in_channels' if name == 'depth' else name for name in extractor_options(cls.extractor_type)]

    @property
    def num_inputs(self) -> int:
        """How many maps the extractor reads."""
        return len(self.extractor.featmap_strides)

    @property
    def featmap_strides(self) -> list[float]:
        """Input pixels per cell of each map, finest first."""
        return self.extractor.featmap_strides

    @property
    def output_size(self) -> tuple[int, int]:
        """Bins ``(height, width)`` of the output."""
        return self.extractor.output_size

    def map_roi_levels(self, rois: Tensor, num_levels: int) -> Tensor:
        """The index of the map that each RoI reads, ``(K,)``.

        Args:
            rois: ``(K, 5)``, or ``(K, 6)`` rotated ones.
            num_levels: how many maps there are.
        """
        return self.extractor.level_rule(rois, num_levels)

    def roi_rescale(self, rois: Tensor, scale_factor: float) -> Tensor:
        """RoIs whose width and height are multiplied about their centres.

        Args:
            rois: ``(K, 5)``, or ``(K, 6)`` rotated ones.
            scale_factor: the factor.

        Returns:
            RoIs of the same shape.
        """
        if rois.shape[1] == 6:
            return torch.cat([rois[:, :3], rois[:, 3:5] * scale_factor, rois[:, 5:]], dim=1)
        centre = (rois[:, 1:3] + rois[:, 3:5]) * 0.5
        half = (rois[:, 3:5] - rois[:, 1:3]) * scale_factor * 0.5
        return torch.cat([rois[:, :1], centre - half, centre + half], dim=1)

    def forward(self, feats: Sequence[Tensor], rois: Tensor, roi_scale_factor: float | None = None) -> Tensor:
        """Extracts the features of RoIs.

        Args:
            feats: ``(N, C, H, W)`` maps, one for each stride, finest first.
            rois: ``(K, 5)`` rows ``(batch_index, x1, y1, x2, y2)`` in pixels of the input image; or ``(K,
                6)`` rotated rows ``(batch_index, cx, cy, w, h, angle)``, the angle in radians as in MMCV.
            roi_scale_factor: the factor of :meth:`roi_rescale`. As in MMDetection, it is ignored if there is
                one map.

        Returns:
            ``(K, out_channels, height, width)`` in the order of the RoIs.

        Raises:
            ValueError: ``out_channels`` does not fit the channels of the maps.
        """
        expected = self.extractor.out_channels(feats[0].shape[1], len(feats))
        if expected != self.out_channels:
            raise ValueError(
                f'out_channels: got {self.out_channels}, expected {expected} for the '
                f'{feats[0].shape[1]} channels of the maps that reach the extractor'
            )
        check_indices(rois, feats[0].shape[0])  # before widening, which would hide a wrong index
        rois = widened(rois)
        # Of MMCV's layers, only PrRoIPool gives RoIs a gradient. Others would train Sparse R-CNN's proposals.
        if self.extractor.reduction != 'integral':
            rois = rois.detach()
        levels = self.map_roi_levels(rois, len(feats))
        # SingleRoIExtractor ignores the factor if there is one map.
        if roi_scale_factor is not None and len(feats) > 1:
            rois = self.roi_rescale(rois, roi_scale_factor)
        if rois.shape[1] == 6:
            degrees = torch.rad2deg(-rois[:, 5:] if self.clockwise else rois[:, 5:])
            rois = torch.cat([rois[:, :5], degrees], dim=1)
        return self.extractor(feats, rois, levels)


class _WithModules(MMDetRoIExtractor):
    """``AllLevels`` with modules built from configs; loads checkpoints of ``GenericRoIExtractor``.

    Args:
        args: as for :class:`MMDetRoIExtractor`.
        pre_cfg, post_cfg: configs of plugin layers of MMCV, e.g. ``dict(type='ConvModule', ...)``, which make
            ``pre_module`` and ``post_module`` of :class:`~roi_plugins.extractors.AllLevels`.
        options: as for :class:`MMDetRoIExtractor`.
    """

    def __init__(self, *args: Any, pre_cfg: dict | None = None, post_cfg: dict | None = None, **options: Any):
        super().__init__(*args, **options)
        for name, cfg in (('pre_module', pre_cfg), ('post_module', post_cfg)):
            if cfg is not None:
                setattr(self.extractor, name, build_plugin_layer(cfg, f'_{name}')[1])

    @classmethod
    def options(cls) -> list[str]:
        return [name.replace('_module', '_cfg') for name in super().options()]

    def init_weights(self) -> None:
        super().init_weights()
        for name in ('pre_module', 'post_module'):
            init_weights = getattr(getattr(self.extractor, name), 'init_weights', None)
            if init_weights is not None:
                init_weights()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for key in list(state_dict):
            if key.startswith((f'{prefix}pre_module.', f'{prefix}post_module.')):
                state_dict[f'{prefix}extractor.{key.removeprefix(prefix)}'] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _register(name: str, extractor_type: type[RoIExtractor]) -> type[MMDetRoIExtractor]:
    """Makes an MMDetection module of an extractor and registers it as ``<name>RoIExtractor``."""
    name = f'{name}RoIExtractor'
    base = _WithModules if extractor_type is AllLevels else MMDetRoIExtractor
    members = {
        'extractor_type': extractor_type,
        '__doc__': extractor_type.__doc__,
        '__module__': __package__,  # where configs name it
    }
    return MODELS.register_module(name=name, module=type(name, (base,), members))


REGISTERED = {f'{name}RoIExtractor': _register(name, type_) for name, type_ in EXTRACTORS.items()}
"""The registered classes by name."""
