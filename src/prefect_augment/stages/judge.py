"""Judge candidates: which synthetic records may be used, and why the others may not."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.datatypes import (
    BalancePlan,
    ClassGate,
    DatasetFacts,
    DatasetRef,
    GateReport,
    ShardFact,
)
from prefect_augment.encoding.keys import derived_ids
from prefect_augment.encoding.strata import table_strata
from prefect_augment.errors import InputError, SchemaError
from prefect_augment.evaluation.candidates import Labelled
from prefect_augment.params import Gate, Source
from prefect_augment.reading.staged import load_facts, read_shards
from prefect_augment.shards.parquet import select_columns, write_shards
from prefect_augment.spill import Workspace
from prefect_augment.stages.bench import Wishes, Workbench, open_bench
from prefect_augment.stages.matrix import Matrix
from prefect_augment.stages.parts import Question, best_first
from prefect_augment.stages.records import by_columns
from prefect_augment.stages.soft import share_sums, stand, standing_rows
from prefect_augment.stages.source import list_source, scan
from prefect_augment.staging import Stage, stage_key
from prefect_augment.storage import Store, sha256_hex

__all__ = ["import_candidates", "judge", "ungated"]

ALGORITHM_VERSION = 3
SHARD_RECORDS = 100_000
SHARD_BYTES = 64 * 2**20


def judge(
    dataset: DatasetRef,
    candidates: DatasetRef,
    *,
    plan: BalancePlan,
    gate: Gate,
    seed: int,
    store: Store,
    device: str = "auto",
) -> GateReport:
    """Hold staged candidates against the fit and val records, and stage what is kept and dropped.

    ``device`` says where networks compute: auto, cpu or cuda.

    Returns
    -------
    GateReport
        ``kept`` records are ordered by stratum and rank; ``dropped`` ones carry their reason.
    """
    key = stage_key(
        "judge",
        algorithm_version=ALGORITHM_VERSION,
        params=[
            list(plan.classes),
            plan.learner_steps,
            gate.purpose,
            gate.near_copy_quantile,
            gate.fidelity_quantile,
            gate.on_unsafe_class,
            gate.false_alarm,
            gate.max_fault_share,
            gate.min_coverage,
            *gate.constraints,
            *(["soft labels"] if plan.soft_labels else []),
        ],
        inputs=[dataset.key, candidates.key],
        seed=seed,
    )
    stage = Stage(store, "judge", key)
    found = stage.outcome(GateReport)
    if found is not None:
        return found
    facts = load_facts(dataset, store)
    bench = open_bench(store, facts, plan, Wishes(gate=gate, device=device))
    data = bench.records
    sampled = load_facts(candidates, store)
    table = read_shards(store, sampled.shards)
    names = {name: i for i, name in enumerate(data.strata_names)}
    strata = np.array([names[s] for s in table["aug_stratum"].to_pylist()], dtype=np.int64)
    ordinals = table["aug_ordinal"].to_numpy()
    outcome = bench.gate(
        Question(
            fit=np.flatnonzero(~data.is_val),
            val=np.flatnonzero(data.is_val),
            candidates=Labelled(bench.encode(table), strata),
            ordinals=ordinals,
            seed=seed,
            metrics=True,
        )
    )
    table = table.append_column("aug_score", pa.array(outcome.score))
    order = best_first(outcome, strata, ordinals, gate)
    ranks = np.concatenate([np.arange(n) for n in np.bincount(strata[order])] or [order])
    kept = table.take(pa.array(order)).append_column("aug_rank", pa.array(ranks))
    counted: dict[str, Any] = {}
    if plan.soft_labels:
        assert isinstance(data, Matrix)
        kept, counted = _with_soft_labels(kept, strata[order], data, plan, bench, seed)
    rest = np.flatnonzero(~outcome.kept)
    dropped = table.take(pa.array(rest)).append_column(
        "aug_reason", pa.array(outcome.reason[rest].astype(str))
    )
    rules = sampled.extra.get("rules", {})
    report = GateReport(
        root=store.uri,
        path=stage.outcome_path,
        key=key,
        purpose=gate.purpose,
        classes=outcome.strata,
        kept=_write(stage, kept, "kept", facts.label),
        dropped=_write(stage, dropped, "dropped", facts.label),
        feature_space=outcome.feature_space,
        notes=(*([rules["said"]] if rules else []), *outcome.notes, *counted.pop("notes", ())),
        rules=rules,
        **counted,
    )
    return stage.finish(report)


def _with_soft_labels(
    kept: pa.Table,
    strata: NDArray[np.int64],
    data: Matrix,
    plan: BalancePlan,
    bench: Workbench,
    seed: int,
) -> tuple[pa.Table, dict[str, Any]]:
    """Return the rows that kept records become, and what the report says of them."""
    fit = np.flatnonzero(~data.is_val)
    found = stand(data, plan, fit, bench.encode(kept), strata, seed=seed)
    rows = standing_rows(kept, data, found)
    # A row's rank is its place among those that stand for the same.
    counts = np.bincount(found.strata, minlength=len(data.strata_names))
    ranks = np.concatenate([np.arange(n) for n in counts])
    rows = rows.set_column(rows.column_names.index("aug_rank"), "aug_rank", pa.array(ranks))
    members = ", ".join(f"{kind} {share:.0%}" for kind, share in found.teacher.items())
    said = (
        f"{kept.num_rows:,} synthetic records became {rows.num_rows:,} rows, one for each class "
        f"that an ensemble ({members}) finds likely; aug_weight has how likely."
    )
    return rows, {
        "rows": {k: int(n) for k, n in zip(data.strata_names, counts, strict=True) if n},
        "shares": share_sums(found.strata, found.shares, data.strata_names),
        "notes": (said,),
    }


def _write(stage: Stage, table: pa.Table, stem: str, label: str) -> tuple[ShardFact, ...]:
    return write_shards(
        stage.store,
        table,
        prefix=stage.prefix,
        stem=stem,
        split=stem,
        origin="synthetic",
        label=label,
        max_records=SHARD_RECORDS,
        max_bytes=SHARD_BYTES,
    )


def ungated(candidates: DatasetRef, store: Store) -> GateReport:
    """Return sampled records as if all of them had passed, with a note that nothing was judged."""
    facts = load_facts(candidates, store)
    return GateReport(
        root=store.uri,
        path=candidates.path,
        key=candidates.key,
        purpose="faithful",
        classes=tuple(
            ClassGate(name=name, n_candidates=n, n_passed=n, n_kept=n, reasons={}, metrics={})
            for name, n in candidates.class_counts.items()
        ),
        kept=facts.shards,
        dropped=(),
        feature_space="",
        notes=("The synthetic records were published without being judged.",),
    )


# --- records of other tools -------------------------------------------------------------------


def import_candidates(
    dataset: DatasetRef,
    uri: str,
    *,
    plan: BalancePlan,
    store: Store,
    options: dict[str, Any] | None = None,
) -> DatasetRef:
    """Stage records that another tool made as candidates.

    Parameters
    ----------
    dataset : DatasetRef
        The real records; types are taken from them.
    uri : str
        File, folder or glob.
    plan : BalancePlan
        Names the strata.

    Raises
    ------
    SchemaError
        If a column that models learn is missing, or does not fit the real one's type.
    InputError
        If there is no record, or one has a class that the real records do not have.
    """
    facts = load_facts(dataset, store)
    listing = list_source(uri, wished="auto", options=options)
    with Workspace() as workspace:
        found = scan(listing, Source(uri=uri, label=facts.label), workspace)
        table, notes = found.table(), tuple(found.said())
    digest = sha256_hex(repr([(e.path, e.n_bytes, e.etag) for e in listing.entries]).encode())
    key = stage_key(
        "import", algorithm_version=ALGORITHM_VERSION, params=digest, inputs=[dataset.key]
    )
    stage = Stage(store, "import", key)
    table = _like_the_real_ones(table, facts, store, uri)
    strata = table_strata(table, label=facts.label, by=by_columns(plan))
    unknown = sorted(set(strata) - {c.name for c in plan.classes})
    if unknown:
        raise InputError(
            f"{uri} has classes that the real records do not have: {unknown[:5]}; "
            f"expected some of {[c.name for c in plan.classes][:10]}.",
            uri=uri,
        )
    n = table.num_rows
    ordinals = np.arange(n)
    columns = {
        "aug_id": derived_ids("synthetic", digest, ordinals.tolist()),
        "aug_model": pa.nulls(n, pa.string()),
        "aug_seed": pa.nulls(n, pa.int64()),
        "aug_stratum": pa.array(strata, pa.string()),
        "aug_ordinal": pa.array(ordinals),
    }
    for name, values in columns.items():
        table = table.append_column(name, values)
    shards = write_shards(
        store,
        table,
        prefix=stage.prefix,
        stem="candidates",
        split="candidates",
        origin="synthetic",
        label=facts.label,
        max_records=SHARD_RECORDS,
        max_bytes=SHARD_BYTES,
    )
    outcome = stage.finish(
        DatasetFacts(
            stage="import",
            key=key,
            digest=sha256_hex("".join(s.sha256 for s in shards).encode()),
            label=facts.label,
            label_type=facts.label_type,
            schema_digest=facts.schema_digest,
            columns=facts.columns,
            shards=shards,
            part_counts={},
            judged=facts.judged,
            notes=notes,
        )
    )
    return stage.reference(outcome, Counter(strata))


def _like_the_real_ones(table: pa.Table, facts: DatasetFacts, store: Store, uri: str) -> pa.Table:
    """Return the records with the real ones' columns, order and types; what is not learnt may be missing."""
    if not table.num_rows:
        raise InputError(f"{uri} has no records; there is nothing to judge.", uri=uri)
    real = read_shards(store, [], like=facts.shards)
    real = select_columns(
        real, [n for n in real.column_names if n not in ("aug_id", "content_key")]
    )
    kinds = ("numeric", "category", "image")
    learnt = {c.name for c in facts.columns if c.kind in kinds} | {facts.label}
    missing = sorted(learnt - set(table.column_names))
    if missing:
        raise SchemaError(
            f"{uri} lacks the columns {missing}, which the real records have; it has {table.column_names}.",
            uri=uri,
        )
    columns = [
        _cast(table[field.name], field, uri)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in real.schema
    ]
    return pa.table(columns, schema=real.schema)


def _cast(column: pa.ChunkedArray, field: pa.Field, uri: str) -> pa.ChunkedArray:
    """Return the values in the real column's type, where that loses nothing."""
    if column.type == field.type:
        return column
    try:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_dictionary(field.type):
            column = column.cast(field.type.value_type).dictionary_encode()
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
        raise SchemaError(
            f"column {field.name!r} is {column.type} in {uri} and {field.type} in the real records: {exc}.",
            column=field.name,
        ) from exc
