"""Staged records in matrix form: what models, gates and learners work on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefect_augment.datatypes import BalancePlan, DatasetFacts
from prefect_augment.encoding.tables import TableEncoder, table_strata
from prefect_augment.reading.staged import read_part
from prefect_augment.shards.parquet import label_names
from prefect_augment.staging import canonical_json
from prefect_augment.storage import Store

__all__ = ["Matrix", "by_columns", "to_matrix", "training_matrix"]


@dataclass(frozen=True)
class Matrix:
    """Records in matrix form.

    Attributes
    ----------
    X : ndarray of float64, shape (n, n_columns)
        Learnt columns; NaN is null; category columns hold level codes.
    y, strata : ndarray of int64, shape (n,)
        Indices into ``classes`` and ``strata_names``; a class or stratum not named there is -1.
    keys : ndarray of str, shape (n,)
        ``aug_id``: an order of the records that does not depend on the source's.
    content : ndarray of str, shape (n,)
        ``content_key``; twins share it.
    groups : ndarray of int64, shape (n,), or None
        Records of one group stay together in folds and resamples.
    is_val : ndarray of bool, shape (n,)
        Which records belong to val.
    """

    X: NDArray[np.float64]
    y: NDArray[np.int64]
    strata: NDArray[np.int64]
    keys: NDArray[np.str_]
    content: NDArray[np.str_]
    groups: NDArray[np.int64] | None
    is_val: NDArray[np.bool_]
    classes: tuple[str, ...]
    strata_names: tuple[str, ...]
    judged: NDArray[np.bool_]
    encoder: TableEncoder

    @property
    def is_category(self) -> NDArray[np.bool_]:
        """Which columns hold level codes."""
        return np.asarray(self.encoder.is_category, dtype=bool)

    @property
    def n_levels(self) -> NDArray[np.int64]:
        """Levels per column; 0 for numeric ones."""
        return np.asarray(self.encoder.n_levels, dtype=np.int64)

    def class_of_stratum(self, plan: BalancePlan) -> NDArray[np.int64]:
        """Return the class index of each stratum."""
        return np.array([self.classes.index(c.label) for c in plan.classes], dtype=np.int64)


def by_columns(plan: BalancePlan) -> tuple[str, ...]:
    """Return the names of the ``balance.by`` columns."""
    return tuple(plan.classes[0].by) if plan.classes else ()


# Every arm of a run asks for the same matrix, one after the other or from several threads.
_recent: OrderedDict[tuple[str, str, bytes], Matrix] = OrderedDict()
_recent_lock = Lock()
MAX_RECENT = 2


def training_matrix(store: Store, facts: DatasetFacts, plan: BalancePlan) -> Matrix:
    """Return fit and val in matrix form, sorted by key.

    The encoder is fitted on these records alone; the hold-out is not read.
    """
    key = (store.uri, facts.digest + facts.key, canonical_json(list(plan.classes)))
    with _recent_lock:
        if key not in _recent:
            _recent[key] = _read_training_matrix(store, facts, plan)
        _recent.move_to_end(key)
        while len(_recent) > MAX_RECENT:
            _recent.popitem(last=False)
        return _recent[key]


def _read_training_matrix(store: Store, facts: DatasetFacts, plan: BalancePlan) -> Matrix:
    parts = [read_part(store, facts, [part]) for part in ("fit", "val")]
    table = pa.concat_tables(parts)
    is_val = np.repeat([False, True], [part.num_rows for part in parts])
    order = pc.sort_indices(table, sort_keys=[("aug_id", "ascending")])
    table, is_val = table.take(order), is_val[order.to_numpy()]
    encoder = TableEncoder.fit(table, columns=facts.columns, label=facts.label, by=by_columns(plan))
    return to_matrix(table, facts=facts, plan=plan, encoder=encoder, is_val=is_val)


def to_matrix(
    table: pa.Table,
    *,
    facts: DatasetFacts,
    plan: BalancePlan,
    encoder: TableEncoder,
    is_val: NDArray[np.bool_] | None = None,
) -> Matrix:
    """Encode ``table``, with classes and strata in the plan's order."""
    classes = tuple(dict.fromkeys(c.label for c in plan.classes))
    names = tuple(c.name for c in plan.classes)
    groups = None
    if facts.group_column:
        groups = np.unique(
            np.array(label_names(table[facts.group_column]), dtype=object).astype(str),
            return_inverse=True,
        )[1]
    n = table.num_rows
    return Matrix(
        X=encoder.encode(table),
        y=_codes(label_names(table[facts.label]), classes),
        strata=_codes(table_strata(table, label=facts.label, by=by_columns(plan)), names),
        keys=_texts(table, "aug_id"),
        content=_texts(table, "content_key"),
        groups=groups,
        is_val=np.zeros(n, dtype=bool) if is_val is None else is_val,
        classes=classes,
        strata_names=names,
        judged=np.array([name in facts.judged for name in classes]),
        encoder=encoder,
    )


def _codes(values: Sequence[str], names: Sequence[str]) -> NDArray[np.int64]:
    index = {name: i for i, name in enumerate(names)}
    return np.array([index.get(value, -1) for value in values], dtype=np.int64)


def _texts(table: pa.Table, column: str) -> NDArray[np.str_]:
    if column not in table.column_names:
        return np.zeros(table.num_rows, dtype="U32")
    return np.array(table.column(column).to_pylist(), dtype="U32")
