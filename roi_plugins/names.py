"""One spelling for the name of an extractor, which classes, configs and plans spell differently."""

from __future__ import annotations

import re

_ALIASES = {
    'align': 'alignavg',
    'alignunaligned': 'alignavgunaligned',
    'adaptivesampling': 'adaptive',
    'roiwarp': 'roiwarpavg',
}


def plain_name(name: str) -> str:
    """Returns the spelling that all spellings of a name share, e.g. ``alignmax`` for
    ``AlignMaxRoIExtractor``.

    Args:
        name: name of an extractor: a class, a registered type or a row.
    """
    plain = re.sub('[-_]', '', name.lower()).removesuffix('roiextractor')
    return _ALIASES.get(plain, plain)
