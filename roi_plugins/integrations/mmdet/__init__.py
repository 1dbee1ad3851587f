"""The extractors in MMDetection's registry, as ``<name>RoIExtractor``; a config finds them through ::

    custom_imports = dict(imports=['roi_plugins.integrations.mmdet'], allow_failed_imports=False)

or names them by their full path, ``roi_plugins.integrations.mmdet.AlignMaxRoIExtractor``.
"""

from .extractors import REGISTERED, MMDetRoIExtractor

globals().update(REGISTERED)

__all__ = ['MMDetRoIExtractor', *REGISTERED]
