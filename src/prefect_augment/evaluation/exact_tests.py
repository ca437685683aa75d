"""Exact tests of whether candidates lie where real records would."""

import numpy as np
from scipy.stats import hypergeom

from prefect_augment.array_types import Bool, Float


def more_below(candidates: Float, real: Float, share: float) -> float:
    """P-value of as many candidates below the ``share`` quantile of real values, if all were alike.

    By the negative hypergeometric distribution: of the first x + r - 1 of all m + n values in order, at
    most r - 1 are real. Ties count as not below, which makes the test conservative.
    """
    n, m = len(real), len(candidates)
    r = max(1, int(np.ceil(share * n)))
    x = int((candidates < np.partition(real, r - 1)[r - 1]).sum())
    return float(hypergeom.cdf(r - 1, m + n, n, x + r - 1)) if x else 1.0


def more_true(candidates: Bool, real: Bool) -> float:
    """P-value of as many true candidates, if candidates and real records were alike (Fisher's exact test)."""
    n_true, n_all = int(candidates.sum() + real.sum()), len(candidates) + len(real)
    return float(hypergeom.sf(int(candidates.sum()) - 1, n_all, n_true, len(candidates)))
