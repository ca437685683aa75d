"""A published version as staged records, so that whatever reads those reads it, synthetic ones included."""

from __future__ import annotations

from prefect_augment.datatypes import DatasetFacts, DatasetRef
from prefect_augment.manifest import read_manifest
from prefect_augment.staging import Stage, stage_key
from prefect_augment.storage import Store, sha256_hex

__all__ = ["version_records"]

ALGORITHM_VERSION = 1


def version_records(store: Store, version: int | None = None) -> DatasetRef:
    """Return a reference to the records of a version, as its manifest names them; nothing is copied.

    Parameters
    ----------
    store : Store
        The dataset.
    version : int, optional
        The newest by default.

    Returns
    -------
    DatasetRef
        Records of every origin; their parts are ``train`` and ``holdout``.

    Raises
    ------
    IntegrityError
        If there is no such version.
    """
    manifest = read_manifest(store, version)
    key = stage_key(
        "version", algorithm_version=ALGORITHM_VERSION, params=manifest.version,
        inputs=[manifest.content_digest],
    )  # fmt: skip
    stage = Stage(store, "version", key)
    counts = {
        split: {name: sum(origins.values()) for name, origins in classes.items()}
        for split, classes in manifest.class_counts.items()
    }
    is_image = any(column.kind == "image" for column in manifest.columns)
    facts = stage.finish(
        DatasetFacts(
            stage="version",
            key=key,
            digest=sha256_hex("\n".join(shard.sha256 for shard in manifest.shards).encode()),
            label=manifest.label,
            label_type=manifest.label_type,
            schema_digest=manifest.source_schema,
            columns=manifest.columns,
            shards=manifest.shards,
            part_counts=counts,
            judged=(),
            modality="image" if is_image else "table",
            extra={"version": manifest.version},
        )
    )
    totals: dict[str, int] = {}
    for classes in counts.values():
        for name, n in classes.items():
            totals[name] = totals.get(name, 0) + n
    return stage.reference(facts, totals)
