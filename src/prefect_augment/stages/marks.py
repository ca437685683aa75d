"""Hold-out records that a column of the source marks."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.encoding.labels import label_text
from prefect_augment.errors import InputError

__all__ = ["Marks"]

IN_HOLDOUT = frozenset({"true", "1", "yes", "holdout", "hold-out", "hold_out", "test"})
IN_TRAINING = frozenset({"false", "0", "no", "train", "training", "fit", "val", "validation", ""})


class Marks:
    """Which records a hold-out column marks, from batches of it.

    Parameters
    ----------
    name : str
        The column's.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._found: list[NDArray[np.bool_]] = [np.zeros(0, dtype=bool)]
        self._unknown: set[str] = set()

    def add(self, column: pa.ChunkedArray) -> None:
        """Take note of a batch."""
        encoded = label_text(column).dictionary_encode()
        words = [word.strip().casefold() for word in encoded.dictionary.to_pylist()]
        self._unknown |= set(words) - IN_HOLDOUT - IN_TRAINING
        held = np.array([*(word in IN_HOLDOUT for word in words), False])
        codes = encoded.indices.fill_null(len(words)).to_numpy()
        self._found.append(held[codes])

    def values(self) -> NDArray[np.bool_]:
        """Return which records are marked.

        Raises
        ------
        InputError
            If the column holds a value that is neither yes nor no.
        """
        if self._unknown:
            unknown = sorted(self._unknown)
            raise InputError(
                f"holdout_column {self.name!r} holds {', '.join(map(repr, unknown[:5]))}; expected true, 1, holdout "
                "or test for hold-out records and false, 0, train or nothing for the others.",
                column=self.name,
                values=unknown,
            )
        return np.concatenate(self._found)


def refuse_one_side(marked: NDArray[np.bool_], name: str) -> None:
    """Refuse marks that put all records on one side."""
    if marked.all() or not marked.any():
        where = "all records" if marked.any() else "no record"
        raise InputError(
            f"holdout_column {name!r} marks {where} as hold-out; expected a part of them.",
            column=name,
        )
