"""The box head of R-FCN, which Detectron2 does not have."""

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY
from torch import Tensor, nn


@ROI_BOX_HEAD_REGISTRY.register()
class AverageVoteHead(nn.Module):
    """Averages the bins of a RoI (R-FCN, arXiv:1605.06409, section 3), for the pooler ``PositionSensitive``.

    Detectron2's box predictor follows, with a linear layer for the classes and one for the boxes. The average
    is linear too, so that these layers can assign each of the ``depth`` scores to a class or to a box.

    Args:
        cfg: the config; nothing is read from it.
        input_shape: the shape of the pooler's output; the output of this head has the same ``channels``.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec):
        super().__init__()
        self.output_shape = ShapeSpec(channels=input_shape.channels)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, ShapeSpec]:
        return {'input_shape': input_shape}

    def forward(self, x: Tensor) -> Tensor:
        """Averages over the bins.

        Args:
            x: the output of the pooler, ``(K, C, height, width)``.

        Returns:
            ``(K, C)``.
        """
        return x.mean(dim=(2, 3))
