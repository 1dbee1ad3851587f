"""The valid methods of `roi_extract`, and inputs to try them on."""

import torch


def align(reduction, sampling_ratio=2, **options):
    return {'sampling_ratio': sampling_ratio, 'reduction': reduction, **options}


def warp(reduction, sampling_ratio=2, **options):
    return align(reduction, sampling_ratio, region='round', **options)


def pool(reduction, region):
    return {'region': region, 'sampling_ratio': None, 'reduction': reduction}


def integral(**options):
    return {'sampling_ratio': None, 'reduction': 'integral', **options}


# Every valid row of (region, sampling, reduction, aligned).
METHODS = {
    f'{name}-{reduction}': method
    for reduction in ('avg', 'max')
    for name, method in {
        'align': align(reduction),
        'align-legacy': align(reduction, aligned=False),
        'align-1': align(reduction, 1),
        'align-3': align(reduction, 3),
        'adaptive': align(reduction, 0),
        'adaptive-legacy': align(reduction, 0, aligned=False),
        'adaptive-bounded': align(reduction, 0, min_samples=2, max_samples=3),
        'warp': warp(reduction),
        'warp-legacy': warp(reduction, aligned=False),
        'warp-adaptive': warp(reduction, 0),
        'pool-round': pool(reduction, 'round'),
        'pool-floor': pool(reduction, 'floor'),
        'pool-bins': pool(reduction, 'bins'),
    }.items()
} | {'integral': integral(), 'integral-legacy': integral(aligned=False)}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def random_map(*shape, dtype=torch.float32, device='cpu', seed=0):
    return torch.randn(*shape, generator=generator(seed)).to(device, dtype)


def random_rois(num_rois, batch_size, height, width, *, dtype=torch.float32, device='cpu', seed=0):
    """Boxes of all sizes, corners up to a fifth of the image outside of it."""
    g = generator(seed)
    corners = torch.rand(2, num_rois, 2, generator=g, dtype=torch.float64) * 1.4 - 0.2
    corners *= torch.tensor([width, height])
    index = torch.randint(batch_size, (num_rois, 1), generator=g)
    rois = torch.cat([index, corners.amin(0), corners.amax(0)], dim=1)
    return rois.to(device, dtype)
