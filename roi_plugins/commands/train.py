"""``train`` and ``test``: call the tools of the framework of a config, with their own options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from roi_plugins.integrations.arguments import add_shared_options
from roi_plugins.integrations.errors import RunError
from roi_plugins.integrations.inspection import InspectionError, guess_frameworks
from roi_plugins.integrations.registry import FRAMEWORKS
from roi_plugins.integrations.zoo import locate_config


def main(arguments: Sequence[str] | None = None, prog: str = 'roi-plugins train') -> int:
    """The command line of ``roi-plugins train``. Returns the exit status."""
    return _main('train', arguments, prog)


def test_main(arguments: Sequence[str] | None = None, prog: str = 'roi-plugins test') -> int:
    """The command line of ``roi-plugins test``. Returns the exit status."""
    return _main('test', arguments, prog)


def _main(phase: str, arguments: Sequence[str] | None, prog: str) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser(phase, prog)
    args, rest = parser.parse_known_args(given)
    asks_for_help = '-h' in rest or '--help' in rest
    positional = next((text for text in rest if not text.startswith('-')), None)
    if args.resume and args.resume.endswith(('.py', '.yaml', '.yml')):
        positional = args.resume  # Detectron2's --resume takes no value, so the config follows it
    config = args.config_file or positional
    if config is None and args.framework is None:
        if not asks_for_help:
            parser.error('no config is given')
        parser.print_help()
        return 0
    framework = args.framework
    try:
        if config is not None:
            config = str(locate_config(config))
            framework = framework or _framework_of(config)
    except (RunError, InspectionError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    left = _without(given, '--framework', '--config-file')
    if args.config_file is None and positional is not None:
        left.remove(positional)
    described = FRAMEWORKS[framework]
    assert described.module and described.tool_arguments  # only the framework of the tests has none
    return _call(import_module(described.module).main, described.tool_arguments(phase, config, left), prog)


def _parser(phase: str, prog: str) -> argparse.ArgumentParser:
    """Makes the parser that finds the config among the arguments.

    The tool of the framework parses the arguments itself. This parser only has to know which options of both
    frameworks take a value.
    """
    verb = {'train': 'Train', 'test': 'Evaluate'}[phase]
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f'{prog} [--framework NAME] CONFIG [OPTION ...]',
        description=f'{verb} a detector. The options depend on the framework of the config; '
        f'{prog} --framework NAME --help shows them.',
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        '--framework',
        choices=FRAMEWORKS,
        metavar='NAME',
        help='mmdet or detectron2; needed only for a config that both could read',
    )
    parser.add_argument(
        '--config-file',
        metavar='CONFIG',
        help='the config: a file, a name in the folder that `roi-plugins configs` prints, or a name in a '
        'model zoo; without this option, it is the first argument',
    )
    hidden = parser.add_argument_group()
    for name in ('work-dir', 'launcher', 'num-gpus', 'num-machines', 'machine-rank', 'dist-url'):
        hidden.add_argument(f'--{name}', help=argparse.SUPPRESS)
    hidden.add_argument('--local_rank', '--local-rank', help=argparse.SUPPRESS)
    hidden.add_argument('--resume', nargs='?', help=argparse.SUPPRESS)
    hidden.add_argument('--track', help=argparse.SUPPRESS)
    hidden.add_argument('--cfg-options', nargs='+', help=argparse.SUPPRESS)
    add_shared_options(parser)
    return parser


def _framework_of(config: str) -> str:
    frameworks = guess_frameworks(Path(config))
    if len(frameworks) > 1:
        raise RunError(
            f'{config} may be a config of {" or ".join(frameworks)}; say which with --framework NAME'
        )
    return frameworks[0]


def _without(arguments: Sequence[str], *options: str) -> list[str]:
    """Removes options and their values from arguments."""
    left = []
    given = iter(arguments)
    for argument in given:
        if argument in options:
            next(given)
        elif not argument.startswith(tuple(f'{option}=' for option in options)):
            left.append(argument)
    return left


def _call(tool: Callable[[Sequence[str]], int], arguments: list[str], prog: str) -> int:
    """Calls a framework's tool. Its help shows ``sys.argv[0]`` as the name of the program."""
    program = sys.argv[0]
    sys.argv[0] = prog
    try:
        return tool(arguments)
    finally:
        sys.argv[0] = program
