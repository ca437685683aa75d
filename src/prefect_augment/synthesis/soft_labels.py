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

from prefect_augment.array_types import Float, Int
from prefect_augment.encoding.arrays import Matrix
from prefect_augment.encoding.record_ids import derived_ids
from prefect_augment.encoding.subsample import Sample, sample_rows
from prefect_augment.evaluation.classifiers.soft_label_ensemble import (
    Teacher,
    fit_teacher,
    own_label_rows,
    soft_label_rows,
)
from prefect_augment.genmodels.base import MIN_SAMPLED_RECORDS
from prefect_augment.schema import BalancePlan
from prefect_augment.storage.keys import hash_ids

# Column of kept records: the weight of a row.
SHARE = "aug_share"
# The ensemble gains little from more records; rare classes are taken whole.
MAX_LEARNT = 50_000


@dataclass(frozen=True)
class Expansion:
    """Rows that records are expanded to, by record."""

    rows: Int  # (n_rows,) index of the record, ascending
    strata: Int  # (n_rows,)
    shares: Float  # (n_rows,) probability of the stratum
    teacher: dict[str, float]  # the ensemble's make-up, for the report


@dataclass(frozen=True)
class Ensemble:
    """What some real records teach about classes."""

    teacher: Teacher
    learnt: Int  # rows of the records that it was fitted on
    prior: Float  # (n_classes,) corrects for large classes of which only some records were learnt

    def predict_proba(self, X: Float) -> Float:
        """Probability of every class, up to a factor per record, shape (n_records, n_classes)."""
        return self.teacher.predict_proba(X) * self.prior


def learn(data: Matrix, training: Int, *, seed: int, weights: Float | None = None) -> Ensemble:
    """Fit the ensemble on the rows ``training`` of the real records, at most :data:`MAX_LEARNT` of them.

    ``weights`` are those of the rows, 1 by default.
    """
    hashes = hash_ids(pa.array(data.keys[training], pa.string()))
    learnt = training[sample_rows(data.strata[training], hashes, Sample(MAX_LEARNT, seed))]
    n_classes = len(data.classes)
    teacher = fit_teacher(
        data.X[learnt],
        data.y[learnt],
        n_levels=data.n_levels,
        n_classes=n_classes,
        seed=seed,
        weights=None if weights is None else weights[np.searchsorted(training, learnt)],
    )
    of_all, of_learnt = (
        np.bincount(data.y[rows], minlength=n_classes) for rows in (training, learnt)
    )
    return Ensemble(teacher, learnt, of_all / np.maximum(1, of_learnt))


def out_of_fold(data: Matrix, training: Int, ensemble: Ensemble) -> Float:
    """Probabilities of the real records ``training`` by members that have not seen them, (n, n_classes)."""
    order = np.argsort(ensemble.learnt)
    place = order[
        np.minimum(np.searchsorted(ensemble.learnt, training, sorter=order), len(order) - 1)
    ]
    is_learnt = ensemble.learnt[place] == training
    proba = np.empty((len(training), len(data.classes)))
    proba[is_learnt] = ensemble.teacher.of_training[place[is_learnt]] * ensemble.prior
    proba[~is_learnt] = ensemble.predict_proba(data.X[training[~is_learnt]])
    return proba


def relabel(data: Matrix, plan: BalancePlan, training: Int, ensemble: Ensemble) -> Expansion:
    """Estimate which classes the real records ``training`` may belong to besides their own.

    Each is judged by members that have not seen it. Rows are places in ``training``; a record never
    leaves its cell of ``balance.by``.
    """
    proba = out_of_fold(data, training, ensemble)
    class_strata = _class_strata(data, plan, training, data.strata[training])
    proba = np.where(class_strata >= 0, proba, 0.0)
    proba /= np.maximum(proba.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    rows, classes, shares = own_label_rows(proba, data.y[training])
    strata = class_strata[rows, classes]
    own = classes == data.y[training][rows]
    # Also of a stratum too small for others' records.
    strata[own] = data.strata[training][rows[own]]
    return Expansion(rows, strata, shares, ensemble.teacher.member_shares)


def _class_strata(data: Matrix, plan: BalancePlan, training: Int, strata: Int) -> Int:
    """Stratum of every class in the cell of each record, (n_records, n_classes); -1 if it has too few."""
    counts = np.bincount(data.strata[training], minlength=len(plan.classes))
    cells = [tuple(sorted(c.by.items())) for c in plan.classes]
    at = {(cell, c.label): k for k, (cell, c) in enumerate(zip(cells, plan.classes, strict=True))}
    place = np.full((len(cells), len(data.classes)), -1, dtype=np.int64)
    for s, cell in enumerate(cells):
        for k, label in enumerate(data.classes):
            match = at.get((cell, label), -1)
            if match == s or (match >= 0 and counts[match] >= MIN_SAMPLED_RECORDS):
                place[s, k] = match
    return place[strata]


def expand(
    data: Matrix, plan: BalancePlan, training: Int, X: Float, strata: Int, ensemble: Ensemble
) -> Expansion:
    """Estimate which classes the drawn records ``X`` (n, n_columns) may belong to.

    The rows ``training`` of the real records ``data`` decide which classes have enough records. ``strata``
    (n,) are what the records were drawn for. A record never leaves its cell of ``balance.by``.
    """
    class_strata = _class_strata(data, plan, training, strata)
    proba = ensemble.predict_proba(X)
    own = data.class_of_stratum(plan)[strata]
    rows, classes, shares = soft_label_rows(np.where(class_strata >= 0, proba, 0.0), own)
    return Expansion(rows, class_strata[rows, classes], shares, ensemble.teacher.member_shares)


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
    return [*derived_ids("soft", ids, strata).to_pylist()]


def _with(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    place = table.column_names.index(name)
    return table.set_column(place, table.schema.field(name).with_type(column.type), column)


def share_sums(strata: Int, shares: Float, names: Sequence[str]) -> dict[str, float]:
    """Sum of the rows' shares by stratum: exact, as shares are multiples of 1/1024."""
    sums = np.bincount(strata, weights=shares, minlength=len(names))
    return {name: float(total) for name, total in zip(names, sums, strict=True) if total}
