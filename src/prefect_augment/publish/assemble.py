"""The records of a version, put together: real, copy, classic, synthetic, with weight and lineage.

Gives Arrow tables in the order they are published in, some records at a time; where they come from is
in :mod:`~.origins` and :mod:`~.made_records`. Nothing is written here; ``stages/publish.py`` does that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from prefect_augment.errors import EmptyClassError, IntegrityError, ParameterError
from prefect_augment.params import Publish
from prefect_augment.plan.weights import shard_weights
from prefect_augment.publish.real_records import (
    Copies,
    Ids,
    Look,
    Piece,
    Real,
    Source,
)
from prefect_augment.publish.synthetic_records import classic_records, synthetic_records
from prefect_augment.schema.base import (
    BalancePlan,
    DatasetInfo,
    Origin,
    Recipe,
    Split,
)
from prefect_augment.schema.report import Release
from prefect_augment.shards.parquet import with_lineage
from prefect_augment.storage.keys import hash_ids
from prefect_augment.storage.spill import Workspace
from prefect_augment.storage.store import Store

__all__ = ["Assembled", "Portion", "Stream", "assemble", "check_settings"]


@dataclass(frozen=True)
class Stream:
    """Records that become shards of their own: the same ones give the same shards, whatever stands beside.

    ``tables`` gives the source's columns and the lineage of all ``n_records``, some at a time;
    ``n_bytes`` is what is known of their size.
    """

    n_records: int
    n_bytes: int
    tables: Callable[[], Iterator[pa.Table]]


@dataclass(frozen=True)
class Portion:
    """Records of one split and origin, in the order they are published in; ``labels`` are their classes."""

    split: Split
    origin: Origin
    streams: tuple[Stream, ...]
    labels: frozenset[str]


@dataclass(frozen=True)
class Assembled:
    """All records of a version, and what a reader should know about how they came together.

    ``weights`` are those in the shards of train, by stratum; empty where all are 1. With soft labels
    synthetic rows have that times their share.
    """

    portions: tuple[Portion, ...]
    weights: dict[str, float]
    notes: tuple[str, ...] = ()


def check_settings(publish: Publish, recipe: Recipe, plan: BalancePlan) -> None:
    """Refuse a recipe or params that contradict the plan or one another.

    Raises
    ------
    ParameterError
        If copies are wanted of a recipe with soft labels, a weight is no positive number, or the recipe names a
        stratum that the plan does not have.
    """
    if publish.materialise == "copies" and recipe.shares:
        raise ParameterError(
            "publish.materialise is 'copies', and the recipe has soft labels, which only weights can say; take "
            "quality.labels 'hard', or materialise 'auto'."
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


def assemble(release: Release, info: DatasetInfo, store: Store, workspace: Workspace) -> Assembled:
    """Put the records of a version together.

    Parameters
    ----------
    release : Release
        Its recipe says how many classic and synthetic records and copies per stratum, and the weights.
    info : DatasetInfo
        Outcome of ingest.
    store : Store
        The destination, under whose ``_staging`` everything lies.
    workspace : Workspace
        Where ids are put aside.

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
        If the recipe wants records that no step was asked for.
    """
    experiment, recipe = release.experiment, release.recipe
    assert recipe is not None
    plan, publish, candidates = experiment.plan, experiment.params.publish, experiment.candidates
    look = Look(store, info.label, list(plan.classes[0].by) if plan.classes else [], workspace)
    real = Real(look, info.shards, ("training", "validation"))
    sources: list[Source] = [real]
    notes: list[str] = []
    if publish.materialise == "copies":
        sources.append(Copies(real, recipe.copies))
    if any(recipe.classic.values()):
        sources.append(classic_records(look, release.classic, recipe.classic, real, notes))
    if any(recipe.synthetic.values()):
        order = [c.name for c in plan.classes]
        sources.append(synthetic_records(look, candidates, recipe.synthetic, real, order, notes))
    train = [s for s in sources if s.origin in publish.origins and s.counts.total()]
    if not train:
        raise EmptyClassError(
            f"nothing to publish: publish.origins asks for {', '.join(publish.origins)}, and the recipe "
            f"({recipe.strategy.name}) has no such records; add 'real', or use evaluation.on_no_gain 'publish'."
        )
    # Where duplicates stand in the data, weights would count them twice.
    duplicated = publish.materialise == "copies" and any(recipe.copies.values())
    weights = {}
    if not duplicated:
        weights = shard_weights(
            recipe, [s.counts for s in train], [_counted(s, recipe) for s in train]
        )
    portions = [_portion(source, "train", weights, recipe) for source in train]
    if "real" in publish.origins and not info.holdout_uri:
        holdout = Real(look, info.shards, ("holdout",))
        if holdout.counts.total():
            portions.append(_portion(holdout, "holdout", {}))
            train.append(holdout)
    _refuse_twice(train)
    return Assembled(tuple(portions), weights, tuple(notes))


def _counted(source: Source, recipe: Recipe) -> dict[str, float]:
    """Return what a source's records count before they are weighted, by stratum."""
    one = recipe.synthetic_weight if source.origin == "synthetic" else 1.0
    return {name: one * n for name, n in source.counted.items()}


def _portion(
    source: Source, split: Split, weights: Mapping[str, float], recipe: Recipe | None = None
) -> Portion:
    one = recipe.synthetic_weight if recipe and weights and source.origin == "synthetic" else 1.0

    def stream(piece: Piece) -> Stream:
        def tables() -> Iterator[pa.Table]:
            for records in piece.records():
                weight = np.array([weights.get(name, 1.0) for name in records.strata])
                if records.shares is not None:
                    weight = weight * records.shares
                weight = one * weight
                yield with_lineage(
                    records.table,
                    origin=source.origin,
                    weight=weight.astype(np.float32),
                    **records.lineage,
                )

        return Stream(piece.n_records, piece.n_bytes, tables)

    streams = tuple(stream(piece) for piece in source.pieces)
    return Portion(split, source.origin, streams, frozenset(source.labels))


def _refuse_twice(sources: Sequence[Source]) -> None:
    """Refuse records with the same id: by eight bytes of each, and by all of those that are alike."""
    alike = Ids.alike(sources)
    if not alike.size:
        return
    found: Counter[str] = Counter()
    for source in sources:
        for piece in source.pieces:
            for records in piece.records():
                ids = records.lineage["aug_id"]
                rows = np.flatnonzero(np.isin(hash_ids(ids), alike))
                found.update(ids.take(pa.array(rows)).to_pylist())
    n_twice = sum(n - 1 for n in found.values())
    if n_twice:
        raise IntegrityError(
            f"{n_twice} records share their aug_id with another one; delete _staging and run again. "
            "If it happens again, please report it."
        )
