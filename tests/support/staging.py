"""Records as ingest stages them, and plans for them."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from support.steps import experiment_of

from prefect_augment.encoding.columns import describe_columns
from prefect_augment.ingest.ingest import ingest
from prefect_augment.params import Source
from prefect_augment.schema import (
    BalancePlan,
    ClassPlan,
    DatasetInfo,
    DatasetRef,
    Estimate,
    ImageInfo,
    Manifest,
    ModelRef,
    Recipe,
    ShardInfo,
    Verdict,
)
from prefect_augment.shards.base import write_shards
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage import Stage, Store, sha256_hex
from prefect_augment.synthesis.sample import sample
from prefect_augment.synthesis.train import train

__all__ = [
    "Made",
    "a_shard",
    "class_plan",
    "image_info",
    "ingested",
    "manifest_of",
    "people",
    "plan_of",
    "recipe_of",
    "shards_of",
    "stage_parts",
    "train_people",
    "verdict_of",
]


def class_plan(name: str, n_real: int = 1, target: int | None = None, **fields: Any) -> ClassPlan:
    """What is planned for a class; nothing is drawn where nothing is said."""
    fields = {"n_synthetic": 0, "n_classic": 0, "compared": True, **fields}
    target = n_real if target is None else target
    return ClassPlan(name=name, label=name, n_real=n_real, target=target, **fields)


def plan_of(classes: Iterable[ClassPlan], **fields: Any) -> BalancePlan:
    """A plan of these classes, whose estimate is of no account."""
    estimate = Estimate(seconds=1, output_bytes=1, memory_bytes=1)
    return BalancePlan(
        **{"rule": "median", "classes": tuple(classes), "estimate": estimate, **fields}
    )


def recipe_of(name: str, family: str = "model", **fields: Any) -> Recipe:
    """A recipe that adds nothing but what is said."""
    nothing = {"class_weight": {}, "synthetic": {}, "classic": {}, "copies": {}, "sentence": ""}
    strategy = {"name": name, "family": family}
    return Recipe.model_validate({"strategy": strategy, **nothing, **fields})


def verdict_of(chosen: str, **fields: Any) -> Verdict:
    """A verdict on a strategy that nothing is held against."""
    nothing = {
        "decision": "inconclusive", "reasons": (), "baseline": chosen, "published": chosen,
        "strategies": {}, "balanced_accuracy": {}, "differences": (), "class_recall": {},
        "minimum_detectable_effect": 0.0, "class_decisions": {}, "not_compared": {},
        "n_holdout": 100, "n_seeds": 1,
    }  # fmt: skip
    return Verdict.model_validate({"chosen": chosen, **nothing, **fields})


def a_shard(path: str = "data/train-real-00000-0123456789ab.parquet", n: int = 2) -> ShardInfo:
    """A shard as a manifest lists it; there are no bytes of it."""
    return ShardInfo(
        path=path, split="train", origin="real", n_records=n, n_bytes=9, sha256="0" * 64,
        class_counts={"a": n},
    )  # fmt: skip


def manifest_of(version: int = 1, *, key: str = "k", n: int = 2, **fields: Any) -> Manifest:
    """The smallest manifest there is, told apart by its key and count."""
    smallest = {
        "parent": version - 1 or None, "dataset_key": key, "created_at": "2026-11-20T00:00:00",
        "label": "y", "label_type": "string", "source_schema": "s", "columns": (),
        "class_counts": {"train": {"a": {"real": n}}}, "shards": (a_shard(n=n),), "plan": (),
        "verdict": None, "recipe": recipe_of("as is", "as_is", class_weight={"a": 0.1}),
        "params": {}, "software": {},
    }  # fmt: skip
    return Manifest(**{"version": version, **smallest, **fields})


def shards_of(
    store: Store, table: pa.Table, prefix: str, stem: str, *, label: str, **options: Any
) -> tuple[ShardInfo, ...]:
    """Write shards of one part, which is called like the files."""
    given = {"split": stem, "origin": "real", "max_records": 100, "max_bytes": 1 << 30, **options}
    return write_shards(store, table, prefix=prefix, stem=stem, label=label, **given)


def image_info(width: int, height: int, *, n: int, n_channels: int = 3) -> ImageInfo:
    """Of so many PNG files of one size."""
    return ImageInfo(
        column="image", modes={"L" if n_channels == 1 else "RGB": n}, formats={"PNG": n},
        sizes={f"{width}x{height}": n}, n_sizes=1, most_common_size=(width, height),
        smallest_side=min(width, height), largest_side=max(width, height), n_channels=n_channels,
    )  # fmt: skip


def ingested(
    table: pa.Table, folder: Path, store: Store, label: str = "state", **source: Any
) -> DatasetRef:
    """The table as a file, read by ingest itself."""
    pq.write_table(table, folder / "records.parquet")
    found = Source(uri=str(folder / "records.parquet"), label=label, **source)
    return ingest(found, store=store, seed=0)


def stage_parts(
    store: Store,
    parts: Mapping[str, pa.Table],
    *,
    label: str = "state",
    key: str = "a",
    max_records: int = 50,
    **info: Any,
) -> DatasetRef:
    """Stage records as ingest does; they get ids where they have none."""
    stage = Stage(store, "ingest", key * 24)
    shards: list[ShardInfo] = []
    for part, table in parts.items():
        for name in ("aug_id", "content_key"):
            if name in table.column_names:
                continue
            ids = pa.array([f"{part}-{name}-{i:05d}" for i in range(table.num_rows)])
            table = table.append_column(name, ids)
        shards += shards_of(store, table, stage.prefix, part, label=label, max_records=max_records)
    everything = pa.concat_tables(parts.values())
    counts = {part: dict(Counter(t[label].to_pylist())) for part, t in parts.items()}
    fields: dict[str, Any] = {
        "digest": sha256_hex("".join(s.sha256 for s in shards).encode()),
        "compared": ("ill", "rare", "well"),
        "label_type": "string",
        "schema_digest": "s",
        **info,
    }
    if "columns" not in fields:
        fields["columns"] = describe_columns(everything, label=label)
    staged = DatasetInfo(
        stage="ingest",
        key=stage.key,
        label=label,
        shards=tuple(shards),
        part_counts=counts,
        **fields,
    )
    return DatasetRef(
        root=store.uri,
        path=stage.outcome_path,
        key=stage.key,
        digest=stage.finish(staged).digest,
        label=label,
        n_records=everything.num_rows,
        class_counts=dict(Counter(everything[label].to_pylist())),
    )


# --- records of people, and a model of them ---


def people(n: int = 240) -> pa.Table:
    """Three classes of 7 : 2 : 1 parts and one of 3 records; a null, a date, an identifier."""
    rng = np.random.default_rng(0)
    label = np.array(["well", "ill", "rare"])[rng.choice(3, n, p=[0.7, 0.2, 0.1])]
    label[:3] = "lone"
    age = np.where(label == "ill", 70, 40) + rng.integers(-9, 10, n)
    return pa.table(
        {
            "id": np.arange(1000, 1000 + n),
            "age": pa.array([None if i % 9 == 0 else int(a) for i, a in enumerate(age)]),
            "sex": rng.choice(["f", "m"], n),
            "since": pa.array(rng.integers(15_000, 16_000, n), pa.int32()).cast(pa.date32()),
            "state": label,
        }
    ).replace_schema_metadata({"made": "here"})


def train_people(
    dataset: DatasetRef,
    store: Store,
    *,
    plan: BalancePlan | None = None,
    on_progress: Callable[[float, str], None] | None = None,
    **params: Any,
) -> ModelRef:
    """Train a model of people on all classes."""
    plan = plan or plan_of(class_plan(name) for name in ("well", "ill", "rare", "lone"))
    experiment = experiment_of(dataset, plan, **{"seed": 3, **params})
    return train(experiment, store, on_progress=on_progress)


class Made(NamedTuple):
    """A model with the records that it was trained on, and what it draws."""

    model: ModelRef
    dataset: DatasetRef
    store: Store
    counts: Mapping[str, int]

    @classmethod
    def of(cls, table: pa.Table, store: Store, **counts: int) -> "Made":
        """Train on the first 200 records; the rest is validation."""
        parts = {"training": table.slice(0, 200), "validation": table.slice(200)}
        dataset = stage_parts(store, parts)
        return cls(train_people(dataset, store), dataset, store, counts)

    @property
    def given(self) -> dict[str, Any]:
        return {"counts": self.counts, "seed": 1, "store": self.store, "dataset": self.dataset}

    def sample(self, **changes: Any) -> DatasetRef:
        return sample(self.model, **{**self.given, **changes})

    def info(self, **changes: Any) -> DatasetInfo:
        return load_info(self.sample(**changes), self.store)

    def drawn(self, **changes: Any) -> pa.Table:
        return read_part(self.store, self.info(**changes), ["candidates"])

    def clear(self) -> None:
        """Forget what was drawn."""
        for path in self.store.list("_staging/sample"):
            self.store.delete(path)
