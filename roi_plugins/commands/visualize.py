"""Draws where the RoI extractors of a config read a box, and prints by how many pixels they miss it.

    roi-plugins visualize mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py \\
        street.jpg --box 120,80,785,745 --extractors all --output reads.png

IMAGE and the box are used as the input of the detector; the pipeline of the config does not resize them.
The table shows the misalignment of the region that the box becomes, and then that of its bins. A misalignment
is positive where an extractor reads beyond the box, and negative where it does not read a part of the box. No
weights are needed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from roi_plugins.ablation.report.images import as_rgb
from roi_plugins.console import print_anything
from roi_plugins.files import atomic_write
from roi_plugins.integrations.arguments import add_import_option
from roi_plugins.integrations.errors import RunError
from roi_plugins.integrations.inspection import InspectionError, read_extractors
from roi_plugins.integrations.modules import import_modules
from roi_plugins.integrations.zoo import locate_config
from roi_plugins.visualization import (
    METHODS,
    VisualizationError,
    draw_readings,
    method_name,
    read_box,
    remark,
    to_table,
)


def main(arguments: Sequence[str] | None = None, prog: str = 'roi-plugins visualize') -> int:
    """The command line of ``roi-plugins visualize``. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'config',
        help='a config of MMDetection or Detectron2 (YAML or LazyConfig): a file, a name in the folder that '
        '`roi-plugins configs` prints, or a name in a model zoo',
    )
    parser.add_argument('image', help='the image to draw on')
    parser.add_argument(
        '--box', type=_box, required=True, metavar='X1,Y1,X2,Y2', help='the box, in pixels of the image'
    )
    parser.add_argument(
        '--extractors',
        nargs='+',
        metavar='NAME',
        help="draw these extractors instead of the config's, with the output size, strides and level rule of "
        f'its first extractor: all, or some of {", ".join(METHODS)}',
    )
    parser.add_argument(
        '--output',
        type=_picture,
        default=Path('where_it_reads.png'),
        metavar='FILE',
        help='the picture to write, .png, .svg or .pdf (default: %(default)s)',
    )
    add_import_option(parser)
    args = parser.parse_args(arguments)
    print_anything()
    try:
        with Image.open(args.image) as file:
            image = as_rgb(ImageOps.exif_transpose(file))
        if args.output.exists() and os.path.samefile(args.output, args.image):
            parser.error(f'--output: {args.output} is the image itself')
        import_modules(args.imports)
        extractors = read_extractors(locate_config(args.config))
        if args.extractors:
            first = next(iter(extractors.values()))
            names = METHODS if 'all' in args.extractors else dict.fromkeys(map(method_name, args.extractors))
            extractors = {
                name: METHODS[name](first.output_size, first.featmap_strides, level_rule=first.level_rule)
                for name in names
            }
        size = image.height, image.width
        readings = {name: read_box(e, args.box, size) for name, e in extractors.items()}
        remarks = {name: text for name, e in extractors.items() if (text := remark(e))}
        figure = draw_readings(readings, image, remarks)
        with atomic_write(args.output) as aside:
            figure.savefig(aside, format=args.output.suffix[1:])
        print(to_table(readings))
        for name, text in remarks.items():
            print(f'{name}: {text}')
    except UnidentifiedImageError:
        print(f'error: {args.image}: not an image that Pillow can read', file=sys.stderr)
        return 2
    except OSError as error:
        print(f'error: {error.filename or args.image}: {error.strerror or error}', file=sys.stderr)
        return 2
    except (InspectionError, RunError, VisualizationError) as error:
        print('error:', ' '.join(str(error).split()), file=sys.stderr)
        return 2
    except Exception as error:  # configs are programs: anything can happen in them
        cause = ' '.join(f'{type(error).__name__}: {error}'.split()).rstrip(': ')
        print(f'error: {args.config}: {cause}', file=sys.stderr)
        return 2
    print(f'{args.output}: the picture')
    return 0


def _box(text: str) -> tuple[float, ...]:
    try:
        box = tuple(float(part) for part in text.split(','))
    except ValueError:
        box = ()
    if len(box) != 4:
        raise argparse.ArgumentTypeError(f'{text!r}; expected four numbers x1,y1,x2,y2')
    return box


def _picture(text: str) -> Path:
    if Path(text).suffix not in ('.png', '.svg', '.pdf'):
        raise argparse.ArgumentTypeError(f'{text!r}; expected a file .png, .svg or .pdf')
    return Path(text)
