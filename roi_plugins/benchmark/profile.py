"""Runs each of the main kernels once, forward and backward in both layouts and dtypes, for a profiler:
`ncu --kernel-name regex:work_kernel python -m roi_plugins.benchmark.profile`.
"""

import itertools

import torch

from roi_plugins.benchmark.cases import CASES, LAYOUTS


def main(device: str = 'cuda') -> None:
    (case,) = (case for case in CASES['cuda'] if case.name == 'pyramid-7x7-backward')
    rois = case.make_rois().to(device)
    for layout, dtype in itertools.product(LAYOUTS, case.dtypes):
        maps = [map_.requires_grad_() for map_ in case.make_features(layout, dtype, torch.device(device))]
        case.extract(maps, rois).sum().backward()


if __name__ == '__main__':
    main()
