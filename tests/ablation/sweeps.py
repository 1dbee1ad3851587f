"""Commands on a plan whose trials take milliseconds, each in a process of its own, as a user has them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import yaml
from fake_framework import hear_signals

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools' / 'ablate.py'

# What every Python does first: the trials' framework is there in the commands and in their jobs.
SITE = """
import sys
if not any('fake_framework' in argument for argument in sys.orig_argv):
    from fake_framework import FAKE
    from roi_plugins.ablation.executors import Slurm
    from roi_plugins.integrations.registry import FRAMEWORKS
    FRAMEWORKS['fake'] = FAKE
    Slurm.poll_seconds = 0.2
"""


class Sweep:
    """A plan in a folder, and the commands on it."""

    def __init__(self, folder):
        self.folder = folder
        self.started = []
        (folder / 'site').mkdir()
        (folder / 'site' / 'sitecustomize.py').write_text(SITE)
        path = os.pathsep.join(map(str, (folder / 'site', ROOT, Path(__file__).parent)))
        self.environment = {**os.environ, 'PYTHONPATH': path}

    def end(self):
        for process in self.started:
            process.kill()
            process.communicate()

    def write(self, **configs):
        for extractor, config in configs.items():
            (self.folder / f'{extractor}.json').write_text(json.dumps(config))
        plan = {
            'name': 'small',
            'work_dir': 'work',
            'baseline': next(iter(configs)),
            'configs': {'tiny': {'framework': 'fake', 'path': '{extractor}.json'}},
            'extractors': list(configs),
            'seeds': [0],
        }
        (self.folder / 'plan.yaml').write_text(yaml.safe_dump(plan, sort_keys=False))

    def start(self, *arguments):
        process = subprocess.Popen(
            [sys.executable, str(TOOL), 'plan.yaml', *arguments],
            cwd=self.folder,
            env=self.environment,
            preexec_fn=hear_signals,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def slurm(self, *command):
        answer = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True)
        return answer.stdout.split()

    def job_of(self, trial):
        return self.path('.submitit', f'{trial}.job').read_text()

    def trainings(self):
        """The processes of trials."""
        found = []
        for process in Path('/proc').glob('[0-9]*'):
            try:
                here = (process / 'cwd').readlink() == self.folder
                if here and b'fake_framework.py' in (process / 'cmdline').read_bytes():
                    found.append(process)
            except OSError:  # it has ended
                continue
        return found

    def path(self, trial, name):
        return self.folder / 'work' / trial / name

    def steps(self, trial):
        path = self.path(trial, 'steps.txt')
        return list(map(int, path.read_text().split())) if path.exists() else []

    def state(self, trial):
        path = self.path(trial, 'trial.json')
        return json.loads(path.read_text())['state'] if path.exists() else None


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.05)


def read_until(process, *texts):
    """The lines of a command up to where all the texts have come; what follows is in its ``stdout``."""
    lines = ''
    for line in process.stdout:
        lines += line
        if all(text in lines for text in texts):
            return lines
    raise AssertionError(f'it ended without {texts}: {lines}')
