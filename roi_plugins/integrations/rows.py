"""Rows of a comparison as the tools of all frameworks are given them.

Apart from the other options, for it needs torch, which a comparison does not.
"""

from __future__ import annotations

from roi_plugins.extractors.presets import Preset, PresetError, parse_preset

from .errors import RunError


def read_row(text: str) -> Preset:
    """What ``--extractor`` names.

    Raises:
        RunError: there is no such row or type, or it has no such option.
    """
    try:
        return parse_preset(text)
    except PresetError as error:
        raise RunError(f'--extractor: {error}') from None
