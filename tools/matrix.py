#!/usr/bin/env python
"""Builds and tests the package with many torches, Pythons and frameworks: `python tools/matrix.py`.

Each combination gets an environment of its own, which is deleted afterwards. The first combination with a
torch builds the wheel for it, and all others use this wheel. The results go to docs/matrix/: `runs.jsonl` has
a line for each run, `README.md` the newest run of each combination, and docs/install.md a short table.

It needs uv (`pip install uv`), about 6 GB of disk for each torch, and the Pythons;
PYENV_VERSION=3.10.13:3.11.7 and the like select those of pyenv. Unknown arguments go to pytest.
"""

import argparse
import datetime
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from wheels import ROOT, SETUPTOOLS, build_wheel, environment, install

RESULTS = ROOT / 'docs' / 'matrix'
OPERATORS = Path(os.environ.get('ROI_PLUGINS_WHEELS', Path.home() / '.cache/roi_plugins/wheels'))
"""The folder of MMCV wheels with compiled operators, which tools/setup.sh uses too."""

_MMDET_NEEDS = ['addict', 'opencv-python-headless', 'six', 'terminaltables', 'yapf']
_MMDET_TESTS = 'tests/integrations/test_mmdet.py tests/tools/test_mmdet_tools.py'
_DETECTRON2_TESTS = 'tests/integrations/test_detectron2.py tests/tools/test_detectron2_tools.py'
_OPENMMLAB = ['mmengine==0.10.7', 'mmcv==2.1.0', 'mmdet==3.3.0']

FRAMEWORKS = {
    '': ([], [], 'tests/ops'),
    'openmmlab': (_OPENMMLAB, _MMDET_NEEDS, _MMDET_TESTS),
    'openmmlab-numpy1': (_OPENMMLAB, [*_MMDET_NEEDS, 'numpy<2'], _MMDET_TESTS),
    'onedl': (
        ['onedl-mmengine==0.10.12', 'onedl-mmcv==2.3.6', 'onedl-mmdetection==3.5.1'],
        [*_MMDET_NEEDS, 'imaug'],
        _MMDET_TESTS,
    ),
    'detectron2': (['sal-detectron2==0.7.2'], ['opencv-python-headless'], _DETECTRON2_TESTS),
    'detectron2-main': (
        ['detectron2 @ git+https://github.com/facebookresearch/detectron2.git'],
        ['opencv-python-headless'],
        _DETECTRON2_TESTS,
    ),
}
"""By name: the packages, what they need beyond the `detectron2` extra, and the tests to run with them."""


@dataclass(frozen=True)
class Combination:
    torch: str  # a release, or '' for the newest
    python: str
    framework: str = ''

    def __str__(self):
        return '-'.join(filter(None, [f'torch{self.torch or "-newest"}', f'py{self.python}', self.framework]))


COMBINATIONS = [
    *(Combination('2.4.0', python) for python in ('3.10', '3.11', '3.12')),  # it has no wheel for 3.13
    *(Combination('2.11.0', python) for python in ('3.10', '3.11', '3.12', '3.13')),
    *(Combination('', python) for python in ('3.10', '3.11', '3.12', '3.13')),
    *(
        Combination('2.11.0', '3.11', framework)
        for framework in ('openmmlab', 'onedl', 'detectron2', 'detectron2-main')
    ),
    *(Combination('2.4.0', '3.10', framework) for framework in ('openmmlab-numpy1', 'detectron2')),
]


def install_framework(folder, wheel, packages, needs):
    """Installs the packages of a framework without their own requirements.

    These would bring an OpenCV that needs system libraries, and an MMCV without its operators.
    """
    install(folder, f'{wheel}[detectron2]', *needs)
    for package in packages:
        if package.startswith('sal-detectron2'):  # tagged for Python 3.10, but it runs on later ones
            (site,) = Path(folder).glob('lib/python*/site-packages')
            install(
                *(folder, '--no-deps', '--only-binary', ':all:', '--python-version', '3.10'),
                *('--target', site, package),
            )
        else:
            built = mmcv_with_operators(folder, package) if 'mmcv' in package else package
            install(folder, '--no-deps', '--no-build-isolation', built)


def mmcv_with_operators(folder, package):
    """Returns a wheel of MMCV for this torch and Python, and compiles it if there is none yet."""
    python = Path(folder) / 'bin' / 'python'
    code = (
        'import platform, sys, torch; v = sys.version_info; '
        'print(f"torch{torch.__version__.split(chr(43))[0]}-cp{v[0]}{v[1]}-{platform.machine()}")'
    )
    wheels = OPERATORS / subprocess.check_output([python, '-c', code], text=True).strip()
    name = package.replace('-', '_').replace('==', '-')
    if not list(wheels.glob(f'{name}-*.whl')):
        environ = {**os.environ, 'MMCV_WITH_OPS': '1', 'PATH': f'{python.parent}:{os.environ["PATH"]}'}
        with tempfile.TemporaryDirectory() as built:
            install(folder, 'pip', 'psutil')
            subprocess.run(
                [python, '-m', 'pip', 'wheel', '--quiet', '--no-cache-dir', '--no-build-isolation',
                 '--no-deps', '--wheel-dir', built, package],
                check=True,
                env=environ,
            )  # fmt: skip
            wheels.mkdir(parents=True, exist_ok=True)
            for wheel in Path(built).glob('*.whl'):
                shutil.move(wheel, wheels)
    return next(wheels.glob(f'{name}-*.whl'))


def versions(folder):
    """Returns the version of each package; the commit of one that was installed from a repository."""
    listing = subprocess.check_output(['uv', 'pip', 'freeze', '--quiet', '--python', folder], text=True)
    found = re.findall(r'^(\S+)(?:==| @ \S*[@/])(\S+)$', listing, re.MULTILINE)
    return {name: end.split('-')[1] if '.whl' in end else end for name, end in found}


def check(combination, wheels, folder, arguments):
    """Runs the tests of a combination in a folder of its own, and returns the record of the run."""
    packages, needs, tests = FRAMEWORKS[combination.framework]
    record = {'combination': str(combination), 'date': datetime.date.today().isoformat()}
    began = time.monotonic()
    torch = f'torch=={combination.torch}' if combination.torch else 'torch'
    environ = folder / 'environment'
    python = environment(
        environ, combination.python, torch, 'torchvision', 'numpy', SETUPTOOLS, 'ninja',
        'pytest', 'pytest-xdist', 'hypothesis',
    )  # fmt: skip
    torch = versions(environ)['torch']
    if torch not in wheels:
        wheels[torch] = build_wheel(python, folder.parent / 'wheels'), combination.python
    wheel, built_under = wheels[torch]
    if packages:
        install_framework(environ, wheel, packages, needs)
    installed = versions(environ)
    record |= {
        'torch': torch,
        'python': subprocess.check_output([python, '-V'], text=True).split()[1],
        'with': {name: installed[name] for name in (re.split('==| @ ', package)[0] for package in packages)},
        'wheel': wheel.name,
        'built_under_python': built_under,
        'platform': f'{platform.system()} {platform.machine()}',
    }

    # The tests are copied beside the package from the wheel. The tests of the kernels need its sources too.
    tree = folder / 'tree'
    ignored = shutil.ignore_patterns('__pycache__')
    for name in ('tests', 'configs', 'tools'):
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    shutil.copy(ROOT / 'pyproject.toml', tree)
    install(environ, '--no-deps', '--target', tree, wheel)
    shutil.copytree(ROOT / 'roi_plugins/ops/csrc', tree / 'roi_plugins/ops/csrc')
    if not any(argument.startswith('tests') for argument in arguments):
        arguments = [*tests.split(), *arguments]
    log = folder.parent / f'{combination}.log'
    with log.open('w') as output:
        subprocess.run(
            [python, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *arguments],
            stdout=output, stderr=subprocess.STDOUT, cwd=tree, check=False,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
        )  # fmt: skip
    summary = log.read_text().rstrip().rpartition('\n')[2].strip('= ')
    counts = {word: int(n) for n, word in re.findall(r'(\d+) (passed|failed|skipped|errors?)\b', summary)}
    good = counts.get('passed', 0) > 0 and not counts.keys() & {'failed', 'error', 'errors'}
    return record | {
        'tests': shlex.join(arguments),
        'result': 'passed' if good else 'failed',
        'summary': summary,
        'seconds': round(time.monotonic() - began),
    }


def write(record):
    """Appends a record, and updates the tables of the newest record of each combination."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    runs = RESULTS / 'runs.jsonl'
    with runs.open('a') as file:
        file.write(json.dumps(record) + '\n')
    newest = {}
    for line in runs.read_text().splitlines():
        record = json.loads(line)
        newest[record['combination']] = record
    records = sorted(newest.values(), key=lambda r: [int(n) for n in re.findall(r'\d+', r['combination'])])
    replace(RESULTS / 'README.md', '\n'.join([*long_table(records), '']))
    table = '\n'.join([*short_table(records), ''])
    page = (ROOT / 'docs/install.md').read_text()
    between = r'(?s)(?<=<!-- matrix -->\n).*(?=<!-- /matrix -->)'
    replace(ROOT / 'docs/install.md', re.sub(between, lambda _: table, page))


def replace(path, text):
    part = path.with_name(f'{path.name}.part')
    part.write_text(text)
    part.replace(path)


def long_table(records):
    yield '# What was built and tested together'
    yield ''
    yield 'Written by `make matrix` (`tools/matrix.py`) out of [runs.jsonl](runs.jsonl), which has every run.'
    yield 'One wheel serves all Pythons of a torch: "built under" is the one that built it.'
    yield ''
    yield '| torch | Python | with | wheel | built under | tests | result | date |'
    yield '|---|---|---|---|---|---|---|---|'
    for r in records:
        if 'torch' not in r:  # it failed before the tests
            yield f'| {r["combination"]} | | | | | | {r["result"]}: {r["summary"]} | {r["date"]} |'
            continue
        yield (
            f'| {r["torch"]} | {r["python"]} | {others(r)} | {r["wheel"].split("-")[1]} '
            f'| {r["built_under_python"]} | `{r["tests"]}` | {r["result"]}: {r["summary"]} | {r["date"]} |'
        )


def short_table(records):
    """Yields a table with a line for each torch and framework: its Pythons and how many tests passed."""
    lines = {}
    for r in records:
        key = (r['torch'], others(r) or "the op's tests") if 'torch' in r else (r['combination'], '')
        passed = re.search(r'\d+ passed', r['summary'])
        result = passed[0] if passed and r['result'] == 'passed' else '**failed**'
        lines.setdefault(key, []).append(f'{r.get("python", "")} ({result}, {r["date"]})')
    yield '| torch | with | Python |'
    yield '|---|---|---|'
    for (torch, what), pythons in lines.items():
        yield f'| {torch} | {what} | {", ".join(pythons)} |'


def others(record):
    return ', '.join(f'{name} {version[:12]}' for name, version in record['with'].items())


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    names = [str(combination) for combination in COMBINATIONS]
    parser.add_argument('--only', nargs='+', choices=names, metavar='COMBINATION', help=', '.join(names))
    args, arguments = parser.parse_known_args(argv)
    arguments = [argument for argument in arguments if argument != '--']
    if shutil.which('uv') is None:
        sys.exit('matrix: uv was not found; it is on the package index: pip install uv')
    work = ROOT / 'build' / 'matrix'
    work.mkdir(parents=True, exist_ok=True)
    wheels, failed = {}, []
    for combination in COMBINATIONS:
        if args.only and str(combination) not in args.only:
            continue
        print(combination, '...', flush=True)
        with tempfile.TemporaryDirectory(dir=work) as folder:
            try:
                record = check(combination, wheels, Path(folder), arguments)
            except subprocess.CalledProcessError as error:
                record = {
                    'combination': str(combination),
                    'date': datetime.date.today().isoformat(),
                    'result': 'failed',
                    'summary': f'`{" ".join(map(str, error.cmd))[:200]}`',
                }
        write(record)
        print(f'{combination}: {record["result"]}: {record["summary"]}', flush=True)
        if record['result'] != 'passed':
            failed.append(str(combination))
    if failed:
        sys.exit(f'matrix: failed: {", ".join(failed)}; logs are in {work}')


if __name__ == '__main__':
    main()
