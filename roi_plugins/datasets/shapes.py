"""A small instance dataset of overlapping shapes, in COCO's format and layout.

The background and the shapes have colours and textures of the same distribution, whatever the class, so that
only the outline of a shape shows its class. Outlines are exact polygons. So are the annotations, which are
the parts of an outline that lie inside the image and are not occluded.

The keypoints of a shape are four of its corners: those that are furthest to the top, right, bottom and left
of the image, in this order (``KEYPOINTS``). A triangle has three corners, so one of them is two keypoints. An
ellipse has none. A keypoint has visibility 2 if it lies on the visible parts, else 0: it is missing.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely
from PIL import Image, ImageDraw

from roi_plugins.files import atomic_folder

# Increase it whenever the same spec gives other bytes, so that older folders are recognised.
_FORMAT = 2
_SPLITS = ('train', 'val')
_SPEC_FILE = 'spec.json'

_MAX_OBJECTS = 5
# The side of a square of the same area, relative to that of the image: minimum, mode, maximum. In an image of
# 192 px these are 15, 42 and 131 px, which spans COCO's small, medium and large.
_OBJECT_SIZE = (0.08, 0.22, 0.68)
# The largest part of a shape's width and height that may lie outside the image, on each side.
_MAX_TRUNCATION = 0.15
# The smallest part of a shape's area that has to be visible; other shapes are left out.
_MIN_VISIBLE = 0.3

# Annotations have two decimals. Intersections and differences are computed on that grid, so that area, box
# and polygons agree to the last digit.
_GRID = 0.01
# Slivers and pinholes smaller than this (px^2) cannot be seen and are not annotated.
_MIN_PART = 1.0

_SUPERSAMPLING = 4


@dataclass(frozen=True)
class ShapesSpec:
    """The parameters of a generated dataset; equal specs give equal bytes.

    Image ``i`` of a split depends on ``image_size``, ``seed`` and ``i`` alone, so a larger dataset begins
    with the images of a smaller one.

    Args:
        num_train: number of images in the split ``train``, at least 1.
        num_val: number of images in the split ``val``, at least 1.
        image_size: height and width of each image in pixels, at least 32. Objects scale with it; from 192 on
            they span COCO's small, medium and large.
        seed: a non-negative integer.

    Raises:
        ValueError: a field is not an integer, or is too small.
    """

    num_train: int = 1000
    num_val: int = 200
    image_size: int = 192
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in {'num_train': 1, 'num_val': 1, 'image_size': 32, 'seed': 0}.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f'ShapesSpec: {name}={value!r}, expected an integer >= {least}')


def generate_shapes(root: str | Path, spec: ShapesSpec = ShapesSpec()) -> Path:
    """Writes the dataset of ``spec`` to the folder ``root``, unless it is there already.

    The layout is that of COCO: ``annotations/instances_{train,val}.json``, ``train/000000.png``,
    ``val/000000.png``, and in addition ``spec.json``. The id of an image is the number in its name.

    The folder is written under another name and renamed when it is complete. So an interrupted call leaves no
    ``root``, and concurrent calls do not disturb each other.

    Args:
        root: a folder that does not exist yet, is empty, or holds this dataset.
        spec: what to generate.

    Returns:
        ``root`` as a path.

    Raises:
        FileExistsError: ``root`` holds a dataset of another spec, or something else. It is left unchanged.
    """
    root = Path(root)
    target = root.resolve()
    if _holds(target, spec):
        return root
    try:
        with atomic_folder(target) as staged:
            _write_dataset(staged, spec)
    except OSError:
        if not _holds(target, spec):  # else another call was faster
            raise
    return root


def _holds(root: Path, spec: ShapesSpec) -> bool:
    """Returns True if ``root`` is the dataset of ``spec``, and False if it is free to become it.

    Raises FileExistsError if it is anything else.
    """
    wanted = _describe(spec)
    try:
        found = (root / _SPEC_FILE).read_text()
    except FileNotFoundError:
        if root.is_dir() and any(root.iterdir()):
            raise FileExistsError(
                f'root={str(root)!r} is not empty and was not made by generate_shapes (it has no '
                f'{_SPEC_FILE}); choose another folder'
            ) from None
        return False
    except NotADirectoryError:
        raise FileExistsError(
            f'root={str(root)!r} is a file, expected a folder; choose another path'
        ) from None
    if found != wanted:
        raise FileExistsError(
            f'root={str(root)!r} holds a dataset of another spec\n'
            f'  found:    {found.strip()}\n'
            f'  expected: {wanted.strip()}\n'
            'choose another folder, or delete this one to have it generated anew'
        )
    return True


def _describe(spec: ShapesSpec) -> str:
    return _dumps(dict(generator='roi_plugins.datasets.shapes', format=_FORMAT, **asdict(spec)))


def _dumps(obj: Any) -> str:
    return json.dumps(obj, sort_keys=True) + '\n'


def _write_dataset(root: Path, spec: ShapesSpec) -> None:
    (root / 'annotations').mkdir(parents=True)
    for split_index, split in enumerate(_SPLITS):
        (root / split).mkdir()
        coco: dict[str, Any] = {
            'info': {'description': 'Generated shapes', 'seed': spec.seed},
            'licenses': [],
            'categories': [
                {
                    'id': label + 1,
                    'name': name,
                    'supercategory': 'shape',
                    'keypoints': list(KEYPOINTS),
                    'skeleton': [],
                }
                for label, name in enumerate(CLASSES)
            ],
            'images': [],
            'annotations': [],
        }
        for image_id in range(getattr(spec, f'num_{split}')):
            rng = np.random.default_rng([spec.seed, split_index, image_id])
            objects = _sample_objects(rng, spec.image_size)
            image = _render(rng, objects, spec.image_size)
            file_name = f'{image_id:06d}.png'
            image.save(root / split / file_name)
            coco['images'].append(
                {
                    'id': image_id,
                    'file_name': file_name,
                    'width': spec.image_size,
                    'height': spec.image_size,
                }
            )
            for obj in objects:
                # Ids start at 1, because COCOeval takes a match with annotation 0 for no match.
                ids = {'id': len(coco['annotations']) + 1, 'image_id': image_id}
                coco['annotations'].append(ids | _annotate(obj))
        (root / f'annotations/instances_{split}.json').write_text(_dumps(coco))
    (root / _SPEC_FILE).write_text(_describe(spec))


# --- Outlines: (N, 2) corners of a shape of about unit size, with random proportions ---------------


def _around(radii: float | list[float], num: int) -> np.ndarray:
    """Returns ``num`` points around the origin, the first straight up, with one radius or one for each."""
    angles = 2 * math.pi * np.arange(num) / num
    return np.stack([np.sin(angles), -np.cos(angles)], axis=1) * np.reshape(radii, (-1, 1))


def _ellipse(rng: np.random.Generator) -> np.ndarray:
    return _around(1, 48) * [1, rng.uniform(1, 1.8)]


def _triangle(rng: np.random.Generator) -> np.ndarray:
    return np.array([[-1, 0], [1, 0], [rng.uniform(-0.4, 0.4), rng.uniform(1.4, 2.1)]])


def _rectangle(rng: np.random.Generator) -> np.ndarray:
    return np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * [1, rng.uniform(1, 2.2)]


def _star(rng: np.random.Generator) -> np.ndarray:
    return _around([1, rng.uniform(0.38, 0.5)] * 5, 10)


def _cross(rng: np.random.Generator) -> np.ndarray:
    a = rng.uniform(0.28, 0.38)
    arm = np.array([[-a, -a], [-a, -1], [a, -1]])
    quarter_turn = np.array([[0, 1], [-1, 0]])
    return np.concatenate([arm @ np.linalg.matrix_power(quarter_turn, k) for k in range(4)])


_OUTLINES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    'ellipse': _ellipse,
    'triangle': _triangle,
    'rectangle': _rectangle,
    'star': _star,
    'cross': _cross,
}

CLASSES = tuple(_OUTLINES)
"""Names of the classes, in the order of their labels (COCO category ids 1, 2, ...)."""

_DIRECTIONS = {'top': (0, -1), 'right': (1, 0), 'bottom': (0, 1), 'left': (-1, 0)}

KEYPOINTS = tuple(_DIRECTIONS)
"""Names of the keypoints, in their order: the corner that is furthest in this direction."""


# --- Scenes ---------------------------------------------------------------------------------------


class _Object(NamedTuple):
    label: int
    outline: shapely.Polygon  # whole, in pixels; pixel (x, y) is the square from (x, y), side 1
    visible: shapely.Geometry  # a polygon or several, holes and all


def _sample_objects(rng: np.random.Generator, image_size: int) -> list[_Object]:
    """Draws up to ``_MAX_OBJECTS`` objects, the front one first."""
    frame = shapely.box(0, 0, image_size, image_size)
    covered = shapely.Polygon()
    objects = []
    for _ in range(rng.integers(1, _MAX_OBJECTS + 1)):
        label = int(rng.integers(len(CLASSES)))
        outline = _sample_outline(rng, label, image_size)
        visible = outline.intersection(frame, grid_size=_GRID).difference(covered, grid_size=_GRID)
        # An object that is hardly visible is left out of the image too; otherwise the image would show an
        # object that is not annotated. From front to back, this changes no other object.
        if visible.area >= _MIN_VISIBLE * outline.area:
            objects.append(_Object(label, outline, visible))
            covered = covered.union(outline, grid_size=_GRID)
    return objects


def _sample_outline(rng: np.random.Generator, label: int, image_size: int) -> shapely.Polygon:
    corners = _OUTLINES[CLASSES[label]](rng)
    turn = rng.uniform(0, 2 * math.pi)
    cos, sin = math.cos(turn), math.sin(turn)
    corners = corners @ np.array([[cos, sin], [-sin, cos]])
    size = rng.triangular(*_OBJECT_SIZE) * image_size
    corners *= size / math.sqrt(shapely.Polygon(corners).area)
    low, high = corners.min(axis=0), corners.max(axis=0)
    margin = (0.5 - _MAX_TRUNCATION) * (high - low)
    centre = rng.uniform(margin, image_size - margin)
    return shapely.set_precision(shapely.Polygon(corners + centre - (low + high) / 2), _GRID)


def _annotate(obj: _Object) -> dict[str, Any]:
    parts = [p for p in _polygons(obj.visible) if p.area >= _MIN_PART]
    polygons = [piece for part in parts for piece in _without_holes(part)]
    x1, y1, x2, y2 = shapely.total_bounds(polygons)
    keypoints = _keypoints(obj, polygons)
    return {
        'category_id': obj.label + 1,
        'iscrowd': 0,
        'segmentation': [_round(shapely.get_coordinates(p.exterior)[:-1].ravel()) for p in polygons],
        'area': round(float(shapely.area(polygons).sum()), 2),
        'bbox': _round([x1, y1, x2 - x1, y2 - y1]),
        'keypoints': keypoints,
        'num_keypoints': sum(visibility > 0 for visibility in keypoints[2::3]),
    }


def _keypoints(obj: _Object, visible: list[shapely.Polygon]) -> Sequence[float]:
    """Returns x, y and visibility of each of ``KEYPOINTS`` as COCO has them, all 0 for a missing one."""
    if CLASSES[obj.label] == 'ellipse':
        return [0] * 3 * len(KEYPOINTS)
    corners = shapely.get_coordinates(obj.outline.exterior)[:-1]
    found: list[float] = []
    for direction in _DIRECTIONS.values():
        corner = corners[np.argmax(corners @ direction)]
        is_shown = shapely.distance(shapely.Point(corner), visible).min() < _GRID
        # COCO's keypoints are indices of pixels: the centre of the first pixel is 0, not 0.5.
        found += [*_round(corner - 0.5), 2] if is_shown else [0, 0, 0]
    return found


def _round(values: Iterable[float]) -> list[float]:
    return [round(float(v), 2) for v in values]


def _polygons(geometry: shapely.Geometry) -> list[shapely.Polygon]:
    """Returns the polygons of a geometry; where outlines touch, it may have points and lines too."""
    # Normalised, because the order of parts and corners depends on the version of GEOS otherwise.
    return [p for p in shapely.get_parts(geometry.normalize()) if p.geom_type == 'Polygon']


def _without_holes(polygon: shapely.Polygon) -> list[shapely.Polygon]:
    """Returns pieces without holes that cover ``polygon``.

    A COCO segmentation is the union of its polygons and cannot have holes, so a polygon with holes is cut
    through the middle of each.
    """
    holes = [h for h in polygon.interiors if shapely.Polygon(h).area >= _MIN_PART]
    if not holes:
        return [shapely.Polygon(polygon.exterior)]
    x1, y1, x2, y2 = polygon.bounds
    left, _, right, _ = holes[0].bounds
    middle = (left + right) / 2
    halves = [shapely.box(x1, y1, middle, y2), shapely.box(middle, y1, x2, y2)]
    return [
        piece
        for half in halves
        for part in _polygons(polygon.intersection(half, grid_size=_GRID))
        for piece in _without_holes(part)
    ]


# --- Rendering ------------------------------------------------------------------------------------


def _render(rng: np.random.Generator, objects: list[_Object], image_size: int) -> Image.Image:
    colours = [rng.uniform(25, 230, 3)]
    canvas = Image.fromarray(_texture(rng, colours[0], image_size))
    for obj in reversed(objects):
        # Of the candidates, take the one that differs most from the background and the objects behind.
        candidates = rng.uniform(25, 230, (6, 3))
        distances = np.linalg.norm(candidates[:, None] - np.array(colours), axis=2)
        colours.append(candidates[distances.min(axis=1).argmax()])
        paint = Image.fromarray(_texture(rng, colours[-1], image_size))
        canvas.paste(paint, mask=_coverage(obj.outline, image_size))
    grain = rng.normal(0, 5, (image_size, image_size, 3))
    return Image.fromarray(_to_uint8(np.asarray(canvas) + grain))


def _coverage(outline: shapely.Polygon, image_size: int) -> Image.Image:
    """Returns how much of each pixel lies within the outline, 0 to 255."""
    mask = Image.new('L', (image_size * _SUPERSAMPLING,) * 2)
    # Pillow puts integer coordinates at the centres of pixels.
    corners = shapely.get_coordinates(outline.exterior) * _SUPERSAMPLING - 0.5
    ImageDraw.Draw(mask).polygon(corners.ravel().tolist(), fill=255)
    return mask.reduce(_SUPERSAMPLING)


def _texture(rng: np.random.Generator, colour: np.ndarray, size: int) -> np.ndarray:
    """Returns a (size, size, 3) uint8 image around a colour, with a slope, stripes and blotches."""
    # In units of the image's side, so that images of all sizes look alike. In double precision, because the
    # last bit of a sine differs between processors and must not change a pixel.
    y, x = np.mgrid[:size, :size] / size - 0.5

    def waves(turn: float, phase: float, frequency: float) -> np.ndarray:
        return np.sin(2 * math.pi * frequency * (x * math.cos(turn) + y * math.sin(turn)) + phase)

    slope = waves(rng.uniform(0, 2 * math.pi), 0, 0.25)
    turn, phase = rng.uniform(0, 2 * math.pi, 2)
    stripes = waves(turn, phase, rng.uniform(4, 20))
    coarse = rng.integers(0, 256, (rng.integers(4, 20),) * 2 + (3,), dtype=np.uint8)
    blotches = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    return _to_uint8(
        colour
        + slope[..., None] * rng.uniform(-35, 35, 3)
        + stripes[..., None] * rng.uniform(-25, 25, 3)
        + (np.asarray(blotches) / 127.5 - 1) * rng.uniform(0, 30)
    )


def _to_uint8(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
