"""How near drawn rows of `tables.py` are to test's rows, and to those that the model was fitted on.

The shapes and pairs are sdmetrics' own (its package wants an older pandas, and the same numbers came
out of both when they were compared): the Kolmogorov-Smirnov or total variation complement of a
column, the correlation or contingency similarity of a pair with numbers in ten bins of the real ones.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
from _table_data import Split
from _table_matrix import Matrix
from numpy.typing import NDArray

from prefect_augment.evaluation.neighbours import FeatureSpace
from prefect_augment.evaluation.quality.likeness import c2st_auc

__all__ = ["column_shapes", "likeness", "nearness", "pair_trends", "two_sample", "validity"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST_COMPARED = 2500  # rows a side that the classifier tells apart
C2ST_ITERATIONS = 100
FEW_ROWS, DRAWS = 300, 3  # with fewer test rows the two-sample test is the mean of so many draws
MOST_SHAPED = 2000  # rows a side
MOST_NEAR = 2000
BINS = 10
NEAR_QUANTILE = 0.05
MOST_DECIMALS = 6


def likeness(
    matrix: Matrix, drawn: tuple[Floats, Ints], real: tuple[Floats, Ints], *, seed: int
) -> dict[str, float]:
    """Return C2ST AUC, column shapes and pair trends of drawn rows beside real ones, label included.

    Parameters
    ----------
    matrix : Matrix
    drawn, real : (ndarray of float64, shape (n, n_columns), ndarray of int64, shape (n,))
        Matrix form and class codes; the first rows of both are looked at.
    seed : int
        Of the folds.
    """
    is_category = np.append(matrix.is_category, True)
    a, b = (np.column_stack(rows) for rows in (drawn, real))
    return {
        "c2st": two_sample(a, b, matrix, seed=seed),
        "shapes": column_shapes(b[:MOST_SHAPED], a[:MOST_SHAPED], is_category),
        "pairs": pair_trends(b[:MOST_SHAPED], a[:MOST_SHAPED], is_category),
    }


def two_sample(drawn: Floats, real: Floats, matrix: Matrix, *, seed: int) -> float:
    """Return the C2ST AUC; rows have the class code as their last column."""
    n = min(len(real), MOST_COMPARED)
    draws = DRAWS if len(real) < FEW_ROWS else 1
    found = []
    for i in range(draws):
        # As many on both sides; further draws look at further rows while there are any.
        rows = np.arange(i * n, (i + 1) * n) % len(drawn)
        found.append(
            c2st_auc(
                real[:n],
                drawn[rows[: len(drawn)]],
                n_levels=np.append(matrix.n_levels, len(matrix.classes)),
                seed=seed + i,
                most=n,
                n_iterations=C2ST_ITERATIONS,
            )
        )
    return float(np.mean(found))


# --- shapes and pairs ---


def column_shapes(real: Floats, drawn: Floats, is_category: NDArray[np.bool_]) -> float:
    """Return the mean over the columns of how alike their distributions are, nulls left out."""
    found = []
    for j in _varying(real):
        a, b = (X[:, j][~np.isnan(X[:, j])] for X in (real, drawn))
        if not len(b):
            found.append(0.0)
        elif is_category[j]:
            found.append(1.0 - _total_variation(a.astype(int), b.astype(int)))
        else:
            at = np.concatenate([a, b])
            gap = np.abs(_below(a, at) - _below(b, at)).max()
            found.append(1.0 - float(gap))
    return float(np.mean(found))


def pair_trends(real: Floats, drawn: Floats, is_category: NDArray[np.bool_]) -> float:
    """Return the mean over the pairs of columns of how alike they go together."""
    codes = [_binned(real[:, j], drawn[:, j], is_category[j]) for j in range(real.shape[1])]
    found = []
    for i, j in itertools.combinations(_varying(real), 2):
        if is_category[i] or is_category[j]:
            a, b = (codes[i][side] * 1000 + codes[j][side] for side in (0, 1))
            found.append(1.0 - _total_variation(a, b))
            continue
        r, s = (_correlation(X[:, [i, j]]) for X in (real, drawn))
        if not np.isnan(r):
            found.append(0.0 if np.isnan(s) else 1.0 - abs(r - s) / 2)
    return float(np.mean(found))


def _varying(real: Floats) -> list[int]:
    """Return the columns with more than one value."""
    return [j for j in range(real.shape[1]) if len(np.unique(real[~np.isnan(real[:, j]), j])) > 1]


def _below(sample: Floats, at: Floats) -> Floats:
    return np.searchsorted(np.sort(sample), at, side="right") / len(sample)


def _total_variation(a: Ints, b: Ints) -> float:
    levels, codes = np.unique(np.concatenate([a, b]), return_inverse=True)
    shares = [
        np.bincount(c, minlength=len(levels)) / len(c) for c in (codes[: len(a)], codes[len(a) :])
    ]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def _binned(real: Floats, drawn: Floats, is_category: bool) -> tuple[Ints, Ints]:
    """Return codes of both: levels, or ten bins between the real values; null is one more."""
    if is_category:
        return tuple(np.where(np.isnan(x), 999, x).astype(np.int64) for x in (real, drawn))  # type: ignore[return-value]
    edges = np.histogram_bin_edges(real[~np.isnan(real)], bins=BINS)[1:-1]
    return tuple(  # type: ignore[return-value]
        np.where(np.isnan(x), 999, np.digitize(x, edges)).astype(np.int64) for x in (real, drawn)
    )


def _correlation(pair: Floats) -> float:
    known = pair[~np.isnan(pair).any(axis=1)]
    if len(known) < 2 or (known.std(axis=0) == 0).any():
        return float("nan")
    return float(np.corrcoef(known.T)[0, 1])


# --- distances ---


def nearness(
    matrix: Matrix, drawn: Floats, training: Floats, test: Floats, *, seed: int
) -> dict[str, float]:
    """Return how often drawn rows lie near, or on, rows that the model was fitted on.

    Distances are those that the tool itself reports (:class:`.neighbours.FeatureSpace`).

    Parameters
    ----------
    drawn, training, test : ndarray of float64, shape (n, n_columns)
        Matrix form, without the class.
    seed : int
        Of the draw of rows.

    Returns
    -------
    dict of str to float
        ``near_train``: share nearer to training than to as many test rows, ties as halves; 0.5 is ideal.
        ``memo``: share nearer to training than the nearest 5 % of test's rows are. ``copies``: share that
        is equal to a training row; ``own_copies``: the same of test's ``n_own`` rows.
    """
    rng = np.random.default_rng(seed)
    space = FeatureSpace.of(training, matrix.is_category)
    new = space.place(drawn[rng.permutation(len(drawn))[:MOST_NEAR]])
    known, held_out = space.place(training), space.place(test)
    distance, own = space.nearest(new, known), space.nearest(held_out, known)
    n = min(len(training), len(test))
    to_some = space.nearest(new, known[rng.permutation(len(training))[:n]])
    to_others = space.nearest(new, held_out[rng.permutation(len(test))[:n]])
    return {
        "near_train": float(np.mean((to_some < to_others) + 0.5 * (to_some == to_others))),
        "memo": float(np.mean(distance < np.quantile(own, NEAR_QUANTILE))),
        "copies": float(np.mean(distance == 0)),
        "own_copies": float(np.mean(own == 0)),
        "n_own": len(own),
    }


# --- the domain ---


def validity(split: Split, drawn: pd.DataFrame) -> float:
    """Return the share of drawn rows all of whose values could stand in the training rows' columns.

    Numbers lie between the smallest and largest real one, whole where all are, with no more decimals
    than any has; categories are real levels; nulls stand only in columns that have some. Where one
    column says whether another is null (a test was made, or not), it does so too.
    """
    valid = np.ones(len(drawn), dtype=bool)
    for name in split.training.columns:
        real, new = split.training[name], drawn[name]
        null = new.isna().to_numpy()
        if not pd.api.types.is_numeric_dtype(real):
            good = new.isin(real.dropna().unique()).to_numpy()
        else:
            x = new.to_numpy(np.float64, na_value=np.nan)
            known = real.dropna().to_numpy(np.float64)
            decimals = _decimals(known)
            good = (x >= known.min()) & (x <= known.max())
            if decimals is not None:
                good &= np.isclose(x, np.round(x, decimals), rtol=0, atol=1e-9)
        valid &= np.where(null, real.isna().any(), good)
    for flag, level, column in _null_rules(split.training):
        valid &= (drawn[flag] == level).to_numpy() == drawn[column].isna().to_numpy()
    return float(valid.mean())


def _decimals(known: Floats) -> int | None:
    """Return the decimals that all values keep to; None where there are more than a few."""
    for decimals in range(MOST_DECIMALS + 1):
        if np.allclose(known, np.round(known, decimals), rtol=0, atol=1e-9):
            return decimals
    return None


def _null_rules(training: pd.DataFrame) -> list[tuple[Any, Any, Any]]:
    """Return (category, level, column) where a column is null exactly where the level stands."""
    texts = [c for c in training.columns if not pd.api.types.is_numeric_dtype(training[c])]
    rules = []
    for column in training.columns:
        null = training[column].isna()
        for flag in texts if null.any() else []:
            for level in training[flag].dropna().unique():
                if flag != column and ((training[flag] == level) == null).all():
                    rules.append((flag, level, column))
    return rules
