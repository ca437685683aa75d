"""Rejection sampling: column values, constraints and a distance that every drawn record has to keep.

A stratum's candidates are drawn in the order of their ordinals, and those that keep all rules are
taken until there are enough or a bound is reached. The model sets column values itself where it can
(:class:`~prefect_augment.genmodels.base.SamplesWithValues`). Constraints are checked on values as
they are written, so rounding cannot break them later.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from prefect_augment.array_types import Bool, Float, Int
from prefect_augment.encoding.columns import did_you_mean, listing
from prefect_augment.encoding.tables import TableEncoder
from prefect_augment.encoding.values import values_to_json
from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.quality.constraints import (
    check_types,
    columns_of,
    describe_rule,
    holds,
    tuples_of,
)
from prefect_augment.genmodels.base import GenerativeModel, SamplesWithValues
from prefect_augment.params import Combination, Constraint, Unique
from prefect_augment.synthesis.novelty import NearRows


def require_column(encoder: TableEncoder, name: str, what: str, *, fixed: bool) -> None:
    """Raise ParameterError for a column that is unknown, or that cannot be constrained.

    ``what`` names the request in the message. With ``fixed``, a constant or a column that the
    stratum determines is accepted.
    """
    names = encoder.schema.names
    if name not in names:
        raise ParameterError(
            f"{what} names {name!r}, which is not a column{did_you_mean(name, names)}; there are: "
            f"{listing(names)}.",
            column=name,
        )
    if name in encoder.names or (fixed and encoder.is_fixed(name)):
        return
    if name == encoder.label or name in encoder.by:
        raise ParameterError(
            f"{what} names {name!r}, which the class (with balance.by, the stratum) determines already; "
            f"request one of {listing(encoder.strata, 5)} instead.",
            column=name,
        )
    raise ParameterError(
        f"{what} names {name!r}, which no model learns (an identifier, a constant, free text or a "
        "column without values); leave it out, or say with source.columns what it is.",
        column=name,
    )


def condition_value(encoder: TableEncoder, name: str, value: Any) -> tuple[float, Any]:
    """Return a requested value in the matrix form and as JSON.

    Raises ParameterError if the column is unknown or not learnt, or the value is outside its
    domain.
    """
    require_column(encoder, name, "the request", fixed=False)
    codec = encoder.codec(name)
    if _is_missing(value):
        if codec.missing is None:
            raise ParameterError(
                f"a missing value is requested in column {name!r}, where no training record lacks one; "
                "give a value.",
                column=name,
            )
        return float("nan"), None
    array = _as_array(value, codec.kind, name)
    x = codec.encode(array)
    written = values_to_json(array, column=name)[0]
    if np.isnan(x[0]) or not codec.in_domain(x)[0] or codec.decode(x) != array:
        raise ParameterError(
            f"the value {value!r} is requested in column {name!r}, but is none of its values: "
            f"{codec.domain_text()}.",
            column=name,
        )
    return float(x[0]), written


def _is_missing(value: Any) -> bool:
    """Tell whether a value is None, or the NaN, NaT or NA of any library."""
    try:
        return bool(pa.array([value], from_pandas=True).null_count)
    except pa.ArrowInvalid:
        return False


def _as_array(value: Any, kind: pa.DataType, name: str) -> pa.Array:
    """One value in a column's type; text is parsed as that type."""
    try:
        if not (pa.types.is_integer(kind) and value != int(value)):  # Arrow would truncate it
            return pa.array([value], kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, TypeError, ValueError):
        pass
    try:
        return pa.array([str(value)]).cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
        raise ParameterError(
            f"the value {value!r} is requested in column {name!r}, which holds {kind}; give such a value.",
            column=name,
        ) from exc


# Draws per requested record before the rules count as too narrow, and the least number in total.
MAX_DRAWS_PER_RECORD = 1000
MIN_DRAWS = 100_000
BLOCK_RECORDS = 20_000
FAR_ENOUGH = "distance to the training records"  # key of Kept.passed

Keys = list[set[tuple[Any, ...]]]


@dataclass(frozen=True)
class Rules:
    """Column values, constraints and nearness limits, checked against the columns."""

    values: dict[int, float] = field(default_factory=dict)  # by column of the matrix form
    values_json: dict[str, Any] = field(default_factory=dict)  # by name, as hashed and reported
    constraints: tuple[Constraint, ...] = ()
    combinations: tuple[set[tuple[Any, ...]], ...] = ()  # per constraint, those of real records
    near: NearRows | None = None  # which near records to keep

    @classmethod
    def of(
        cls,
        encoder: TableEncoder,
        real: Callable[[], pa.Table],
        *,
        conditions: Mapping[str, Any] | None = None,
        constraints: Sequence[Constraint] = (),
    ) -> "Rules":
        """Check the rules for an encoder's records.

        ``real`` returns the real records and is called only where a constraint needs them.
        ``conditions`` has a value by column: None requests a missing value, text is parsed as the
        column's type.

        Raises ParameterError if a column is unknown or not learnt, a value is outside its column's
        domain, or columns cannot be compared; ValueError for an invalid constraint.
        """
        values = {
            name: condition_value(encoder, name, value)
            for name, value in (conditions or {}).items()
        }
        order = sorted(values, key=encoder.names.index)
        constraints = TypeAdapter(list[Constraint]).validate_python(list(constraints))
        for rule in constraints:
            for name in columns_of(rule):
                require_column(encoder, name, f"constraint {describe_rule(rule)!r}", fixed=True)
            check_types(rule, encoder.schema)
        return cls(
            values={encoder.names.index(name): values[name][0] for name in order},
            values_json={name: values[name][1] for name in order},
            constraints=tuple(constraints),
            combinations=tuple(
                set(tuples_of(real(), rule.columns))
                if isinstance(rule, Combination | Unique)
                else set()
                for rule in constraints
            ),
        )

    def __bool__(self) -> bool:
        return bool(self.values or self.constraints or self.near)

    @property
    def columns(self) -> list[str]:
        """Columns that the constraints read."""
        return sorted({name for rule in self.constraints for name in columns_of(rule)})

    def hold_in(self, encoder: TableEncoder, X: Float, strata: Sequence[str]) -> Bool:
        """Tell which records keep the constraints about single records, shape (n_records,)."""
        good = np.ones(len(X), dtype=bool)
        if self.constraints:
            table = encoder.decode(X, strata=strata, columns=self.columns)
            for rule, real in zip(self.constraints, self.combinations, strict=True):
                if not isinstance(rule, Unique):
                    good &= holds(rule, table, real)
        return good

    @property
    def compares_records(self) -> bool:
        """Whether a record may be rejected because of another one."""
        return any(isinstance(rule, Unique) for rule in self.constraints)

    def taken(self) -> Keys:
        """Keys that records may not repeat; drawing adds to them."""
        return [
            set(real_keys) if isinstance(rule, Unique) else set()
            for rule, real_keys in zip(self.constraints, self.combinations, strict=True)
        ]


@dataclass(frozen=True)
class Kept:
    """Records of one stratum that keep the rules."""

    X: Float  # (n, n_columns)
    ordinals: Int
    seeds: Int
    n_draws: int  # draws examined, up to the last record kept
    passed: dict[str, int]  # draws, those with the values, and of these those that keep each rule


def draw_kept(
    fitted: GenerativeModel,
    encoder: TableEncoder,
    rules: Rules,
    *,
    stratum: str,
    start: int,
    n: int,
    seeds_of: Callable[[int, int], Int],
    taken: Keys,
    least: int | None = None,
) -> Kept:
    """Return the first ``n`` candidates of a stratum from ordinal ``start`` on that keep the rules.

    ``seeds_of(start, n)`` gives the candidates' seeds. ``taken`` comes from :meth:`Rules.taken`,
    and the keys kept are added to it. When the bound on draws is reached, ``least`` records (by
    default ``n``) are enough; with fewer, raises a ParameterError that says what each rule let
    through.
    """
    k = encoder.strata.index(stratum)
    step = int(getattr(fitted, "micro_batch", 1))
    least = n if least is None else least
    bound = max(MIN_DRAWS, MAX_DRAWS_PER_RECORD * least)
    batches: list[tuple[Float, Int, Int]] = []
    passed: Counter[str] = Counter()
    n_kept, n_draws, position = 0, 0, start - start % step
    while n_kept < n:
        if n_draws >= bound:
            if n_kept >= least:
                break
            raise _too_narrow(stratum, least, n_kept, n_draws, passed)
        n_batch = n - n_kept
        if rules:  # at the acceptance rate so far, with a margin
            n_batch = int(1.2 * n_batch * max(n_draws, 1) / max(n_kept, 1)) + 16
        n_batch = min(BLOCK_RECORDS, n_batch)
        n_batch = -(-n_batch // step) * step
        # Draw whole micro-batches, apply the rules, keep what is needed.
        seeds, ordinals = seeds_of(position, n_batch), np.arange(position, position + n_batch)
        rows, X = _draw(fitted, encoder, rules, np.full(n_batch, k, dtype=np.int64), seeds)
        X, rows = X[ordinals[rows] >= start], rows[ordinals[rows] >= start]
        passed["draws"] += n_batch
        passed["given"] += len(rows)
        rows_kept = _keeping(encoder, rules, X, seeds[rows], stratum, taken, n - n_kept, passed)
        batches.append((X[rows_kept], ordinals[rows[rows_kept]], seeds[rows[rows_kept]]))
        n_kept, n_draws, position = n_kept + len(rows_kept), n_draws + n_batch, position + n_batch
    if not batches:
        empty = np.empty(0, dtype=np.int64)
        return Kept(np.empty((0, len(encoder.names))), empty, empty, 0, {})
    X, ordinals, seeds = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    # With fewer than n, the draws after the last record were examined too.
    n_looked_at = int(ordinals[-1]) + 1 - start if len(X) == n else n_draws
    return Kept(X, ordinals, seeds, n_looked_at, dict(passed))


def _draw(
    fitted: GenerativeModel, encoder: TableEncoder, rules: Rules, codes: Int, seeds: Int
) -> tuple[Int, Float]:
    """Indices of the records with the requested values, and these records."""
    if rules.values and isinstance(fitted, SamplesWithValues):
        return fitted.sample_with_values(codes, seeds=seeds, values=rules.values)
    X = fitted.sample(codes, seeds=seeds)
    has = np.ones(len(X), dtype=bool)
    for j, value in rules.values.items():
        codec = encoder.codec(encoder.names[j])
        if codec.is_continuous:
            raise ParameterError(
                f"column {encoder.names[j]!r} is continuous, and this model almost never draws an exact "
                "value of such a column; leave it out, or choose model kind 'trees'.",
                column=encoder.names[j],
            )
        drawn = codec.encode(codec.decode(X[:, j]))
        has &= (drawn == value) | (np.isnan(drawn) & np.isnan(value))
    return np.flatnonzero(has), X[has]


def _keeping(
    encoder: TableEncoder,
    rules: Rules,
    X: Float,
    seeds: Int,
    stratum: str,
    taken: Keys,
    n: int,
    passed: Counter[str],
) -> Int:
    """Indices of the first ``n`` records that keep all rules; counts what each rule let through."""
    keep = np.ones(len(X), dtype=bool)
    if rules.near is not None:
        keep = rules.near.stay(encoder.strata.index(stratum), X, seeds)
        passed[FAR_ENOUGH] += int(keep.sum())
    if not rules.constraints:
        return np.flatnonzero(keep)[:n]
    given = [encoder.names[j] for j in rules.values]
    table = encoder.decode(X, strata=[stratum] * len(X), columns=rules.columns, given=given)
    for rule, real in zip(rules.constraints, rules.combinations, strict=True):
        if not isinstance(rule, Unique):
            keeps = holds(rule, table, real)
            passed[describe_rule(rule)] += int(keeps.sum())
            keep &= keeps
    rows = np.flatnonzero(keep)
    unique = [i for i, rule in enumerate(rules.constraints) if isinstance(rule, Unique)]
    if not unique:
        return rows[:n]
    keys = [tuples_of(table.take(pa.array(rows)), columns_of(rules.constraints[i])) for i in unique]
    kept: list[np.int64] = []
    for row, *own in zip(rows, *keys, strict=True):
        if len(kept) == n:
            break
        free = [None in key or key not in taken[i] for i, key in zip(unique, own, strict=True)]
        for i, is_free in zip(unique, free, strict=True):
            passed[describe_rule(rules.constraints[i])] += is_free
        if all(free):
            kept.append(row)
            for i, key in zip(unique, own, strict=True):
                taken[i].add(key)
    return np.array(kept, dtype=np.int64)


def _too_narrow(
    stratum: str, n: int, n_kept: int, n_draws: int, passed: Mapping[str, int]
) -> ParameterError:
    """The error that says how much each rule let through."""
    shares = (
        [f"{passed['given'] / n_draws:.2%} have the requested values"]
        if passed["given"] < passed["draws"]
        else []
    )
    shares += [
        f"{count / max(1, passed['given']):.2%} keep {name!r}"
        for name, count in passed.items()
        if name not in ("draws", "given")
    ]
    return ParameterError(
        f"only {n_kept:,} of {n_draws:,} draws of class {stratum!r} keep all rules, and {n:,} are "
        f"requested ({'; '.join(shares)}); relax the rules, or request fewer records.",
        class_name=stratum,
        accepted_share=n_kept / n_draws,
    )
