"""Random sample positions: others in every call of the training, repeated by a seed, none in evaluation."""

import pytest
import torch
import torch.utils.checkpoint

from roi_plugins.extractors import AlignAvg, AlignMax, RandomSampling
from roi_plugins.ops import assign_levels_mmdet, roi_extract

STRIDES = [4, 8, 16]
SIZE = (3, 2)


def pyramid(device='cpu'):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 128 // stride, 160 // stride) for stride in STRIDES]
    return [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]


def rois(device='cpu', num_rois=40):
    corners = torch.rand(2, num_rois, 2, generator=torch.Generator().manual_seed(1)) * 180 - 20
    index = torch.arange(num_rois)[:, None] % 2
    return torch.cat([index, corners.amin(0), corners.amax(0)], dim=1).to(device)


def with_gradients(run, device='cpu', seed=0):
    features = pyramid(device)
    torch.manual_seed(seed)
    output = run(features, rois(device))
    output.square().sum().backward()
    return [output, *(map_.grad for map_ in features)]


@pytest.mark.parametrize('sampling_ratio', [2, 3])
@pytest.mark.parametrize(('reduction', 'uniform'), [('avg', AlignAvg), ('max', AlignMax)])
@pytest.mark.parametrize('aligned', [True, False])
def test_in_evaluation_the_grid_is_uniform(device, sampling_ratio, reduction, uniform, aligned):
    extractor = RandomSampling(SIZE, STRIDES, sampling_ratio, reduction, aligned).eval()
    expected = uniform(SIZE, STRIDES, sampling_ratio, aligned)
    torch.testing.assert_close(
        with_gradients(extractor, device), with_gradients(expected, device), rtol=0, atol=0
    )


def test_in_training_each_call_reads_elsewhere_and_a_seed_repeats_it(device):
    extractor = RandomSampling(SIZE, STRIDES)
    features = pyramid(device)
    torch.manual_seed(3)
    first, second = (extractor(features, rois(device)) for _ in range(2))
    assert (first - second).abs().max() > 0.1
    torch.manual_seed(3)
    assert torch.equal(extractor(features, rois(device)), first)
    assert torch.equal(extractor(features, rois(device)), second)
    torch.manual_seed(4)
    assert not torch.equal(extractor(features, rois(device)), first)


def test_recomputed_activations_are_the_same(device):
    extractor = RandomSampling(SIZE, STRIDES)

    def recomputed(features, rois):
        return torch.utils.checkpoint.checkpoint(extractor, features, rois, use_reentrant=False)

    found, expected = (with_gradients(run, device) for run in (recomputed, extractor))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_in_training_it_is_the_op_with_a_seed(device):
    torch.manual_seed(5)
    seed = torch.randint(2**62, (1,), device=device)
    for options in ({}, dict(sampling_ratio=3, reduction='max', aligned=False)):
        run = RandomSampling(SIZE, STRIDES, **options)

        def op(features, rois, options=options):
            return roi_extract(
                features,
                rois,
                SIZE,
                [1 / s for s in STRIDES],
                seed=seed,
                **options,
                levels=assign_levels_mmdet(rois, len(features)),
            )

        torch.testing.assert_close(with_gradients(run, device, 5), with_gradients(op, device), rtol=0, atol=0)


def test_its_mean_is_that_of_the_bin():
    """The jitter is unbiased: over many calls, what is left is a finer grid's average."""
    extractor = RandomSampling(SIZE, STRIDES)
    inside = torch.tensor([[0, 12.0, 9, 100, 80], [1, 30, 40, 70, 110]])
    features = pyramid()
    torch.manual_seed(0)
    with torch.no_grad():
        mean = torch.stack([extractor(features, inside) for _ in range(3000)]).mean(0)
        dense = AlignAvg(SIZE, STRIDES, sampling_ratio=64)(features, inside)
        coarse = AlignAvg(SIZE, STRIDES, sampling_ratio=2)(features, inside)
    torch.testing.assert_close(mean, dense, rtol=0, atol=0.05)
    assert (coarse - dense).abs().max() > 0.1


def test_compiles_scripts_and_exports_in_training(device):
    """It draws its seed inside of the graph: each call reads elsewhere, as in eager mode."""
    extractor = RandomSampling(SIZE, STRIDES)
    expected = [with_gradients(extractor, device, seed) for seed in (0, 1)]
    assert not torch.equal(expected[0][0], expected[1][0])
    compiled = torch.compile(extractor, fullgraph=True, backend='aot_eager')
    scripted = torch.jit.script(extractor)
    exported = torch.export.export(extractor, (pyramid(device), rois(device))).module()
    for run in (compiled, scripted, exported):
        for seed in (0, 1):
            found = with_gradients(run, device, seed)
            torch.testing.assert_close(found, expected[seed], rtol=0, atol=0)


def test_in_a_cuda_graph_each_replay_reads_elsewhere():
    if not torch.cuda.is_available():
        pytest.skip('torch sees no CUDA GPU here')
    extractor = RandomSampling(SIZE, STRIDES)
    features, boxes = [map_.detach() for map_ in pyramid('cuda')], rois('cuda')
    extractor(features, boxes)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = extractor(features, boxes)
    replays = []
    for _ in range(2):
        graph.replay()
        replays.append(output.clone())
    assert (replays[0] - replays[1]).abs().max() > 0.1
