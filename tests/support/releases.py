"""Builders for tests of publishing and reading: staged records and everything `publish_parts` takes.

They stage through the real storage, staging and shard code; only what ingest, the models and the
filter would have found out is made up.
"""

import hashlib
import io
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from support.staging import class_plan, plan_of, recipe_of, shards_of
from support.steps import publish_parts

from prefect_augment.params import Publish
from prefect_augment.schema import (
    BalancePlan,
    ClassFilter,
    ColumnInfo,
    DatasetInfo,
    DatasetRef,
    FilterResult,
    ModelRef,
    Recipe,
    ReportRef,
    ShardInfo,
)
from prefect_augment.shards.base import label_names
from prefect_augment.storage import Stage, Store, sha256_hex

PARTS = ("training", "training", "validation", "training", "holdout")
MODEL_DIGEST = "f" * 64


def hex_id(*words: object) -> str:
    return hashlib.blake2b("/".join(map(str, words)).encode(), digest_size=16).hexdigest()


def source_table(n: int = 60, *, seed: int = 0) -> pa.Table:
    """A table as pandas writes it: nulls, categories, dates, nullable integers; classes 4 : 2 : 1."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "x": np.where(rng.random(n) < 0.1, np.nan, rng.normal(size=n)),
            "n": pd.array([None if i % 7 == 0 else i for i in range(n)], dtype="Int64"),
            "flag": pd.array(
                [None if i % 5 == 0 else i % 2 == 0 for i in range(n)], dtype="boolean"
            ),
            "site": pd.Categorical(
                [("nord", "süd")[i % 2] for i in range(n)], categories=["süd", "unused", "nord"]
            ),
            "when": pd.date_range("2026-01-01", periods=n, freq="h"),
            "label": [("a", "a", "b", "a", "a", "b", "c/<b>|'")[i % 7] for i in range(n)],
        }
    )
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(frame), sink)
    return pq.read_table(sink)  # as it comes out of a file: that is what ingest sees


def image_table(messy_images: Any, n: int = 60) -> pa.Table:
    """Images of both kinds and depths, some with a mask; classes 4 : 2 : 1."""
    encode, picture = messy_images.encode, messy_images.picture
    images = [
        encode(picture(i, mode="RGB" if i % 5 else "L"), "PNG" if i % 2 else "JPEG")
        for i in range(n)
    ]
    masks = [None if i % 3 else {"bytes": images[i], "path": None} for i in range(n)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {
            "image": pa.array(
                [{"bytes": data, "path": f"{i}.x"} for i, data in enumerate(images)], kind
            ),
            "mask": pa.array(masks, kind),
            "tile": pa.array([None if i % 7 == 0 else i // 3 for i in range(n)], pa.int32()),
            "site": pa.array([("nord", "süd")[i % 2] for i in range(n)]).dictionary_encode(),
            "label": [("a", "a", "b", "a", "a", "b", "c/<b>|'")[i % 7] for i in range(n)],
        }
    )
    features = {
        "image": {"_type": "Image"},
        "mask": {"_type": "Image"},
        **{name: {"dtype": kind, "_type": "Value"} for name, kind in
           (("tile", "int32"), ("site", "string"), ("label", "string"))},
    }  # fmt: skip
    return table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )


@dataclass
class Release:
    """What `publish_parts` takes; change a field and pass ``vars(release)``."""

    dataset: DatasetRef
    plan: BalancePlan
    recipe: Recipe
    candidates: FilterResult | None
    classic: DatasetRef | None
    models: tuple[ModelRef, ...]
    report: ReportRef | None
    store: Store
    verdict: None = None
    publish: Publish = field(default_factory=Publish)
    requested: dict[str, Any] = field(
        default_factory=lambda: {"source": {"uri": "in", "label": "label"}}
    )


def stage_release(
    store: Store,
    *,
    table: pa.Table | None = None,
    label: str = "label",
    key: str = "k1",
    by: tuple[str, ...] = (),
    shard_records: int = 25,
) -> Release:
    """Stage a source, some candidates, some classic records and a report; return what `publish_parts` takes."""
    table = source_table() if table is None else table
    dataset = stage_dataset(store, table, label=label, key=key, shard_records=shard_records)
    names = label_names(table[label])
    parts = [PARTS[i % len(PARTS)] for i in range(len(names))]
    train = [name for name, part in zip(names, parts, strict=True) if part != "holdout"]
    classes = sorted(set(train))
    tail = min(classes, key=train.count)
    plan = plan_of(class_plan(c, train.count(c), 20, n_synthetic=4, n_classic=3) for c in classes)
    recipe = recipe_of(
        "model",
        class_weight={c: 1.0 + k for k, c in enumerate(classes)},
        synthetic={tail: 4},
        classic={tail: 3},
        copies={tail: 5},
        sentence="Weights and <4> synthetic records.",
    )
    return Release(
        dataset=dataset,
        plan=plan,
        recipe=recipe,
        candidates=stage_candidates(store, table, names, tail, key=key),
        classic=stage_classic(store, table, names, tail, label=label, key=key),
        models=(_model(store, key),),
        report=stage_report(store, key=key),
        store=store,
    )


def stage_dataset(
    store: Store,
    table: pa.Table,
    *,
    label: str = "label",
    key: str = "k1",
    shard_records: int = 25,
    first: int = 0,
    **info: Any,
) -> DatasetRef:
    """Stage the records as ingest does: every fifth to the hold-out, every fifth to validation.

    Records are named by their place, from ``first`` on.
    """
    stage = Stage(store, "ingest", key)
    names = label_names(table[label])
    places = range(first, first + len(names))
    table = table.append_column("aug_id", pa.array([hex_id("real", i) for i in places]))
    table = table.append_column("content_key", pa.array([hex_id("content", i) for i in places]))
    shards: list[ShardInfo] = []
    counts: dict[str, dict[str, int]] = {}
    for part in ("training", "validation", "holdout"):
        rows = [i for i in range(len(names)) if PARTS[i % len(PARTS)] == part]
        rows.sort(key=lambda i: hex_id("real", first + i))
        chosen = table.take(pa.array(rows, pa.int64()))
        written = shards_of(
            store, chosen, stage.prefix, part, label=label, max_records=shard_records
        )
        shards += written
        counts[part] = _sum_counts(written)
    outcome = DatasetInfo(
        stage="ingest",
        key=key,
        digest=sha256_hex("".join(s.sha256 for s in shards).encode()),
        label=label,
        label_type=str(table.schema.field(label).type),
        schema_digest=sha256_hex(str(table.schema.remove_metadata()).encode()),
        columns=tuple(
            ColumnInfo(name=f.name, arrow_type=str(f.type), kind="numeric", n_null=0, n_unique=2)
            for f in table.schema
            if f.name not in (label, "aug_id", "content_key")
        ),
        shards=tuple(shards),
        part_counts=counts,
        compared=tuple(sorted(set(names))),
        n_quarantined=1,
        quarantine=_quarantine(store, stage.prefix),
        ledger=_ledger(store, stage.prefix, names),
        **info,
    )
    outcome = stage.finish(outcome)
    return _ref(store, stage, outcome)


def _ref(store: Store, stage: Stage, info: DatasetInfo) -> DatasetRef:
    return DatasetRef(
        root=store.uri,
        path=stage.outcome_path,
        key=info.key,
        digest=info.digest,
        label=info.label,
        n_records=sum(s.n_records for s in info.shards),
        class_counts=_sum_counts(info.shards),
    )


def _sum_counts(shards: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for shard in shards:
        for name, n in shard.class_counts.items():
            counts[name] = counts.get(name, 0) + n
    return counts


def _quarantine(store: Store, prefix: str) -> tuple[ShardInfo, ...]:
    lines = pa.table({"file": ["in.csv"], "position": [3], "reason": ["no label"], "raw": ["1;2;"]})
    return shards_of(store, lines, prefix, "quarantine", label="")


def _ledger(store: Store, prefix: str, names: list[str], *, salt: int = 0) -> str:
    rows = pa.table(
        {
            "key": [hex_id("content", i) for i in range(len(names))],
            "occurrence": pa.array([0] * len(names), pa.int64()),
            "label": names,
            "part": [PARTS[(i + salt) % len(PARTS)] for i in range(len(names))],
        }
    )
    sink = io.BytesIO()
    pq.write_table(rows, sink)
    store.put(f"{prefix}/ledger.parquet", sink.getvalue())
    return f"{prefix}/ledger.parquet"


def stage_candidates(
    store: Store, table: pa.Table, names: list[str], stratum: str, *, key: str
) -> FilterResult:
    """Six kept candidates of one stratum, its own real records with other ids."""
    rows = ([i for i, name in enumerate(names) if name == stratum] * 6)[:6]
    kept = table.take(pa.array(rows, pa.int64()))
    for name, values in {
        "aug_id": pa.array([hex_id("synthetic", j) for j in range(6)]),
        "aug_model": pa.array([MODEL_DIGEST] * 6),
        "aug_seed": pa.array([(1 << 62) + j for j in range(6)], pa.int64()),
        "aug_stratum": pa.array([stratum] * 6),
        "aug_ordinal": pa.array([5, 3, 1, 0, 2, 4], pa.int64()),
        "aug_score": pa.array(np.linspace(0.9, 0.4, 6)),
    }.items():
        kept = kept.append_column(name, values)
    prefix = f"_staging/filter/{key}"
    label = "label" if "label" in table.column_names else ""
    shards = shards_of(
        store, kept, prefix, "kept", label=label, split="candidates", origin="synthetic"
    )
    filtered = ClassFilter(
        name=stratum, n_candidates=8, n_passed=6, n_kept=6, reasons={"near_copy": 2}, metrics={}
    )
    return FilterResult(
        root=store.uri, path=f"{prefix}/outcome.json", key=f"filter-{key}", purpose="utility", classes=(filtered,),
        kept=shards, dropped=(), feature_space="columns",
    )  # fmt: skip


def stage_classic(
    store: Store, table: pa.Table, names: list[str], stratum: str, *, label: str, key: str
) -> DatasetRef:
    """Three classic records of one stratum."""
    stage = Stage(store, "augment", key)
    rows = (
        [i for i, name in enumerate(names) if name == stratum and PARTS[i % 5] != "holdout"] * 3
    )[:3]
    made = table.take(pa.array(rows, pa.int64()))
    for name, values in {
        "aug_id": pa.array([hex_id("classic", j) for j in range(3)]),
        "aug_parent": pa.array([hex_id("real", i) for i in rows]),
        "aug_seed": pa.array([7, 8, 9], pa.int64()),
        "aug_stratum": pa.array([stratum] * 3),
    }.items():
        made = made.append_column(name, values)
    shards = shards_of(store, made, stage.prefix, "classic", label=label, origin="classic")
    info = DatasetInfo(
        stage="augment", key=key, digest=shards[0].sha256, label=label, label_type="string", schema_digest="",
        columns=(), shards=shards, part_counts={}, compared=(),
    )  # fmt: skip
    return _ref(store, stage, stage.finish(info))


def _model(store: Store, key: str) -> ModelRef:
    folder = f"_staging/train/{key}"
    return ModelRef(
        root=store.uri, path=f"{folder}/outcome.json", key=key, kind="trees", digest=MODEL_DIGEST,
        encoder_digest="e" * 64, checkpoint=f"{folder}/model.safetensors", config=f"{folder}/model.json",
        strata=("a",), n_training=10, steps=1,
    )  # fmt: skip


def stage_report(store: Store, *, key: str, text: str = "<html>") -> ReportRef:
    prefix = f"_staging/report/{key}"
    for name, data in {
        "report.html": text.encode(),
        "report.json": b"{}",
        "recipe.json": b"{}",
    }.items():
        store.put(f"{prefix}/{name}", data)
    return ReportRef(
        root=store.uri, prefix=prefix, files=("report.html", "report.json", "recipe.json")
    )


def publish_as_is(store: Store, ref: DatasetRef, settings: Publish | None = None) -> None:
    """Publish staged records as a version that changes nothing about them."""
    counts = ref.class_counts
    publish_parts(
        dataset=ref,
        plan=plan_of((class_plan(name, n) for name, n in counts.items()), rule="none"),
        recipe=recipe_of("as is", "as_is", class_weight=dict.fromkeys(counts, 1.0)),
        publish=settings,
        store=store,
    )
