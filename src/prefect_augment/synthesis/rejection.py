"""What every record that is drawn has to keep: given column values, constraints, distance to real ones.

All are met by drawing: a stratum's candidates are gone through in the order of their ordinals, and
those that keep all of it are taken until there are enough, or a bound is reached. Given values are
set by the model where it can (:class:`~prefect_augment.genmodels.base.SamplesGiven`). Constraints are
checked on values as they are written, so that no rounding breaks them afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import TypeAdapter

from prefect_augment.encoding.tables import TableEncoder
from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.quality.constraints import (
    check_types,
    columns_of,
    describe_rule,
    holds,
    tuples_of,
)
from prefect_augment.genmodels.base import GenerativeModel, SamplesGiven
from prefect_augment.params import Combination, Constraint, Unique
from prefect_augment.synthesis.conditions import given_value, require_column
from prefect_augment.synthesis.novelty import NearRows

__all__ = ["Kept", "Keys", "Rules", "draw_kept"]

# Draws per record wanted, before the rules are said to be too narrow; and at least so many in all.
MAX_DRAWS_PER_RECORD = 1000
MIN_DRAWS = 100_000
BLOCK_RECORDS = 20_000
FAR_ENOUGH = "distance to the training records"  # among what each rule let through

Keys = list[set[tuple[Any, ...]]]


@dataclass(frozen=True)
class Rules:
    """Given values and constraints, checked against the columns, and how near records may lie.

    Attributes
    ----------
    given : dict of int to float
        Value by column of the matrix form.
    said : dict of str to JSON value
        The same by name, as it is hashed and reported.
    constraints : tuple of Constraint
    combinations : tuple of sets of tuples
        Per constraint, the values that real records have; empty for those of other kinds.
    near : NearRows, optional
        Which records stay that lie near to a training record.
    """

    given: dict[int, float] = field(default_factory=dict)
    said: dict[str, Any] = field(default_factory=dict)
    constraints: tuple[Constraint, ...] = ()
    combinations: tuple[set[tuple[Any, ...]], ...] = ()
    near: NearRows | None = None

    @classmethod
    def of(
        cls,
        encoder: TableEncoder,
        real: Callable[[], pa.Table],
        *,
        given: Mapping[str, Any] | None = None,
        constraints: Sequence[Constraint] = (),
    ) -> Rules:
        """Return the rules for records of an encoder.

        Parameters
        ----------
        encoder : TableEncoder
            The model's.
        real : callable
            Returns the real records; called where a constraint needs them.
        given : mapping of str to value, optional
            Value by column; None asks for a missing value. Text is read as the column's type.
        constraints : sequence of Constraint or dict
            See :mod:`prefect_augment.params`.

        Raises
        ------
        ParameterError
            If a column is unknown or not learnt, a value is none of its column's, or columns cannot
            be compared.
        ValueError
            If a constraint is none.
        """
        values = {name: given_value(encoder, name, value) for name, value in (given or {}).items()}
        order = sorted(values, key=encoder.names.index)
        constraints = TypeAdapter(list[Constraint]).validate_python(list(constraints))
        for rule in constraints:
            _check(encoder, rule)
        return cls(
            given={encoder.names.index(name): values[name][0] for name in order},
            said={name: values[name][1] for name in order},
            constraints=tuple(constraints),
            combinations=tuple(
                set(tuples_of(real(), rule.columns))
                if isinstance(rule, Combination | Unique)
                else set()
                for rule in constraints
            ),
        )

    def __bool__(self) -> bool:
        return bool(self.given or self.constraints or self.near)

    @property
    def columns(self) -> list[str]:
        """Columns that a constraint looks at."""
        return sorted({name for rule in self.constraints for name in columns_of(rule)})

    def hold_in(
        self, encoder: TableEncoder, X: NDArray[np.float64], strata: Sequence[str]
    ) -> NDArray[np.bool_]:
        """Tell which records keep the constraints that are about one record, shape (n_records,)."""
        good = np.ones(len(X), dtype=bool)
        if self.constraints:
            table = encoder.decode(X, strata=strata, columns=self.columns)
            for rule, real in zip(self.constraints, self.combinations, strict=True):
                if not isinstance(rule, Unique):
                    good &= holds(rule, table, real)
        return good

    @property
    def compares_records(self) -> bool:
        """Whether a record may be refused for another one."""
        return any(isinstance(rule, Unique) for rule in self.constraints)

    def taken(self) -> Keys:
        """Return what records may not repeat, to be filled up by those that are drawn."""
        return [
            set(found) if isinstance(rule, Unique) else set()
            for rule, found in zip(self.constraints, self.combinations, strict=True)
        ]


@dataclass(frozen=True)
class Kept:
    """Records of one stratum that keep the rules.

    Attributes
    ----------
    X : ndarray of float64, shape (n, n_columns)
    ordinals : ndarray of int64, shape (n,)
    seeds : ndarray of int64, shape (n,)
    n_draws : int
        Draws that were looked at, up to the last record that is kept.
    passed : dict of str to int
        Of all draws that were made, those that have the given values, and those of these that keep
        each constraint and lie far enough from the training records.
    """

    X: NDArray[np.float64]
    ordinals: NDArray[np.int64]
    seeds: NDArray[np.int64]
    n_draws: int
    passed: dict[str, int]


def draw_kept(
    fitted: GenerativeModel,
    encoder: TableEncoder,
    rules: Rules,
    *,
    stratum: str,
    start: int,
    n: int,
    seeds_of: Callable[[int, int], NDArray[np.int64]],
    taken: Keys,
    least: int | None = None,
) -> Kept:
    """Return the first ``n`` candidates of a stratum, from ordinal ``start`` on, that keep the rules.

    Parameters
    ----------
    fitted : GenerativeModel
    encoder : TableEncoder
    rules : Rules
    stratum : str
    start, n : int
        First ordinal to look at, and records wanted.
    seeds_of : callable
        Seeds of so many ordinals (second argument) from one on (first).
    taken : list of set
        From :meth:`Rules.taken`; what is kept is added.
    least : int, optional
        With which it is content when the bound on draws is reached; ``n`` where not given.

    Raises
    ------
    ParameterError
        If the bound on draws is reached first; says what each rule let through.
    """
    k = encoder.strata.index(stratum)
    step = int(getattr(fitted, "micro_batch", 1))
    least = n if least is None else least
    bound = max(MIN_DRAWS, MAX_DRAWS_PER_RECORD * least)
    found: list[tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]] = []
    passed: Counter[str] = Counter()
    n_kept, n_draws, at = 0, 0, start - start % step
    while n_kept < n:
        if n_draws >= bound:
            if n_kept >= least:
                break
            raise _too_narrow(stratum, least, n_kept, n_draws, passed)
        size = n - n_kept
        if rules:  # as many as it took so far, and some
            size = int(1.2 * size * max(n_draws, 1) / max(n_kept, 1)) + 16
        size = min(BLOCK_RECORDS, size)
        size = -(-size // step) * step
        seeds, ordinals = seeds_of(at, size), np.arange(at, at + size)
        rows, X = _draw(fitted, encoder, rules, np.full(size, k, dtype=np.int64), seeds)
        X, rows = X[ordinals[rows] >= start], rows[ordinals[rows] >= start]
        passed["draws"] += size
        passed["given"] += len(rows)
        rows_kept = _keeping(encoder, rules, X, seeds[rows], stratum, taken, n - n_kept, passed)
        found.append((X[rows_kept], ordinals[rows[rows_kept]], seeds[rows[rows_kept]]))
        n_kept, n_draws, at = n_kept + len(rows_kept), n_draws + size, at + size
    if not found:
        empty = np.empty(0, dtype=np.int64)
        return Kept(np.empty((0, len(encoder.names))), empty, empty, 0, {})
    X, ordinals, seeds = (np.concatenate(parts) for parts in zip(*found, strict=True))
    # Short of n, the draws behind the last record were looked at too.
    n_looked_at = int(ordinals[-1]) + 1 - start if len(X) == n else n_draws
    return Kept(X, ordinals, seeds, n_looked_at, dict(passed))


def _draw(
    fitted: GenerativeModel,
    encoder: TableEncoder,
    rules: Rules,
    codes: NDArray[np.int64],
    seeds: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return which records have the given values, and these."""
    if rules.given and isinstance(fitted, SamplesGiven):
        return fitted.sample_given(codes, seeds=seeds, given=rules.given)
    X = fitted.sample(codes, seeds=seeds)
    has = np.ones(len(X), dtype=bool)
    for j, value in rules.given.items():
        codec = encoder.codec(encoder.names[j])
        if codec.is_continuous:
            raise ParameterError(
                f"column {encoder.names[j]!r} is continuous, and this model draws a given value of "
                "such a column as good as never; leave it out, or choose model kind 'trees'.",
                column=encoder.names[j],
            )
        drawn = codec.encode(codec.decode(X[:, j]))
        has &= (drawn == value) | (np.isnan(drawn) & np.isnan(value))
    return np.flatnonzero(has), X[has]


def _keeping(
    encoder: TableEncoder,
    rules: Rules,
    X: NDArray[np.float64],
    seeds: NDArray[np.int64],
    stratum: str,
    taken: Keys,
    n: int,
    passed: Counter[str],
) -> NDArray[np.int64]:
    """Return the first ``n`` records that keep all of it, and count what each rule let through."""
    good = np.ones(len(X), dtype=bool)
    if rules.near is not None:
        good = rules.near.stay(encoder.strata.index(stratum), X, seeds)
        passed[FAR_ENOUGH] += int(good.sum())
    if not rules.constraints:
        return np.flatnonzero(good)[:n]
    table = encoder.decode(X, strata=[stratum] * len(X), columns=rules.columns)
    for rule, real in zip(rules.constraints, rules.combinations, strict=True):
        if not isinstance(rule, Unique):
            keeps = holds(rule, table, real)
            passed[describe_rule(rule)] += int(keeps.sum())
            good &= keeps
    rows = np.flatnonzero(good)
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


def _check(encoder: TableEncoder, rule: Constraint) -> None:
    """Refuse a constraint that cannot be kept or broken: by name, kind of column, type."""
    for name in columns_of(rule):
        require_column(encoder, name, f"constraint {describe_rule(rule)!r}", fixed=True)
    check_types(rule, encoder.schema)


def _too_narrow(
    stratum: str, n: int, n_kept: int, n_draws: int, passed: Mapping[str, int]
) -> ParameterError:
    """Say which rule let how much through."""
    shares = (
        [f"{passed['given'] / n_draws:.2%} have the given values"]
        if passed["given"] < passed["draws"]
        else []
    )
    shares += [
        f"{count / max(1, passed['given']):.2%} keep {name!r}"
        for name, count in passed.items()
        if name not in ("draws", "given")
    ]
    return ParameterError(
        f"of {n_draws:,} draws of class {stratum!r} {n_kept:,} keep what was asked, and {n:,} are "
        f"wanted ({'; '.join(shares)}); ask for less at once, or for fewer records.",
        class_name=stratum,
        accepted_share=n_kept / n_draws,
    )
