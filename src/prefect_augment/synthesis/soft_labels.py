"""Soft labels of synthetic records: the rows that each becomes, one for every class that it may be of.

A record that was drawn for a class is not always of it. Where ``quality.labels`` is soft, an ensemble
(:mod:`~prefect_augment.evaluation.classifiers.soft_label_ensemble`) says how likely each class is,
and the record becomes a row for every likely one: with one label, and a share that goes into its ``aug_weight``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.encoding.arrays import Matrix
from prefect_augment.encoding.record_ids import derived_ids
from prefect_augment.evaluation.classifiers.soft_label_ensemble import fit_teacher, soft_rows
from prefect_augment.genmodels.base import MIN_SAMPLED_RECORDS
from prefect_augment.schema.base import BalancePlan
from prefect_augment.storage.keys import hash_ids
from prefect_augment.synthesis.subsample import sample_rows

__all__ = ["SHARE", "Standing", "drawn_for", "share_sums", "stand", "standing_rows"]

# Column of kept records: what a row counts.
SHARE = "aug_share"
# An ensemble learns little from more records than this; rare classes are taken whole.
MOST_TAUGHT = 50_000

Float = NDArray[np.float64]
Int = NDArray[np.int64]


@dataclass(frozen=True)
class Standing:
    """What some records stand for.

    Attributes
    ----------
    rows : ndarray of int64, shape (n_rows,)
        Which record, ascending.
    strata : ndarray of int64, shape (n_rows,)
        What it stands for.
    shares : ndarray of float64, shape (n_rows,)
        How likely that is.
    teacher : dict of str to float
        The ensemble's make-up, for a report.
    """

    rows: Int
    strata: Int
    shares: Float
    teacher: dict[str, float]


def stand(
    data: Matrix, plan: BalancePlan, training: Int, X: Float, strata: Int, *, seed: int
) -> Standing:
    """Say which classes records may be of.

    Parameters
    ----------
    data : Matrix
        Real records.
    plan : BalancePlan
        Its strata. A record never leaves its cell of ``balance.by``.
    training : ndarray of int64
        Rows of ``data`` that the ensemble learns from.
    X : ndarray of float64, shape (n, n_columns)
        Drawn records in matrix form.
    strata : ndarray of int64, shape (n,)
        What each was drawn for.
    seed : int
        Of the ensemble.
    """
    folded = hash_ids(pa.array(data.keys[training], pa.string()))
    taught = training[sample_rows(data.strata[training], folded, most=MOST_TAUGHT, seed=seed)]
    n_classes = len(data.classes)
    teacher = fit_teacher(
        data.X[taught],
        data.y[taught],
        is_category=data.is_category,
        n_levels=data.n_levels,
        n_classes=n_classes,
        seed=seed,
    )
    # Where only some records of large classes were taught, a class is likelier than it looks.
    all_of, taught_of = (
        np.bincount(data.y[rows], minlength=n_classes) for rows in (training, taught)
    )
    place = _place_of_class(
        data, plan, np.bincount(data.strata[training], minlength=len(plan.classes))
    )
    there = place[strata]
    proba = teacher.predict_proba(X) * (all_of / np.maximum(1, taught_of))
    own = data.class_of_stratum(plan)[strata]
    rows, classes, shares = soft_rows(np.where(there >= 0, proba, 0.0), own)
    return Standing(rows, there[rows, classes], shares, teacher.said)


def _place_of_class(data: Matrix, plan: BalancePlan, counts: Int) -> Int:
    """Return, by stratum and class, the stratum of that class in the same cell.

    -1 where it has too few records to say what they look like.
    """
    cells = [tuple(sorted(c.by.items())) for c in plan.classes]
    at = {(cell, c.label): k for k, (cell, c) in enumerate(zip(cells, plan.classes, strict=True))}
    place = np.full((len(cells), len(data.classes)), -1, dtype=np.int64)
    for s, cell in enumerate(cells):
        for k, label in enumerate(data.classes):
            found = at.get((cell, label), -1)
            if found == s or (found >= 0 and counts[found] >= MIN_SAMPLED_RECORDS):
                place[s, k] = found
    return place


def standing_rows(table: pa.Table, data: Matrix, standing: Standing) -> pa.Table:
    """Return the rows that records become.

    Parameters
    ----------
    table : pyarrow.Table
        The records, with ``aug_id`` and ``aug_stratum``.
    data : Matrix
        Its encoder writes labels.
    standing : Standing
        Of these records.

    Returns
    -------
    pyarrow.Table
        By stratum and then as the records came. A row keeps its record's values and seed; label and
        ``aug_stratum`` are what it stands for. The row for what the record was drawn for keeps the
        record's ``aug_id``; another's is made of that id and its stratum.
    """
    label = data.encoder.label
    order = np.lexsort((standing.rows, standing.strata))
    rows, strata = standing.rows[order], standing.strata[order]
    found = table.take(pa.array(rows))
    names = [data.strata_names[k] for k in strata]
    ids = found["aug_id"].to_pylist()
    drawn = found["aug_stratum"].to_pylist()
    other = [i for i, (a, b) in enumerate(zip(names, drawn, strict=True)) if a != b]
    if other:
        made = _other_ids([ids[i] for i in other], [names[i] for i in other])
        for i, made_id in zip(other, made, strict=True):
            ids[i] = made_id
    blank = np.zeros((len(rows), len(data.encoder.names)))
    labels = data.encoder.decode(blank, strata=names, columns=[label])
    found = _with(found, label, labels[label])
    found = _with(found, "aug_id", pa.array(ids, pa.string()))
    found = _with(found, "aug_stratum", pa.array(names, pa.string()))
    return found.append_column(SHARE, pa.array(standing.shares[order]))


def drawn_for(
    aug_id: str, *, digest: str, aug_seed: int, stratum: str, strata: Sequence[str]
) -> str:
    """Return what a published row's record was drawn for: its id says so.

    Parameters
    ----------
    aug_id, aug_seed
        The row's.
    digest : str
        Its model's, ``aug_model``.
    stratum : str
        What the row stands for.
    strata : sequence of str
        Those that the model knows.
    """
    own = derived_ids("synthetic", digest, list(strata), aug_seed).to_pylist()
    other = _other_ids(own, [stratum] * len(own))
    for name, as_drawn, as_other in zip(strata, own, other, strict=True):
        if aug_id == (as_drawn if name == stratum else as_other):
            return name
    return stratum  # made by another rule: as it says itself


def _other_ids(ids: list[str], strata: list[str]) -> list[str]:
    """Ids of rows that stand for another stratum than their record was drawn for."""
    made: list[str] = derived_ids("soft", ids, strata).to_pylist()
    return made


def _with(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    place = table.column_names.index(name)
    return table.set_column(place, table.schema.field(name).with_type(column.type), column)


def share_sums(strata: Int, shares: Float, names: Sequence[str]) -> dict[str, float]:
    """Return what the rows of each stratum count together: exact, as shares are multiples of 1/1024."""
    sums = np.bincount(strata, weights=shares, minlength=len(names))
    return {name: float(total) for name, total in zip(names, sums, strict=True) if total}
