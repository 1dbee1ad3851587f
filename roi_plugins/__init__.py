"""RoI feature extractors for two-stage detectors: one shared op, plugins for the frameworks."""

__version__ = '0.1.0'
