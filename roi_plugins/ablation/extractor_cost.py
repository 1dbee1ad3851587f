"""Measures what the extractor of a finished run costs in training: time, memory, parameters and FLOPs.

The detector of each run makes a training step on a batch of its own training data, with its trained weights
and a learning rate of 0. The inputs of its extractors in that step are kept. Then the calls of the extractors
on these inputs are timed alone, forward and backward, and compared with the time of the step. Another step
counts the FLOPs of the RoI heads, since a larger output or more channels of an extractor cost there.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from roi_plugins.ablation.records import read_record
from roi_plugins.ablation.results import Run
from roi_plugins.benchmark.cases import BACKWARD, BOTH, FORWARD
from roi_plugins.benchmark.measure import QUICK, Contender, Effort, interleave, peak_extra_bytes, prepare
from roi_plugins.files import DataError, atomic_write, write_json
from roi_plugins.hardware import cpu_name
from roi_plugins.integrations.registry import FRAMEWORKS

_IN_HEADS = re.compile(r'(^|\.)roi_heads?(\.|$)')


@dataclass(frozen=True)
class Cost:
    """What all extractors of a detector together cost in one training step.

    Attributes:
        config_name: the plan's name for the config.
        extractor: the label of the extractor.
        num_rois: the number of RoIs of all calls. A cascade calls an extractor in each stage.
        forward_seconds: the median time of the forward passes.
        backward_seconds: the median time of the backward passes.
        step_seconds: the median time of the whole training step.
        peak_bytes: the peak memory of the largest call, forward and backward, without its inputs; None if
            it cannot be measured.
        num_parameters: the number of learned parameters of the extractors.
        head_parameters: the number of learned parameters of the RoI heads with their extractors; None if the
            detector has no module of that name.
        head_flops: the floating-point operations of matrix products and convolutions in the forward pass of
            the RoI heads, where a multiplication with an addition counts as two; None as above. The ops of
            the extractors are not among them.
    """

    config_name: str
    extractor: str
    num_rois: int
    forward_seconds: float
    backward_seconds: float
    step_seconds: float
    peak_bytes: int | None
    num_parameters: int
    head_parameters: int | None
    head_flops: int | None

    @property
    def share(self) -> float:
        """The share of the training step that the extractors take, 0 to 1."""
        return (self.forward_seconds + self.backward_seconds) / self.step_seconds


@dataclass(frozen=True)
class Costs:
    """What :func:`measure_costs` found.

    Attributes:
        machine: how and where the costs were measured, as a sentence.
        rows: one for each config and extractor that could be measured.
        problems: a message for each that could not.
    """

    machine: str
    rows: list[Cost]
    problems: list[str]


def measure_costs(runs: Sequence[Run], device: torch.device | None = None, effort: Effort = QUICK) -> Costs:
    """Measures the cost of each config and extractor, in its first run. All of them take turns.

    Args:
        runs: run directories that still hold their config and checkpoint. The training data must be where
            the config says, relative to the current directory.
        device: by default the GPU, if there is one.
        effort: how long to measure.

    Returns:
        The costs, and messages about the runs that could not be measured.
    """
    device = device or torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    trials: dict[tuple[str, str], Run] = {}
    for run in runs:
        trials.setdefault((run.config_name, run.extractor), run)
    loaded, problems = [], []
    for run in trials.values():
        try:
            loaded.append((run, *_load(run, device)))
        except Exception as error:  # configs are programs: anything can happen in them
            problems.append(f'{run.name}: its cost is not measured: {_reason(error)}')
    contenders = [
        Contender(name, '', '', call) for _, calls, step, *_ in loaded for name, call in _parts(calls, step)
    ]
    medians = iter([float(np.median(s)) for s in interleave(contenders, device, effort)])
    rows = [
        Cost(
            config_name=run.config_name,
            extractor=run.extractor,
            num_rois=sum(call.num_rois for call in calls),
            forward_seconds=next(medians),
            backward_seconds=next(medians),
            step_seconds=next(medians),
            peak_bytes=_peak_bytes(calls, device),
            num_parameters=sum(
                parameter.numel()
                for module in {call.module for call in calls}
                for parameter in module.parameters()
            ),
            head_parameters=head_parameters,
            head_flops=head_flops,
        )
        for run, calls, _, head_parameters, head_flops in loaded
    ]
    return Costs(_machine(device), rows, problems)


def to_rows(costs: Costs) -> tuple[list[str], list[list[str]]]:
    """Makes the table of the costs, as text.

    Args:
        costs: what :func:`measure_costs` found.

    Returns:
        The names of the columns, and the rows. There is no column of configs if the runs have none.
    """
    header = ['Config', 'Extractor', 'RoIs', 'forward, ms', 'backward, ms', 'of a step, %', 'step, ms',
              'peak, MiB', 'parameters', 'parameters of the heads, M', 'GFLOPs of the heads']  # fmt: skip
    rows = [
        [
            cost.config_name,
            cost.extractor,
            str(cost.num_rois),
            f'{1e3 * cost.forward_seconds:.2f}',
            f'{1e3 * cost.backward_seconds:.2f}',
            f'{100 * cost.share:.1f}',
            f'{1e3 * cost.step_seconds:.0f}',
            '-' if cost.peak_bytes is None else f'{cost.peak_bytes / 2**20:.1f}',
            str(cost.num_parameters),
            '-' if cost.head_parameters is None else f'{cost.head_parameters / 1e6:.2f}',
            '-' if cost.head_flops is None else f'{cost.head_flops / 1e9:.2f}',
        ]
        for cost in costs.rows
    ]
    if not any(cost.config_name for cost in costs.rows):
        header, rows = header[1:], [row[1:] for row in rows]
    return header, rows


def to_markdown(costs: Costs) -> str:
    """The table of the costs in Markdown, with a title and the machine.

    Args:
        costs: what :func:`measure_costs` found.
    """
    header, rows = to_rows(costs)
    align = ['left' if name in ('Config', 'Extractor') else 'right' for name in header]
    table = tabulate(rows, header, tablefmt='pipe', colalign=align, disable_numparse=True)
    return f'### Cost of the extractor in a training step\n\n{costs.machine}\n\n{table}\n'


def write_costs(costs: Costs, output: str | Path) -> None:
    """Writes ``cost.md`` and, in full precision, ``cost.json``. Each file is replaced atomically.

    Args:
        costs: what :func:`measure_costs` found.
        output: the folder to write to; made if need be.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    with atomic_write(output / 'cost.md') as aside:
        aside.write_text(to_markdown(costs), encoding='utf-8')
    record = {'format': 1, 'machine': costs.machine, 'costs': [asdict(cost) for cost in costs.rows]}
    write_json(output / 'cost.json', record)


@dataclass(frozen=True)
class _Call:
    """One call of an extractor in a step: its maps, detached from the graph, and the other arguments."""

    module: nn.Module
    maps: list[Tensor]
    others: tuple[Any, ...]
    num_rois: int

    def part(self, step: str) -> Callable[[], object]:
        """Makes a call that does a step of this one, see :func:`~roi_plugins.benchmark.measure.prepare`."""
        # A copy, because the optimiser writes to the weights in the steps that are timed in between.
        module = copy.deepcopy(self.module)
        weights = list(module.parameters())
        return prepare(lambda maps: module(maps, *self.others), self.maps, step, weights)


def _load(run: Run, device: torch.device) -> tuple[list[_Call], Callable[[], object], int | None, int | None]:
    """Returns the calls of a step, the step, and the parameters and FLOPs of the heads."""
    record = read_record(run)
    if record is None or run.framework is None:
        raise DataError('predictions alone tell nothing of it; give the run directory')
    if record.config is None or record.checkpoint is None:
        missing = 'config' if record.config is None else 'checkpoint'
        raise DataError(f'its {missing} is not in the run directory any more')
    module = FRAMEWORKS[run.framework].train_step
    assert module  # only the framework of the tests has none
    train_step = import_module(module)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        model, step = train_step.load_step(record.config, record.checkpoint, device)
        calls = _calls(model, step, train_step.EXTRACTOR_TYPES)
        return calls, step, *_count_heads(model, step)


def _calls(model: nn.Module, step: Callable[[], object], types: tuple[type, ...]) -> list[_Call]:
    calls: list[_Call] = []

    def keep(module: nn.Module, args: tuple, output: Tensor) -> None:
        maps, *others = args
        maps = [map_.detach().requires_grad_(map_.requires_grad) for map_ in maps]
        calls.append(_Call(module, maps, tuple(others), len(output)))

    hooks = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, types)]
    step()
    for hook in hooks:
        hook.remove()
    if not calls:
        raise DataError('no RoI extractor took part in its training step')
    return calls


def _count_heads(model: nn.Module, step: Callable[[], object]) -> tuple[int | None, int | None]:
    """Counts the parameters of the RoI heads, and the FLOPs of their forward pass in a step."""
    heads = [module for name, module in model.named_modules() if _IN_HEADS.search(name)]
    if not heads:
        return None, None
    flops, entered = 0, []  # the modules that are at work, each with the FLOPs before it

    def enter(*_: Any) -> None:
        entered.append(counter.get_total_flops())

    def leave(*_: Any) -> None:
        nonlocal flops
        before = entered.pop()
        if not entered:
            flops += counter.get_total_flops() - before

    # FlopCounterMode itself assigns the backward pass of the backbone to the heads.
    hooks = [module.register_forward_pre_hook(enter) for module in heads]
    hooks += [module.register_forward_hook(leave) for module in heads]
    with FlopCounterMode(display=False) as counter:
        step()
    for hook in hooks:
        hook.remove()
    # As a set: modules share parameters.
    parameters = {parameter for module in heads for parameter in module.parameters()}
    return sum(parameter.numel() for parameter in parameters), flops


def _parts(calls: Sequence[_Call], step: Callable[[], object]) -> Iterator[tuple[str, Callable[[], object]]]:
    for name in (FORWARD, BACKWARD):
        parts = [call.part(name) for call in calls]
        yield name, functools.partial(_in_turn, parts)
    yield 'step', step


def _in_turn(calls: Sequence[Callable[[], object]]) -> None:
    for call in calls:
        call()


def _peak_bytes(calls: Sequence[_Call], device: torch.device) -> int | None:
    peaks = [peak_extra_bytes(call.part(BOTH), device) for call in calls]
    known = [peak for peak in peaks if peak is not None]
    return max(known) if len(known) == len(peaks) else None


def _machine(device: torch.device) -> str:
    if device.type == 'cuda':
        where = torch.cuda.get_device_name(device)
    else:
        where = f'{os.cpu_count()} x {cpu_name()}, {torch.get_num_threads()} threads'
    return (
        f'Measured on {where}, torch {torch.__version__}: medians over one batch of the training data, '
        'with the trained weights. GFLOPs are those of matrix products and convolutions in the forward pass '
        'of the RoI heads.'
    )


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f'{error.filename}: {error.strerror}'
    return str(error).partition('\n')[0] or type(error).__name__
