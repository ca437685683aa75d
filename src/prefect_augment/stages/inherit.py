"""What a run takes over from the version before: the split, and which source files it knows already.

Every source file belongs to a batch: the version whose ingest first saw it as it is. A published version
lists its source's files with their batches, so that this outlives staging.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prefect_augment.datatypes import SourceFile
from prefect_augment.errors import InputError, IntegrityError
from prefect_augment.manifest import (
    Manifest,
    is_rollback,
    latest_version,
    list_versions,
    read_manifest,
)
from prefect_augment.params import Source
from prefect_augment.shards.formats import put_once
from prefect_augment.splitting import Ledger, make_salt
from prefect_augment.stages.image_reading import shown_path
from prefect_augment.stages.ledger import NEAR_DUPLICATE, read_ledger
from prefect_augment.stages.listing import Listing
from prefect_augment.storage import Store, sha256_hex

__all__ = ["Inherited", "inherited", "write_files"]

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("n_bytes", pa.int64()),
        ("etag", pa.string()),
        ("n_records", pa.int64()),
        ("n_quarantined", pa.int64()),
        ("batch", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Inherited:
    """What a version takes over.

    Parameters
    ----------
    ledger : Ledger
        The split so far.
    version : int
        The version that is to be made: the batch of files that are not known.
    files : dict
        Path -> source file, as the parent knew it.
    ingest : str
        Path of the outcome of the parent's ingest; empty where there is none.
    """

    ledger: Ledger
    version: int = 1
    files: dict[str, SourceFile] = field(default_factory=dict)
    ingest: str = ""

    def batches(self, listing: Listing) -> NDArray[np.int32]:
        """Return the batch of every listed file, shape (n_files,)."""
        numbers = np.full(len(listing.entries), self.version, dtype=np.int32)
        for i, (path, n_bytes, etag) in enumerate(listing.identity):
            known = self.files.get(shown_path(path))
            if known is not None and (known.n_bytes, known.etag) == (n_bytes, etag):
                numbers[i] = known.batch
        return numbers


def inherited(store: Store, listing: Listing, source: Source, seed: int) -> list[Inherited]:
    """Return what to inherit and, where a version is published, what that version inherited.

    The second finds the stage of the very run that published the newest version.
    """
    unit = _unit(source)
    first = Ledger(make_salt(seed), unit, has_own_holdout=bool(source.holdout_uri))
    if listing.manifest is not None and listing.manifest.ledger is not None:
        first = read_ledger(listing.store, listing.manifest.ledger.path)
    found = [Inherited(first)]
    newest = latest_version(store)
    if newest is not None:
        manifest = _of_a_run(store, newest)
        assert manifest is not None
        before = _of_a_run(store, manifest.parent)
        own = manifest.version
        found = [
            _from(store, manifest, first, newest + 1),
            Inherited(first, own) if before is None else _from(store, before, first, own),
        ]
    _refuse_other_split(found[0].ledger, unit, source)
    return found


def _of_a_run(store: Store, version: int | None) -> Manifest | None:
    """Return a version, or where it is one of a rollback, the newest before it that a run published.

    What a rollback goes back from is still what the source was read as. None where there is no such
    version: the parent of the oldest that is kept is gone after ``gc --keep-last`` and ``erase``.
    """
    there = list_versions(store)
    found = None
    while version in there:
        found = read_manifest(store, version)
        if not is_rollback(found):
            break
        version = found.parent
    return found


def _from(store: Store, manifest: Manifest, first: Ledger, version: int) -> Inherited:
    ledger = first if manifest.ledger is None else read_ledger(store, manifest.ledger.path)
    return Inherited(ledger, version, _read_files(store, manifest), manifest.ingest)


def write_files(store: Store, files: list[SourceFile], *, prefix: str) -> str:
    """Put the list of all source files and return its path."""
    columns = {name: [getattr(file, name) for file in files] for name in SCHEMA.names}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=SCHEMA), sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    path = f"{prefix}/files-{sha256_hex(data)[:12]}.parquet"
    put_once(store, path, data)
    return path


def _read_files(store: Store, manifest: Manifest) -> dict[str, SourceFile]:
    if manifest.sources is None:
        return {}  # of a release that did not write one: all files count as new
    path = manifest.sources.path
    try:
        with store.open(path) as file:
            rows = pq.read_table(file).to_pylist()
    except (FileNotFoundError, pa.ArrowException) as exc:
        raise IntegrityError(
            f"the list of source files {store.uri}/{path} cannot be read ({type(exc).__name__}); restore it from a "
            "copy, or publish to another destination.",
            path=path,
        ) from exc
    return {row["path"]: SourceFile(**row) for row in rows}


# --- the split --------------------------------------------------------------------------------


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
