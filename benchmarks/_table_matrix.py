"""Rows of `tables.py` as the matrix that classifiers and distances read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
from _table_data import Split
from numpy.typing import NDArray

__all__ = ["Matrix"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Matrix:
    """How the columns of a set become float64: NaN for null, the level's code for text.

    Attributes
    ----------
    names : list of str
        Columns but for the label.
    is_category : ndarray of bool, shape (n_columns,)
    n_levels : ndarray of int64, shape (n_columns,)
        Levels and one for those that no real row has; 0 for numbers.
    classes : list of str
    """

    names: list[str]
    is_category: NDArray[np.bool_]
    n_levels: Ints
    classes: list[str]
    label: str
    levels: dict[str, list[str]]

    @classmethod
    def of(cls, split: Split) -> Self:
        """Return the matrix of a set; codes are only names, so all parts' levels have one."""
        names = [c for c in split.training.columns if c != split.label]
        rows = pd.concat([split.training, split.validation, split.test])
        levels = {
            c: sorted(rows[c].dropna().unique())
            for c in names
            if not pd.api.types.is_numeric_dtype(rows[c])
        }
        return cls(
            names=names,
            is_category=np.array([c in levels for c in names]),
            n_levels=np.array([len(levels[c]) + 1 if c in levels else 0 for c in names]),
            classes=split.classes,
            label=split.label,
            levels=levels,
        )

    def encode(self, frame: pd.DataFrame) -> tuple[Floats, Ints]:
        """Return rows, shape (n, n_columns), and their class codes."""
        columns = []
        for name in self.names:
            if name in self.levels:
                codes = pd.Categorical(frame[name], categories=self.levels[name]).codes
                found = np.where(codes >= 0, codes, len(self.levels[name])).astype(np.float64)
                columns.append(np.where(frame[name].isna(), np.nan, found))
            else:
                columns.append(frame[name].to_numpy(np.float64, na_value=np.nan))
        y = pd.Categorical(frame[self.label].astype(str), categories=self.classes).codes
        return np.stack(columns, axis=1), y.astype(np.int64)
