#!/usr/bin/env python
"""Measures the op beside peers that need another torch: `python tools/benchmark_peers.py --out DIR`.

Each environment is kept in build/peers/NAME and used again; delete it to get newer versions of what is not
pinned. The package is built for its torch and installed anew in each run. Results go to DIR/NAME. Unknown
arguments go to `roi-plugins benchmark`, e.g. `--threads 2 --cases 'align-avg-*'`.

It needs uv (`pip install uv`) and 7 GB of disk for each environment: the index has no torch for Linux without
CUDA. Only the CPU is measured.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from wheels import ROOT, SETUPTOOLS, build_wheel, environment, install, run

KEPT = ROOT / 'build' / 'peers'
PYTHON = '3.11'
ENVIRONMENTS = {
    'intel': (
        'torch==2.8.0',  # the last one that Intel's extension supports
        'torchvision==0.23.0',
        'intel_extension_for_pytorch==2.8.0',
        'onnxruntime==1.32.0',
        'openvino==2026.4.1',
    ),
    'newest': ('torch', 'torchvision'),
}
"""What is measured in each environment. All have COMMON besides."""
COMMON = ('matplotlib', 'ninja', 'numpy', 'onnx', 'tabulate')
"""What the benchmark needs, in the versions of requirements.txt."""


def kept_environment(name):
    """Returns the folder of an environment; makes it if it is not there with the same requirements."""
    folder = KEPT / name
    pinned = [
        line for line in (ROOT / 'requirements.txt').read_text().split() if line.partition('==')[0] in COMMON
    ]
    requirements = [*ENVIRONMENTS[name], *pinned, SETUPTOOLS]
    note = folder / 'requirements.txt'  # written last, so that an interrupted installation starts again
    if not note.exists() or note.read_text().split() != requirements:
        environment(folder, PYTHON, *requirements)
        note.write_text('\n'.join([*requirements, '']))
    return folder


def measure(name, out, arguments):
    """Builds and installs the package in an environment, and measures there into ``out / name``."""
    folder = kept_environment(name)
    wheel = build_wheel(folder / 'bin' / 'python', KEPT / 'wheels')
    install(folder, '--no-deps', '--reinstall', wheel)
    out.mkdir(parents=True, exist_ok=True)
    # In this folder nothing is imported from the repository, and the results name no path of this machine.
    tool = folder / 'bin' / 'roi-plugins'
    run(tool, 'benchmark', '--device', 'cpu', '--out', name, *arguments, cwd=out)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--only', nargs='+', choices=ENVIRONMENTS, default=[*ENVIRONMENTS], metavar='NAME',
        help=f'environments to measure in, of {", ".join(ENVIRONMENTS)}; default: all',
    )  # fmt: skip
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='where the results go')
    args, arguments = parser.parse_known_args(argv)
    os.environ['ROI_PLUGINS_CUDA'] = '0'  # its kernels would take minutes to compile
    try:
        for name in args.only:
            print(name, '...', flush=True)
            measure(name, args.out, arguments)
    except FileNotFoundError as error:
        sys.exit(
            f'benchmark_peers: {error.filename} was not found; uv is on the package index: pip install uv'
        )
    except subprocess.CalledProcessError as error:
        sys.exit(f'benchmark_peers: this failed, see above: {" ".join(map(str, error.cmd))}')


if __name__ == '__main__':
    main()
