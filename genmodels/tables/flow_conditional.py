"""Flow matching for tables with given values: the other columns as they are where these hold.

The network of choices is learnt with any of them hidden, so that a given category, atom or null is
shown before the first choice is drawn, and all others are drawn given it, the likeliest of a few
draws (:func:`.table_flow_network.draw_choices_given`): nothing is refused.

A value that lies on a number's score is not known before the score is drawn. There a record takes
the given value where its rank is one of those that stand for it, and is refused elsewhere: the ranks
of the value itself, or of the nearest records where few have it. The other scores have moved along
with it, so they are those of such records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.tables.mixed_encoding import MixedSpace

__all__ = ["GivenValues", "read_given"]

NEAR_SHARE = 0.01  # of all records with a score, that stand for a value that fewer have

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class GivenValues:
    """Given values as a model draws them.

    Attributes
    ----------
    codes : dict of int to int
        Code by choice: shown from the start.
    near : dict of int to (float, float)
        By column, the lowest and the highest value that stand for the given one.
    values : dict of int to float
        Value by column of the matrix form.
    """

    codes: dict[int, int]
    near: dict[int, tuple[float, float]]
    values: dict[int, float]

    def keep(self, X: Floats) -> tuple[NDArray[np.int64], Floats]:
        """Return which of the drawn records have the values, and these, the values as given."""
        has = np.ones(len(X), dtype=bool)
        for j, (low, high) in self.near.items():
            has &= (X[:, j] >= low) & (X[:, j] <= high)
        kept = np.flatnonzero(has)
        X = X[kept]
        for j, value in self.values.items():
            X[:, j] = value
        return kept, X


def read_given(space: MixedSpace, given: Mapping[int, float]) -> GivenValues:
    """Return given values as choices, and as what stands for them.

    Parameters
    ----------
    space : MixedSpace
        The model's.
    given : mapping of int to float
        Value by column of the matrix form; NaN asks for a missing value.

    Raises
    ------
    ParameterError
        If no training record has the value, and none lies on both sides of it.
    """
    codes: dict[int, int] = {}
    near: dict[int, tuple[float, float]] = {}
    for j, value in given.items():
        places = space.places_of(j, value)
        if places is None:
            raise ParameterError(
                f"no training record has the value that is given for column {space.spec.names[j]!r}; "
                "give another value, or leave the column out.",
                column=space.spec.names[j],
            )
        codes |= places.codes
        for i, (low, high) in places.ranks.items():
            missing = max(0.0, NEAR_SHARE - (high - low)) / 2
            low, high = low - missing, high + missing
            # At an end of the ranks the window is as wide, to the other side.
            low, high = max(0.0, low - max(0.0, high - 1)), min(1.0, high - min(0.0, low))
            first, last = space.values_at(i, np.array([low, high])).tolist()
            near[j] = min(first, value), max(last, value)
    return GivenValues(codes, near, dict(given))
