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
        self._unknown: set[str] = set()
        self._n = self._n_marked = 0

    def add(self, column: pa.ChunkedArray) -> NDArray[np.bool_]:
        """Return which records of a batch are marked."""
        encoded = label_text(column).dictionary_encode()
        words = [word.strip().casefold() for word in encoded.dictionary.to_pylist()]
        self._unknown |= set(words) - IN_HOLDOUT - IN_TRAINING
        held = np.array([*(word in IN_HOLDOUT for word in words), False])
        codes = encoded.indices.fill_null(len(words)).to_numpy()
        marked: NDArray[np.bool_] = held[codes]
        self._n += len(marked)
        self._n_marked += int(marked.sum())
        return marked

    def check(self, *, n: int = 0, n_marked: int = 0) -> None:
        """Refuse marks that say nothing.

        Parameters
        ----------
        n, n_marked : int
            Further records, and how many of them are marked.

        Raises
        ------
        InputError
            If the column holds a value that is neither yes nor no, or puts all records on one side.
        """
        if self._unknown:
            unknown = sorted(self._unknown)
            raise InputError(
                f"holdout_column {self.name!r} holds {', '.join(map(repr, unknown[:5]))}; expected true, 1, holdout "
                "or test for hold-out records and false, 0, train or nothing for the others.",
                column=self.name,
                values=unknown,
            )
        n, n_marked = self._n + n, self._n_marked + n_marked
        if n_marked in (0, n):
            where = "all records" if n_marked else "no record"
            raise InputError(
                f"holdout_column {self.name!r} marks {where} as hold-out; expected a part of them.",
                column=self.name,
            )
