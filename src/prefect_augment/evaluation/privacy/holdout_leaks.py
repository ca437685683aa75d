"""Whether hold-out records of a table almost equal training records.

Equal rows are known (``twins``), and groups stay together where the source names them. This finds
rows that are nearly equal: one thing measured twice, copies with noise or rounding. Images have
their own near-duplicate search, which keeps duplicates on one side of the split.
"""

import numpy as np

from prefect_augment.array_types import Float
from prefect_augment.encoding.arrays import Labelled
from prefect_augment.evaluation.neighbours import MIN_VALIDATION, Space, more_below

MAX_RECORDS = 2000  # of validation and of the hold-out each
# Of the median distance between different rows. Six real tables have at most 0.2 % of their rows
# within it of another row that is not equal (docs/quality.md).
ALMOST_EQUAL = 0.01
MOST_ALMOST_EQUAL = 0.01  # share of the hold-out, and at least this many records:
FEWEST = 5
# If half of the hold-out or more is duplicated, the median is small itself. Then the limit is relative to
# the 99 % quantile; the same tables have at most 4 % of their rows within a hundredth of it.
ALL_BUT_FEW, MOST_OF_MANY = 0.99, 0.25
# A hold-out of the user's own may differ a little from validation; a leak is many times as near.
CHANCE, TIMES_AS_MANY, NEAREST = 0.001, 3.0, 0.05


def holdout_leaks(
    training: Labelled, validation: Labelled, holdout: Labelled, space: Space
) -> tuple[str, ...]:
    """Sentences on leaks between training records and the hold-out; none where there is no sign of one.

    Strata are classes; ``space`` is that of the training records.
    """
    if not len(training) or not len(holdout):
        return ()
    train_points = space.place(training.X)
    validation, holdout = (
        Labelled(part.X[:MAX_RECORDS], part.stratum[:MAX_RECORDS]) for part in (validation, holdout)
    )
    of_validation, of_holdout = (
        space.nearest(space.place(part.X), train_points) for part in (validation, holdout)
    )
    advice = (
        "if they are the same things measured again, set source.group_column to what they share, "
        "so that they stay on one side"
    )
    sentences = []
    apart = of_holdout[of_holdout > 0]
    n_almost = _n_almost_equal(apart, len(of_holdout)) if len(apart) else 0
    if n_almost:
        sentences.append(
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
        sentences.append(
            f"in {n_near} of {len(classes)} classes hold-out records lie much nearer to the training "
            f"records than validation's do, which were split off in the same way; {advice}."
        )
    return tuple(sentences)


def _n_almost_equal(apart: Float, n: int) -> int:
    """Records that almost equal one of the others, of ``n``; 0 where they are as few as usual."""
    for quantile, most in ((0.5, MOST_ALMOST_EQUAL), (ALL_BUT_FEW, MOST_OF_MANY)):
        n_almost = int((apart < ALMOST_EQUAL * np.quantile(apart, quantile)).sum())
        if n_almost >= max(FEWEST, most * n):
            return n_almost
    return 0


def _too_near(holdout: Float, validation: Float, chance: float) -> bool:
    """Whether clearly more hold-out distances than validation distances are small, beyond chance."""
    limit = np.quantile(validation, NEAREST)
    share, usual = float((holdout < limit).mean()), max(NEAREST, float((validation < limit).mean()))
    return share > TIMES_AS_MANY * usual and more_below(holdout, validation, NEAREST) < chance
