"""The op under forward-mode AD and torch.func: right, or an error; a derivative of zero, never."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from cases import METHODS, align, fitted, random_map, random_rois

from roi_plugins.extractors import AlignAvg
from roi_plugins.ops import layers, roi_extract

FORWARD_MODE = 'roi_extract: forward-mode derivatives are not supported'
# What PyTorch says of a function that is no part of torch.func, and of one without a forward-mode derivative.
REFUSED = rf'{FORWARD_MODE}|setup_context|functorch transforms|second derivatives'
ARGUMENTS = ('features', 'rois', 'offsets')


def inputs(dtype=torch.float64):
    rois = random_rois(3, 2, 8, 10, dtype=dtype)
    return {
        'features': random_map(2, 3, 8, 10, dtype=dtype),
        'rois': rois,
        'offsets': fitted({'deformable': True}, None, rois, (2, 2))[2]['offsets'],
    }


def as_function_of(name, given, **method):
    """The op as a function of one of its arguments, the others given."""
    return lambda value: roi_extract(output_size=2, spatial_scale=1.0, **{**given, name: value}, **method)


def dual(function, value, requires_grad=False):
    """The tangent of a function's output where all of its input moves by one."""
    with forward_ad.dual_level():
        made = forward_ad.make_dual(value.detach().requires_grad_(requires_grad), torch.ones_like(value))
        return forward_ad.unpack_dual(function(made)).tangent


FORWARD_TRANSFORMS = {
    'jvp': lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),)),
    'jacfwd': lambda f, x: torch.func.jacfwd(f)(x),
    'linearize': lambda f, x: torch.func.linearize(f, x)[1](x),
    'dual': dual,
    'jacobian': lambda f, x: torch.autograd.functional.jacobian(
        f, x, vectorize=True, strategy='forward-mode'
    ),
    'vmap of jvp': lambda f, x: torch.func.vmap(lambda x: torch.func.jvp(f, (x,), (torch.ones_like(x),)))(
        x[None]
    ),
    'jvp of vmap': lambda f, x: torch.func.jvp(torch.func.vmap(f), (x[None],), (torch.ones_like(x[None]),)),
}


@pytest.mark.parametrize('transform', FORWARD_TRANSFORMS)
@pytest.mark.parametrize('name', ARGUMENTS)
def test_forward_mode_is_refused(name, transform):
    given = inputs()
    with pytest.raises(NotImplementedError, match=FORWARD_MODE):
        FORWARD_TRANSFORMS[transform](as_function_of(name, given), given[name])


@pytest.mark.parametrize('name', METHODS)
def test_forward_mode_is_refused_for_every_method(name):
    maps, rois, method = fitted(METHODS[name], random_map(2, 3, 8, 10), random_rois(3, 2, 8, 10), (2, 2))
    with pytest.raises(NotImplementedError, match=FORWARD_MODE):
        dual(lambda maps: roi_extract(maps, rois, 2, 1.0, **method), maps)


def test_forward_mode_is_refused_for_any_map_of_a_pyramid():
    given = inputs()
    small = random_map(2, 3, 4, 5, dtype=torch.float64)
    levels = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(NotImplementedError, match=FORWARD_MODE):
        dual(
            lambda map_: roi_extract([given['features'], map_], given['rois'], 2, [1, 0.5], levels=levels),
            small,
        )


@pytest.mark.parametrize('name', ARGUMENTS)
def test_forward_mode_is_refused_beside_a_gradient(name):
    """PyTorch itself refuses here, in other words."""
    given = inputs()
    with pytest.raises(NotImplementedError):
        dual(as_function_of(name, given), given[name], requires_grad=True)


@pytest.mark.parametrize('name', ARGUMENTS)
def test_forward_mode_is_refused_in_the_backward_pass(name):
    """The gradient is linear in the one of the output, whose tangent would get lost."""
    given = inputs()
    value = given[name].requires_grad_()
    output = as_function_of(name, given)(value)
    with pytest.raises(NotImplementedError, match='forward-mode derivatives are not supported'):
        dual(lambda grad: torch.autograd.grad(output, value, grad)[0], torch.ones_like(output))


@pytest.mark.parametrize(
    'module',
    [layers.RoIAlign(2, 1.0, 2), torch.jit.script(layers.RoIAlign(2, 1.0, 2))],
    ids=['layer', 'script'],
)
@pytest.mark.filterwarnings('ignore:.torch.jit:DeprecationWarning')
def test_forward_mode_is_refused_in_a_layer(module):
    given = inputs()
    with pytest.raises((NotImplementedError, RuntimeError), match=FORWARD_MODE):
        dual(lambda x: module(x, given['rois']), given['features'])


def test_forward_mode_is_refused_in_an_extractor():
    given = inputs()
    with pytest.raises(NotImplementedError, match=FORWARD_MODE):
        dual(lambda x: AlignAvg(2, [1])([x], given['rois']), given['features'])


def test_other_tensors_may_have_tangents():
    """Inside of a dual level the op works where none of its own tensors has a tangent."""
    given = inputs()
    expected = roi_extract(given['features'], given['rois'], 2, 1.0)
    with forward_ad.dual_level():
        forward_ad.make_dual(torch.ones(1), torch.ones(1))
        assert torch.equal(roi_extract(given['features'], given['rois'], 2, 1.0), expected)


def test_forward_mode_is_refused_when_compiled():
    given = inputs()
    torch._dynamo.reset()

    @torch.compile(backend='aot_eager', fullgraph=True)
    def tangent(x):
        return torch.func.jvp(lambda x: roi_extract(x, given['rois'], 2, 1.0), (x,), (torch.ones_like(x),))[1]

    with pytest.raises(Exception, match='forward-mode derivatives are not supported'):
        tangent(given['features'])


REVERSE_TRANSFORMS = {
    'grad': lambda f, x: torch.func.grad(lambda x: f(x).sum())(x),
    'vjp': lambda f, x: torch.func.vjp(f, x),
    'jacrev': lambda f, x: torch.func.jacrev(f)(x),
    'hessian': lambda f, x: torch.func.hessian(lambda x: f(x).sum())(x),
    'vmap of grad': lambda f, x: torch.func.vmap(torch.func.grad(lambda x: f(x).sum()))(x[None]),
    'double backward': lambda f, x: torch.autograd.functional.hessian(lambda x: f(x).square().sum(), x),
}


@pytest.mark.parametrize('transform', REVERSE_TRANSFORMS)
@pytest.mark.parametrize('name', ARGUMENTS)
def test_reverse_mode_of_torch_func_is_refused(name, transform):
    given = inputs()
    with pytest.raises(RuntimeError, match=REFUSED):
        REVERSE_TRANSFORMS[transform](as_function_of(name, given), given[name])


@pytest.mark.parametrize('name', ARGUMENTS)
def test_batched_gradients_are_refused(name):
    """`is_grads_batched` runs on an older vmap, for which no rule can be registered."""
    given = inputs()
    with pytest.raises(RuntimeError, match='Batching rule not implemented'):
        torch.autograd.functional.jacobian(as_function_of(name, given), given[name], vectorize=True)


if hasattr(torch.library, 'register_vmap'):  # torch 2.5

    @pytest.mark.parametrize('in_dim', [0, 1, -1])
    @pytest.mark.parametrize('reduction', ['avg', 'max'])
    @pytest.mark.parametrize('name', ARGUMENTS)
    def test_vmap_is_a_loop(name, reduction, in_dim):
        given = inputs()
        method = align(reduction)
        if reduction == 'max':
            if name == 'offsets':
                pytest.skip('offsets go with the average')
            del given['offsets']
        function = as_function_of(name, given, **method)
        moved = given[name].clone()
        moved[:, 1:] *= 0.875  # not the batch index
        values = [given[name], moved]
        stacked = torch.stack(values, dim=in_dim).requires_grad_()
        output = torch.func.vmap(function, in_dims=in_dim)(stacked)
        leaves = [value.clone().requires_grad_() for value in values]
        expected = torch.stack([function(leaf) for leaf in leaves])
        assert torch.equal(output, expected)
        output.square().sum().backward()
        expected.square().sum().backward()
        assert torch.equal(stacked.grad, torch.stack([leaf.grad for leaf in leaves], dim=in_dim))

    def test_vmap_over_a_pyramid_and_its_rois():
        maps = [random_map(3, 2, 4, 8 // n, 10 // n) for n in (1, 2)]
        rois = torch.stack([random_rois(5, 2, 16, 20, seed=seed) for seed in range(3)])
        levels = torch.tensor([0, 1, 1, 0, -1])

        def run(fine, coarse, rois):
            return roi_extract([fine, coarse], rois, 2, [0.5, 0.25], levels=levels, seed=3)

        expected = torch.stack([run(*each) for each in zip(*maps, rois, strict=True)])
        assert torch.equal(torch.func.vmap(run)(*maps, rois), expected)

    def test_vmap_over_nothing():
        given = inputs()
        with pytest.raises(ValueError, match='vmap'):
            torch.func.vmap(as_function_of('features', given))(given['features'][None][:0])

    def test_vmap_when_compiled():
        given = inputs()
        torch._dynamo.reset()
        run = torch.func.vmap(lambda x: roi_extract(x, given['rois'], 2, 1.0))
        values = torch.stack([given['features'], given['features'] * 2])
        compiled = torch.compile(run, backend='aot_eager', fullgraph=True)
        assert torch.equal(compiled(values), run(values))
