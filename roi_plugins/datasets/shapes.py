"""A small instance dataset of overlapping shapes, in COCO's format and layout.

Ground and shapes are painted with colours and textures of one family, drawn without regard to the
class: what a thing is shows in its outline alone. Outlines are exact polygons, and so are the
annotations: the parts of an outline that lie in the image and in front of which nothing stands.
"""

import json
import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import shapely
from PIL import Image, ImageDraw

# Raise it whenever the same spec would give other bytes, so that old folders are told apart.
_FORMAT = 1
_SPLITS = ('train', 'val')
_SPEC_FILE = 'spec.json'

_MAX_OBJECTS = 5
# The side of the square of the same area, over the image's side: least, most frequent, greatest.
# In an image of 192 px that is 15, 42 and 131 px, which spans COCO's small, medium and large.
_OBJECT_SIZE = (0.08, 0.22, 0.68)
# At most this part of a shape's width and height sticks out of the image on a side.
_MAX_TRUNCATION = 0.15
# Of a shape that is in the image, at least this part of its area is visible.
_MIN_VISIBLE = 0.3

# Annotations carry two decimals. The overlays are computed on that grid, so that area, box and
# polygons agree with each other to the last digit.
_GRID = 0.01
# Slivers and pinholes under a pixel (px^2) that an overlay leaves cannot be seen: not annotated.
_MIN_PART = 1.0

_SUPERSAMPLING = 4


@dataclass(frozen=True)
class ShapesSpec:
    """What a generated dataset is made of; equal specs give equal bytes.

    Image ``i`` of a split depends on ``image_size``, ``seed`` and ``i`` alone: a larger dataset
    begins with the images of a smaller one.

    Args:
        num_train: Images in the split ``train``, at least 1.
        num_val: Images in the split ``val``, at least 1.
        image_size: Height and width of each image in pixels, at least 32. Objects scale with it;
            from 192 on they span COCO's small, medium and large.
        seed: A non-negative integer.

    Raises:
        ValueError: A field is not an integer or is too small.
    """

    num_train: int = 1000
    num_val: int = 200
    image_size: int = 192
    seed: int = 0

    def __post_init__(self):
        for name, least in {'num_train': 1, 'num_val': 1, 'image_size': 32, 'seed': 0}.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f'ShapesSpec: {name}={value!r}, expected an integer >= {least}')


def generate_shapes(root: str | Path, spec: ShapesSpec = ShapesSpec()) -> Path:
    """Write the dataset ``spec`` describes to the folder ``root``, or find it there.

    The layout is COCO's own: ``annotations/instances_{train,val}.json``, ``train/000000.png``,
    ``val/000000.png``, and beside them ``spec.json``. An image's id is the number in its name.

    The folder is made aside and renamed when it is complete, so an interrupted call leaves no
    ``root`` and the next one starts afresh; calls at the same time do not disturb each other.

    Args:
        root: A folder that does not exist yet, is empty, or holds this very dataset.
        spec: What to generate.

    Returns:
        ``root`` as a path.

    Raises:
        FileExistsError: ``root`` holds a dataset of another spec, or something else altogether.
            Nothing in it is touched.
    """
    root = Path(root)
    target = root.resolve()
    if _holds(target, spec):
        return root
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{target.name}-', dir=target.parent) as aside:
        staged = Path(aside, target.name)
        _write_dataset(staged, spec)
        try:
            staged.rename(target)
        except OSError:
            if not _holds(target, spec):  # else another call was faster
                raise
    return root


def _holds(root: Path, spec: ShapesSpec) -> bool:
    """Whether ``root`` is the dataset of ``spec`` (True) or free to become it (False)."""
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


def _dumps(obj) -> str:
    return json.dumps(obj, sort_keys=True) + '\n'


def _write_dataset(root: Path, spec: ShapesSpec) -> None:
    (root / 'annotations').mkdir(parents=True)
    for split_index, split in enumerate(_SPLITS):
        (root / split).mkdir()
        coco = {
            'info': {'description': 'Generated shapes', 'seed': spec.seed},
            'licenses': [],
            'categories': [
                {'id': label + 1, 'name': name, 'supercategory': 'shape'}
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
                # From 1: COCOeval takes a match with annotation 0 for none.
                ids = {'id': len(coco['annotations']) + 1, 'image_id': image_id}
                coco['annotations'].append(ids | _annotate(obj))
        (root / f'annotations/instances_{split}.json').write_text(_dumps(coco))
    (root / _SPEC_FILE).write_text(_describe(spec))


# --- Outlines: (N, 2) corners of a shape of about unit size, its proportions drawn ----------------


def _around(radii, num: int) -> np.ndarray:
    """``num`` points around the origin, the first straight up; ``radii`` a number or one each."""
    angles = 2 * math.pi * np.arange(num) / num
    return np.stack([np.sin(angles), -np.cos(angles)], axis=1) * np.reshape(radii, (-1, 1))


def _ellipse(rng):
    return _around(1, 48) * [1, rng.uniform(1, 1.8)]


def _triangle(rng):
    return np.array([[-1, 0], [1, 0], [rng.uniform(-0.4, 0.4), rng.uniform(1.4, 2.1)]])


def _rectangle(rng):
    return np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * [1, rng.uniform(1, 2.2)]


def _star(rng):
    return _around([1, rng.uniform(0.38, 0.5)] * 5, 10)


def _cross(rng):
    a = rng.uniform(0.28, 0.38)
    arm = np.array([[-a, -a], [-a, -1], [a, -1]])
    quarter_turn = np.array([[0, 1], [-1, 0]])
    return np.concatenate([arm @ np.linalg.matrix_power(quarter_turn, k) for k in range(4)])


_OUTLINES = {
    'ellipse': _ellipse,
    'triangle': _triangle,
    'rectangle': _rectangle,
    'star': _star,
    'cross': _cross,
}

CLASSES = tuple(_OUTLINES)
"""Names of the classes, in the order of their labels (COCO category ids 1, 2, ...)."""

PALETTE = ((220, 20, 60), (0, 130, 200), (60, 180, 75), (255, 160, 0), (145, 30, 180))
"""An RGB colour a class to draw predictions with. The shapes in the images are not so coloured."""


# --- Scenes ---------------------------------------------------------------------------------------


class _Object(NamedTuple):
    label: int
    outline: shapely.Polygon  # whole, in pixels; pixel (x, y) is the square from (x, y), side 1
    visible: shapely.Geometry  # a polygon or several, holes and all


def _sample_objects(rng, image_size: int) -> list[_Object]:
    """Between one and ``_MAX_OBJECTS`` objects, the front one first."""
    frame = shapely.box(0, 0, image_size, image_size)
    covered = shapely.Polygon()
    objects = []
    for _ in range(rng.integers(1, _MAX_OBJECTS + 1)):
        label = int(rng.integers(len(CLASSES)))
        outline = _sample_outline(rng, label, image_size)
        visible = outline.intersection(frame, grid_size=_GRID).difference(covered, grid_size=_GRID)
        # One that is hardly seen is left out of the picture too, lest its rest be a false
        # negative in the annotations. Going from front to back, that changes no other object.
        if visible.area >= _MIN_VISIBLE * outline.area:
            objects.append(_Object(label, outline, visible))
            covered = covered.union(outline, grid_size=_GRID)
    return objects


def _sample_outline(rng, label: int, image_size: int) -> shapely.Polygon:
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


def _annotate(obj: _Object) -> dict:
    parts = [p for p in _polygons(obj.visible) if p.area >= _MIN_PART]
    polygons = [piece for part in parts for piece in _without_holes(part)]
    x1, y1, x2, y2 = shapely.total_bounds(polygons)
    return {
        'category_id': obj.label + 1,
        'iscrowd': 0,
        'segmentation': [_round(shapely.get_coordinates(p.exterior)[:-1].ravel()) for p in polygons],
        'area': round(float(shapely.area(polygons).sum()), 2),
        'bbox': _round([x1, y1, x2 - x1, y2 - y1]),
    }


def _round(values) -> list[float]:
    return [round(float(v), 2) for v in values]


def _polygons(geometry) -> list[shapely.Polygon]:
    """The polygons of a geometry; overlays may add points and lines where outlines touch."""
    # Normalized, since the order of parts and corners is otherwise up to the version of GEOS.
    return [p for p in shapely.get_parts(geometry.normalize()) if p.geom_type == 'Polygon']


def _without_holes(polygon: shapely.Polygon) -> list[shapely.Polygon]:
    """Pieces that cover ``polygon`` and have no holes.

    A COCO segmentation is the union of its polygons and knows no holes, so a polygon that has some
    is cut through the middle of each.
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


def _render(rng, objects: list[_Object], image_size: int) -> Image.Image:
    colours = [rng.uniform(25, 230, 3)]
    canvas = Image.fromarray(_texture(rng, colours[0], image_size))
    for obj in reversed(objects):
        # The candidate that stands out most from the ground and what is in the image already.
        candidates = rng.uniform(25, 230, (6, 3))
        distances = np.linalg.norm(candidates[:, None] - np.array(colours), axis=2)
        colours.append(candidates[distances.min(axis=1).argmax()])
        paint = Image.fromarray(_texture(rng, colours[-1], image_size))
        canvas.paste(paint, mask=_coverage(obj.outline, image_size))
    grain = rng.normal(0, 5, (image_size, image_size, 3))
    return Image.fromarray(_to_uint8(np.asarray(canvas) + grain))


def _coverage(outline: shapely.Polygon, image_size: int) -> Image.Image:
    """How much of each pixel lies within the outline, 0 to 255."""
    mask = Image.new('L', (image_size * _SUPERSAMPLING,) * 2)
    # Pillow puts integer coordinates at the centres of pixels.
    corners = shapely.get_coordinates(outline.exterior) * _SUPERSAMPLING - 0.5
    ImageDraw.Draw(mask).polygon(corners.ravel().tolist(), fill=255)
    return mask.reduce(_SUPERSAMPLING)


def _texture(rng, colour: np.ndarray, size: int) -> np.ndarray:
    """A (size, size, 3) uint8 picture around a colour: slope, stripes and blotches."""
    # In units of the image's side, so that images of all sizes look alike. In double precision:
    # the last bit of a sine differs between processors, and must not reach a pixel.
    y, x = np.mgrid[:size, :size] / size - 0.5

    def waves(turn, phase, frequency):
        return np.sin(2 * math.pi * frequency * (x * math.cos(turn) + y * math.sin(turn)) + phase)

    slope = waves(rng.uniform(0, 2 * math.pi), 0, 0.25)
    stripes = waves(*rng.uniform(0, 2 * math.pi, 2), rng.uniform(4, 20))
    cells = rng.integers(0, 256, (rng.integers(4, 20),) * 2 + (3,), dtype=np.uint8)
    blotches = Image.fromarray(cells).resize((size, size), Image.Resampling.BICUBIC)
    return _to_uint8(
        colour
        + slope[..., None] * rng.uniform(-35, 35, 3)
        + stripes[..., None] * rng.uniform(-25, 25, 3)
        + (np.asarray(blotches) / 127.5 - 1) * rng.uniform(0, 30)
    )


def _to_uint8(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
