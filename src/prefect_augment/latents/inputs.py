"""Inputs of latent uses: the records of some classes, and a published version as staged records."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import pyarrow as pa

from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.latents.base import SHARD_BYTES, SHARD_RECORDS, Piece
from prefect_augment.params import Anomalies
from prefect_augment.params.keys import step_key
from prefect_augment.schema import DatasetInfo, DatasetRef, ShardInfo
from prefect_augment.shards.base import label_names
from prefect_augment.shards.staged import iter_shards, load_info
from prefect_augment.shards.stream_writer import write_stream
from prefect_augment.storage import Stage, Store, read_manifest, sha256_hex
from prefect_augment.text import suggestion


def select_classes(dataset: DatasetRef, *, classes: Sequence[str], store: Store) -> DatasetRef:
    """Stage the training and validation records of some classes; the hold-out is left out.

    Ids and parts stay. Raises ParameterError for unknown or no classes, and EmptyClassError if none of
    their records is a training record.
    """
    info = load_info(dataset, store)
    wanted = tuple(dict.fromkeys(classes))
    existing = list(dict.fromkeys(name for part in info.part_counts.values() for name in part))
    unknown = [name for name in wanted if name not in existing]
    if unknown or not wanted:
        raise ParameterError(
            f"there is no class {unknown[0]!r}; {suggestion(unknown[0], existing)}."
            if unknown
            else "no class was named; name those whose records are to be selected."
        )
    if not any(info.part_counts.get("training", {}).get(name) for name in wanted):
        raise EmptyClassError(
            f"{', '.join(map(repr, wanted))} have no training record to learn from; name a larger class."
        )
    # Set by anomalies.train_on, or by an own flow.
    chosen = {"anomalies": Anomalies(train_on=sorted(wanted))}
    key = step_key("select", chosen, inputs=[dataset.key, dataset.digest])
    stage = Stage(store, "select", key)
    selected = stage.run(DatasetInfo, lambda: _select(stage, info, wanted))
    return stage.reference(selected, _totals(selected.part_counts))


def _totals(part_counts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Return the records per class over all parts."""
    totals: Counter[str] = Counter()
    for counts in part_counts.values():
        totals.update(counts)
    return dict(totals)


def _select(stage: Stage, info: DatasetInfo, wanted: Sequence[str]) -> DatasetInfo:
    def write(i: int, shard: ShardInfo) -> Piece:
        n = sum(shard.class_counts.get(name, 0) for name in wanted)
        written = write_stream(
            stage.store, _rows(stage.store, shard, info.label, wanted), n_records=n,
            prefix=stage.prefix, stem=f"{shard.split}-{i:05d}", split=shard.split,
            origin=shard.origin, label=info.label, max_records=SHARD_RECORDS, max_bytes=SHARD_BYTES,
        )  # fmt: skip
        return Piece(shards=written)

    shards: list[ShardInfo] = []
    for i, shard in enumerate(s for s in info.shards if s.split in ("training", "validation")):
        shards += stage.item(f"shard-{i:05d}", Piece, partial(write, i, shard)).shards
    counts = {
        part: {name: n for name, n in classes.items() if name in wanted}
        for part, classes in info.part_counts.items()
        if part in ("training", "validation")
    }
    return info.model_copy(
        update={
            "stage": "select",
            "key": stage.key,
            "digest": sha256_hex("\n".join(s.sha256 for s in shards).encode()),
            "shards": tuple(shards),
            "part_counts": counts,
            "compared": tuple(name for name in info.compared if name in wanted),
            "extra": {**info.extra, "classes": list(wanted)},
        }
    )


def _rows(store: Store, shard: ShardInfo, label: str, wanted: Sequence[str]) -> Iterator[pa.Table]:
    for table in iter_shards(store, [shard]):
        rows = np.flatnonzero(np.isin(np.array(label_names(table[label]), dtype=object), wanted))
        if len(rows):
            yield table.take(pa.array(rows))


def version_records(store: Store, version: int | None = None) -> DatasetRef:
    """Return a reference to a version's records of every origin, by default the newest; nothing is copied.

    Their parts are ``train`` and ``holdout``. Raises IntegrityError if there is no such version.
    """
    manifest = read_manifest(store, version)
    key = step_key("version", inputs=[manifest.version, manifest.content_digest])
    stage = Stage(store, "version", key)
    counts = {
        split: {name: sum(origins.values()) for name, origins in classes.items()}
        for split, classes in manifest.class_counts.items()
    }
    is_image = any(column.kind == "image" for column in manifest.columns)
    info = stage.finish(
        DatasetInfo(
            stage="version",
            key=key,
            digest=sha256_hex("\n".join(shard.sha256 for shard in manifest.shards).encode()),
            label=manifest.label,
            label_type=manifest.label_type,
            schema_digest=manifest.source_schema,
            columns=manifest.columns,
            shards=manifest.shards,
            part_counts=counts,
            compared=(),
            modality="image" if is_image else "table",
            extra={"version": manifest.version},
        )
    )
    return stage.reference(info, _totals(counts))
