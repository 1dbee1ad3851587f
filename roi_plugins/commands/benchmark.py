"""Measures the op beside its peers, prints the tables, and keeps them with a figure.

    roi-plugins benchmark --quick
    roi-plugins benchmark --threads 2 --out docs/benchmarks/NAME
    roi-plugins benchmark --cases 'align-avg-*' train-step
    roi-plugins benchmark --render DIR

With --out, a case that DIR holds already is not measured again: what was interrupted goes on with the
same command, and a new measurement takes a new directory.

Measuring needs torch, torchvision and numpy alone. Tables and figure need matplotlib and tabulate too; where
they are missing, --out keeps benchmark.json, and --render makes the rest of it on another machine.
"""

from __future__ import annotations

import argparse
import fnmatch
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from functools import partial

import torch

from roi_plugins.benchmark import train_step
from roi_plugins.benchmark.cases import CASES
from roi_plugins.benchmark.measure import FULL, QUICK, measure_case
from roi_plugins.benchmark.record import (
    FIGURE,
    JSON,
    MARKDOWN,
    read_record,
    resume_record,
    start_record,
    write_record,
)
from roi_plugins.commands import called_as
from roi_plugins.console import print_anything
from roi_plugins.files import DataError

try:
    from roi_plugins.benchmark import report
except ModuleNotFoundError as error:
    report, missing = None, error.name.partition('.')[0]


def main(arguments: Sequence[str] | None = None, prog: str = 'roi-plugins benchmark') -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--quick', action='store_true', help='a minute or two; rough medians')
    parser.add_argument(
        '--device',
        choices=tuple(CASES),
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='default: cuda where there is a GPU (default here: %(default)s)',
    )
    parser.add_argument(
        '--threads', type=_positive, help="CPU threads of torch (default: torch's own choice)"
    )
    parser.add_argument(
        '--cases', nargs='+', metavar='NAME', help='cases to run, e.g. pyramid-* (default: all)'
    )
    parser.add_argument(
        '--out', metavar='DIR', help='keep benchmark.json, benchmark.md and benchmark.png there'
    )
    parser.add_argument(
        '--render',
        metavar='DIR',
        help='measure nothing: make tables and figure of the benchmark.json in DIR, from any machine',
    )
    args = parser.parse_args(arguments)
    print_anything()
    if report is None and args.render:
        parser.error(f'--render: needs {missing}, which is not installed')
    if report is None and not args.out:
        parser.error(f'the table needs {missing}, which is not installed; keep the results with --out DIR')
    if args.render:
        return _render(args.render)
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device: cuda, but torch sees no CUDA GPU here; use --device cpu')
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    effort = QUICK if args.quick else FULL
    measures = {case.name: partial(measure_case, case, device, effort) for case in CASES[args.device]}
    measures[train_step.MMDET] = partial(train_step.measure_mmdet_step, device, effort)
    if device.type == 'cuda':  # a CPU takes minutes a step
        measures[train_step.DETECTRON2] = partial(train_step.measure_detectron2_step, device, effort)
    patterns = args.cases or ['*']
    for pattern in patterns:
        if not fnmatch.filter(measures, pattern):
            parser.error(f'--cases: {pattern}: no such case; there are {", ".join(measures)}')
    given = sys.argv[1:] if arguments is None else arguments
    command = shlex.join([*called_as(prog), *given])
    try:
        record = start_record(device, args.quick)
        if args.out:
            record = resume_record(record, args.out)
        for name in _remaining(record, measures, patterns):
            print(f'{name} ...', file=sys.stderr)
            now = datetime.now().astimezone().isoformat(timespec='seconds')
            record['cases'].append({**measures[name](), 'command': command, 'time': now})
            if args.out:
                write_record(record, args.out)
                if report:
                    report.write_pages(record, args.out)
    except DataError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    if report:
        print(report.to_markdown(record), end='')
    else:
        print(
            f'{MARKDOWN}, {FIGURE} and the printed table are left out, because {missing} is not installed; '
            f'make them from {JSON} where matplotlib and tabulate are installed: '
            f'{shlex.join([*called_as(prog), "--render", args.out])}',
            file=sys.stderr,
        )
    return 0


def _render(out: str) -> int:
    try:
        record = read_record(out)
    except DataError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    report.write_pages(record, out)
    print(report.to_markdown(record), end='')
    return 0


def _remaining(record: dict, measures: dict, patterns: list[str]) -> list[str]:
    done = {case['name'] for case in record['cases']}
    chosen = [name for name in measures if any(fnmatch.fnmatch(name, p) for p in patterns)]
    for name in done.intersection(chosen):
        print(f'{name}: is there already; to measure it again name another directory', file=sys.stderr)
    return [name for name in chosen if name not in done]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f'{text!r}; expected a positive number')
    return int(text)
