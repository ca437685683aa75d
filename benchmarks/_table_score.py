"""Scores of one cell of `tables.py`: `python _table_score.py TASK.json`.

Reads the rows that were drawn beside the task, where the method draws any, and writes
`scores.json` and, for the bootstrap over test's rows, `test.npz`. Of the methods without a model,
*nothing* also says what real training rows score beside test's: the best that a model could do.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import _table_data
import numpy as np
import pandas as pd
from _table_downstream import Outcome, score_strategy
from _table_matrix import Matrix
from _table_scores import DRAWS, likeness, nearness, validity
from numpy.typing import NDArray

from prefect_augment.evaluation.classifiers.base import balanced_weights

__all__ = ["NOTHING", "WEIGHTS", "read_outcomes"]

NOTHING, WEIGHTS = "nothing", "class weights"
MIN_LIKE = 5  # rows of the smaller classes; the folds need them

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Rows = tuple[Floats, Ints]


def score(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return all figures of a cell; writes what estimators say of test."""
    split = _table_data.split(task["set"], task["seed"])
    matrix = Matrix.of(split)
    training, validation, test = (
        matrix.encode(part) for part in (split.training, split.validation, split.test)
    )
    largest = matrix.classes.index(split.majority)
    rng = np.random.default_rng(task["seed"])
    figures: dict[str, Any] = {}
    everything = balance = None
    if task["method"] == NOTHING:
        everything, balance = training, _take(training, training[1] != largest)
    elif task["method"] != WEIGHTS:
        drawn = pd.read_parquet(folder / "balance.parquet")
        balance = matrix.encode(drawn)
        if (folder / "all.parquet").is_file():
            frame = pd.read_parquet(folder / "all.parquet")
            everything, drawn = matrix.encode(frame), pd.concat([frame, drawn])
        if len(drawn):
            figures["valid"] = validity(split, drawn)
    if everything is not None:
        rows = _take(everything, rng.permutation(len(everything[1])))
        figures["all"] = likeness(matrix, rows, test, seed=task["seed"])
        figures["all"] |= nearness(matrix, rows[0], training[0], test[0], seed=task["seed"])
    weighted = folder / "weights.npy"
    if balance is not None and not weighted.is_file():
        figures["minority"] = of_minority(matrix, balance, training, test, largest, task["seed"])
    weights = balanced_weights(training[1]) if task["method"] == WEIGHTS else None
    weights = np.load(weighted) if weighted.is_file() else weights
    strategy = training
    if balance is not None and task["method"] != NOTHING:
        strategy = (np.vstack([training[0], balance[0]]), np.concatenate([training[1], balance[1]]))
    outcomes = score_strategy(
        strategy,
        validation,
        test,
        weights=weights,
        n_levels=matrix.n_levels,
        n_classes=len(matrix.classes),
        seed=task["seed"],
    )
    _write_outcomes(outcomes, folder / "test.npz")
    figures["downstream"] = {estimator: outcome.scores() for estimator, outcome in outcomes.items()}
    return figures


def of_minority(
    matrix: Matrix, balance: Rows, training: Rows, test: Rows, largest: int, seed: int
) -> dict[str, float] | None:
    """Return the figures of the smaller classes, drawn as often as they occur in test.

    None where the method made too few of their rows.
    """
    rng = np.random.default_rng(seed)
    wanted = np.bincount(test[1], minlength=len(matrix.classes))
    wanted[largest] = 0
    by_class = [rng.permutation(np.flatnonzero(balance[1] == k)) for k in range(len(wanted))]
    blocks = []
    for i in range(DRAWS):
        block = [
            rows[(i * n + np.arange(min(n, len(rows)))) % len(rows)]
            for n, rows in zip(wanted, by_class, strict=True)
            if len(rows)
        ]
        blocks.append(rng.permutation(np.concatenate(block)) if block else np.empty(0, np.int64))
    rows = np.concatenate(blocks)
    if len(blocks[0]) < MIN_LIKE:
        return None
    drawn, real = _take(balance, rows), _take(test, test[1] != largest)
    known = training[0][training[1] != largest]
    return likeness(matrix, drawn, real, seed=seed) | nearness(
        matrix, balance[0][np.unique(rows)], known, real[0], seed=seed
    )


def _take(rows: Rows, which: NDArray[Any]) -> Rows:
    return rows[0][which], rows[1][which]


def _write_outcomes(outcomes: dict[str, Outcome], path: Path) -> None:
    arrays = {
        f"{estimator}.{name}": value
        for estimator, outcome in outcomes.items()
        for name, value in vars(outcome).items()
    }
    np.savez(path, **arrays)


def read_outcomes(path: Path) -> dict[str, Outcome]:
    """Return what :func:`score` wrote down of test's rows, by estimator."""
    with np.load(path) as arrays:
        found: dict[str, dict[str, Any]] = {}
        for name in arrays.files:
            estimator, _, of = name.partition(".")
            found.setdefault(estimator, {})[of] = arrays[name]
    return {estimator: Outcome(**parts) for estimator, parts in found.items()}


def main() -> None:
    """Score, and name the modules that took part."""
    task = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(task["folder"])
    figures = score(task, folder)
    loaded = [
        "/" + "/".join(name.split(".")[1:]) + ".py"
        for name, module in sys.modules.items()
        if name.startswith("prefect_augment.evaluation.") and not hasattr(module, "__path__")
    ]
    own = ["_table_score.py", "_table_scores.py", "_table_downstream.py", "_table_matrix.py"]
    (folder / "scores.json").write_text(json.dumps(figures | {"modules": [*own, *sorted(loaded)]}))


if __name__ == "__main__":
    main()
