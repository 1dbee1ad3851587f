"""What is wrong between a model and the weights that it is to be tested with, in words."""

from __future__ import annotations

from collections.abc import Sequence

_SHOWN = 5


def describe_misfit(
    missing: Sequence[str], unexpected: Sequence[str], misshapen: Sequence[str]
) -> str:
    """Names the weights that do not fit, the first of each kind; empty where all do.

    Both frameworks only warn of these, and test what is then partly a random model.

    Args:
        missing: names of weights of the model that the checkpoint lacks.
        unexpected: those of the checkpoint that the model does not have.
        misshapen: those of both whose shapes differ.
    """
    kinds = {
        'it lacks': missing,
        'the model does not have its': unexpected,
        'of another shape are': misshapen,
    }
    parts = []
    for kind, names in kinds.items():
        if names:
            more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
            parts.append(f'{kind} {", ".join(names[:_SHOWN])}{more}')
    return '; '.join(parts)
