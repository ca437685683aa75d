"""The split ledger as a Parquet object: one row per record or group, the rest in its metadata."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq

from prefect_augment.errors import InputError, IntegrityError
from prefect_augment.manifest import Manifest, latest_version, read_manifest
from prefect_augment.params import Source
from prefect_augment.splitting import PARTS, Ledger, make_salt
from prefect_augment.stages.listing import Listing
from prefect_augment.storage import Store, sha256_hex

__all__ = ["inherited_ledgers", "read_ledger", "write_ledger"]

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
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue()
    path = f"{prefix}/ledger-{sha256_hex(data)[:12]}.parquet"
    store.put(path, data)
    return path


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
    unit = f"group:{source.group_column}" if source.group_column else "record"
    first = Ledger(make_salt(seed), unit, has_own_holdout=bool(source.holdout_uri))
    if listing.manifest is not None and listing.manifest.ledger is not None:
        first = read_ledger(listing.store, listing.manifest.ledger.path)
    ledgers = [first]
    newest = latest_version(store)
    if newest is not None:
        manifest = read_manifest(store, newest)
        before = None if manifest.parent is None else read_manifest(store, manifest.parent)
        ledgers = [
            _ledger_of(store, manifest) or first,
            (before and _ledger_of(store, before)) or first,
        ]
    _refuse_other_split(ledgers[0], unit, source)
    return ledgers


def _ledger_of(store: Store, manifest: Manifest) -> Ledger | None:
    return None if manifest.ledger is None else read_ledger(store, manifest.ledger.path)


def _refuse_other_split(ledger: Ledger, unit: str, source: Source) -> None:
    """Refuse to go on with a split of another kind: records that chose or judged would now train."""
    if ledger.unit != unit:
        was = f"by column {ledger.unit[6:]!r}" if ledger.unit != "record" else "by record"
        raise InputError(
            f"the dataset's earlier version was split {was}, and source.group_column is {source.group_column!r}; "
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
