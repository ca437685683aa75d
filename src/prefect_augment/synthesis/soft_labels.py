"""Soft labels: expand each synthetic record to one row per likely class.

A record drawn for a class may belong to another. Where ``quality.labels`` is soft, an ensemble
(:mod:`~prefect_augment.evaluation.classifiers.soft_label_ensemble`) estimates the class
probabilities. The record becomes a row for every likely class, with one label and a share that
enters its ``aug_weight``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.encoding.arrays import Matrix
from prefect_augment.encoding.record_ids import derived_ids
from prefect_augment.evaluation.classifiers.soft_label_ensemble import fit_teacher, soft_label_rows
from prefect_augment.genmodels.base import MIN_SAMPLED_RECORDS
from prefect_augment.schema import BalancePlan
from prefect_augment.storage.keys import hash_ids
from prefect_augment.synthesis.subsample import sample_rows

__all__ = ["SHARE", "Expansion", "drawn_for", "expand", "expanded_rows", "share_sums"]

# Column of kept records: the weight of a row.
SHARE = "aug_share"
# The ensemble gains little from more records; rare classes are taken whole.
MAX_LEARNT = 50_000

Float = NDArray[np.float64]
Int = NDArray[np.int64]


@dataclass(frozen=True)
class Expansion:
    """Rows that records are expanded to, by record."""

    rows: Int  # (n_rows,) index of the record, ascending
    strata: Int  # (n_rows,)
    shares: Float  # (n_rows,) probability of the stratum
    teacher: dict[str, float]  # the ensemble's make-up, for the report


def expand(
    data: Matrix, plan: BalancePlan, training: Int, X: Float, strata: Int, *, seed: int
) -> Expansion:
    """Estimate which classes the drawn records ``X`` (n, n_columns) may belong to.

    The ensemble learns from the rows ``training`` of the real records ``data``. ``strata`` (n,) are
    what the records were drawn for. A record never leaves its cell of ``balance.by``.
    """
    hashes = hash_ids(pa.array(data.keys[training], pa.string()))
    learnt = training[sample_rows(data.strata[training], hashes, most=MAX_LEARNT, seed=seed)]
    n_classes = len(data.classes)
    teacher = fit_teacher(
        data.X[learnt],
        data.y[learnt],
        is_category=data.is_category,
        n_levels=data.n_levels,
        n_classes=n_classes,
        seed=seed,
    )
    # Correct for large classes of which only some records were learnt.
    of_all, of_learnt = (
        np.bincount(data.y[rows], minlength=n_classes) for rows in (training, learnt)
    )
    place = _place_of_class(
        data, plan, np.bincount(data.strata[training], minlength=len(plan.classes))
    )
    class_strata = place[strata]
    proba = teacher.predict_proba(X) * (of_all / np.maximum(1, of_learnt))
    own = data.class_of_stratum(plan)[strata]
    rows, classes, shares = soft_label_rows(np.where(class_strata >= 0, proba, 0.0), own)
    return Expansion(rows, class_strata[rows, classes], shares, teacher.member_shares)


def _place_of_class(data: Matrix, plan: BalancePlan, counts: Int) -> Int:
    """Stratum of each class in the same cell, (n_strata, n_classes); -1 if it has too few records."""
    cells = [tuple(sorted(c.by.items())) for c in plan.classes]
    at = {(cell, c.label): k for k, (cell, c) in enumerate(zip(cells, plan.classes, strict=True))}
    place = np.full((len(cells), len(data.classes)), -1, dtype=np.int64)
    for s, cell in enumerate(cells):
        for k, label in enumerate(data.classes):
            match = at.get((cell, label), -1)
            if match == s or (match >= 0 and counts[match] >= MIN_SAMPLED_RECORDS):
                place[s, k] = match
    return place


def expanded_rows(table: pa.Table, data: Matrix, expansion: Expansion) -> pa.Table:
    """Expand records to rows, sorted by stratum and then by record.

    A row keeps its record's values and seed; label and ``aug_stratum`` are its own. The row of the
    stratum that the record was drawn for keeps the ``aug_id``; other rows derive theirs from that
    id and their stratum.
    """
    label = data.encoder.label
    order = np.lexsort((expansion.rows, expansion.strata))
    rows, strata = expansion.rows[order], expansion.strata[order]
    result = table.take(pa.array(rows))
    names = [data.strata_names[k] for k in strata]
    ids = result["aug_id"].to_pylist()
    drawn = result["aug_stratum"].to_pylist()
    other = [i for i, (a, b) in enumerate(zip(names, drawn, strict=True)) if a != b]
    if other:
        new_ids = _other_ids([ids[i] for i in other], [names[i] for i in other])
        for i, new_id in zip(other, new_ids, strict=True):
            ids[i] = new_id
    blank = np.zeros((len(rows), len(data.encoder.names)))
    labels = data.encoder.decode(blank, strata=names, columns=[label])
    result = _with(result, label, labels[label])
    result = _with(result, "aug_id", pa.array(ids, pa.string()))
    result = _with(result, "aug_stratum", pa.array(names, pa.string()))
    return result.append_column(SHARE, pa.array(expansion.shares[order]))


def drawn_for(
    aug_id: str, *, digest: str, aug_seed: int, stratum: str, strata: Sequence[str]
) -> str:
    """Stratum that a published row's record was drawn for, found by its id.

    ``digest`` is its ``aug_model``, ``stratum`` the row's own, and ``strata`` are those of the
    model.
    """
    own = derived_ids("synthetic", digest, list(strata), aug_seed).to_pylist()
    other = _other_ids(own, [stratum] * len(own))
    for name, as_drawn, as_other in zip(strata, own, other, strict=True):
        if aug_id == (as_drawn if name == stratum else as_other):
            return name
    return stratum  # not derived by this rule: drawn for its own stratum


def _other_ids(ids: list[str], strata: list[str]) -> list[str]:
    """Ids of rows of another stratum than their record was drawn for."""
    ids_of_others: list[str] = derived_ids("soft", ids, strata).to_pylist()
    return ids_of_others


def _with(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    place = table.column_names.index(name)
    return table.set_column(place, table.schema.field(name).with_type(column.type), column)


def share_sums(strata: Int, shares: Float, names: Sequence[str]) -> dict[str, float]:
    """Sum of the rows' shares by stratum: exact, as shares are multiples of 1/1024."""
    sums = np.bincount(strata, weights=shares, minlength=len(names))
    return {name: float(total) for name, total in zip(names, sums, strict=True) if total}
