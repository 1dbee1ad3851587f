"""The box head that R-FCN needs and Detectron2 lacks."""

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY
from torch import Tensor, nn


@ROI_BOX_HEAD_REGISTRY.register()
class AverageVoteHead(nn.Module):
    """The average of a RoI's bins (R-FCN, arXiv:1605.06409, section 3), for the pooler ``PositionSensitive``.

    Behind it Detectron2's box predictor has a linear layer for the classes and one for the boxes. Both
    are linear in the scores, as the vote is: they say which of the ``depth`` scores are whose.

    Args:
        cfg: the config; nothing is read from it.
        input_shape: of what the pooler gives; its ``channels`` are those of the output.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec):
        super().__init__()
        self.output_shape = ShapeSpec(channels=input_shape.channels)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, ShapeSpec]:
        return {'input_shape': input_shape}

    def forward(self, x: Tensor) -> Tensor:
        """The average over the bins, ``(K, C)``.

        Args:
            x: what the pooler gives, ``(K, C, height, width)``.
        """
        return x.mean(dim=(2, 3))
