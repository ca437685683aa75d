"""The records of a version: real, copy, classic and synthetic, with weight and lineage.

Yields Arrow tables in the order of publication, in batches; their origins are read in
:mod:`~.real_records` and :mod:`~.synthetic_records`, and :mod:`~.publish` writes them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from prefect_augment.errors import EmptyClassError, IntegrityError, ParameterError
from prefect_augment.params import Publish
from prefect_augment.plan.weights import shard_weights
from prefect_augment.publish.real_records import Copies, Ids, Piece, Real, RecordReader
from prefect_augment.publish.synthetic_records import (
    StagedRecords,
    classic_records,
    synthetic_records,
)
from prefect_augment.schema import BalancePlan, DatasetInfo, Recipe, Release, Split
from prefect_augment.shards.parquet import with_lineage
from prefect_augment.storage import Store
from prefect_augment.storage.keys import hash_ids
from prefect_augment.storage.spill import Workspace

Source = Real | Copies | StagedRecords


@dataclass(frozen=True)
class Portion:
    """Records of one split and origin, in the order of publication.

    A piece becomes shards of its own: equal records give equal shards, whatever else is published.
    """

    split: Split
    source: Source
    weights: Mapping[str, float]  # of a stratum's real records
    one: float = 1.0  # weight of a synthetic record, a real one of its class being 1

    def tables(self, piece: Piece) -> Iterator[pa.Table]:
        """Yield the source's columns and the lineage, in batches."""
        for records in piece.records():
            weight = np.array([self.weights.get(name, 1.0) for name in records.strata])
            if records.shares is not None:
                weight = weight * records.shares
            weight = (self.one * weight).astype(np.float32)
            yield with_lineage(
                records.table, origin=self.source.origin, weight=weight, **records.lineage
            )


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
    one = [recipe.synthetic_weight if s.origin == "synthetic" else 1.0 for s in train]
    if not has_copies:
        counted = [
            {name: w * n for name, n in s.counted.items()} for s, w in zip(train, one, strict=True)
        ]
        weights = shard_weights(recipe, [s.counts for s in train], counted)
    portions = [
        Portion("train", s, weights, w if weights else 1.0) for s, w in zip(train, one, strict=True)
    ]
    if "real" in publish.origins and not info.holdout_uri:
        holdout = Real(reader, info.shards, ("holdout",))
        if holdout.counts.total():
            portions.append(Portion("holdout", holdout, {}))
            train.append(holdout)
    _refuse_duplicate_ids(train)
    return Assembled(tuple(portions), weights, tuple(notes))


def _refuse_duplicate_ids(sources: Sequence[Source]) -> None:
    """Refuse records with the same id: compare 64-bit hashes first, then the ids of equal hashes."""
    duplicates = Ids.duplicates([source.ids for source in sources])
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
