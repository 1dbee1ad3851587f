"""The command-line options that the train and test tools of all frameworks share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from roi_plugins.tracking import TRACKERS, find_problem

from .errors import RunError
from .modules import absolute_modules


def add_shared_options(parser: argparse.ArgumentParser) -> None:
    """Adds all of these options to a parser.

    Args:
        parser: the parser, which is changed.
    """
    add_import_option(parser)
    _add_swap_options(parser)
    _add_data_options(parser)
    _add_max_dets(parser)


def add_import_option(parser: argparse.ArgumentParser) -> None:
    """Adds the option ``--import MODULE`` to a parser, whose values are a list ``imports``.

    Args:
        parser: the parser, which is changed.
    """
    parser.add_argument(
        '--import',
        dest='imports',
        action='append',
        default=[],
        metavar='MODULE',
        help='import a module first, such as one that registers your datasets or parts of models: its '
        'name, or a .py file; may be given several times',
    )


def _add_swap_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--extractor``, by default None, and ``--heads``, by default empty."""
    parser.add_argument(
        '--extractor',
        metavar='ROW',
        help='what replaces the RoI extractors of the config: a row of presets.yaml such as '
        'align-max, a type alone such as AlignMax, which keeps the other options of the config, or a row '
        "written in place, '{name: max-4, type: AlignMax, sampling_ratio: 4}'; stock: nothing",
    )
    parser.add_argument(
        '--heads',
        type=lambda text: text.split(','),
        default=[],
        metavar='HEAD[,HEAD...]',
        help='the heads whose extractors are replaced: bbox, mask, keypoint and so on; by default all',
    )


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--train-data`` and ``--test-data``, by default None."""
    for half, what in (('train', 'train'), ('test', 'evaluate')):
        parser.add_argument(
            f'--{half}-data',
            nargs=2,
            metavar=('ANNOTATIONS', 'IMAGES'),
            help=f'{what} on COCO files of your own instead of the datasets of the config: '
            'instance annotations (.json) and the folder of the images',
        )


def add_track_option(parser: argparse.ArgumentParser) -> None:
    """Adds the option ``--track TRACKER``, by default None, of what trains to a parser.

    Args:
        parser: the parser, which is changed.
    """
    parser.add_argument(
        '--track',
        choices=TRACKERS,
        help='log to an experiment tracker as well; W&B needs no login with WANDB_MODE=offline, MLflow no '
        'server',
    )


def check_tracker(tracker: str | None) -> None:
    """Checks that a tracker can be used here.

    Args:
        tracker: the value of ``--track``.

    Raises:
        RunError: it cannot; the message says what to do.
    """
    if tracker and (problem := find_problem(tracker)):
        raise RunError(f'--track {tracker} needs {problem}')


def _add_max_dets(parser: argparse.ArgumentParser) -> None:
    """Adds ``--max-dets``, by default None."""
    parser.add_argument(
        '--max-dets',
        type=whole_number(1),
        metavar='N',
        help='how many detections of each class count in an image, those with the highest scores; by default '
        "the AP is the framework's own, at 100",
    )


def whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    """The ``type`` of an argument that is a whole number.

    Args:
        low: the least number.
        high: the greatest number; None for no limit.

    Returns:
        A function that parses the text of an argument.
    """

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < low or (high is not None and int(text) > high):
            expected = f'a number, {low} or more' if high is None else f'a number from {low} to {high}'
            raise argparse.ArgumentTypeError(f'{text!r}; expected {expected}')
        return int(text)

    return parse


def as_arguments(
    imports: Sequence[str] = (),
    train_data: Sequence[str | Path] | None = None,
    test_data: Sequence[str | Path] | None = None,
    max_dets: int | None = None,
    extractor: str | None = None,
    heads: Sequence[str] = (),
) -> list[str]:
    """The command line that gives these options. Its paths are absolute, so that it works in any folder.

    Args:
        imports: modules to import first, names or ``.py`` files.
        train_data, test_data: COCO annotations and the folder of their images.
        max_dets: how many detections of each class count in an image.
        extractor: a row that replaces the extractors of the config.
        heads: the heads whose extractors are replaced.

    Returns:
        The arguments, without those options that have their defaults.
    """
    arguments = []
    for module in absolute_modules(imports):
        arguments += ['--import', module]
    for half, files in (('train', train_data), ('test', test_data)):
        if files:
            arguments += [f'--{half}-data', *map(os.path.abspath, files)]
    if max_dets is not None:
        arguments += ['--max-dets', str(max_dets)]
    if extractor is not None:
        arguments += ['--extractor', extractor]
    if heads:
        arguments += ['--heads', ','.join(heads)]
    return arguments
