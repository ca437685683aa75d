"""Whether hold-out records of a table are almost among the records that were trained on.

Equal rows are known (``twins``) and groups stay together where the source names them. What is left
are rows that are nearly equal: the same thing measured twice, copies with noise or rounding. Images
have near-duplicates of their own, which stay on one side of the split.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prefect_augment.encoding.arrays import Labelled
from prefect_augment.evaluation.exact_tests import more_below
from prefect_augment.evaluation.neighbours import MIN_VALIDATION, Space

__all__ = ["holdout_leaks"]

Float = NDArray[np.float64]

MOST = 2000  # records of validation records and of the hold-out that are looked at
# Of the median distance between different rows. Six real tables have at most 0.2 % of their rows
# within it of another row that is not equal (docs/quality.md).
ALMOST_EQUAL = 0.01
MOST_ALMOST_EQUAL = 0.01  # share of the hold-out; and at least so many records:
FEWEST = 5
# Where half of the hold-out and more is seen again the median is small itself: then of the distance that
# all but a hundredth stay within. The same tables have at most 4 % of their rows within a hundredth of it.
ALL_BUT_FEW, MOST_OF_MANY = 0.99, 0.25
# A hold-out of the user's own may lie a little otherwise than validation; a leak is many times as near.
CHANCE, TIMES_AS_MANY, NEAREST = 0.001, 3.0, 0.05


def holdout_leaks(
    training: Labelled, validation: Labelled, holdout: Labelled, space: Space
) -> tuple[str, ...]:
    """What points to a leak between training records and the hold-out, in sentences.

    Parameters
    ----------
    training, validation, holdout : Labelled
        Records with their classes as strata; the first 2,000 of validation records and hold-out are looked at.
    space : Space
        Of the training records.

    Returns
    -------
    tuple of str
        Nothing where nothing does.
    """
    if not len(training) or not len(holdout):
        return ()
    placed = space.place(training.X)
    validation, holdout = (
        Labelled(part.X[:MOST], part.stratum[:MOST]) for part in (validation, holdout)
    )
    of_validation, of_holdout = (
        space.nearest(space.place(part.X), placed) for part in (validation, holdout)
    )
    advice = (
        "if they are the same things seen again, name what they share in source.group_column, "
        "so that they stay on one side"
    )
    found = []
    apart = of_holdout[of_holdout > 0]
    n_almost = _n_almost_equal(apart, len(of_holdout)) if len(apart) else 0
    if n_almost:
        found.append(
            f"{n_almost} of {len(of_holdout)} hold-out records are almost equal to a training record "
            f"and not equal; {advice}."
        )
    classes = [
        k for k in np.unique(holdout.stratum) if (validation.stratum == k).sum() >= MIN_VALIDATION
    ]
    n_near = sum(
        _too_near(
            of_holdout[holdout.stratum == k],
            of_validation[validation.stratum == k],
            CHANCE / len(classes),
        )
        for k in classes
    )
    if n_near:
        found.append(
            f"in {n_near} of {len(classes)} classes hold-out records lie much nearer to the training "
            f"records than validation's do, which were kept apart from them in the same way; {advice}."
        )
    return tuple(found)


def _n_almost_equal(apart: Float, n: int) -> int:
    """Records that are almost equal to one of the others, of ``n``; 0 where they are as few as usual."""
    for quantile, most in ((0.5, MOST_ALMOST_EQUAL), (ALL_BUT_FEW, MOST_OF_MANY)):
        n_almost = int((apart < ALMOST_EQUAL * np.quantile(apart, quantile)).sum())
        if n_almost >= max(FEWEST, most * n):
            return n_almost
    return 0


def _too_near(holdout: Float, validation: Float, chance: float) -> bool:
    """Whether more hold-out distances are small than of as many of validation's, by far and not by chance."""
    limit = np.quantile(validation, NEAREST)
    share, usual = float((holdout < limit).mean()), max(NEAREST, float((validation < limit).mean()))
    return share > TIMES_AS_MANY * usual and more_below(holdout, validation, NEAREST) < chance
