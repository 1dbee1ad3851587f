"""Parses ``--extractor``, a row of a comparison.

It is not in ``arguments.py``, since it imports torch, which a comparison does not need.
"""

from __future__ import annotations

from roi_plugins.extractors.presets import Preset, PresetError, parse_preset

from .errors import RunError


def read_row(text: str) -> Preset:
    """Parses the value of ``--extractor``.

    Args:
        text: see :func:`~roi_plugins.extractors.presets.parse_preset`.

    Raises:
        RunError: there is no such row or type, or it does not have an option.
    """
    try:
        return parse_preset(text)
    except PresetError as error:
        raise RunError(f'--extractor: {error}') from None
