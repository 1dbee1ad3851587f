#!/usr/bin/env python
"""Swaps the RoI extractors of both frameworks' model zoos by their type alone: `python tools/zoo_swap.py`.

Configs with the same heads and extractors are of one kind; in MMDetection they are also in one folder. One
config of each kind runs on the CPU with random weights, as three models: the stock model, one with extractors
of ours that compute the same (AlignAvg; AllLevels for MMDetection's GenericRoIExtractor), and one with
AlignMax. Each makes a training step and a prediction. The second model must have the losses and detections of
the stock model. The third must have other losses.

Each config runs in a process of its own. Its result is a line of `work_dirs/zoo_swap.jsonl`, so an
interrupted command goes on where it was, and tries again what failed. `docs/zoo.md` is the table. It is
written when both frameworks have run. The exit status is 1 if a config fails.
"""

import argparse
import datetime
import importlib
import json
import logging
import multiprocessing
import re
import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

import torch
from tabulate import tabulate
from zoo_kinds import Kind, detections_apart, losses_apart

from roi_plugins.hardware import cpu_name

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'zoo.md'
FRAMEWORKS = {'mmdet': 'MMDetection', 'detectron2': 'Detectron2'}
SAME = 1e-5
"""Losses are the same up to this relative difference."""
TRAINED = 1e-4
"""Norms of gradients are the same up to this relative difference."""
FOUND = 1e-3
"""Detections are the same up to this difference, in the score or as a share of the image."""
SECONDS = 600  # time limit of a config, which usually takes 10 to 60


TEXT = """\
# Every kind of detector in the model zoos, swapped

Does a type alone change the extractor and nothing else? `python tools/zoo_swap.py` tries it on both zoos and
writes this page. Its exit status is 1 where a config fails.

| | |
|---|---|
| versions | {versions} |
| hardware | one core of {cpu}, no GPU |
| date | {date} |
| time | {minutes:.0f} min |

Configs are of one kind if their model, heads and extractors have the same types and the extractors the same
options; in MMDetection's zoo they are also in one folder. One config of each kind is run, a ResNet-50 if
there is one; *alike* is how many there are. It is run three times, with the same random weights and the same
random numbers: with the stock extractors, with ours that compute the same, and with AlignMax. The options
that swap set the `type` of each extractor, and no more.

Each model makes a training step (losses and gradients) and a prediction, for one or two images of 128 x 128,
or of 256 x 256 where RoIs read a single map. The layers are the config's own, SyncBN apart, which needs GPUs.
There are fewer proposals, samples and detections, no pretrained weights, and BatchNorm is not trained.
Detectors with learned proposals are run in double precision, as their stages multiply rounding.

| column | largest difference from the stock model | expected |
|---|---|---|
| losses | relative, of the losses | at most {same:.0e} |
| gradient | relative, of the norm of the gradient of all weights | at most {trained:.0e} |
| detections | from a detection to the nearest stock one: score, box, area | at most {found:.0e} |
| maximum | relative, of the losses with AlignMax | more than {same:.0e} |

Boxes and areas are shares of the image: one pixel of a mask is 6e-05. Where the stock extractor is
`GenericRoIExtractor`, *maximum* is AllLevels with `reduction='max'`, because AlignMax reads one map only.
Where the stock layer is not RoIAlign (PointRend's sampling, deformable pooling), ours is not meant to
compute the same: it has to train a step and to predict.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--framework', nargs='+', choices=FRAMEWORKS, default=list(FRAMEWORKS))
    parser.add_argument('--results', type=Path, default=ROOT / 'work_dirs' / 'zoo_swap.jsonl')
    args = parser.parse_args()
    kinds = [kind for framework in args.framework for kind in zoo(framework).find_kinds()]
    args.results.parent.mkdir(parents=True, exist_ok=True)
    known = read(args.results)
    rows = []
    for number, kind in enumerate(kinds, start=1):
        row = known.get((kind.framework, kind.config))
        if row is None or row['failure'] or row['kind'] != asdict(kind):
            row = prove_apart(kind)
            with args.results.open('a', encoding='utf-8') as file:
                print(json.dumps(row), file=file)
        print(f'{number}/{len(kinds)} {kind.framework} {kind.config}: {outcome(row)}', flush=True)
        rows.append(row)
    if set(args.framework) == set(FRAMEWORKS):
        PAGE.write_text(page(rows), encoding='utf-8')
    return int(any(row['failure'] for row in rows))


def zoo(framework: str) -> ModuleType:
    """Imports the part for one framework, so that the other need not be installed."""
    return importlib.import_module(f'zoo_{framework}')


def read(path: Path) -> dict[tuple[str, str], dict]:
    """Reads the newest row of each config."""
    lines = path.read_text(encoding='utf-8').splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return {(row['kind']['framework'], row['kind']['config']): row for row in rows}


def prove_apart(kind: Kind) -> dict:
    """Calls :func:`prove` in a process of its own, because it may crash, hang or take all memory."""
    start = time.monotonic()
    context = multiprocessing.get_context('fork')  # importing the frameworks takes longer than a config
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, kind))
    process.start()
    sender.close()
    try:
        row = receiver.recv() if receiver.poll(SECONDS) else {'failure': f'it took longer than {SECONDS} s'}
    except EOFError:
        process.join()
        row = {'failure': f'its process ended with {process.exitcode}'}
    process.kill()
    process.join()
    return {'kind': asdict(kind), **row, 'seconds': round(time.monotonic() - start, 1)}


def _send(sender: Connection, kind: Kind) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter('ignore')
    sender.send(prove(kind))


def prove(kind: Kind) -> dict:
    """Runs the three models of a kind and compares them.

    Returns:
        ``losses``, ``gradient``, ``detections`` and ``different``: the differences from the stock model, and
        ``number``: how many detections there are. If the stock model does not run here, ``reason``: why, and
        ``ours``: whether our model does. In both cases ``failure``: what should hold and does not.
    """
    if kind.problem:
        return {'reason': described(kind.problem), 'ours': False, 'failure': ''}
    module = zoo(kind.framework)
    compute = module.compute
    try:
        weights = module.random_weights(kind, {})
        stock = compute(kind, {}, weights)
    except Exception as error:  # only stock code has run until here
        return {'reason': described(error), 'ours': runs(kind), 'failure': ''}
    try:
        same = compute(kind, kind.same, weights)
        different = compute(kind, kind.different, weights)
    except Exception as error:
        return {'failure': described(error)}
    row = {
        'losses': losses_apart(same.losses, stock.losses),
        'gradient': abs(same.gradient / stock.gradient - 1),
        'detections': detections_apart(same.detections, stock.detections),
        'different': losses_apart(different.losses, stock.losses),
        'number': len(stock.detections),
    }
    return {**row, 'failure': failure(row) if kind.is_exact else ''}


def runs(kind: Kind) -> bool:
    """Tells whether our model makes a training step and a prediction, for a stock model that does not."""
    module = zoo(kind.framework)
    try:
        module.compute(kind, kind.same, module.random_weights(kind, kind.same))
    except Exception:
        return False
    return True


def failure(row: Mapping[str, float]) -> str:
    """Lists the claims that do not hold."""
    claims = {
        f'the losses differ by {row["losses"]:.1e}': row['losses'] <= SAME,
        f'the gradients differ by {row["gradient"]:.1e}': row['gradient'] <= TRAINED,
        f'the detections differ by {row["detections"]:.1e}': row['detections'] <= FOUND,
        f'the losses of the maximum differ by {row["different"]:.1e} only': row['different'] > SAME,
        'nothing was detected': row['number'] > 0,
    }
    return '; '.join(claim for claim, holds in claims.items() if not holds)


def described(error: Exception | str) -> str:
    """Returns the first line of an error, with paths shortened to what follows the zoo."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r'/\S*/(?=configs/)', '', first)


def outcome(row: Mapping) -> str:
    if row['failure']:
        return f'FAILED: {row["failure"]}'
    if 'reason' in row:
        return f'not run: {row["reason"]}'
    return f'{row["losses"]:.1e} {row["detections"]:.1e} {row["different"]:.1e}'


def page(rows: Sequence[Mapping]) -> str:
    """Makes docs/zoo.md."""
    packages = map(importlib.import_module, ('torch', 'mmengine', 'mmcv', 'mmdet', 'detectron2'))
    parts = [
        TEXT.format(
            versions=', '.join(f'{package.__name__} {package.__version__}' for package in packages),
            cpu=cpu_name(),
            date=datetime.date.today(),
            minutes=sum(row['seconds'] for row in rows) / 60,
            same=SAME,
            trained=TRAINED,
            found=FOUND,
        )
    ]
    for framework, name in FRAMEWORKS.items():
        own = [row for row in rows if row['kind']['framework'] == framework]
        ran = [row for row in own if 'reason' not in row]
        others = [row for row in own if 'reason' in row]
        configs = sum(row['kind']['alike'] for row in own)
        failed = sum(bool(row['failure']) for row in ran)
        parts.append(f'## {name}')
        parts.append(f'{configs} configs are of {len(own)} kinds: {len(ran)} were run, {failed} failed.')
        parts.append(table(map(entry, ran)))
        if others:
            parts.append(f'The stock models of {len(others)} do not run here.')
            parts.append(table(map(left_out, others)))
    return '\n\n'.join(parts) + '\n'


def table(lines: Iterable[Mapping[str, object]]) -> str:
    return tabulate(lines, headers='keys', tablefmt='github', disable_numparse=True)


def entry(row: Mapping) -> dict[str, object]:
    """Makes the line of a config that was run."""
    kind = row['kind']
    types = dict.fromkeys(type_.strip('"').removesuffix('RoIExtractor') for type_ in kind['same'].values())
    losses, gradient, detections, maximum = (
        f'{row[key]:.0e}' if key in row else '' for key in ('losses', 'gradient', 'detections', 'different')
    )
    remark = '' if kind['is_exact'] else 'not meant to be the same'
    return {
        **named(kind),
        'ours': ', '.join(types),
        'losses': losses,
        'gradient': gradient,
        'detections': detections,
        'maximum': maximum,
        'remark': f'FAILED: {row["failure"]}' if row['failure'] else remark,
    }


def left_out(row: Mapping) -> dict[str, object]:
    """Makes the line of a config whose stock model does not run here."""
    return {
        **named(row['kind']),
        'error of the stock model': row['reason'],
        'ours': 'trains and predicts' if row['ours'] else 'does not run either',
    }


def named(kind: Mapping) -> dict[str, object]:
    columns = {'config': f'`{kind["config"]}`', 'alike': kind['alike']}
    return {**columns, 'model and heads': kind['heads'], 'stock extractor': kind['stock']}


if __name__ == '__main__':
    sys.exit(main())
