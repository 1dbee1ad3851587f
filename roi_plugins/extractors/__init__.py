"""RoI feature extractors over a feature pyramid, free of any framework.

A new extractor is a file with its class, and a line in ``EXTRACTORS``, which the integrations register.
"""

from .adaptive_sampling import AdaptiveSampling
from .align import AlignAvg, AlignMax
from .all_levels import AllLevels
from .base import RoIExtractor
from .content_adaptive import ContentAdaptive
from .deformable import Deformable
from .position_sensitive import PositionSensitive
from .precise import Precise
from .quantized_pool import QuantizedPool
from .random_sampling import RandomSampling
from .roi_warp import RoIWarp

EXTRACTORS: dict[str, type[RoIExtractor]] = {
    'QuantizedPool': QuantizedPool,
    'RoIWarp': RoIWarp,
    'AlignMax': AlignMax,
    'AlignAvg': AlignAvg,
    'AdaptiveSampling': AdaptiveSampling,
    'Precise': Precise,
    'RandomSampling': RandomSampling,
    'Deformable': Deformable,
    'PositionSensitive': PositionSensitive,
    'ContentAdaptive': ContentAdaptive,
    'AllLevels': AllLevels,
}

__all__ = ['EXTRACTORS', 'RoIExtractor', *EXTRACTORS]
