"""A framework whose training takes milliseconds: for the tests of the runner.

Its configs are JSON: ``steps`` to train, ``seconds`` a step, ``fail`` (the phase that does),
``hold`` (a file: after each step, training waits until it is there), ``stop`` (the step after which its first
training ends), ``ann_file`` and ``predictions`` (what it "detects"). It "saves a checkpoint" after each step,
and writes down each step it does. A test writes down what the checkpoint says. As a program it is its own
training and test; over several machines, the training is torchrun's, and the first process does it.
"""

import contextlib
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

from roi_plugins.integrations.base import Framework, torchrun


def hear_signals():
    """For a started process: what runs in the background, or under nohup, inherits deafness to these."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def resolve(config, options):
    return {**json.loads(config.read_text()), **options}


def commands(config, run_dir, options, inputs, checkpoint, num_gpus, num_nodes, tracker):
    arguments = [json.dumps(resolve(config, options)), str(run_dir)]
    test = [sys.executable, __file__, 'test', *arguments, str(checkpoint or run_dir / 'last_checkpoint')]
    launch = [sys.executable] if num_nodes == 1 else torchrun(num_gpus, num_nodes)
    train = [*launch, __file__, 'train', *arguments, *filter(None, [tracker])]
    return [test] if checkpoint else [train, test]


def progress(log):
    found = re.findall(r'step (\d+)/(\d+) left (\d+)', log)
    if not found:
        return None
    step, steps, left = found[-1]
    return f'train {step}/{steps}', float(left)


FAKE = Framework(resolve, commands, seed_option='seed', weights_options=('weights',), progress=progress)


def write(path, text):
    """Aside, for the training may be killed."""
    aside = path.with_name(f'.{path.name}.tmp')
    aside.write_text(text)
    aside.replace(path)


def train(config, run_dir, tracker=None):
    rank = os.environ.get('RANK', '0')
    names = ('WORLD_SIZE', 'SLURMD_NODENAME', 'CUDA_VISIBLE_DEVICES')
    print(f'rank {rank}', *(f'{name}={os.environ.get(name)}' for name in names), flush=True)
    if rank != '0':
        return
    checkpoint = run_dir / 'last_checkpoint'
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    if first:
        print(f'resumed from step {first}')
    with tracked(tracker, run_dir) as run:
        for step in range(first + 1, config['steps'] + 1):
            time.sleep(config.get('seconds', 0))
            write(checkpoint, str(step))
            with open(run_dir / 'steps.txt', 'a') as steps:
                steps.write(f'{step}\n')
            if run:
                run.scalars({'loss': 1 / step}, step)
            print(f'step {step}/{config["steps"]} left 7', flush=True)
            while 'hold' in config and not Path(config['hold']).exists():
                time.sleep(0.02)
            if config.get('stop') == step and not first:
                sys.exit('stops as asked')


def tracked(tracker, run_dir):
    if tracker is None:
        return contextlib.nullcontext()
    from roi_plugins.tracking import open_run

    return contextlib.closing(open_run(tracker, run_dir))


def test(config, run_dir, checkpoint):
    if 'predictions' not in config:
        tested = {'framework': 'fake', 'checkpoint': str(checkpoint), 'weights': checkpoint.read_text()}
        write(run_dir / 'metrics.json', json.dumps({'seed': config['seed'], **tested}))
        return
    from roi_plugins.run_record import write_run

    write(run_dir / 'predictions.bbox.json', json.dumps(config['predictions']))
    write_run(
        run_dir,
        framework='fake',
        config='fake.json',
        checkpoint=checkpoint,
        ann_file=config['ann_file'],
        command=sys.argv,
    )


if __name__ == '__main__':
    phase, config, run_dir = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
    if config.get('fail') == phase:
        sys.exit(f'{phase} fails as asked')
    if phase == 'train':
        train(config, run_dir, *sys.argv[4:])
    else:
        test(config, run_dir, Path(sys.argv[4]))
