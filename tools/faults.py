"""Kill an ablation at random moments and check that nothing is lost: `make faults`.

Short trials of both frameworks run twice undisturbed, and once with kills (SIGKILL). A kill hits all
processes, as when a machine goes down, or only the runner, or only the training. After each kill, no file may
be half written, unless it has the name of a temporary file, and no finished trial may have changed. At the
end, the predictions are compared with those of the undisturbed runs.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import psutil

from roi_plugins.datasets.shapes import ShapesSpec, generate_shapes
from roi_plugins.evaluation.coco import METRICS, format_points
from roi_plugins.files import write_json
from roi_plugins.integrations.checkpoints import is_whole

ROOT = Path(__file__).resolve().parents[1]
VICTIMS = ('all', 'runner', 'training')
RESULTS = ('trial.json', 'metrics.json', 'predictions.bbox.json', 'predictions.segm.json')
RESUMED = re.compile(
    r'Advance dataloader \d+ steps|Starting training from iteration [1-9]|resumed from step \d+'
)
STEPS = 200


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--work-dir', type=Path, required=True, help='a directory that does not exist yet')
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--seed', type=int, default=0, help='seed of the moments and of the victims')
    args = parser.parse_args()
    args.work_dir.mkdir(parents=True)
    plan = write_plan(args.work_dir.resolve())
    os.environ['ROI_PLUGINS_SHAPES'] = str(args.work_dir.resolve() / 'shapes')  # where Detectron2 looks

    def command(name: str) -> list[str]:
        tool = str(ROOT / 'tools/ablate.py')
        return [sys.executable, tool, str(plan), '--work-dir', str(args.work_dir / name)]

    undisturbed = []
    for name in ('undisturbed', 'again'):
        start = time.monotonic()
        subprocess.run(command(name), check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - start
        undisturbed.append(args.work_dir / name)
        print(f'{name}: {seconds:.0f} s', flush=True)
    trial_seconds = seconds / len(list(undisturbed[0].glob('*/trial.json')))
    report = disturb(
        lambda number: (command(f'disturbed{number}'), args.work_dir / f'disturbed{number}'),
        args.kills,
        random.Random(args.seed),
        trial_seconds,
    )
    report['apart'] = {
        str(other.name): differences(undisturbed[0], other)
        for other in (undisturbed[1], *sorted(args.work_dir.glob('disturbed*')))
    }
    write_json(args.work_dir / 'faults.json', report)
    print(json.dumps(report, indent=2))
    return 1 if report['violations'] else 0


def write_plan(folder: Path) -> Path:
    """Writes a plan with two extractors in each framework, and generates its images."""
    data = folder / 'shapes'
    generate_shapes(data, ShapesSpec(num_train=64, num_val=16, image_size=96))
    options = {
        'mmdet': {
            'train_cfg.max_iters': STEPS,
            'default_hooks.checkpoint.interval': 20,
            'train_dataloader.batch_size': 4,
            'train_dataloader.dataset.data_root': f'{data}/',
            'test_dataloader.dataset.data_root': f'{data}/',
            'test_evaluator.ann_file': f'{data}/annotations/instances_val.json',
        },
        'detectron2': {
            'train.max_iter': STEPS,
            'train.checkpointer.period': 20,
            'dataloader.train.total_batch_size': 4,
        },
    }
    configs = {
        framework: {
            'framework': framework,
            'path': str(ROOT / f'configs/{framework}/shapes/mask-rcnn_r18-c4_shapes.py'),
            'cfg_options': options[framework],
        }
        for framework in options
        if find_spec(framework)
    }
    plan = {
        'name': 'faults',
        'work_dir': 'given on the command line',
        'baseline': 'align-avg',
        'configs': configs,
        'extractors': ['quantized-pool', 'align-avg'],
        'seeds': [0],
    }
    write_json(folder / 'plan.json', plan)
    return folder / 'plan.json'  # YAML too


def disturb(
    make: Callable[[int], tuple[list[str], Path]], kills: int, rng: random.Random, longest_wait: float
) -> dict:
    """Runs ablations and kills them, ``kills`` times in all. The last ablation runs to its end.

    Args:
        make: ``(number) -> (command, work_dir)`` of an ablation. If one ends before there were enough kills,
            another one starts.
        kills: how many kills there are.
        rng: draws the moments and the victims.
        longest_wait: the longest time from a start or a kill to the next kill, seconds.

    Returns:
        Counts for JSON. ``violations`` lists what must not happen and did.
    """
    counts, violations = Counter(), []
    number = 0
    while True:
        number += 1
        command, work_dir = make(number)
        finished: dict[Path, dict[str, str]] = {}
        code = None
        while code != 0:
            counts['starts'] += 1
            with open(os.devnull, 'wb') as devnull:
                runner = psutil.Popen(command, stdout=devnull, stderr=devnull)
            while counts['kills'] < kills:
                with contextlib.suppress(psutil.TimeoutExpired):
                    runner.wait(rng.uniform(0, longest_wait))
                    break
                if victim := kill(runner, rng.choice(VICTIMS)):
                    counts.update(['kills', f'kills of {victim}'])
                check(work_dir, finished, violations)
            code = runner.wait()
            check(work_dir, finished, violations)
            if counts['kills'] >= kills and code not in (0, 1, -9):
                violations.append(f'{work_dir}: the runner ended with {code}')
                return {**counts, 'violations': violations}
        counts['ablations'] += 1
        counts['trials'] += len(finished)
        logs = [path.read_text(errors='replace') for path in work_dir.glob('*/trial.log')]
        counts['processes'] += sum(log.count('] $ ') for log in logs)
        counts['resumed from a checkpoint'] += sum(len(RESUMED.findall(log)) for log in logs)
        if counts['kills'] >= kills:
            return {**counts, 'violations': violations}


def kill(runner: psutil.Popen, victim: str) -> str | None:
    """Kills the runner, its training, or all processes. Returns the victim; None if there was none."""
    try:
        below = runner.children(recursive=True)
    except psutil.NoSuchProcess:
        return None
    if victim == 'training' and not below:
        return None
    chosen = {'all': [runner, *below], 'runner': [runner], 'training': below[:1]}[victim]
    for process in chosen:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(chosen, timeout=10)
    return victim


def check(work_dir: Path, finished: dict[Path, dict[str, str]], violations: list[str]) -> None:
    """Checks that no file is half written, and that no finished trial has changed. Adds to ``finished``."""
    for run_dir in (path for path in work_dir.glob('*') if path.is_dir() and path.name[0] != '.'):
        for path in run_dir.glob('*.pth'):
            if path.name[0] != '.' and not is_whole(path) and path.exists():
                violations.append(f'{path}: half a checkpoint')
        digests, state = {}, None
        for name in RESULTS:
            with contextlib.suppress(FileNotFoundError):
                text = (run_dir / name).read_text()
                digests[name] = hashlib.sha256(text.encode()).hexdigest()
                try:
                    content = json.loads(text)
                except ValueError:
                    violations.append(f'{run_dir / name}: half a file')
                    continue
                if name == 'trial.json':
                    state = content['state']
        if run_dir in finished and digests != finished[run_dir]:
            violations.append(f'{run_dir}: changed after it was finished')
        if state == 'finished':
            finished[run_dir] = digests


def differences(first: Path, second: Path) -> dict[str, str]:
    """Describes how much the results of each trial differ between two work directories."""
    found = {}
    for run_dir in sorted(path.parent for path in first.glob('*/metrics.json')):
        pair: Sequence[Path] = (run_dir, second / run_dir.name)
        predictions = [{f.name: f.read_bytes() for f in p.glob('predictions.*.json')} for p in pair]
        metrics = [json.loads((p / 'metrics.json').read_text())['metrics'] for p in pair]
        apart = max(abs(metrics[0][t][m] - metrics[1][t][m]) for t in metrics[0] for m in METRICS)
        same = 'the same predictions' if predictions[0] == predictions[1] else 'other predictions'
        of = ', '.join(f'{t} AP {format_points(metrics[0][t]["AP"], 1)}' for t in metrics[0])
        found[run_dir.name] = f'{same}; APs differ by at most {100 * apart:.2f} ({of})'
    return found


if __name__ == '__main__':
    sys.exit(main())
