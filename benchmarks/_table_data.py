"""The sets that `tables.py` measures on, and how they are split.

Six tables that are described beside them (`../shared/data/tabular/README.md`). Of each: columns
without a value and identifiers are left out, classes under 10 rows too, and all but mammography are
capped at 8,000 rows, class by class. A seed then makes three parts, class by class: *training* (60 %), which
generators and classifiers learn from; *validation* (10 %), on which thresholds are tuned; *test* (30 %),
which only scores see.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["FOLDER", "LABELS", "Split", "load", "split"]

FOLDER = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "tabular"
# The small one first: --quick takes it alone.
LABELS = {
    "ecoli": "site",
    "german_credit": "credit_risk",
    "hypothyroid": "diagnosis",
    "predictive_maintenance": "machine_failure",
    "mammography": "calcification",
    "adult_income": "income",
}
IDENTIFIERS = {"udi", "product_id"}
WHOLE = {"mammography"}
MOST_ROWS = 8000
FEWEST_OF_CLASS = 10
TRAINING, VALIDATION = 0.6, 0.1


@dataclass(frozen=True)
class Split:
    """One set under one seed; the label is a column of text."""

    name: str
    label: str
    training: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame

    @property
    def classes(self) -> list[str]:
        """Classes in the order of their names."""
        return sorted(self.training[self.label].unique())

    @property
    def counts(self) -> dict[str, int]:
        """Fit rows per class."""
        return {c: int((self.training[self.label] == c).sum()) for c in self.classes}

    @property
    def majority(self) -> str:
        """The class with the most training rows."""
        return max(self.classes, key=lambda c: self.counts[c])

    @property
    def lacking(self) -> dict[str, int]:
        """Rows by which every other class falls short of the largest."""
        counts = self.counts
        most = counts[self.majority]
        return {c: most - n for c, n in counts.items() if n < most}


def digest(name: str) -> str:
    """Return the digest of a set's file."""
    return hashlib.sha256(path_of(name).read_bytes()).hexdigest()


def path_of(name: str) -> Path:
    """Return where a set lies; end with a message where it does not."""
    path = FOLDER / f"{name}.parquet"
    if not path.is_file():
        raise SystemExit(
            f"no data at {path}; this benchmark reads what lies beside the repository."
        )
    return path


def load(name: str) -> pd.DataFrame:
    """Return a set as it is split."""
    frame, label = pd.read_parquet(path_of(name)), LABELS[name]
    frame[label] = frame[label].astype(str)
    left_out = [c for c in frame.columns if c in IDENTIFIERS or frame[c].isna().all()]
    frame = frame.drop(columns=left_out)
    large = frame[label].map(frame[label].value_counts()) >= FEWEST_OF_CLASS
    frame = frame[large].reset_index(drop=True)
    if name not in WHOLE and len(frame) > MOST_ROWS:
        (rows, _) = _parts(frame[label], [MOST_ROWS / len(frame)], np.random.default_rng(0))
        frame = frame.iloc[np.sort(rows)].reset_index(drop=True)
    return frame


def split(name: str, seed: int) -> Split:
    """Return the parts of a set under a seed."""
    frame, label = load(name), LABELS[name]
    rows = _parts(frame[label], [TRAINING, VALIDATION], np.random.default_rng(seed))
    return Split(name, label, *(frame.iloc[r].reset_index(drop=True) for r in rows))


def _parts(
    labels: pd.Series, shares: list[float], rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Return rows of parts with these shares of each class, in random order; the last has the rest."""
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(len(shares) + 1)]
    for name in sorted(labels.unique()):
        rows = rng.permutation(np.flatnonzero(labels == name))
        ends = np.round(np.cumsum(shares) * len(rows)).astype(int)
        for part, found in zip(parts, np.split(rows, ends), strict=True):
            part.append(found)
    return [rng.permutation(np.concatenate(part)) for part in parts]
