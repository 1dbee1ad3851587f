"""What a difference to the baseline says about an extractor, and the smallest one that could have shown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import optimize, stats

from roi_plugins.evaluation.bootstrap import CONFIDENCE

POWER = 0.8
"""How often a difference as large as :func:`smallest_difference` is found."""

BETTER, WORSE, ALIKE, OPEN = 'better', 'worse', 'alike', 'open'


def judge(differences: Sequence[pd.Series], margin: float) -> list[str]:
    """Judges the differences of several extractors to one baseline, in one metric.

    The p-values are corrected for the number of extractors (:func:`holm`), so that with no true difference
    the chance of any ``'better'`` or ``'worse'`` is at most 5%.

    Args:
        differences: rows of :class:`~roi_plugins.evaluation.bootstrap.Estimates`, from several seeds each.
        margin: differences up to this, a fraction above 0, do not matter. It has to be chosen before the
            results are known.

    Returns:
        A verdict for each difference: ``'alike'`` if its interval lies within the margin on both sides;
        ``'better'`` or ``'worse'`` if its corrected p-value is below 0.05; ``'open'`` otherwise.
    """
    verdicts = []
    for difference, p in zip(differences, holm([d['p'] for d in differences]), strict=True):
        if -margin <= difference['low'] and difference['high'] <= margin:
            verdicts.append(ALIKE)
        elif p < 1 - CONFIDENCE:
            verdicts.append(BETTER if difference['value'] > 0 else WORSE)
        else:
            verdicts.append(OPEN)
    return verdicts


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Corrects p-values for their number (S. Holm, "A simple sequentially rejective multiple test procedure",
    1979).

    Args:
        p_values: the p-values of all comparisons; NaN for one that is not known, which does not count.

    Returns:
        The corrected p-values in the same order.
    """
    corrected = np.array(p_values, float)
    known = np.flatnonzero(~np.isnan(corrected))
    ranked = known[np.argsort(corrected[known])]
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
        The difference as a fraction; NaN if the standard error is not known.
    """
    error, dof = np.hypot(difference['image_se'], difference['seed_se']), difference['dof']
    if np.isnan(error) or error == 0:
        return error
    critical = stats.t.isf((1 - CONFIDENCE) / comparisons / 2, dof)

    def missing_power(shift: float) -> float:
        """The other tail adds nothing to the power of a difference that is found this often."""
        if np.isinf(dof):
            return stats.norm.sf(critical - shift) - POWER
        return stats.nct.sf(critical, dof, shift) - POWER

    return error * optimize.brentq(missing_power, 0, 10 * critical)
