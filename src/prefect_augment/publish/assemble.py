"""The records of a version: real, copy, classic and synthetic, with weight and lineage.

Yields Arrow tables in the order of publication, in batches; their origins are read in
:mod:`~.real_records` and :mod:`~.synthetic_records`, and :mod:`~.publish` writes them.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from prefect_augment.errors import EmptyClassError, IntegrityError, ParameterError
from prefect_augment.params import Publish
from prefect_augment.plan.weights import shard_weights
from prefect_augment.publish.real_records import Copies, Ids, Piece, Real, RecordReader, Source
from prefect_augment.publish.synthetic_records import classic_records, synthetic_records
from prefect_augment.schema import BalancePlan, DatasetInfo, Origin, Recipe, Release, Split
from prefect_augment.shards.parquet import with_lineage
from prefect_augment.storage import Store
from prefect_augment.storage.keys import hash_ids
from prefect_augment.storage.spill import Workspace


@dataclass(frozen=True)
class Stream:
    """Records that become shards of their own: equal records give equal shards, whatever else is published.

    ``tables`` yields the source's columns and the lineage, in batches.
    """

    n_records: int
    n_bytes: int  # estimated
    tables: Callable[[], Iterator[pa.Table]]


@dataclass(frozen=True)
class Portion:
    """Records of one split and origin, in the order of publication; ``labels`` are their classes."""

    split: Split
    origin: Origin
    streams: tuple[Stream, ...]
    labels: frozenset[str]


@dataclass(frozen=True)
class Assembled:
    """All records of a version, and notes for its readers.

    ``weights`` are those in the train shards by stratum, empty if all are 1. With soft labels synthetic
    rows have that times their share.
    """

    portions: tuple[Portion, ...]
    weights: dict[str, float]
    notes: tuple[str, ...] = ()


def check_settings(publish: Publish, recipe: Recipe, plan: BalancePlan) -> None:
    """Raise ParameterError if recipe, params and plan contradict one another."""
    if publish.materialise == "copies" and recipe.doubted:
        raise ParameterError(
            "publish.materialise is 'copies', and the recipe lets records with doubted labels count less, which needs "
            "weights; choose materialise 'auto'."
        )
    if publish.materialise == "copies" and recipe.shares:
        raise ParameterError(
            "publish.materialise is 'copies', and the recipe has soft labels, which need weights; choose "
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
    """Return the records of a version by its recipe; portions without records are left out.

    ``info`` is the outcome of ingest; ids go to files of ``workspace``. Raises EmptyClassError if nothing
    is left to publish, IntegrityError for duplicate ids or damaged staged records, and ParameterError if
    the recipe needs records that were never made.
    """
    experiment, recipe = release.experiment, release.recipe
    assert recipe is not None
    plan, publish, candidates = experiment.plan, experiment.params.publish, experiment.candidates
    reader = RecordReader(
        store, info.label, list(plan.classes[0].by) if plan.classes else [], workspace
    )
    real = Real(reader, info.shards, ("training", "validation"), recipe.doubted)
    sources: list[Source] = [real]
    notes: list[str] = []
    if publish.materialise == "copies":
        sources.append(Copies(real, recipe.copies))
    if any(recipe.classic.values()):
        sources.append(classic_records(reader, release.classic, recipe.classic, real, notes))
    if any(recipe.synthetic.values()):
        order = [c.name for c in plan.classes]
        alone = set(publish.origins) == {"synthetic"}
        sources.append(
            synthetic_records(reader, candidates, recipe.synthetic, real, order, notes, alone=alone)
        )
    train = [s for s in sources if s.origin in publish.origins and s.counts.total()]
    if not train:
        raise EmptyClassError(
            f"nothing to publish: publish.origins asks for {', '.join(publish.origins)}, and the recipe "
            f"({recipe.strategy.name}) has no such records; add 'real', or use evaluation.on_no_gain 'publish'."
        )
    # If the data holds copies, weights would count them twice.
    has_copies = publish.materialise == "copies" and any(recipe.copies.values())
    weights = {}
    if not has_copies:
        counted = [_counted(s, recipe) for s in train]
        weights = shard_weights(recipe, [s.counts for s in train], counted)
    portions = [_portion(source, "train", weights, recipe) for source in train]
    if "real" in publish.origins and not info.holdout_uri:
        holdout = Real(reader, info.shards, ("holdout",))
        if holdout.counts.total():
            portions.append(_portion(holdout, "holdout", {}))
            train.append(holdout)
    _refuse_duplicate_ids(train)
    return Assembled(tuple(portions), weights, tuple(notes))


def _counted(source: Source, recipe: Recipe) -> dict[str, float]:
    """Return the effective count of a source's records before weighting, by stratum."""
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
                weight = (one * weight).astype(np.float32)
                yield with_lineage(
                    records.table, origin=source.origin, weight=weight, **records.lineage
                )

        return Stream(piece.n_records, piece.n_bytes, tables)

    streams = tuple(stream(piece) for piece in source.pieces)
    return Portion(split, source.origin, streams, frozenset(source.labels))


def _refuse_duplicate_ids(sources: Sequence[Source]) -> None:
    """Refuse records with the same id: compare 64-bit hashes first, then the ids of equal hashes."""
    duplicates = Ids.duplicates(sources)
    if not duplicates.size:
        return
    occurrences: Counter[str] = Counter()
    for source in sources:
        for piece in source.pieces:
            for records in piece.records():
                ids = records.lineage["aug_id"]
                rows = np.flatnonzero(np.isin(hash_ids(ids), duplicates))
                occurrences.update(ids.take(pa.array(rows)).to_pylist())
    n_duplicates = sum(n - 1 for n in occurrences.values())
    if n_duplicates:
        raise IntegrityError(
            f"{n_duplicates} records share their aug_id with another one; delete _staging and run again. "
            "If it happens again, please report it."
        )
