"""Singling out, linkability and inference: the three risks that European regulators name.

Each attack says of every real record whether it succeeds on it. What it succeeds with on records that
the generator never saw is what chance and the population give. Giomi et al. 2022, "A Unified Framework
for Quantifying Privacy Risk in Synthetic Data" (Anonymeter); Article 29 Working Party 2014, Opinion 05.
"""

import numpy as np

from prefect_augment.array_types import Bool, Float, Float32, Int
from prefect_augment.evaluation.privacy.record_pairs import Columns

N_SECRETS = 6
CLOSE = 0.05  # of the range between the 5 % and 95 % quantiles: a number guessed right
N_PREDICATES = 300  # tried per class
MOST_COLUMNS = 4  # in a predicate


def singled_out(real: Columns, synthetic: Columns, rng: np.random.Generator) -> Bool:
    """Which real records a predicate of the synthetic table singles out, shape (n,).

    A predicate takes one to four columns of a synthetic record: at least its number where that is above the
    median, else at most, and its level. It is used if it holds for that record alone among the synthetic
    ones, and succeeds on a real record if it holds for that one alone among the real ones. These are members
    and others together; Giomi et al. look at each by itself, which asks for as many of both.
    """
    singled = np.zeros(len(real), dtype=bool)
    median = np.median(synthetic.numbers, axis=0)
    sizes = rng.integers(1, min(MOST_COLUMNS, real.n_parts) + 1, size=N_PREDICATES)
    for row, size in zip(rng.integers(0, len(synthetic), size=N_PREDICATES), sizes, strict=True):
        columns = rng.choice(real.n_parts, size=size, replace=False)
        if _holds(synthetic, synthetic, row, columns, median).sum() == 1:
            matched = np.flatnonzero(_holds(real, synthetic, row, columns, median))
            if len(matched) == 1:
                singled[matched] = True
    return singled


def _holds(of: Columns, synthetic: Columns, row: int, columns: Int, median: Float32) -> Bool:
    """For which records the predicate of a synthetic record holds."""
    holds = np.ones(len(of), dtype=bool)
    n_numeric = of.numbers.shape[1]
    for j in columns:
        if j >= n_numeric:
            holds &= of.levels[:, j - n_numeric] == synthetic.levels[row, j - n_numeric]
            continue
        value, null = synthetic.numbers[row, j], synthetic.nulls[row, j]
        numbers = of.numbers[:, j]
        holds &= of.nulls[:, j] == null
        if not null:
            holds &= numbers >= value if value >= median[j] else numbers <= value
    return holds


def without_each(n_parts: int, rng: np.random.Generator) -> tuple[Int, Float32]:
    """Columns that are kept secret in turn, and the other columns of each, (n_secrets, n_parts)."""
    secrets = np.sort(rng.permutation(n_parts)[:N_SECRETS]) if n_parts > 1 else np.zeros(0, int)
    known = np.ones((len(secrets), n_parts), dtype=np.float32)
    known[np.arange(len(secrets)), secrets] = 0.0
    return secrets, known


def inferred_shares(real: Columns, synthetic: Columns, secrets: Int, nearest: Int) -> Float:
    """Share of the secret columns that are guessed right of each record, shape (n,).

    The guess is the value of the synthetic record that is nearest by the other columns, ``nearest`` of
    shape (n_secrets, n).
    """
    right = np.zeros(len(real))
    n_numeric = real.numbers.shape[1]
    for j, rows in zip(secrets, nearest, strict=True):
        if j >= n_numeric:
            right += real.levels[:, j - n_numeric] == synthetic.levels[rows, j - n_numeric]
        else:
            off = np.abs(real.numbers[:, j] - synthetic.numbers[rows, j])
            right += (off <= CLOSE) & (real.nulls[:, j] == synthetic.nulls[rows, j])
    return right / max(1, len(secrets))
