"""Hands what MMEngine logs to an experiment tracker, as a backend of its visualizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import VISBACKENDS
from mmengine.visualization.vis_backend import BaseVisBackend, force_init_env

from roi_plugins.tracking import TrackedRun, open_run

from .config import add_imports

_MMENGINES = {
    'tensorboard': 'TensorboardVisBackend',
    'wandb': 'WandbVisBackend',
    'mlflow': 'MLflowVisBackend',
}


@VISBACKENDS.register_module()
class TrackerVisBackend(BaseVisBackend):
    """Logs scalars to Weights & Biases or MLflow.

    MMEngine's own backends for them cannot continue a run after an interruption. Its ``WandbVisBackend`` also
    drops the step and copies all Python files below the current directory, and its ``MLflowVisBackend`` fails
    if a setting has changed since the run began.

    Args:
        save_dir: the folder of the run.
        tracker: a name in ``roi_plugins.tracking.TRACKERS``.
    """

    def __init__(self, save_dir: str, tracker: str) -> None:
        super().__init__(save_dir)
        self._tracker = tracker

    def _init_env(self) -> None:
        self._run = open_run(self._tracker, self._save_dir)

    @property
    @force_init_env
    def experiment(self) -> TrackedRun:
        """The run of the tracker."""
        return self._run

    @force_init_env
    def add_scalar(self, name: str, value: Any, step: int = 0, **kwargs: Any) -> None:
        self._run.scalars({name: float(value)}, step)

    @force_init_env
    def add_scalars(
        self, scalar_dict: Mapping[str, Any], step: int = 0, file_path: str | None = None, **kwargs: Any
    ) -> None:
        self._run.scalars({name: float(value) for name, value in scalar_dict.items()}, step)

    def close(self) -> None:
        if self._env_initialized:
            self._run.close()


def add_tracker(cfg: Config, tracker: str) -> None:
    """Adds a tracker to the backends of a config's visualizer.

    Args:
        cfg: the config, which is changed.
        tracker: a name in ``roi_plugins.tracking.TRACKERS``.
    """
    if cfg.get('visualizer') is None:  # MMEngine's default
        cfg.visualizer = {'type': 'Visualizer', 'vis_backends': [{'type': 'LocalVisBackend'}]}
    backends = cfg.visualizer.get('vis_backends') or []
    backends = [backends] if isinstance(backends, Mapping) else list(backends)
    # One of the config's own would begin another run at each start.
    backends = [backend for backend in backends if backend['type'] != _MMENGINES[tracker]]
    if tracker == 'tensorboard':
        backends.append({'type': _MMENGINES[tracker], 'save_dir': cfg.work_dir})
    else:
        backends.append({'type': 'TrackerVisBackend', 'save_dir': cfg.work_dir, 'tracker': tracker})
        add_imports(cfg, [__name__])  # for whoever builds the config that MMEngine saves
    cfg.visualizer.vis_backends = backends
