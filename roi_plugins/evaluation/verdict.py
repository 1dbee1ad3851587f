"""What a difference to the baseline says about an extractor, and the smallest one that could have shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy import optimize, stats

from roi_plugins.evaluation.bootstrap import CONFIDENCE

POWER = 0.8
"""How often a difference as large as :func:`smallest_difference` is found."""


@dataclass(frozen=True)
class Verdict:
    """What a difference to the baseline says about an extractor.

    Attributes:
        word: ``'alike'`` if the interval of the difference lies within the margin on both sides; ``'better'``
            or ``'worse'`` if ``p`` is below 0.05; ``'open'`` otherwise.
        p: the p-value after Holm's correction for the number of extractors.
        smallest_difference: see :func:`smallest_difference`.
    """

    word: Literal['better', 'worse', 'alike', 'open']
    p: float
    smallest_difference: float


def judge(differences: Sequence[pd.Series], margin: float) -> list[Verdict]:
    """Judges the differences of several extractors to one baseline, in one metric.

    With no true difference, the chance that any of them is ``'better'`` or ``'worse'`` is at most 5%.

    Args:
        differences: rows of :class:`~roi_plugins.evaluation.bootstrap.Estimates` with a known ``p``.
        margin: differences up to this, a fraction, do not matter; 0 if all do. It has to be chosen before the
            results are known.

    Returns:
        A verdict for each difference.
    """
    verdicts = []
    for difference, p in zip(differences, holm([d['p'] for d in differences]), strict=True):
        word: Literal['better', 'worse', 'alike', 'open'] = 'open'
        if -margin <= difference['low'] and difference['high'] <= margin:
            word = 'alike'
        elif p < 1 - CONFIDENCE:
            word = 'better' if difference['value'] > 0 else 'worse'
        verdicts.append(Verdict(word, float(p), smallest_difference(difference, len(differences))))
    return verdicts


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Corrects p-values for their number (S. Holm, "A simple sequentially rejective multiple test procedure",
    1979).

    Args:
        p_values: the p-values of all comparisons.

    Returns:
        The corrected p-values in the same order.
    """
    corrected = np.array(p_values, float)
    ranked = np.argsort(corrected)
    factors = np.arange(len(ranked), 0, -1)
    corrected[ranked] = np.minimum(1, np.maximum.accumulate(factors * corrected[ranked]))
    return corrected


def smallest_difference(difference: pd.Series, comparisons: int) -> float:
    """Computes the smallest true difference that a plan finds in 80% of cases.

    It assumes that the standard error is the one that was seen, and that the comparison is the hardest of
    Holm's procedure, the one with the smallest p-value.

    Args:
        difference: a row of :class:`~roi_plugins.evaluation.bootstrap.Estimates`, from several seeds.
        comparisons: how many extractors are compared with the baseline.

    Returns:
        The difference as a fraction.
    """
    error, dof = np.hypot(difference['image_se'], difference['seed_se']), difference['dof']
    if error == 0:
        return 0.0
    critical = stats.t.isf((1 - CONFIDENCE) / comparisons / 2, dof)

    def missing_power(shift: float) -> float:
        """The other tail adds nothing to the power of a difference that is found this often."""
        if np.isinf(dof):
            return stats.norm.sf(critical - shift) - POWER
        return stats.nct.sf(critical, dof, shift) - POWER

    return error * optimize.brentq(missing_power, 0, 10 * critical)
