"""What all tests share: the devices that are present, and hypothesis' profiles."""

import pytest
import torch
from hypothesis import settings

# The same examples in every run, however slow the machine. To hunt for new failures instead:
# `pytest --hypothesis-profile=search`.
settings.register_profile('repeatable', derandomize=True, deadline=None)
settings.register_profile('search', max_examples=2000, deadline=None)
settings.load_profile('repeatable')

DEVICES = [
    pytest.param('cpu', id='cpu'),
    pytest.param(
        'cuda',
        id='cuda',
        marks=pytest.mark.skipif(
            not torch.cuda.is_available(),
            reason='torch sees no CUDA GPU here: the CUDA half of the tests is not run',
        ),
    ),
]


@pytest.fixture(params=DEVICES, scope='session')
def device(request):
    """Every device the op has kernels for; CUDA is skipped where there is none."""
    return torch.device(request.param)
