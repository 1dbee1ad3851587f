"""Prints the table of average precision of finished runs, and writes it with a figure.

    roi-plugins compare work_dirs/embedded --baseline align-avg --output docs/results

The exit status is 0, or 1 if a run could not be compared; stderr says why.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from roi_plugins.ablation.compare import ComparisonError, compare
from roi_plugins.ablation.report.formats import headline, to_markdown, write_comparison
from roi_plugins.commands import called_as
from roi_plugins.console import print_anything
from roi_plugins.evaluation.coco import PRIMARY_METRICS
from roi_plugins.files import DataError
from roi_plugins.integrations.arguments import add_import_option, whole_number
from roi_plugins.integrations.errors import RunError
from roi_plugins.integrations.modules import import_modules


def main(arguments: Sequence[str] | None = None, prog: str = 'roi-plugins compare') -> int:
    """The command line of ``roi-plugins compare``. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'runs',
        nargs='+',
        metavar='RUN',
        help='a run directory with metrics.json; a directory of run directories, such as the work directory '
        "of an ablation; or, with --ann-file, what the frameworks' own tools leave: the output directory of "
        'a training with Detectron2 (inference/coco_instances_results.json), a directory with NAME.bbox.json '
        'and NAME.segm.json of MMDetection, or a file of COCO results. LABEL=PATH names the run in the '
        'tables; several with one label are the seeds of one extractor',
    )
    parser.add_argument(
        '--ann-file', metavar='FILE', help='COCO annotations to use instead of those that the runs name'
    )
    parser.add_argument(
        '--baseline', metavar='EXTRACTOR', help='show the differences to this extractor, within each config'
    )
    parser.add_argument(
        '--primary-metric',
        choices=PRIMARY_METRICS,
        metavar='METRIC',
        help='what the verdicts better, worse, alike and open are about, such as bbox/AP75; choose it '
        'before you know the results (default: bbox/AP, or segm/AP without boxes)',
    )
    parser.add_argument(
        '--margin',
        type=points,
        default=0,
        metavar='POINTS',
        help='differences in the primary metric up to this do not matter: an extractor whose whole interval '
        'is within is alike; choose it before you know the results (default: all matter)',
    )
    parser.add_argument(
        '--bootstrap',
        type=whole_number(0),
        default=1000,
        metavar='N',
        help='resamples of the images for intervals and verdicts; 0 for none (default: 1000)',
    )
    parser.add_argument(
        '--bootstrap-seed',
        type=whole_number(0),
        default=0,
        metavar='N',
        help='seed of the resampling (default: 0)',
    )
    parser.add_argument(
        '--details',
        action='store_true',
        help='also show where AP differs: Boundary AP of masks, the errors by kind, the AP of each class; '
        'all tables are printed',
    )
    parser.add_argument(
        '--max-dets',
        type=whole_number(1),
        metavar='N',
        help='how many detections of each class count in an image (default: what the runs name, else 100 as '
        'in COCO)',
    )
    parser.add_argument(
        '--digits', type=whole_number(0, 15), default=1, help='decimals of AP in the tables (default: 1)'
    )
    parser.add_argument(
        '--output',
        metavar='DIR',
        help='write compare.md, .csv, .tex and .json, and ap_over_iou.png and .svg to DIR',
    )
    parser.add_argument(
        '--cost',
        action='store_true',
        help='also measure, on this machine, what each extractor costs in a training step of its run; this '
        'needs the training data. With --output, cost.md and .json are written too',
    )
    parser.add_argument(
        '--html',
        type=Path,
        metavar='FILE',
        help='write a self-contained page of HTML: the tables, the differences, AP over cost, learning '
        'curves, the images on which runs differ most, and how each run was made',
    )
    add_import_option(parser)
    args = parser.parse_args(arguments)
    if args.imports and not args.cost:
        parser.error('--import: a comparison reads predictions and needs no module; use it with --cost')
    print_anything()
    try:
        import_modules(args.imports)
        comparison = compare(
            args.runs,
            args.ann_file,
            args.baseline,
            args.bootstrap,
            args.bootstrap_seed,
            args.details,
            args.max_dets,
            args.primary_metric,
            args.margin / 100,
        )
    except (ComparisonError, DataError, OSError, RunError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    # The files come before the output, so that a pipe that is closed early does not lose them.
    problems = list(comparison.problems)
    if args.output:
        problems += _try('--output', lambda: write_comparison(comparison, args.output, args.digits))
    text = (to_markdown if args.details else headline)(comparison, args.digits)
    costs = None
    if args.cost:
        from roi_plugins.ablation import extractor_cost

        costs = extractor_cost.measure_costs([run for run, _ in comparison.metrics])
        problems += costs.problems
        if costs.rows:
            text += '\n' + extractor_cost.to_markdown(costs)
            if args.output:
                problems += _try('--output', lambda: extractor_cost.write_costs(costs, args.output))
        else:
            problems.append('--cost: no extractor could be measured')
    if args.html:
        from roi_plugins.ablation.report.page import write_report

        command = [*called_as(prog), *(sys.argv[1:] if arguments is None else arguments)]
        problems += _try('--html', lambda: write_report(comparison, args.html, command, args.digits, costs))
    print(text, end='')
    for note in comparison.notes:
        print(f'note: {note}', file=sys.stderr)
    for problem in dict.fromkeys(problems):
        print(f'error: {problem}', file=sys.stderr)
    return 1 if problems else 0


def points(text: str) -> float:
    """Converts a number of AP points, such as ``0.5``, from 0 to 100."""
    value = float(text)
    if not (math.isfinite(value) and 0 <= value <= 100):
        raise argparse.ArgumentTypeError(f'{text} is not a number of points from 0 to 100')
    return value


def _try(option: str, write: Callable[[], None]) -> list[str]:
    """Writes what an option asks for. Returns the problem, if there is one."""
    try:
        write()
    except (DataError, OSError) as error:
        return [f'{option}: {error}']
    return []
