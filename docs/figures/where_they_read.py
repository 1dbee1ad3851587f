"""Draws where each extractor reads a box of a generated image: `python docs/figures/where_they_read.py`."""

import io
import tempfile
from pathlib import Path

from PIL import Image

from roi_plugins.datasets import ShapesSpec, generate_shapes
from roi_plugins.visualization import METHODS, draw_readings, read_box

STRIDE, BINS = 16, 3
BOX = (29.0, 37.0, 165.0, 118.0)  # x1, y1, x2, y2 in pixels
TITLES = {
    'quantized-pool': "QuantizedPool (Fast R-CNN's RoIPool)",
    'quantized-pool-floor': "QuantizedPool, region='floor' (the textbook's)",
    'quantized-pool-bins': "QuantizedPool, region='bins' (MMCV's RoIPool)",
    'roi-warp-avg': 'RoIWarp',
    'align-avg': 'AlignMax, AlignAvg',
    'align-avg-unaligned': 'AlignMax, AlignAvg, aligned=False',
    'adaptive': 'AdaptiveSampling',
    'precise': 'Precise (PrRoIPool)',
}


def main():
    with tempfile.TemporaryDirectory() as folder:
        root = generate_shapes(Path(folder) / 'shapes', ShapesSpec(num_train=1, num_val=1))
        image = Image.open(root / 'val' / '000000.png').convert('RGB')
    readings = {
        TITLES[name]: read_box(make(BINS, [STRIDE]), BOX, (image.height, image.width))
        for name, make in METHODS.items()
        if name in TITLES
    }
    picture = io.BytesIO()
    draw_readings(readings, image).savefig(picture, dpi=80)
    # A quarter of the bytes.
    Image.open(picture).convert('RGB').quantize(256).save(Path(__file__).with_suffix('.png'))


if __name__ == '__main__':
    main()
