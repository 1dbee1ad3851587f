"""What the extractors cost beside the one that is nearest to them, as Markdown tables:

    python docs/benchmarks/extractors.py

512 RoIs, 7x7 bins, images of 800 x 1344, 256 channels, float32; medians. On one map of stride 16, where
the op is nearly all there is, and on an FPN.
"""

import inspect
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from roi_plugins.benchmark.cases import ALIGN_AVG, BOTH, C4, FORWARD, FPN, LAYOUTS, Case
from roi_plugins.benchmark.measure import Contender, Effort, interleave, peak_extra_bytes, prepare
from roi_plugins.extractors import EXTRACTORS

ONE_MAP = Case('one map', 7, BOTH, ALIGN_AVG, C4, ())
CASES = {'One map of stride 16, two images': ONE_MAP,
         'An FPN, one image': replace(ONE_MAP, strides=FPN, images=1)}  # fmt: skip
HEADER = ('extractor', 'layout', 'forward, ms', 'and backward, ms', 'against', 'forward', 'and backward',
          'peak, MiB', 'weights')  # fmt: skip


@dataclass(frozen=True)
class Row:
    """An extractor with options, and the label of the row that it is set against."""

    label: str
    twin: str
    name: str
    options: dict
    rotated: bool = False

    def build(self, case: Case) -> nn.Module:
        extractor_type = EXTRACTORS[self.name]
        options = dict(self.options)
        if 'channels' in inspect.signature(extractor_type).parameters:
            options['channels'] = case.channels
        return extractor_type(case.output_size, case.strides, **options)


ROWS = [
    Row('AlignAvg', 'AlignAvg', 'AlignAvg', {}),
    Row('AlignAvg, 3x3', 'AlignAvg, 3x3', 'AlignAvg', {'sampling_ratio': 3}),
    Row('AlignMax', 'AlignMax', 'AlignMax', {}),
    Row('AdaptiveSampling', 'AdaptiveSampling', 'AdaptiveSampling', {}),
    Row('Precise', 'AlignAvg, 3x3', 'Precise', {}),
    Row('RandomSampling', 'AlignAvg', 'RandomSampling', {}),
    Row('Deformable', 'AlignAvg', 'Deformable', {}),
    Row('Deformable, modulated', 'AlignAvg', 'Deformable', {'modulated': True}),
    Row('PositionSensitive, depth 10', 'AlignAvg', 'PositionSensitive', {'depth': 10}),
    Row('ContentAdaptive', 'AlignAvg', 'ContentAdaptive', {}),
    Row('AllLevels', 'AlignAvg', 'AllLevels', {}),
    Row('AlignAvg, rotated', 'AlignAvg', 'AlignAvg', {}, rotated=True),
    Row('AlignMax, rotated', 'AlignMax', 'AlignMax', {}, rotated=True),
    Row('AdaptiveSampling, rotated', 'AdaptiveSampling', 'AdaptiveSampling', {}, rotated=True),
    Row('Precise, rotated', 'Precise', 'Precise', {}, rotated=True),
]


def turn(rois):
    """Boxes of the same centres and sides, at all angles."""
    index, low, high = rois.split([1, 2, 2], dim=1)
    angle = torch.linspace(-180, 180, len(rois), device=rois.device)[:, None]
    return torch.cat([index, (low + high) / 2, high - low, angle], dim=1)


def main():
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    for title, case in CASES.items():
        rois = case.make_rois().to(device)
        boxes = {False: rois, True: turn(rois)}
        print(f'\n### {title}\n')
        print(f'| {" | ".join(HEADER)} |\n| --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |')
        for layout in LAYOUTS:
            maps = [map_.requires_grad_() for map_ in case.make_features(layout, 'float32', device)]
            extractors = [row.build(case).to(device) for row in ROWS]
            contenders = [
                Contender(
                    row.label,
                    layout,
                    'float32',
                    prepare(
                        lambda maps, e=e, given=boxes[row.rotated]: e(maps, given),
                        maps,
                        step,
                        list(e.parameters()),
                    ),
                )
                for row, e in zip(ROWS, extractors, strict=True)
                for step in (FORWARD, BOTH)
            ]
            samples = interleave(contenders, device, Effort(seconds=20, min_rounds=5))
            medians = np.array([np.median(seconds) for seconds in samples]).reshape(-1, 2)
            times = dict(zip([row.label for row in ROWS], medians, strict=True))
            for row, e, contender in zip(ROWS, extractors, contenders[1::2], strict=True):
                peak = peak_extra_bytes(contender.call, device)
                forward, both = times[row.label]
                ratios = times[row.label] / times[row.twin]
                cells = [
                    row.label,
                    layout,
                    f'{1e3 * forward:.1f}',
                    f'{1e3 * both:.1f}',
                    row.twin,
                    *(f'{ratio:.2f}' for ratio in ratios),
                    '-' if peak is None else f'{peak / 2**20:.0f}',
                    str(sum(parameter.numel() for parameter in e.parameters())),
                ]
                print(f'| {" | ".join(cells)} |')


if __name__ == '__main__':
    main()
