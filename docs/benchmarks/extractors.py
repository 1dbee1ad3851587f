"""What the extractors that are more than a call of the op cost beside align-avg, as a Markdown table:

    python docs/benchmarks/extractors.py

512 RoIs, 7x7 bins, one image of 800 x 1344 on an FPN of 256 channels, float32; medians.
"""

import inspect

import numpy as np
import torch

from roi_plugins.benchmark.cases import ALIGN_AVG, BOTH, FORWARD, FPN, LAYOUTS, Case
from roi_plugins.benchmark.measure import Contender, Effort, interleave, peak_extra_bytes, prepare
from roi_plugins.extractors import EXTRACTORS

NAMES = ('AlignAvg', 'RandomSampling', 'Deformable', 'ContentAdaptive', 'AllLevels')
CASE = Case('extractors', 7, BOTH, ALIGN_AVG, FPN, (), images=1)


def build(name):
    extractor_type = EXTRACTORS[name]
    takes_channels = 'channels' in inspect.signature(extractor_type).parameters
    return extractor_type(CASE.output_size, FPN, **{'channels': CASE.channels} if takes_channels else {})


def main():
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    extractors = {name: build(name).to(device) for name in NAMES}
    rois = CASE.make_rois().to(device)
    print('| extractor | layout | forward, ms | with backward, ms | AlignAvg = 1 | peak, MiB | weights |')
    print('| --- | --- | ---: | ---: | ---: | ---: | ---: |')
    for layout in LAYOUTS:
        maps = [map_.requires_grad_() for map_ in CASE.make_features(layout, 'float32', device)]
        contenders = [
            Contender(
                name,
                layout,
                'float32',
                prepare(lambda maps, e=e: e(maps, rois), maps, step, list(e.parameters())),
            )
            for name, e in extractors.items()
            for step in (FORWARD, BOTH)
        ]
        samples = interleave(contenders, device, Effort(seconds=10, min_rounds=5))
        medians = [float(np.median(seconds)) for seconds in samples]
        peaks = [peak_extra_bytes(contender.call, device) for contender in contenders[1::2]]
        plain = medians[1]  # of AlignAvg, the first
        for extractor, forward, both, peak in zip(
            extractors.values(), medians[::2], medians[1::2], peaks, strict=True
        ):
            row = [
                type(extractor).__name__,
                layout,
                f'{1e3 * forward:.0f}',
                f'{1e3 * both:.0f}',
                f'{both / plain:.1f}',
                '-' if peak is None else f'{peak / 2**20:.0f}',
                str(sum(parameter.numel() for parameter in extractor.parameters())),
            ]
            print(f'| {" | ".join(row)} |')


if __name__ == '__main__':
    main()
