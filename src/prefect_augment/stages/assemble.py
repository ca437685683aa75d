"""The records of a version, put together: real, copy, classic, synthetic, with weight and lineage.

Reads staged records and gives Arrow tables in the order they are published in. Nothing is written
here; ``stages/publish.py`` does that.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefect_augment.balancing import stratum_names
from prefect_augment.datatypes import (
    BalancePlan,
    DatasetFacts,
    DatasetRef,
    GateReport,
    Origin,
    Recipe,
    Split,
)
from prefect_augment.errors import EmptyClassError, IntegrityError, ParameterError
from prefect_augment.params import Publish
from prefect_augment.reading.staged import load_facts, read_part, read_shards
from prefect_augment.shards.parquet import conform, label_names, select_columns, with_lineage
from prefect_augment.storage import Store

__all__ = ["Assembled", "Portion", "assemble", "check_wishes"]

# What ingest appends to the source's columns; the first becomes a lineage column, the second ends here.
_STAGED_COLUMNS = ("aug_id", "content_key")


@dataclass(frozen=True)
class Portion:
    """Records of one split and origin, in the order they are published in.

    ``table`` holds the source's columns only. ``strata`` has one name per record, ``lineage`` what
    :func:`with_lineage` takes.
    """

    split: Split
    origin: Origin
    table: pa.Table
    strata: Sequence[str]
    lineage: Mapping[str, Any]

    def finished(self) -> pa.Table:
        """Return the records with their lineage columns."""
        return with_lineage(self.table, origin=self.origin, **self.lineage)


@dataclass(frozen=True)
class Assembled:
    """All records of a version, and what a reader should know about how they came together."""

    portions: tuple[Portion, ...]
    notes: tuple[str, ...] = ()


def check_wishes(publish: Publish, recipe: Recipe, plan: BalancePlan) -> None:
    """Refuse a recipe or wishes that contradict the plan or one another.

    Raises
    ------
    ParameterError
        If copies are wanted and not let out, a weight is no positive number, or the recipe names a
        stratum that the plan does not have.
    """
    if publish.materialise == "copies" and "copy" not in publish.origins:
        raise ParameterError(
            "publish.materialise is 'copies' but publish.origins leaves 'copy' out; add it, or use 'auto'."
        )
    known = {c.name for c in plan.classes}
    amounts = (recipe.class_weight, recipe.synthetic, recipe.classic, recipe.copies)
    unknown = sorted({name for amount in amounts for name in amount} - known)
    if unknown:
        raise ParameterError(
            f"the recipe names {unknown[:5]}, which the plan does not have ({sorted(known)[:5]} …); "
            "both have to come from the same run."
        )
    wrong = {k: w for k, w in recipe.class_weight.items() if not (np.isfinite(w) and w > 0)}
    if wrong:
        raise ParameterError(f"weights have to be positive numbers; the recipe has {wrong}.")


def assemble(
    *,
    store: Store,
    facts: DatasetFacts,
    plan: BalancePlan,
    recipe: Recipe,
    gate: GateReport | None,
    classic: DatasetRef | None,
    publish: Publish,
) -> Assembled:
    """Put the records of a version together.

    Parameters
    ----------
    store : Store
        The destination, under whose ``_staging`` everything lies.
    facts : DatasetFacts
        Outcome of ingest.
    plan : BalancePlan
        Order of the strata, and the columns to balance within.
    recipe : Recipe
        How many classic and synthetic records and copies per stratum, and the weights.
    gate : GateReport or None
        Its kept candidates, where the recipe has synthetic records.
    classic : DatasetRef or None
        Outcome of augmentation, where the recipe has classic records.
    publish : Publish
        Which origins go out, and whether duplicates are written.

    Returns
    -------
    Assembled
        Portions without records are left out.

    Raises
    ------
    EmptyClassError
        If nothing is left to publish.
    IntegrityError
        If two records have the same id, or staged records are missing or damaged.
    ParameterError
        If the recipe wants records that no stage was asked for.
    """
    by = list(plan.classes[0].by) if plan.classes else []
    real = _real(read_part(store, facts, ["fit", "val"]), "train", facts.label, by)
    portions = [real]
    notes: list[str] = []
    if publish.materialise == "copies":
        portions.append(_copies(real, recipe.copies))
    if any(recipe.classic.values()):
        portions.append(_classic(store, classic, recipe.classic, real.table, notes))
    if any(recipe.synthetic.values()):
        order = [c.name for c in plan.classes]
        portions.append(_synthetic(store, gate, recipe.synthetic, real.table, order, notes))
    train = [p for p in portions if p.origin in publish.origins and p.table.num_rows]
    if not train:
        raise EmptyClassError(
            f"nothing to publish: publish.origins asks for {', '.join(publish.origins)}, and the recipe "
            f"({recipe.arm.name}) has no such records; add 'real', or use gate.on_no_gain 'publish'."
        )
    # Where duplicates stand in the data, weights would count them twice.
    duplicated = publish.materialise == "copies" and any(recipe.copies.values())
    train = _weighted(train, {} if duplicated else recipe.class_weight)
    if "real" in publish.origins and not facts.holdout_uri:
        holdout = _real(read_part(store, facts, ["holdout"]), "holdout", facts.label, by)
        train += [holdout] if holdout.table.num_rows else []
    _refuse_twice(train)
    return Assembled(tuple(train), tuple(notes))


def _real(staged: pa.Table, split: Split, label: str, by: Sequence[str]) -> Portion:
    staged = staged.sort_by("aug_id")
    user = select_columns(staged, [c for c in staged.column_names if c not in _STAGED_COLUMNS])
    cells = {name: label_names(user[name]) for name in by}
    strata = stratum_names(label_names(user[label]), cells)
    return Portion(split, "real", user, strata, {"aug_id": staged["aug_id"]})


def _copies(real: Portion, wanted: Mapping[str, int]) -> Portion:
    """Duplicates in turn over a stratum's records, so that no record is two copies ahead of another."""
    rows_of = _rows_by(real.strata)
    ids = real.lineage["aug_id"].to_pylist()
    made = []
    for name, n in sorted(wanted.items()):
        rows = rows_of.get(name, [])
        if n and not rows:
            raise EmptyClassError(
                f"the recipe wants {n} copies in {name!r}, which has no real record."
            )
        made += [
            (_copy_id(ids[rows[j % len(rows)]], j // len(rows)), rows[j % len(rows)])
            for j in range(n)
        ]
    made.sort()
    rows_taken = [row for _, row in made]
    return Portion(
        "train",
        "copy",
        real.table.take(pa.array(rows_taken, pa.int64())),
        [real.strata[row] for row in rows_taken],
        {"aug_id": [copy_id for copy_id, _ in made], "parent": [ids[row] for row in rows_taken]},
    )


def _copy_id(parent: str, number: int) -> str:
    return hashlib.blake2b(f"copy/{parent}/{number}".encode(), digest_size=16).hexdigest()


def _classic(
    store: Store,
    classic: DatasetRef | None,
    wanted: Mapping[str, int],
    like: pa.Table,
    notes: list[str],
) -> Portion:
    if classic is None:
        raise ParameterError(
            "the recipe has classic records, but publish was given none; pass `classic`."
        )
    found = read_shards(store, load_facts(classic, store).shards)
    strata = found["aug_stratum"].to_pylist()
    rows = _first_of_each(strata, range(len(strata)), wanted, "classic", notes)
    taken = found.take(pa.array(rows, pa.int64())).sort_by("aug_id")
    return Portion(
        "train",
        "classic",
        conform(taken, like, where="the classic records"),
        taken["aug_stratum"].to_pylist(),
        {"aug_id": taken["aug_id"], "parent": taken["aug_parent"], "seed": taken["aug_seed"]},
    )


def _synthetic(
    store: Store,
    gate: GateReport | None,
    wanted: Mapping[str, int],
    like: pa.Table,
    order: Sequence[str],
    notes: list[str],
) -> Portion:
    if gate is None or not gate.kept:
        raise ParameterError(
            "the recipe has synthetic records, but publish was given none; pass `gate`, with kept records."
        )
    found = read_shards(store, gate.kept)
    strata = found["aug_stratum"].to_pylist()
    ordinals = found["aug_ordinal"].to_pylist()
    # A smaller amount is a prefix of what the gate kept; candidates that no gate saw have no rank.
    ranks = found["aug_rank"].to_pylist() if "aug_rank" in found.column_names else ordinals
    by_rank = sorted(range(len(strata)), key=lambda i: (ranks[i], ordinals[i]))
    place = {name: k for k, name in enumerate(order)}
    rows = _first_of_each(strata, by_rank, wanted, "synthetic", notes)
    rows.sort(key=lambda i: (place[strata[i]], ordinals[i]))
    taken = found.take(pa.array(rows, pa.int64()))
    return Portion(
        "train",
        "synthetic",
        conform(taken, like, where="the synthetic records"),
        taken["aug_stratum"].to_pylist(),
        {"aug_id": taken["aug_id"], "model": taken["aug_model"], "seed": taken["aug_seed"]},
    )


def _first_of_each(
    strata: Sequence[str],
    rows: Iterable[int],
    wanted: Mapping[str, int],
    what: str,
    notes: list[str],
) -> list[int]:
    """Take the first rows of each stratum, as many as wanted; fewer are said in the notes."""
    taken: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        if len(taken[strata[row]]) < wanted.get(strata[row], 0):
            taken[strata[row]].append(row)
    notes += [
        f"{name}: the recipe has {n} {what} records and {len(taken[name])} are there."
        for name, n in sorted(wanted.items())
        if len(taken[name]) < n
    ]
    return [row for group in taken.values() for row in group]


def _rows_by(strata: Sequence[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(strata):
        rows[name].append(row)
    return rows


def _weighted(train: Sequence[Portion], class_weight: Mapping[str, float]) -> list[Portion]:
    """Give each record its stratum's weight, scaled so that the mean over all of them is 1."""
    weights: list[NDArray[np.float64]] = [
        np.array([class_weight.get(name, 1.0) for name in p.strata], dtype=np.float64)
        for p in train
    ]
    scale = sum(w.size for w in weights) / sum(w.sum() for w in weights)
    return [
        replace(p, lineage={**p.lineage, "weight": (w * scale).astype(np.float32)})
        for p, w in zip(train, weights, strict=True)
    ]


def _refuse_twice(portions: Sequence[Portion]) -> None:
    ids = pa.chunked_array(
        [
            pa.array(i) if isinstance(i, list) else i.combine_chunks()
            for p in portions
            for i in [p.lineage["aug_id"]]
        ],
        pa.string(),
    )
    n_distinct = pc.count_distinct(ids).as_py()
    if n_distinct != len(ids):
        raise IntegrityError(
            f"{len(ids) - n_distinct} records share their aug_id with another one; delete _staging and run again. "
            "If it happens again, please report it."
        )
