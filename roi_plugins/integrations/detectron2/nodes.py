"""The options that only our poolers have, as nodes of a YAML config."""

from detectron2.config import CfgNode

HEADS = ('ROI_BOX_HEAD', 'ROI_MASK_HEAD', 'ROI_KEYPOINT_HEAD')


def add_roi_plugins_config(cfg: CfgNode) -> None:
    """Adds ``POOLER_OPTIONS`` to the box, mask and keypoint head of a config, in place.

    ``None`` leaves an option at its type's default. Which type has which, and what they mean, is in
    :mod:`roi_plugins.extractors`; ``POOLER_SAMPLING_RATIO`` and ``POOLER_RESOLUTION`` are Detectron2's.

    Args:
        cfg: of ``detectron2.config.get_cfg()``, before a file is merged into it.
    """
    for head in HEADS:
        # New keys are allowed, so that a misspelt one is answered by the pooler, with those that exist.
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
    """Whether the model has the head of this node; the options of one that is off are read by nothing."""
    return {'ROI_MASK_HEAD': cfg.MODEL.MASK_ON, 'ROI_KEYPOINT_HEAD': cfg.MODEL.KEYPOINT_ON}.get(head, True)
