"""Measures the op beside its peers, prints the tables, and saves them with a figure.

    roi-plugins benchmark --quick
    roi-plugins benchmark --threads 2 --out docs/benchmarks/NAME
    roi-plugins benchmark --cases 'align-avg-*' train-step
    roi-plugins benchmark --growth --out DIR
    roi-plugins benchmark --against DIR
    roi-plugins benchmark --render DIR

With --growth, it measures one case with more and more RoIs, channels, cells, bins and threads instead.

With --against, it measures the cases in DIR again and compares the ratios to the peers with those in DIR. The
exit status is 1 if the op became slower by more than noise.

With --out, a case that is already in DIR is not measured again. So the same command continues an
interrupted benchmark, and a new measurement needs a new directory.

Measuring only needs torch, torchvision and numpy. The tables and the figure also need matplotlib and
tabulate. If these are missing, --out saves benchmark.json, and --render makes the rest from it on another
machine.
"""

from __future__ import annotations

import argparse
import fnmatch
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from types import ModuleType
from typing import Any

import torch

from roi_plugins.benchmark import train_step
from roi_plugins.benchmark.cases import CASES
from roi_plugins.benchmark.growth import growth_measures
from roi_plugins.benchmark.measure import FULL, QUICK, Effort, measure_case
from roi_plugins.benchmark.other_load import OtherLoad
from roi_plugins.benchmark.record import (
    GROWTH_JSON,
    JSON,
    read_record,
    resume_record,
    start_record,
    write_record,
)
from roi_plugins.commands import called_as
from roi_plugins.console import print_anything
from roi_plugins.files import DataError
from roi_plugins.integrations.arguments import whole_number

missing = ''
try:
    from roi_plugins.benchmark import against, growth_report, report
except ModuleNotFoundError as error:
    missing = str(error.name).partition('.')[0]


def main(arguments: Sequence[str] | None = None, prog: str = 'roi-plugins benchmark') -> int:
    """The command line of ``roi-plugins benchmark``. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--quick', action='store_true', help='measure for a minute or two; the medians are rough'
    )
    parser.add_argument(
        '--device',
        choices=tuple(CASES),
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='where to measure; by default cuda if there is a GPU, else cpu (here: %(default)s)',
    )
    parser.add_argument(
        '--threads', type=whole_number(1), help="CPU threads of torch (default: torch's own choice)"
    )
    parser.add_argument(
        '--cases',
        nargs='+',
        metavar='NAME',
        help='cases to run, e.g. pyramid-*, or with --growth points, e.g. rois-* (default: all)',
    )
    parser.add_argument(
        '--growth',
        action='store_true',
        help='measure how time and memory grow with the numbers of RoIs, channels, cells, bins and threads',
    )
    parser.add_argument(
        '--out',
        metavar='DIR',
        help='save benchmark.json, .md and .png in DIR, or with --growth growth.json, .md and .png',
    )
    parser.add_argument(
        '--against',
        metavar='DIR',
        help='measure the cases in the benchmark.json of DIR again and compare; exit with 1 if one is slower',
    )
    parser.add_argument(
        '--render',
        metavar='DIR',
        help='measure nothing; make the tables and the figure from the results in DIR, which may come from '
        'another machine',
    )
    args = parser.parse_args(arguments)
    print_anything()
    if missing and args.render:
        parser.error(f'--render: needs {missing}, which is not installed')
    if missing and args.against:
        parser.error(f'--against: needs {missing}, which is not installed')
    if missing and not args.out:
        parser.error(f'the table needs {missing}, which is not installed; save the results with --out DIR')
    if args.growth and args.quick:
        parser.error('--quick: --growth measures each point for a moment already; leave out --quick')
    if args.against and (args.growth or args.render or args.out == args.against):
        parser.error('--against: goes with neither --growth nor --render; --out needs another directory')
    file = GROWTH_JSON if args.growth else JSON
    pages = None if missing else growth_report if args.growth else report
    if pages and args.render:
        return _render(args.render, file, pages)
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device: cuda, but torch sees no CUDA GPU here; use --device cpu')
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    given = sys.argv[1:] if arguments is None else arguments
    command = shlex.join([*called_as(prog), *given])
    try:
        record = start_record(device, args.quick)
        earlier = read_record(args.against) if args.against else None
        if earlier:
            against.check_comparable(record, earlier, args.against)
        if args.out:
            record = resume_record(record, args.out, file)
        if args.growth:
            measures = growth_measures(device, record['cases'])
        else:
            measures = _case_measures(device, QUICK if args.quick else FULL)
        patterns = args.cases or ['*']
        for pattern in patterns:
            if not fnmatch.filter(measures, pattern):
                parser.error(f'--cases: {pattern}: no such case; there are {", ".join(measures)}')
        if earlier:
            patterns = against.choose_cases(earlier, patterns, args.against)
        for name in _remaining(record, measures, patterns):
            print(f'{name} ...', file=sys.stderr)
            now = datetime.now().astimezone().isoformat(timespec='seconds')
            others = OtherLoad()
            case = {**measures[name](), 'command': command, 'time': now}
            record['cases'].append({**case, 'other_cores': others.cores()})
            if args.out:
                write_record(record, args.out, file)
        if pages and args.out:
            pages.write_pages(record, args.out)
        if earlier:
            changes = against.compare(record, earlier, patterns)
            print(against.to_markdown(record, earlier, changes), end='')
            return int(any(change['verdict'] == against.SLOWER for change in changes))
    except DataError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    if pages:
        print(pages.to_markdown(record), end='')
    else:
        render = shlex.join([*called_as(prog), *['--growth'] * args.growth, '--render', args.out])
        print(
            f'the pages and the printed table are left out, because {missing} is not installed; make them '
            f'from {file} where matplotlib and tabulate are installed: {render}',
            file=sys.stderr,
        )
    return 0


def _case_measures(device: torch.device, effort: Effort) -> dict[str, Callable[[], dict[str, Any]]]:
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        case.name: partial(measure_case, case, device, effort) for case in CASES[device.type]
    }
    measures[train_step.MMDET] = partial(train_step.measure_mmdet_step, device, effort)
    if device.type == 'cuda':  # a step takes minutes on a CPU
        measures[train_step.DETECTRON2] = partial(train_step.measure_detectron2_step, device, effort)
    return measures


def _render(out: str, file: str, pages: ModuleType) -> int:
    try:
        record = read_record(out, file)
    except DataError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    pages.write_pages(record, out)
    print(pages.to_markdown(record), end='')
    return 0


def _remaining(record: dict, measures: dict, patterns: list[str]) -> list[str]:
    done = {case['name'] for case in record['cases']}
    chosen = [name for name in measures if any(fnmatch.fnmatch(name, p) for p in patterns)]
    for name in done.intersection(chosen):
        print(f'{name}: already measured; name another directory to measure it again', file=sys.stderr)
    return [name for name in chosen if name not in done]
