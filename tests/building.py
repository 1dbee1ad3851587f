"""Extractors that the tests build whatever their type, those with weights too."""

import torch

from roi_plugins.extractors import EXTRACTORS

STARTING_AS_ALIGN_AVG = ('Deformable', 'ContentAdaptive')
WITH_WEIGHTS = (*STARTING_AS_ALIGN_AVG, 'PositionSensitive')
"""Those of the table that learn something."""


def build_extractor(name, output_size, featmap_strides, channels=3, **options):
    """An extractor of the table, in evaluation; if it has weights, not those that it starts with."""
    extractor_type = EXTRACTORS[name]
    if extractor_type.needs_channels:
        options['channels'] = channels
    return learned(extractor_type(output_size, featmap_strides, **options))


def learned(module, seed=0):
    """The module with random weights, in place: one that has learned nothing is often none at all. And in
    evaluation, where nothing it does is random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator)
    return module.eval()
