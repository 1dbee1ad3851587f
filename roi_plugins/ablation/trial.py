"""One trial of a plan: a config with one extractor and one seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roi_plugins.integrations.base import Inputs


@dataclass(frozen=True)
class Trial:
    """One detector to train and evaluate, or only to evaluate.

    Attributes:
        config_name: the plan's name for the config.
        framework: ``'mmdet'`` or ``'detectron2'``.
        config: the path of the config.
        extractor: the name of the row that is swapped in.
        seed: the seed of the training.
        cfg_options: config options by dotted key. They replace values of the config.
        inputs: data and modules of the user's own, the row that is swapped in, and the limit of detections.
        checkpoint: the weights to evaluate, or the run directory that holds them: an absolute path, or
            relative to the work directory. None for a trial that trains its own.
        trained_with: the plan's name for the extractor that ``checkpoint`` was trained with.
    """

    config_name: str
    framework: str
    config: Path
    extractor: str
    seed: int
    cfg_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    inputs: Inputs = field(default_factory=Inputs)
    checkpoint: Path | None = None
    trained_with: str | None = None

    @property
    def name(self) -> str:
        """The name of the trial's run directory; no other trial of the plan has it."""
        parts = (self.config_name, self.trained_with, self.extractor, f'seed{self.seed}')
        return '.'.join(filter(None, parts))
