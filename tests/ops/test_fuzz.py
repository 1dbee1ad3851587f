"""The short form of `make fuzz`, on the kernels in use; and that it would notice."""

from types import SimpleNamespace

import fuzzing
import pytest
import torch

from roi_plugins.ops import extension_is_loaded

SEEDS = range(10**6, 10**6 + 600)  # others than those of `make fuzz`


@pytest.mark.skipif(not extension_is_loaded(), reason='the reference is what there is here')
@pytest.mark.parametrize('part', range(4))
def test_random_calls(part):
    counts, failed = fuzzing.run(SEEDS[part::4])
    assert not failed, '\n'.join(map(fuzzing.repeat, failed))
    assert counts['agreed'] > 0.9 * counts.total()


@pytest.mark.parametrize('seed', [20010127, 40405, 66850])
def test_a_gradient_of_thousands_of_samples(seed):
    """The reference, which adds them one by one, loses more of it than the op: that is no fault of the op."""
    assert fuzzing.check(seed) == 'agreed'


def changed(output, at=1.001):
    """Off by a thousandth, in one place."""
    output = output.clone()
    output.reshape(-1)[-1:] *= at
    return output


def an_output(*arguments):
    output, argmax = fuzzing.reference.extract(*arguments)
    return changed(output), argmax


def an_argmax(*arguments):
    output, argmax = fuzzing.reference.extract(*arguments)
    return output, torch.zeros_like(argmax)


def of_a_map(*arguments):
    return [changed(of_map, 0.99) for of_map in fuzzing.reference.extract_backward(*arguments)]


def of_a_box(*arguments):
    of_rois, of_offsets = fuzzing.reference.extract_backward_rois(*arguments)
    return torch.cat([of_rois[:, :3], of_rois[:, 3:4] * 1.01, of_rois[:, 4:]], dim=1), of_offsets


@pytest.mark.parametrize(
    ('op', 'wrong', 'found'),
    [
        ('roi_extract', an_output, 'output'),
        ('roi_extract', an_argmax, 'argmax'),
        ('roi_extract_backward', of_a_map, 'gradient of map'),
        ('roi_extract_backward_rois', of_a_box, 'gradient of rois'),
    ],
)
def test_a_wrong_op_is_noticed(monkeypatch, capsys, op, wrong, found):
    right = {
        'roi_extract': fuzzing.reference.extract,
        'roi_extract_backward': fuzzing.reference.extract_backward,
        'roi_extract_backward_rois': fuzzing.reference.extract_backward_rois,
    }
    monkeypatch.setattr(fuzzing, 'OPS', SimpleNamespace(**right))
    assert not fuzzing.run(range(5))[1]
    monkeypatch.setattr(fuzzing, 'OPS', SimpleNamespace(**{**right, op: wrong}))
    failed = fuzzing.run(range(20))[1]
    errors = capsys.readouterr().err
    assert failed and f'fuzzing.check({failed[0]})' in errors
    assert all(line.startswith(('AssertionError: ' + found, ' ')) for line in errors.splitlines())
