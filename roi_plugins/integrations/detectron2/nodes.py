"""The nodes of a YAML config that configure poolers: one for each head, and their ``POOLER_OPTIONS``."""

from detectron2.config import CfgNode

HEADS = ('ROI_BOX_HEAD', 'ROI_MASK_HEAD', 'ROI_KEYPOINT_HEAD')


def add_roi_plugins_config(cfg: CfgNode) -> None:
    """Adds ``POOLER_OPTIONS`` to the box, mask and keypoint head of a config.

    ``None`` leaves an option at the default of the type. The options of each type are described in
    :mod:`roi_plugins.extractors`. ``POOLER_SAMPLING_RATIO`` and ``POOLER_RESOLUTION`` are Detectron2's own.

    Args:
        cfg: the config of ``detectron2.config.get_cfg()``, which is changed; call this before merging a file.
    """
    for head in HEADS:
        # New keys are allowed, so that the pooler reports a misspelt key, together with those that exist.
        cfg.MODEL[head].POOLER_OPTIONS = CfgNode(
            {
                'REGION': None,
                'REDUCTION': None,
                'ALIGNED': None,
                'MIN_SAMPLES': None,
                'MAX_SAMPLES': None,
                'AGGREGATION': None,
                'MODULATED': None,
                'MODE': None,
                'DEPTH': None,
            },
            new_allowed=True,
        )


def is_on(cfg: CfgNode, head: str) -> bool:
    """Whether the model has the head of a node.

    Args:
        cfg: the config.
        head: one of ``HEADS``.
    """
    return {'ROI_MASK_HEAD': cfg.MODEL.MASK_ON, 'ROI_KEYPOINT_HEAD': cfg.MODEL.KEYPOINT_ON}.get(head, True)
