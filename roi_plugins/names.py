"""One name for an extractor, however it is spelt: as a class, in a config, in a plan."""

from __future__ import annotations

import re

_ALIASES = {
    'align': 'alignavg',
    'alignunaligned': 'alignavgunaligned',
    'adaptivesampling': 'adaptive',
    'roiwarp': 'roiwarpavg',
}


def plain_name(name: str) -> str:
    """What all spellings of a name have in common, e.g. ``alignmax`` of ``AlignMaxRoIExtractor``."""
    plain = re.sub('[-_]', '', name.lower()).removesuffix('roiextractor')
    return _ALIASES.get(plain, plain)
