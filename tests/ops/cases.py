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


# Every valid row of (region, sampling, reduction, aligned), and what goes on top of it. `rotated` and
# `deformable` are no options of the op but of :func:`fitted`.
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
        'random': align(reduction, seed=7),
        'random-adaptive': align(reduction, 0, seed=-(2**40)),
        'random-warp': warp(reduction, 3, seed=2**63 - 1),
        'rotated': align(reduction, rotated=True),
        'rotated-legacy': align(reduction, 3, aligned=False, rotated=True),
        'rotated-adaptive': align(reduction, 0, rotated=True),
        'rotated-random': align(reduction, 0, max_samples=4, rotated=True, seed=3),
    }.items()
} | {
    'integral': integral(),
    'integral-legacy': integral(aligned=False),
    'rotated-integral': integral(rotated=True),
    'rotated-integral-legacy': integral(aligned=False, rotated=True),
    'deformable': align('avg', deformable=True),
    'deformable-legacy': align('avg', 3, aligned=False, deformable=True),
    'deformable-adaptive': align('avg', 0, deformable=True),
    'deformable-random': align('avg', deformable=True, seed=5),
    'ps-align': align('avg', position_sensitive=True),
    'ps-align-legacy': align('avg', 3, aligned=False, position_sensitive=True),
    'ps-adaptive': align('avg', 0, position_sensitive=True),
    'ps-random': align('avg', position_sensitive=True, seed=9),
    'ps-pool': {**pool('avg', 'round'), 'position_sensitive': True},
    'ps-integral': integral(position_sensitive=True),
}


def fitted(method, features, rois, output_size):
    """Features, RoIs and options of the op for a method, made from maps (one or a list) with as many channels
    as the output has and from upright RoIs.
    """
    options = dict(method)
    if options.pop('rotated', False):
        rois = rotated(rois)
    if options.pop('deformable', False):
        offsets = torch.randn(len(rois), 2, *output_size, generator=generator(4), dtype=torch.float64) / 8
        options['offsets'] = offsets.to(rois)
    if options.get('position_sensitive'):
        features = position_sensitive(features, output_size)
    return features, rois, options


def rotated(rois):
    """Upright RoIs turned around their centres, by multiples of 90 degrees too."""
    corners = rois[:, 1:3], rois[:, 3:]
    angles = torch.arange(len(rois), dtype=rois.dtype, device=rois.device)[:, None] * 37.5 % 600 - 225
    return torch.cat([rois[:, :1], (corners[0] + corners[1]) / 2, corners[1] - corners[0], angles], dim=1)


def position_sensitive(features, output_size):
    """Maps with a group of channels for each bin, all different."""
    if not isinstance(features, torch.Tensor):
        return [position_sensitive(map_, output_size) for map_ in features]
    bins = output_size[0] * output_size[1]
    shifted = [features.roll((i, 2 * i), (2, 3)) * (1 - i / 8) for i in range(bins)]
    maps = torch.stack(shifted, dim=2).flatten(1, 2)
    last = features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()
    return maps.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


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
