"""Logs an ablation to an experiment tracker: a run for each trial, and a run for the comparison.

The losses come from the trials' own processes, through the writers of their framework. What is logged here is
what the ablation knows: the parameters of a trial, its AP, and the comparison. Each is logged once, also if
the ablation is resumed or was first run without a tracker.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from roi_plugins.ablation.compare import Comparison
from roi_plugins.ablation.plan import Plan
from roi_plugins.ablation.report.tables import make_headline
from roi_plugins.ablation.trial import Trial
from roi_plugins.evaluation.coco import METRICS
from roi_plugins.run_record import METRICS_FILE
from roi_plugins.tracking import TrackedRun, log_once


class Tracking:
    """Logs to the tracker of a plan. Without one, it does nothing.

    A tracker that fails is only a warning, since the files of the trials have everything.

    Args:
        plan: the plan.
        work_dir: the folder of the run directories.
        cfg_options: config options for every trial.
        console: where the warnings go.
    """

    def __init__(self, plan: Plan, work_dir: Path, cfg_options: Mapping[str, Any], console: Console) -> None:
        self._plan = plan
        self._work_dir = work_dir
        self._cfg_options = cfg_options
        self._console = console

    def start(self, trial: Trial) -> None:
        """Logs the parameters of a trial: config, extractor, seed and config options."""
        parameters: dict[str, Any] = {
            'config': trial.config_name,
            'framework': trial.framework,
            'extractor': trial.extractor,
            'row': trial.inputs.extractor,
            'seed': trial.seed,
            'trained_with': trial.trained_with,
            **trial.cfg_options,
            **self._cfg_options,
        }
        known = {name: value for name, value in parameters.items() if value is not None}
        content = json.dumps(known, default=str).encode()
        self._log(trial.name, 'parameters', lambda: content, lambda run: run.parameters(known))

    def end(self, trial: Trial) -> None:
        """Logs the AP of a finished trial, as fractions, and its parameters if that was not done before."""
        self.start(trial)
        path = self._work_dir / trial.name / METRICS_FILE

        def log(run: TrackedRun) -> None:
            metrics = json.loads(path.read_bytes())['metrics']
            run.scalars(
                {
                    f'{iou_type}/{name}': found[name]
                    for iou_type, found in metrics.items()
                    for name in METRICS
                    if found[name] != -1  # -1 where there is no ground truth
                }
            )

        self._log(trial.name, 'result', path.read_bytes, log)

    def compare(self, comparison: Comparison, folder: Path) -> None:
        """Logs a comparison: its tables, and each extractor's primary metric and difference with intervals.

        The step is the number of trials that are compared.

        Args:
            comparison: what :func:`~roi_plugins.ablation.compare.compare` found.
            folder: the folder that :func:`~roi_plugins.ablation.report.formats.write_comparison` wrote to.
                Its name is that of the run.
        """
        step = len(comparison.metrics)

        def log(run: TrackedRun) -> None:
            run.scalars(_estimates(comparison), step)
            for title, table in make_headline(comparison).items():
                run.table(title, table, step)

        self._log(folder.name, 'comparison', (folder / 'compare.json').read_bytes, log)

    def _log(
        self, name: str, what: str, content: Callable[[], bytes], log: Callable[[TrackedRun], None]
    ) -> None:
        tracker = self._plan.tracker
        if tracker is None:
            return
        try:
            log_once(tracker, self._work_dir / name, self._plan.name, what, content(), log)
        except Exception as error:  # trackers talk to servers and disks: anything can happen
            message = ' '.join(f'{type(error).__name__}: {error}'.split())
            self._console.print(
                f'warning: {tracker} did not log the {what} of {name}: {message}; the same command logs it',
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


def _estimates(comparison: Comparison) -> dict[str, float]:
    """The estimates of the primary metric by name, as fractions, without those that are not known."""
    found = {}
    for group in comparison.groups:
        if group.iou_type != comparison.primary_iou_type:
            continue
        name = f'{group.config_name}/{group.extractor}/{comparison.primary_metric}'
        for suffix, estimates in (('', group.estimates), (' difference', group.difference_estimates)):
            if estimates is not None:
                for column, end in (('value', ''), ('low', ' low'), ('high', ' high')):
                    found[f'{name}{suffix}{end}'] = float(estimates.metrics.loc[comparison.metric, column])
    return {name: value for name, value in found.items() if value == value}
