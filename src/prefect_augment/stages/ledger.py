"""The split ledger as a Parquet object: one row per record or group, the rest in its metadata.

For images a row also holds the near-duplicate cluster and a thumbnail, 1 kB before compression, so
that a later version finds near-duplicates of images that its source no longer has.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from prefect_augment.datatypes import DatasetFacts
from prefect_augment.errors import InputError, IntegrityError, SchemaError
from prefect_augment.manifest import Manifest, latest_version, list_versions, read_manifest
from prefect_augment.params import Source
from prefect_augment.shards.image_check import THUMB_SIDE
from prefect_augment.splitting import PARTS, ImageRows, Ledger, make_salt
from prefect_augment.stages.listing import Listing
from prefect_augment.storage import Store, sha256_hex

__all__ = ["NEAR_DUPLICATE", "inherited_ledgers", "read_ledger", "split_clusters", "write_ledger"]

#: Unit of a ledger whose near-duplicate images stay together.
NEAR_DUPLICATE = "near-duplicate"
THUMB_BYTES = THUMB_SIDE * THUMB_SIDE

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("occurrence", pa.int64()),
        ("label", pa.string()),
        ("part", pa.string()),
    ]
)


def write_ledger(store: Store, ledger: Ledger, *, prefix: str) -> str:
    """Put the ledger as ``{prefix}/ledger-<sha12>.parquet`` and return that path."""
    metadata = {
        "salt": ledger.salt,
        "unit": ledger.unit,
        "has_own_holdout": "true" if ledger.has_own_holdout else "false",
    }
    table = pa.table(
        [
            pa.array(ledger.keys, pa.string()),
            pa.array(ledger.occurrences, pa.int64()),
            pa.array(ledger.labels, pa.string()),
            pa.array([PARTS[part] for part in ledger.parts], pa.string()),
        ],
        schema=SCHEMA.with_metadata(metadata),
    )
    if ledger.images is not None:
        table = _with_images(table, ledger.images)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue()
    path = f"{prefix}/ledger-{sha256_hex(data)[:12]}.parquet"
    store.put(path, data)
    return path


def _with_images(table: pa.Table, images: ImageRows) -> pa.Table:
    thumbs = pa.Array.from_buffers(
        pa.binary(THUMB_BYTES), table.num_rows, [None, pa.py_buffer(images.thumbs)]
    )
    for name, values in (
        ("cluster", pa.array(images.clusters, pa.string())),
        ("level", pa.array(images.levels, pa.int64())),
        ("thumb", thumbs),
    ):
        table = table.append_column(name, values)
    return table


def _images_of(table: pa.Table) -> ImageRows | None:
    if "cluster" not in table.column_names:
        return None
    if table.schema.field("thumb").type.byte_width != THUMB_BYTES:
        raise SchemaError(
            f"the dataset's ledger has thumbnails of {table.schema.field('thumb').type.byte_width} bytes "
            f"and this version compares {THUMB_BYTES}; publish to a new folder."
        )
    return ImageRows(
        clusters=tuple(table["cluster"].to_pylist()),
        levels=tuple(table["level"].to_pylist()),
        thumbs=b"".join(table["thumb"].to_pylist()),
    )


def split_clusters(store: Store, facts: DatasetFacts, content_keys: Sequence[str]) -> list[str]:
    """Return the near-duplicate cluster of staged images, for folds and resamples that respect it.

    An image that the ledger does not know (one of a hold-out of its own) is a cluster of itself, and so
    is every record where the split is not by near-duplicates.

    Parameters
    ----------
    store : Store
        The destination under which the facts' ledger lies.
    facts : DatasetFacts
        Outcome of an ingest stage.
    content_keys : sequence of str
        Of the records asked for.
    """
    ledger = read_ledger(store, facts.ledger)
    if ledger.images is None:
        return list(content_keys)
    cluster = dict(zip(ledger.keys, ledger.images.clusters, strict=True))
    return [cluster.get(key, key) for key in content_keys]


def read_ledger(store: Store, path: str) -> Ledger:
    """Return the ledger at ``path``.

    Raises
    ------
    IntegrityError
        If it is missing or not a ledger: without it, hold-out records could end up in training.
    """
    try:
        table = pq.read_table(io.BytesIO(store.read(path)))
        metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        return Ledger(
            salt=metadata["salt"],
            unit=metadata["unit"],
            keys=tuple(table["key"].to_pylist()),
            occurrences=tuple(table["occurrence"].to_pylist()),
            labels=tuple(table["label"].to_pylist()),
            parts=tuple(PARTS.index(part) for part in table["part"].to_pylist()),
            has_own_holdout=metadata["has_own_holdout"] == "true",
            images=_images_of(table),
        )
    except (FileNotFoundError, pa.ArrowException, KeyError, ValueError) as exc:
        raise IntegrityError(
            f"the split ledger {store.uri}/{path} cannot be read ({type(exc).__name__}: {exc}); restore it, or "
            "publish to another destination, which starts a new split.",
            path=path,
        ) from exc


# --- inheritance ------------------------------------------------------------------------------


def inherited_ledgers(store: Store, listing: Listing, source: Source, seed: int) -> list[Ledger]:
    """The ledger to inherit and, where a version is published, the one that this version inherited.

    The second finds the stage of the very run that published the newest version.
    """
    unit = _unit(source)
    first = Ledger(make_salt(seed), unit, has_own_holdout=bool(source.holdout_uri))
    if listing.manifest is not None and listing.manifest.ledger is not None:
        first = read_ledger(listing.store, listing.manifest.ledger.path)
    ledgers = [first]
    newest = latest_version(store)
    if newest is not None:
        manifest = read_manifest(store, newest)
        # The parent of the oldest version that is kept is gone after `gc --keep-last` and `erase`.
        has_parent = manifest.parent in list_versions(store)
        before = read_manifest(store, manifest.parent) if has_parent else None
        ledgers = [
            _ledger_of(store, manifest) or first,
            (before and _ledger_of(store, before)) or first,
        ]
    _refuse_other_split(ledgers[0], unit, source)
    return ledgers


def _ledger_of(store: Store, manifest: Manifest) -> Ledger | None:
    return None if manifest.ledger is None else read_ledger(store, manifest.ledger.path)


def _unit(source: Source) -> str:
    if source.group_column:
        return f"group:{source.group_column}"
    return f"pattern:{source.group_pattern}" if source.group_pattern else "record"


def _refuse_other_split(ledger: Ledger, unit: str, source: Source) -> None:
    """Refuse to go on with a split of another kind: records that chose or judged would now train."""
    # Whether a source holds images is known when it has been read: ingest looks again.
    if ledger.unit != unit and not (ledger.unit == NEAR_DUPLICATE and unit == "record"):
        kind, _, name = ledger.unit.partition(":")
        was = {
            "record": "by record",
            NEAR_DUPLICATE: "by near-duplicate images",
            "group": f"by column {name!r}",
            "pattern": f"by the path pattern {name!r}",
        }[kind]
        now = "source.group_pattern" if source.group_pattern else "source.group_column"
        value = source.group_pattern or source.group_column
        raise InputError(
            f"the dataset's earlier version was split {was}, and {now} is {value!r}; "
            "keep the earlier one, or publish to another destination."
        )
    if ledger.has_own_holdout != bool(source.holdout_uri):
        was = (
            "a hold-out of its own (holdout_uri)"
            if ledger.has_own_holdout
            else "its hold-out split off the source"
        )
        raise InputError(
            f"the dataset's earlier version had {was}; keep it so, or publish to another destination.",
        )
