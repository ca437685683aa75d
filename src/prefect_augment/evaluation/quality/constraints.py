"""Constraints on records: which records keep them, and how many real ones break them."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.array_types import Bool
from prefect_augment.encoding.values import plain, value_type, values_to_json
from prefect_augment.errors import ParameterError
from prefect_augment.params import Combination, Constraint, Inequality, Positive, Unique

_SIGNED = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_duration)
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


def holds(rule: Constraint, table: pa.Table, real: set[tuple[Any, ...]]) -> Bool:
    """Which records keep a constraint, shape (n_records,); comparisons with a missing value hold.

    ``real`` has the existing combinations, from :func:`tuples_of`. ``Unique`` compares records with
    one another and is not decided here.
    """
    if isinstance(rule, Combination):
        return np.array([key in real for key in tuples_of(table, rule.columns)], dtype=bool)
    if isinstance(rule, Inequality):
        left, right = (plain(table.column(name)) for name in (rule.left, rule.right))
        return _true(_COMPARE[rule.operator](left, right), left, right)
    good = np.ones(table.num_rows, dtype=bool)
    if isinstance(rule, Positive):
        for name in rule.columns:
            values = plain(table.column(name))
            zero = pa.scalar(0, pa.int64()).cast(values.type)
            compare = pc.greater_equal if rule.zero else pc.greater
            good &= _true(compare(values, zero), values)
    return good


def _true(holds: pa.Array, *values: pa.Array) -> Bool:
    """A comparison's outcome, true where a value is null or NaN."""
    result = np.asarray(holds.fill_null(True).to_numpy(zero_copy_only=False), dtype=bool)
    for column in values:
        if pa.types.is_floating(column.type):
            result |= np.isnan(column.to_numpy(zero_copy_only=False).astype(np.float64))
    return result


def describe_rule(rule: Constraint) -> str:
    """A constraint in words: ``start <= end``, ``unique (a, b)``."""
    if isinstance(rule, Inequality):
        return f"{rule.left} {rule.operator} {rule.right}"
    names = ", ".join(rule.columns)
    if isinstance(rule, Positive):
        return f"{names} {'>=' if rule.zero else '>'} 0"
    return f"{rule.kind} ({names})"


def columns_of(rule: Constraint) -> list[str]:
    """Columns that a constraint names."""
    return [rule.left, rule.right] if isinstance(rule, Inequality) else list(rule.columns)


def tuples_of(table: pa.Table, names: Sequence[str]) -> list[tuple[Any, ...]]:
    """Values of some columns, one tuple per record, NaN as null."""
    columns = []
    for name in names:
        values = plain(table.column(name))
        if pa.types.is_floating(values.type):
            values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
        columns.append(values_to_json(values, column=name))
    return list(zip(*columns, strict=True))


def check_types(rule: Constraint, schema: pa.Schema) -> None:
    """Refuse a constraint on columns whose types cannot keep or break it (ParameterError)."""
    if isinstance(rule, Positive):
        for name in rule.columns:
            dtype = value_type(schema.field(name).type)
            if not any(has_sign(dtype) for has_sign in _SIGNED):
                raise ParameterError(
                    f"constraint {describe_rule(rule)!r} names {name!r}, which holds {dtype}; name "
                    "columns of numbers or durations.",
                    column=name,
                )
    try:
        holds(rule, schema.empty_table(), set())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
        types = ", ".join(f"{name} is {schema.field(name).type}" for name in columns_of(rule))
        raise ParameterError(
            f"constraint {describe_rule(rule)!r} cannot be checked: {types}; name columns that can "
            "be compared with one another, numbers for zero."
        ) from exc


def n_breaking(rules: Sequence[Constraint], batches: Iterable[pa.Table]) -> list[int]:
    """Number of records that break each constraint; of equal ones all but one.

    None breaks a ``Combination``.
    """
    broken = [0] * len(rules)
    seen: list[Counter[tuple[Any, ...]]] = [Counter() for _ in rules]
    for table in batches:
        for i, rule in enumerate(rules):
            if isinstance(rule, Unique):
                seen[i].update(key for key in tuples_of(table, rule.columns) if None not in key)
            elif not isinstance(rule, Combination):
                broken[i] += int((~holds(rule, table, set())).sum())
    return [n + sum(c.values()) - len(c) for n, c in zip(broken, seen, strict=True)]
