"""Draws what each cell weighs in the bins of a box: `python docs/figures/what_bins_weigh.py`.

Nothing is worked out anew: the weights are the gradient of the output to a channel of the map that no
learned part of an extractor looks at.
"""

import io
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from PIL import Image

from roi_plugins.datasets import ShapesSpec, generate_shapes
from roi_plugins.extractors import (
    AdaptiveSampling,
    AlignAvg,
    ContentAdaptive,
    Deformable,
    PositionSensitive,
    Precise,
    QuantizedPool,
    RandomSampling,
)

STRIDE, BINS = 8, 3
BOX = (29.0, 37.0, 165.0, 118.0)  # x1, y1, x2, y2 in pixels
ROTATED = (97.0, 77.5, 136.0, 81.0, 30.0)  # cx, cy, w, h in pixels, angle in degrees
COLORS = [
    f'tab:{name}' for name in ['blue', 'orange', 'green', 'red', 'purple', 'brown', 'pink', 'olive', 'cyan']
]
PROBE = 0  # the channel


def learn_something(extractor):
    """The weights of an extractor as if it had learned, but blind to the probe."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in extractor.parameters():
            parameter.normal_(0, 4, generator=generator)
            if parameter.dim() > 1:
                parameter[:, PROBE] = 0
            else:
                parameter.zero_()
    return extractor


def probe_alone(extractor):
    """A position-sensitive extractor whose maps are all the probe."""
    with torch.no_grad():
        extractor.score.weight.zero_()[:, PROBE] = 1
    return extractor


def make_panels():
    size, strides = BINS, [STRIDE]
    torch.manual_seed(0)
    return {
        "QuantizedPool (average)": (QuantizedPool(size, strides, reduction='avg'), BOX),
        'AlignAvg': (AlignAvg(size, strides), BOX),
        'AdaptiveSampling': (AdaptiveSampling(size, strides), BOX),
        'RandomSampling, in training': (RandomSampling(size, strides), BOX),
        'Precise': (Precise(size, strides, aligned=True), BOX),
        'Deformable (with random weights)': (learn_something(Deformable(size, strides, channels=4)), BOX),
        'ContentAdaptive (with random weights)': (
            learn_something(ContentAdaptive(size, strides, channels=4)), BOX,
        ),
        'PositionSensitive: nine maps, one a bin': (
            probe_alone(PositionSensitive(size, strides, depth=1, channels=4)), BOX,
        ),
        'AlignAvg, rotated': (AlignAvg(size, strides), ROTATED),
        'Precise, rotated': (Precise(size, strides, aligned=True), ROTATED),
    }  # fmt: skip


def weigh(extractor, box, cells):
    """(bins, H, W): the weight of each cell in each bin."""
    seen = (cells - cells.mean()) / cells.std()
    maps = torch.cat([torch.zeros_like(cells[:1]), seen])[None].requires_grad_()
    output = extractor([maps], torch.tensor([[0.0, *box]]))[0, PROBE].flatten()
    return np.stack([torch.autograd.grad(of, maps, retain_graph=True)[0][0, PROBE] for of in output])


def draw(panel, title, weights, box, cells):
    grey = cells.mean(0).numpy()[..., None].repeat(3, -1)
    picture = 0.7 + 0.3 * (grey - grey.min()) / np.ptp(grey)
    for of_bin, color in zip(weights, COLORS, strict=True):
        share = (of_bin / of_bin.max())[..., None]
        picture = picture * (1 - share) + np.array(to_rgb(color)) * share
    height, width = grey.shape[:2]
    panel.imshow(picture, extent=(0, width * STRIDE, height * STRIDE, 0))
    if len(box) == 4:
        x1, y1, x2, y2 = box
        corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    else:
        cx, cy, w, h, angle = box
        cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        frame = [(-w / 2, -h / 2), (w / 2, -h / 2), (w / 2, h / 2), (-w / 2, h / 2)]
        corners = [(cx + u * cos + v * sin, cy + v * cos - u * sin) for u, v in frame]
    panel.add_patch(Polygon(corners, fill=False, edgecolor='black', linewidth=1.2))
    panel.set_title(title, fontsize=9)
    panel.set(xlim=(0, 192), ylim=(160, 0), xticks=[], yticks=[])


def main():
    with tempfile.TemporaryDirectory() as folder:
        root = generate_shapes(Path(folder) / 'shapes', ShapesSpec(num_train=1, num_val=1))
        image = np.asarray(Image.open(root / 'val' / '000000.png').convert('RGB'), np.float32) / 255
    cells = torch.nn.functional.avg_pool2d(torch.from_numpy(image).permute(2, 0, 1), STRIDE)
    panels = make_panels()
    figure = Figure(figsize=(15, 5.6), dpi=80, layout='constrained')
    for panel, (title, (extractor, box)) in zip(figure.subplots(2, 5).flat, panels.items(), strict=True):
        draw(panel, title, weigh(extractor, box, cells), box, cells)
    picture = io.BytesIO()
    figure.savefig(picture)
    Image.open(picture).convert('RGB').quantize(256).save(Path(__file__).with_suffix('.png'))


if __name__ == '__main__':
    main()
