"""Exact tests of whether candidates lie where real records would."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

__all__ = ["more_below", "more_marked"]

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]


def more_below(candidates: Float, real: Float, share: float) -> float:
    """Chance of as many candidates below a quantile of real values, if all were drawn alike.

    Parameters
    ----------
    candidates, real : ndarray of float64, shapes (m,) and (n,)
        At least one each.
    share : float in [0, 1)
        Which order statistic of ``real``: the smallest for 0.

    Returns
    -------
    float
        Of the negative hypergeometric distribution: of the first x + r - 1 of all m + n values in
        order, at most r - 1 are real. Equal values count as not below, which makes it larger.
    """
    n, m = len(real), len(candidates)
    r = max(1, int(np.ceil(share * n)))
    x = int((candidates < np.partition(real, r - 1)[r - 1]).sum())
    return float(hypergeom.cdf(r - 1, m + n, n, x + r - 1)) if x else 1.0


def more_marked(candidates: Bool, real: Bool) -> float:
    """Chance of as many marked candidates, if marks fell on all records alike (Fisher's exact test).

    Parameters
    ----------
    candidates, real : ndarray of bool
        Which are marked.
    """
    n_marked, n_all = int(candidates.sum() + real.sum()), len(candidates) + len(real)
    return float(hypergeom.sf(int(candidates.sum()) - 1, n_all, n_marked, len(candidates)))
