"""RoI feature extractors for two-stage detectors: one shared op, plugins for the frameworks.

- :mod:`roi_plugins.ops`: the op, and layers on it.
- :mod:`roi_plugins.extractors`: the extractors, free of any framework.
- :mod:`roi_plugins.integrations.mmdet`, :mod:`roi_plugins.integrations.detectron2`: what a config imports.
- :mod:`roi_plugins.ablation`: plans, their runner and the comparison, behind ``tools/ablate.py`` and
  ``tools/compare.py``.
- :mod:`roi_plugins.evaluation`: COCO AP of prediction files.
- :mod:`roi_plugins.visualization`: where an extractor reads a box.
- :mod:`roi_plugins.onnx`: the ONNX export.
"""

__version__ = '0.1.0'
