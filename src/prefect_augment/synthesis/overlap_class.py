"""The overlap of the largest class with the others, as a class of its own while a model is fitted.

Records of the largest class that a classifier takes for another one blur what a class-conditional
model learns of the rare ones. They get a class of their own before fitting, which nobody asks the
model for. It works with every model of tables, since they learn one class more.

References
----------
D'souza, Swetha & Sarawagi 2024, "Synthetic Tabular Data Generation for Imbalanced Classification:
The Surprising Effectiveness of an Overlap Class", arXiv 2412.15657. There records of the overlap are
found by another rule; the relabelling, and that the class is dropped at sampling, are theirs.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from prefect_augment.evaluation.quality.table_filter import utility_filter
from prefect_augment.genmodels.base import MIN_SAMPLED_RECORDS, TableData, TableSpec

__all__ = ["OVERLAP_CLASS", "with_overlap_class"]

logger = logging.getLogger(__name__)

OVERLAP_CLASS = "(overlap)"
N_FOLDS = 3


def with_overlap_class(
    data: TableData, spec: TableSpec, *, seed: int
) -> tuple[TableData, TableSpec]:
    """Return the records with the overlap of the largest class as one more class, the last.

    In the overlap are records of the largest class that class-balanced boosting, fitted on other
    records, takes for one of another class.

    Parameters
    ----------
    data : TableData
        Fit records.
    spec : TableSpec
        Their columns and classes.
    seed : int
        Of the folds and the boosting.

    Returns
    -------
    tuple of TableData and TableSpec
        As they were where the overlap, what would be left of the largest class, or every other class
        has too few records to be learnt.
    """
    counts = np.bincount(data.y, minlength=spec.n_classes)
    largest = int(np.argmax(counts))
    others = np.delete(counts, largest)
    if not spec.n_columns or not (others >= MIN_SAMPLED_RECORDS).any():
        return data, spec
    taken = np.flatnonzero((data.y == largest) & (_predicted(data, spec, seed) != largest))
    if min(len(taken), counts[largest] - len(taken)) < MIN_SAMPLED_RECORDS:
        return data, spec
    y = data.y.copy()
    y[taken] = spec.n_classes
    logger.info(
        "%d of %d records of class %r overlap with other classes and are learnt apart.",
        len(taken),
        counts[largest],
        spec.classes[largest],
    )
    classes = (*spec.classes, OVERLAP_CLASS)
    sizes = tuple(int(n) for n in np.bincount(y, minlength=len(classes)))
    return TableData(data.X, y), replace(spec, classes=classes, class_counts=sizes)


def _predicted(data: TableData, spec: TableSpec, seed: int) -> NDArray[np.int64]:
    """Return the class of each record by boosting that has not seen it."""
    rng = np.random.default_rng([seed & 0xFFFFFFFF, 7])
    fold = np.empty(len(data.y), dtype=np.int64)
    for k in np.unique(data.y):  # every class in every fold, as far as it goes
        rows = rng.permutation(np.flatnonzero(data.y == k))
        fold[rows] = np.arange(len(rows)) % N_FOLDS
    found = np.empty(len(data.y), dtype=np.int64)
    for i in range(N_FOLDS):
        judge = utility_filter(
            data.X[fold != i],
            data.y[fold != i],
            is_category=np.array(spec.is_category, dtype=bool),
            n_levels=np.array(spec.n_levels, dtype=np.int64),
            n_classes=spec.n_classes,
            seed=seed & 0x7FFFFFFF,
        )
        found[fold == i] = judge.predict_proba(data.X[fold == i]).argmax(axis=1)
    return found
