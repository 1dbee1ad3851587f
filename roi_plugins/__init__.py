"""RoI feature extractors for two-stage detectors: one shared op, plugins for the frameworks.

- :mod:`roi_plugins.ops`: the op, and layers on it.
- :mod:`roi_plugins.extractors`: the extractors, free of any framework.
- :mod:`roi_plugins.integrations.mmdet`, :mod:`roi_plugins.integrations.detectron2`: what a config imports.
- :mod:`roi_plugins.cli`: the command ``roi-plugins``; its tools are in :mod:`roi_plugins.commands`.
- :mod:`roi_plugins.ablation`: plans, their runner and the comparison, behind ``roi-plugins ablate`` and
  ``roi-plugins compare``.
- :mod:`roi_plugins.evaluation`: COCO AP of prediction files.
- :mod:`roi_plugins.visualization`: where an extractor reads a box.
- :mod:`roi_plugins.onnx`: the ONNX export.
"""

__version__ = '0.1.0'
