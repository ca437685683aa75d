"""Staged records as arrays, and what is the same about them for every kind of data."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypedDict, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefect_augment.datatypes import BalancePlan, DatasetFacts, Modality
from prefect_augment.encoding.strata import table_strata
from prefect_augment.evaluation.candidates import Labelled
from prefect_augment.reading.staged import read_part
from prefect_augment.shards.parquet import label_names
from prefect_augment.staging import canonical_json
from prefect_augment.storage import Store

__all__ = [
    "N_FEWER_FOLDS",
    "N_FOLDS",
    "SMALL_VAL",
    "Records",
    "Shared",
    "by_columns",
    "recent",
    "shared_fields",
    "training_table",
]

Int = NDArray[np.int64]

N_FOLDS = 5
N_FEWER_FOLDS = 3  # where a budget does not allow five
# Below so many val records in the rarest judged class, val alone decides by luck, and arms are
# compared by folds over fit + val instead. Tables: the standard error of a recall is above 3 points.
# Images, whose fits take many times longer: one record is 10 points of it.
SMALL_VAL: dict[Modality, int] = {"table": 200, "image": 10}


@dataclass(frozen=True)
class Records:
    """Records as arrays.

    Attributes
    ----------
    X : ndarray, shape (n, ...)
        The records themselves, in the array form of their kind.
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

    X: NDArray[Any]
    y: Int
    strata: Int
    keys: NDArray[np.str_]
    content: NDArray[np.str_]
    groups: Int | None
    is_val: NDArray[np.bool_]
    classes: tuple[str, ...]
    strata_names: tuple[str, ...]
    judged: NDArray[np.bool_]

    def labelled(self, rows: Int) -> Labelled:
        """Return some records with their strata."""
        return Labelled(self.X[rows], self.strata[rows])

    def class_of_stratum(self, plan: BalancePlan) -> Int:
        """Return the class index of each stratum."""
        return np.array([self.classes.index(c.label) for c in plan.classes], dtype=np.int64)


class Shared(TypedDict):
    """The fields of :class:`Records` but for the records themselves."""

    y: Int
    strata: Int
    keys: NDArray[np.str_]
    content: NDArray[np.str_]
    groups: Int | None
    is_val: NDArray[np.bool_]
    classes: tuple[str, ...]
    strata_names: tuple[str, ...]
    judged: NDArray[np.bool_]


def by_columns(plan: BalancePlan) -> tuple[str, ...]:
    """Return the names of the ``balance.by`` columns."""
    return tuple(plan.classes[0].by) if plan.classes else ()


def training_table(store: Store, facts: DatasetFacts) -> tuple[pa.Table, NDArray[np.bool_]]:
    """Return fit and val, sorted by key, and which of them are val; the hold-out is not read."""
    parts = [read_part(store, facts, [part]) for part in ("fit", "val")]
    table = pa.concat_tables(parts)
    is_val = np.repeat([False, True], [part.num_rows for part in parts])
    order = pc.sort_indices(table, sort_keys=[("aug_id", "ascending")])
    return table.take(order), is_val[order.to_numpy()]


def shared_fields(
    table: pa.Table,
    *,
    facts: DatasetFacts,
    plan: BalancePlan,
    is_val: NDArray[np.bool_] | None = None,
) -> Shared:
    """Return what all kinds of data say alike, with classes and strata in the plan's order."""
    classes = tuple(dict.fromkeys(c.label for c in plan.classes))
    names = tuple(c.name for c in plan.classes)
    groups = None
    if facts.group_column:
        groups = np.unique(
            np.array(label_names(table[facts.group_column]), dtype=object).astype(str),
            return_inverse=True,
        )[1]
    return Shared(
        y=_codes(label_names(table[facts.label]), classes),
        strata=_codes(table_strata(table, label=facts.label, by=by_columns(plan)), names),
        keys=_texts(table, "aug_id"),
        content=_texts(table, "content_key"),
        groups=groups,
        is_val=np.zeros(table.num_rows, dtype=bool) if is_val is None else is_val,
        classes=classes,
        strata_names=names,
        judged=np.array([name in facts.judged for name in classes]),
    )


# Every arm of a run asks for the same records, one after the other or from several threads.
_recent: OrderedDict[tuple[str, str, bytes], Any] = OrderedDict()
_recent_lock = Lock()
MAX_RECENT = 2

R = TypeVar("R", bound=Records)


def recent(store: Store, facts: DatasetFacts, plan: BalancePlan, read: Callable[[], R]) -> R:
    """Return the training records from memory where they were read lately, else read them."""
    key = (store.uri, facts.digest + facts.key, canonical_json(list(plan.classes)))
    with _recent_lock:
        if key not in _recent:
            _recent[key] = read()
        _recent.move_to_end(key)
        while len(_recent) > MAX_RECENT:
            _recent.popitem(last=False)
        found: R = _recent[key]
        return found


def _codes(values: Sequence[str], names: Sequence[str]) -> Int:
    index = {name: i for i, name in enumerate(names)}
    return np.array([index.get(value, -1) for value in values], dtype=np.int64)


def _texts(table: pa.Table, column: str) -> NDArray[np.str_]:
    if column not in table.column_names:
        return np.zeros(table.num_rows, dtype="U32")
    return np.array(table.column(column).to_pylist(), dtype="U32")
