"""Run an ablation: train and evaluate every trial of a plan, then print the table of AP.

You can stop it at any time; the same command then goes on where it was. roi_plugins/ablation/plan.py
describes the format of a plan. Examples are in configs/ablations, and ``roi-plugins ablate
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
from typing import Any

import yaml
from rich.console import Console

from roi_plugins.ablation import executors, runner
from roi_plugins.ablation.compare import ComparisonError, compare
from roi_plugins.ablation.cost import summarize
from roi_plugins.ablation.dry_run import find_problems
from roi_plugins.ablation.job import AblationError, Job, prepare, warn_of_confounded
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
from roi_plugins.ablation.report.formats import headline, write_comparison
from roi_plugins.ablation.tracking import Tracking
from roi_plugins.console import print_anything
from roi_plugins.files import DataError, atomic_write
from roi_plugins.integrations.arguments import add_track_option, check_tracker, whole_number
from roi_plugins.integrations.errors import RunError
from roi_plugins.integrations.zoo import locate_config


def main(arguments: Sequence[str] | None = None, prog: str = 'roi-plugins ablate') -> int:
    """The command line of ``roi-plugins ablate``. Returns the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.partition('\n')[0])
    parser.add_argument(
        'plan',
        nargs='+',
        metavar='PLAN',
        help='the plan: a YAML file, or its name in the folder that `roi-plugins configs` prints, such as '
        'ablations/demo.yaml; with --extractors, one or more configs instead: files, names in that folder, '
        'or names in a model zoo, such as mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    )
    without = parser.add_argument_group('without a plan')
    without.add_argument(
        '--extractors',
        nargs='+',
        metavar='ROW',
        help='the extractors to compare, which replace those of the configs: stock, a row of presets.yaml '
        'such as align-max, or only a type such as AlignMax; the first one is the baseline',
    )
    without.add_argument(
        '--seeds',
        nargs='+',
        type=whole_number(0),
        metavar='N',
        help='seeds; each extractor runs once with each (default: 0)',
    )
    without.add_argument(
        '--heads',
        nargs='+',
        metavar='HEAD',
        help='the heads whose extractors are replaced: bbox, mask, ... (default: all)',
    )
    parser.add_argument(
        '--work-dir',
        help="folder of the runs (default: the plan's work_dir, or work_dirs/ablation without a plan)",
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
        help='run nothing; print the trials, their commands, how long they will take and what is missing; '
        'the exit status is 1 if anything is missing',
    )
    parser.add_argument(
        '--watch',
        action='store_true',
        help='run nothing; show the progress of the trials that other processes run',
    )
    add_track_option(parser)
    side_by_side = parser.add_argument_group('trials side by side')
    side_by_side.add_argument(
        '--jobs', type=whole_number(1), metavar='N', help='how many trials run at a time (default: 1)'
    )
    side_by_side.add_argument(
        '--gpus-per-trial',
        type=int,
        metavar='G',
        help="GPUs of each trial, over all its machines; 0 for none (default: the plan's num_gpus)",
    )
    side_by_side.add_argument(
        '--executor',
        choices=('local', 'slurm'),
        default='local',
        help='run the trials on this machine, or as an array of Slurm jobs, which resume after they were '
        'preempted or ran out of time (default: local)',
    )
    side_by_side.add_argument(
        '--nodes', type=whole_number(1), default=1, metavar='M', help='machines of each trial (default: 1)'
    )
    side_by_side.add_argument('--partition', help="partition of Slurm (default: the cluster's)")
    side_by_side.add_argument(
        '--time',
        type=minutes,
        metavar='MINUTES',
        help='time limit of a Slurm job, in minutes or as [DAYS-]HOURS:MINUTES:SECONDS; a trial that is not '
        'finished by then resumes in another job',
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
        plan = replace(plan, num_nodes=args.nodes, tracker=args.track)
        check_tracker(args.track)
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
        return 1 if report(plan, work_dir, options, failed) else 0
    except (PlanError, RunError, AblationError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except OSError as error:  # the disk is full, or the work directory is gone
        print(
            f'error: {error} (work directory {work_dir}). Finished trials are kept; '
            'the same command goes on where it was',
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print('\nstopped; the same command goes on where it was', file=sys.stderr)
        return 130


def make_plan(args: argparse.Namespace) -> dict:
    """Makes the plan that the arguments of the command line describe."""
    configs: dict[str, dict[str, Any]] = {}
    for config in args.plan:
        name = re.sub(r'[^\w-]', '_', Path(config.rpartition('::')[2]).stem)
        if name in configs:
            raise PlanError(f'{config} and {configs[name]["path"]} have the same name; put them into a plan')
        # The path of a file must also be right when read from the plan that is written. The rest are names.
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
    """Writes the plan beside the results, so that it can be used again.

    Raises:
        PlanError: the work directory has the plan of another ablation.
    """
    path = work_dir / 'plan.yaml'
    if path.exists() and yaml.safe_load(path.read_text(encoding='utf-8')) != tree:
        raise PlanError(f'{path} is the plan of another ablation; give another --work-dir')
    work_dir.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as aside:
        aside.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding='utf-8')


def minutes(text: str) -> int:
    """Converts a time limit of sbatch, MINUTES or [DAYS-]HOURS:MINUTES:SECONDS, to minutes."""
    found = re.fullmatch(r'(\d+)|(?:(\d+)-)?(\d+):(\d\d):\d\d', text)
    if not found:
        raise ValueError
    alone, days, hours, rest = (int(part or 0) for part in found.groups())
    return alone + (24 * days + hours) * 60 + rest


def check_executor(args: argparse.Namespace, plan: Plan) -> None:
    """Checks that the options for running trials fit together.

    Raises:
        AblationError: they do not.
    """
    if plan.num_gpus < 0:
        raise AblationError(f'--gpus-per-trial is {plan.num_gpus}; expected an integer >= 0')
    if args.executor == 'local' and (args.nodes > 1 or args.partition or args.time):
        raise AblationError('--nodes, --partition and --time are for --executor slurm')
    if args.executor == 'slurm' and not args.time:
        raise AblationError(
            '--executor slurm needs --time, how long a job may run; a trial that needs longer resumes'
        )
    if args.nodes > 1 and (plan.num_gpus == 0 or plan.num_gpus % args.nodes):
        raise AblationError(
            f'--nodes is {args.nodes}, but each trial has {plan.num_gpus} GPUs in all; give a multiple of '
            f'{args.nodes} as --gpus-per-trial'
        )


def make_executor(args: argparse.Namespace, plan: Plan, work_dir: Path) -> executors.Executor | None:
    """Makes what runs the trials side by side; None to run them one after the other in this process."""
    if '%' in str(work_dir.absolute()) and (args.executor == 'slurm' or (args.jobs or 1) > 1):
        raise AblationError(
            f'{work_dir.absolute()}: submitit and Slurm replace what follows a % in a path; leave out '
            '--jobs and --executor, or give another --work-dir'
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
    """Prints the trials, then what is missing. Returns True if anything is missing."""
    for job in jobs:
        state = 'to resume' if job.record else 'to run'
        print(f'{job.trial.name}: {"finished" if job.finished else state}')
        for command in job.commands:
            print(f'  {shlex.join(command)}')
    print('\n' + '\n'.join(summarize(jobs)))
    with console.status('checking data, weights and output folders'):
        missing = [job for job in find_problems(jobs) if job.problem]
    if missing:
        print('\nmissing:')
    for job in missing:
        print(f'  {job.trial.name}: {job.problem}')
    return bool(missing)


def parse_options(pairs: list[str]) -> dict:
    """Reads the config options of ``--cfg-options KEY=VALUE ...``."""
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition('=')
        if not equals:
            raise PlanError(f'--cfg-options: {pair!r} is not of the form KEY=VALUE')
        options[key] = read_yaml(value, f'--cfg-options: the value of {pair!r}')
    return check_cfg_options(options)


def read_yaml(text: str, name: str) -> object:
    """Reads an argument as YAML.

    Raises:
        PlanError: it is not YAML.
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PlanError(f'{name} is not YAML: {" ".join(str(error).split())}') from None


def stop_on_signals() -> None:
    """Makes the signals of a batch system and of a closed terminal do what Ctrl-C does."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP, and so do we then
            signal.signal(number, signal.default_int_handler)


def report(plan: Plan, work_dir: Path, cfg_options: dict, failed: list[Job]) -> bool:
    """Prints and writes the tables of the finished trials. Returns True if anything went wrong."""
    failed_trials = {job.trial for job in failed}
    finished = [trial for trial in plan.trials if trial not in failed_trials]
    problems = [
        f'trial {job.trial.name} '
        + (f'was not run: {job.problem}' if job.problem else f'failed: see {job.log}')
        for job in failed
    ]
    tracking = Tracking(plan, work_dir, cfg_options, Console(stderr=True))
    for trial in finished:  # those that were finished before, maybe without a tracker
        tracking.end(trial)
    if finished:
        has_baseline = any(trial.extractor == plan.baseline for trial in finished)
        try:
            comparison = compare(
                [work_dir / trial.name for trial in finished],
                baseline=plan.baseline if has_baseline else None,
                primary_metric=plan.primary_metric,
                margin=plan.margin,
            )
        except (ComparisonError, DataError) as error:
            problems.append(str(error))
        else:
            write_comparison(comparison, work_dir / 'compare')
            tracking.compare(comparison, work_dir / 'compare')
            print(f'\n{headline(comparison)}\nall tables: {work_dir / "compare"}')
            for note in comparison.notes:
                print(f'note: {note}')
            problems += comparison.problems
    for problem in problems:
        print(f'error: {problem}', file=sys.stderr)
    return bool(problems)
