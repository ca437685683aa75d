"""Staged records of tables in matrix form: what models, gates and learners work on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.datatypes import BalancePlan, DatasetFacts
from prefect_augment.encoding.tables import TableEncoder
from prefect_augment.stages.records import (
    Records,
    by_columns,
    recent,
    shared_fields,
    training_table,
)
from prefect_augment.storage import Store

__all__ = ["Matrix", "to_matrix", "training_matrix"]


@dataclass(frozen=True)
class Matrix(Records):
    """Records in matrix form: ``X`` is float64 of shape (n, n_columns).

    It holds the learnt columns; NaN is null; category columns hold level codes.
    """

    encoder: TableEncoder

    @property
    def is_category(self) -> NDArray[np.bool_]:
        """Which columns hold level codes."""
        return np.asarray(self.encoder.is_category, dtype=bool)

    @property
    def n_levels(self) -> NDArray[np.int64]:
        """Levels per column; 0 for numeric ones."""
        return np.asarray(self.encoder.n_levels, dtype=np.int64)


def training_matrix(store: Store, facts: DatasetFacts, plan: BalancePlan) -> Matrix:
    """Return fit and val in matrix form, sorted by key.

    The encoder is fitted on these records alone; the hold-out is not read.
    """

    def read() -> Matrix:
        table, is_val = training_table(store, facts)
        encoder = TableEncoder.fit(
            table, columns=facts.columns, label=facts.label, by=by_columns(plan)
        )
        return to_matrix(table, facts=facts, plan=plan, encoder=encoder, is_val=is_val)

    return recent(store, facts, plan, read)


def to_matrix(
    table: pa.Table,
    *,
    facts: DatasetFacts,
    plan: BalancePlan,
    encoder: TableEncoder,
    is_val: NDArray[np.bool_] | None = None,
) -> Matrix:
    """Encode ``table``, with classes and strata in the plan's order."""
    return Matrix(
        X=encoder.encode(table),
        encoder=encoder,
        **shared_fields(table, facts=facts, plan=plan, is_val=is_val),
    )
