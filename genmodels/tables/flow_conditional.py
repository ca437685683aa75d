"""Fixed column values for flow matching on tables.

A fixed category, atom or null is shown to the network of choices before the first draw, so no
record is rejected (:func:`.flow_network.draw_choices_with_values`).

A value on a number's score is only known after the score is drawn. A record is kept where its rank
matches: the ranks of the value itself, or of the nearest records where few have it. The other
scores moved along with it, so they are those of such records.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.tables.mixed_encoding import MixedSpace

__all__ = ["FixedValues", "read_values"]

NEAR_SHARE = 0.01  # of all records with a score that match a rare value

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class FixedValues:
    """Fixed values in the form in which a model draws them."""

    codes: dict[int, int]  # by choice, shown from the start
    near: dict[int, tuple[float, float]]  # by column, the interval of values that match
    values: dict[int, float]  # by column of the matrix form

    def keep(self, X: Floats) -> tuple[NDArray[np.int64], Floats]:
        """Indices of the drawn records that match, and these with the exact values."""
        has = np.ones(len(X), dtype=bool)
        for j, (low, high) in self.near.items():
            has &= (X[:, j] >= low) & (X[:, j] <= high)
        kept = np.flatnonzero(has)
        X = X[kept]
        for j, value in self.values.items():
            X[:, j] = value
        return kept, X


def read_values(space: MixedSpace, requested: Mapping[int, float]) -> FixedValues:
    """Convert values by column to choices and intervals of matching values; NaN requests a missing one.

    Raises ParameterError if no training record has the value and none lies on both sides of it.
    """
    codes: dict[int, int] = {}
    near: dict[int, tuple[float, float]] = {}
    for j, value in requested.items():
        places = space.places_of(j, value)
        if places is None:
            raise ParameterError(
                f"no training record has the requested value in column {space.spec.names[j]!r}; "
                "choose another value, or leave the column out.",
                column=space.spec.names[j],
            )
        codes |= places.codes
        for i, (low, high) in places.ranks.items():
            missing = max(0.0, NEAR_SHARE - (high - low)) / 2
            low, high = low - missing, high + missing
            # At an end of the ranks the window extends to the other side.
            low, high = max(0.0, low - max(0.0, high - 1)), min(1.0, high - min(0.0, low))
            first, last = space.values_at(i, np.array([low, high])).tolist()
            near[j] = min(first, value), max(last, value)
    return FixedValues(codes, near, dict(requested))
