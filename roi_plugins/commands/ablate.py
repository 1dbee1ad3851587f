"""Run an ablation: train and evaluate every trial of a plan, then print the table of AP.

It can be stopped at any time; the same command then goes on where it was. The format of a plan is
described in roi_plugins/ablation/plan.py; examples are in configs/ablations, and ``roi-plugins ablate
ablations/demo.yaml`` finds them by name. Without a plan:

    roi-plugins ablate CONFIG --extractors stock align-avg align-max --seeds 0 1 2
"""

import argparse
import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml
from rich.console import Console

from roi_plugins.ablation import executors, runner
from roi_plugins.ablation.compare import ComparisonError, compare
from roi_plugins.ablation.cost import summarize
from roi_plugins.ablation.dry_run import find_problems
from roi_plugins.ablation.plan import (
    Plan,
    PlanError,
    check_cfg_options,
    check_common_options,
    check_free_options,
    expand_home,
    load_plan,
    parse_plan,
)
from roi_plugins.ablation.report.tables import to_markdown, write_comparison
from roi_plugins.ablation.trial import AblationError, Job, prepare, warn_of_confounded
from roi_plugins.console import print_anything
from roi_plugins.files import DataError, written_aside
from roi_plugins.integrations.arguments import whole_number
from roi_plugins.integrations.errors import RunError
from roi_plugins.integrations.zoo import locate_config


def main(arguments: Sequence[str] | None = None, prog: str = 'roi-plugins ablate') -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.partition('\n')[0])
    parser.add_argument(
        'plan',
        nargs='+',
        metavar='PLAN',
        help='path of the plan, a YAML file, or its name in the folder that `roi-plugins configs` prints, '
        'such as ablations/demo.yaml; with --extractors, configs of detectors: files, names in that folder, '
        'or those of a model zoo, such as mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    )
    without = parser.add_argument_group('without a plan')
    without.add_argument(
        '--extractors',
        nargs='+',
        metavar='ROW',
        help='what stands in the place of the extractors of the configs, in turn: stock, a row of '
        'presets.yaml such as align-max, or a type alone such as AlignMax; the first is the baseline',
    )
    without.add_argument(
        '--seeds', nargs='+', type=whole_number(0), metavar='N', help='a run with each (default: 0)'
    )
    without.add_argument('--heads', nargs='+', metavar='HEAD', help='where: bbox, mask, ...; by default all')
    parser.add_argument(
        '--work-dir',
        help="where the runs go, in place of the plan's work_dir, or of work_dirs/ablation without a plan",
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='config options for every trial, e.g. train_cfg.max_iters=100; values are YAML',
    )
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='print the trials, their commands, how long they will take and what is missing, and run '
        'nothing; exit status 1 if anything is missing',
    )
    parser.add_argument(
        '--watch', action='store_true', help='show how far the trials are, whoever runs them, and run nothing'
    )
    side_by_side = parser.add_argument_group('trials side by side')
    side_by_side.add_argument('--jobs', type=positive, metavar='N', help='trials at a time')
    side_by_side.add_argument(
        '--gpus-per-trial',
        type=int,
        metavar='G',
        help="GPUs of each trial, on all its machines, in place of the plan's num_gpus; 0: none",
    )
    side_by_side.add_argument(
        '--executor',
        choices=('local', 'slurm'),
        default='local',
        help='where: on this machine, or in an array of Slurm jobs, which resume when they were preempted '
        'or their time was up',
    )
    side_by_side.add_argument('--nodes', type=positive, default=1, metavar='M', help='machines of each trial')
    side_by_side.add_argument('--partition', help="of Slurm; by default the cluster's default")
    side_by_side.add_argument(
        '--time',
        type=minutes,
        metavar='MINUTES',
        help='until a trial is interrupted, to be resumed in another job; or [DAYS-]HOURS:MINUTES:SECONDS',
    )
    args = parser.parse_args(arguments)
    if args.extractors is None and (len(args.plan) > 1 or args.seeds or args.heads):
        parser.error('several configs, --seeds and --heads need --extractors; a plan has its own')
    print_anything()
    try:
        tree = None
        if args.extractors is None:
            plan = load_plan(locate_config(args.plan[0], 'plan'))
        else:
            tree = make_plan(args)
            plan = parse_plan(tree, Path())
        if args.gpus_per_trial is not None:
            plan = replace(plan, num_gpus=args.gpus_per_trial)
        plan = replace(plan, num_nodes=args.nodes)
        check_executor(args, plan)
        if plan.num_gpus == 0:
            os.environ['CUDA_VISIBLE_DEVICES'] = ''
        options = parse_options(args.cfg_options)
        frameworks = sorted({trial.framework for trial in plan.trials})
        check_common_options(options, frameworks, '--cfg-options')
        check_free_options(options, frameworks, '--cfg-options')
        work_dir = expand_home(args.work_dir, '--work-dir') if args.work_dir else plan.work_dir
        if args.dry_run:
            jobs = prepare(plan, work_dir, options)
            warn_of_confounded(jobs, plan, Console(stderr=True))
            return 1 if dry_run(jobs, Console(stderr=True)) else 0
        stop_on_signals()
        if tree and not args.watch:
            write_plan(tree, work_dir)
        if args.watch:
            failed = executors.watch(plan, work_dir, Console())
        elif executor := make_executor(args, plan, work_dir):
            failed = executors.run(plan, work_dir, options, Console(), executor)
        else:
            failed = runner.run(plan, work_dir, options, Console())
        return 1 if report(plan, work_dir, failed) else 0
    except (PlanError, RunError, AblationError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except OSError as error:  # the disk is full, or the work directory gone
        print(
            f'error: {error}, at work in {work_dir}. What is finished stays; '
            'the same command goes on where it was',
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print('\nstopped; the same command goes on where it was', file=sys.stderr)
        return 130


def make_plan(args: argparse.Namespace) -> dict:
    """The plan that the arguments say."""
    configs = {}
    for config in args.plan:
        name = re.sub(r'[^\w-]', '_', Path(config.rpartition('::')[2]).stem)
        if name in configs:
            raise PlanError(f'{config} and {configs[name]["path"]} have the same name; put them into a plan')
        # A file has to be found from the plan too; the other is a name in a model zoo.
        configs[name] = {'path': os.path.abspath(config) if os.path.exists(config) else config}
        if args.heads:
            configs[name]['heads'] = args.heads
    work_dir = args.work_dir or 'work_dirs/ablation'
    extractors = [read_yaml(row, row) if row.startswith('{') else row for row in args.extractors]
    baseline = extractors[0]
    return {
        'name': Path(work_dir).name or 'ablation',
        'work_dir': work_dir,
        'baseline': baseline.get('name') if isinstance(baseline, dict) else baseline,
        'configs': configs,
        'extractors': extractors,
        'seeds': args.seeds or [0],
    }


def write_plan(tree: dict, work_dir: Path) -> None:
    """Leaves the plan beside the results, where it can be given again.

    Raises:
        PlanError: the plan of another ablation is there.
    """
    path = work_dir / 'plan.yaml'
    if path.exists() and yaml.safe_load(path.read_text(encoding='utf-8')) != tree:
        raise PlanError(f'{path} is the plan of another ablation; give another --work-dir')
    work_dir.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        aside.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding='utf-8')


def positive(text: str) -> int:
    """An argument that is an integer of at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def minutes(text: str) -> int:
    """Minutes of an argument in the notation of sbatch, MINUTES or [DAYS-]HOURS:MINUTES:SECONDS."""
    found = re.fullmatch(r'(\d+)|(?:(\d+)-)?(\d+):(\d\d):\d\d', text)
    if not found:
        raise ValueError
    alone, days, hours, rest = (int(part or 0) for part in found.groups())
    return alone + (24 * days + hours) * 60 + rest


def check_executor(args: argparse.Namespace, plan: Plan) -> None:
    """Raises AblationError on options that make no sense together."""
    if plan.num_gpus < 0:
        raise AblationError(f'--gpus-per-trial is {plan.num_gpus}; expected an integer >= 0')
    if args.executor == 'local' and (args.nodes > 1 or args.partition or args.time):
        raise AblationError('--nodes, --partition and --time are for --executor slurm')
    if args.executor == 'slurm' and not args.time:
        raise AblationError(
            '--executor slurm needs --time: how long a job may run; what is not finished by then is resumed'
        )
    if args.nodes > 1 and (plan.num_gpus == 0 or plan.num_gpus % args.nodes):
        raise AblationError(
            f'--nodes is {args.nodes}, but each trial has {plan.num_gpus} GPUs in all; give a multiple of '
            f'{args.nodes} as --gpus-per-trial'
        )


def make_executor(args: argparse.Namespace, plan: Plan, work_dir: Path) -> executors.Executor | None:
    """What runs the trials; None for one after the other in this process."""
    if '%' in str(work_dir.absolute()) and (args.executor == 'slurm' or (args.jobs or 1) > 1):
        raise AblationError(
            f'{work_dir.absolute()}: submitit and Slurm replace what follows a % in a path; without '
            '--jobs and --executor the trials can be run there, or give another --work-dir'
        )
    if args.executor == 'slurm':
        return executors.Slurm(
            work_dir,
            name=plan.name,
            jobs=args.jobs,
            gpus_per_node=plan.num_gpus // plan.num_nodes,
            nodes=plan.num_nodes,
            partition=args.partition,
            minutes=args.time,
        )
    return executors.Local(work_dir, args.jobs, plan.num_gpus) if (args.jobs or 1) > 1 else None


def dry_run(jobs: list[Job], console: Console) -> bool:
    """Prints the trials, then what is missing. True if anything is."""
    for job in jobs:
        state = 'to resume' if job.record else 'to run'
        print(f'{job.trial.name}: {"finished" if job.finished else state}')
        for command in job.commands:
            print(f'  {shlex.join(command)}')
    print('\n' + '\n'.join(summarize(jobs)))
    with console.status('looking at data, weights and output folders'):
        missing = [job for job in find_problems(jobs) if job.problem]
    if missing:
        print('\nmissing:')
    for job in missing:
        print(f'  {job.trial.name}: {job.problem}')
    return bool(missing)


def parse_options(pairs: list[str]) -> dict:
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition('=')
        if not equals:
            raise PlanError(f'--cfg-options: {pair!r} is not of the form KEY=VALUE')
        options[key] = read_yaml(value, f'--cfg-options: the value of {pair!r}')
    return check_cfg_options(options)


def read_yaml(text: str, name: str) -> object:
    """What an argument says; a PlanError where it is not YAML."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PlanError(f'{name} is not YAML: {" ".join(str(error).split())}') from None


def stop_on_signals() -> None:
    """Lets the signals of a batch system, and of a closed terminal, do what Ctrl-C does."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, signal.default_int_handler)


def report(plan: Plan, work_dir: Path, failed: list[Job]) -> bool:
    """Prints and writes the table of the finished trials. True if anything went wrong."""
    failed_trials = {job.trial for job in failed}
    finished = [trial for trial in plan.trials if trial not in failed_trials]
    problems = [
        f'trial {job.trial.name} '
        + (f'was not run: {job.problem}' if job.problem else f'failed: see {job.log}')
        for job in failed
    ]
    if finished:
        has_baseline = any(trial.extractor == plan.baseline for trial in finished)
        try:
            comparison = compare(
                [work_dir / trial.name for trial in finished],
                baseline=plan.baseline if has_baseline else None,
            )
        except (ComparisonError, DataError) as error:
            problems.append(str(error))
        else:
            write_comparison(comparison, work_dir / 'compare')
            print(f'\n{to_markdown(comparison)}\nwritten to {work_dir / "compare"}')
            for note in comparison.notes:
                print(f'note: {note}')
            problems += comparison.problems
    for problem in problems:
        print(f'error: {problem}', file=sys.stderr)
    return bool(problems)
