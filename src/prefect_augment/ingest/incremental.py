"""Incremental ingest: the split a version continues, and the source files whose staged records are reused.

A file belongs to the batch (version) whose ingest first saw it as it is; published versions list files with batches,
so this outlives staging. Old files contribute their index, and the split is made anew for all records: the result
is that of reading everything. If that would change a staged record, everything is read.
"""

import base64
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prefect_augment.array_types import Int32
from prefect_augment.encoding.columns import ColumnCounts, ColumnSummary
from prefect_augment.errors import InputError, IntegrityError
from prefect_augment.ingest.record_index import RecordIndex, read_index
from prefect_augment.params import Source
from prefect_augment.schema import DatasetInfo, Manifest, ShardInfo, SourceFile, is_rollback
from prefect_augment.shards.base import put_once, read_shard
from prefect_augment.shards.staged import iter_shards
from prefect_augment.sources.discovery import Listing
from prefect_augment.sources.images.files import ImageFiles
from prefect_augment.sources.images.scan import shown_path
from prefect_augment.split.assignment import make_salt
from prefect_augment.split.ledger import Ledger
from prefect_augment.split.ledger_io import NEAR_DUPLICATE, read_ledger
from prefect_augment.storage import (
    Store,
    latest_version,
    list_versions,
    read_manifest,
    read_result,
    sha256_hex,
)


class NotReusableError(Exception):
    """Why all files have to be read; caught within ingest."""


@dataclass(frozen=True)
class ReusedRecords:
    """Staged records of an earlier ingest whose files have not changed."""

    info: DatasetInfo
    schema: pa.Schema  # of the source's files
    wanted: frozenset[str]  # new files, by their names in the listing
    files: dict[str, SourceFile]  # path -> source file, as it was

    @property
    def shards(self) -> tuple[ShardInfo, ...]:
        """Its staged real shards, without those of a separate hold-out."""
        n_own_holdout = self.info.extra["n_given"]
        return self.info.shards[: len(self.info.shards) - n_own_holdout]

    def indexes(self, store: Store) -> list[RecordIndex]:
        """Return the index of each batch; raises NotReusableError if one cannot be read."""
        try:
            return [read_index(store, b.index, batch=b.batch) for b in self.info.batches]
        except (FileNotFoundError, pa.ArrowException, KeyError) as exc:
            raise NotReusableError(
                f"its staged records are damaged ({type(exc).__name__})"
            ) from exc

    def add_columns(self, store: Store, summaries: Mapping[str, ColumnSummary]) -> None:
        """Add the reused records to the summaries: stored counts, and values from staged shards."""
        for batch in self.info.batches:
            for name, counts in batch.columns.items():
                summaries[name].add_counts(ColumnCounts(*counts))  # type: ignore[arg-type]
        names = [name for name, summary in summaries.items() if summary.is_comparable]
        for table in iter_shards(store, self.shards, names) if names else ():
            for name in names:
                summaries[name].add_values(table[name])

    def quarantined(self, store: Store) -> pa.Table | None:
        """Return the quarantined records, without those of a separate hold-out."""
        shards = self.info.quarantine[: self.info.extra["n_quarantine_shards"]]
        tables = [read_shard(store, shard.path) for shard in shards]
        return pa.concat_tables(tables) if tables else None


def find_reusable(
    store: Store, listing: Listing, parent: "Baseline", *, request: str, folder: ImageFiles | None
) -> ReusedRecords | None:
    """Return the batches that need not be read again; None if nothing was published; NotReusableError says why not."""
    if not parent.files:
        return None
    # Known files have to be there, unchanged.
    listed = {shown_path(path): (path, n, etag) for path, n, etag in listing.identity}
    gone = Counter[str]()
    for path, file in parent.files.items():
        if path not in listed:
            gone["are gone"] += 1
        elif listed[path][1:] != (file.n_bytes, file.etag):
            gone["have changed"] += 1
    if gone:
        reasons = " and ".join(f"{n} {what}" for what, n in sorted(gone.items()))
        raise NotReusableError(f"of {len(parent.files)} known files {reasons}")
    # Their staged outcome has to exist, and from the same parameters.
    if not parent.ingest:
        raise NotReusableError("the version does not say where its records were staged")
    try:
        info = read_result(store, parent.ingest, DatasetInfo)
    except IntegrityError as exc:
        raise NotReusableError("its staged records are damaged") from exc
    if info is None:
        raise NotReusableError("its staged records were removed (gc)")
    if info.extra.get("request") != request:
        raise NotReusableError("it was read with other parameters")
    if folder is not None:
        known = set(parent.files)
        if folder.labels.objects is not None:
            raise NotReusableError("annotations of objects are read as a whole")
        if info.extra.get("labels") != folder.labels_digest(known):
            raise NotReusableError("the labels of known files have changed")
    reused = ReusedRecords(
        info,
        pa.ipc.read_schema(pa.BufferReader(base64.b64decode(info.extra["schema"]))),
        frozenset(listed[path][0] for path in listed if path not in parent.files),
        parent.files,
    )
    for shard in (*reused.shards, *info.quarantine):
        if not store.holds(shard.path, shard.n_bytes):
            raise NotReusableError(f"{shard.path} is gone, or is not what was staged")
    if not all(store.exists(batch.index) for batch in info.batches):
        raise NotReusableError("some of its staged records are gone")
    return reused


def schema_text(schema: pa.Schema) -> str:
    """Return a schema as text, for the stored outcome."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


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
class Baseline:
    """What a new version takes over from its parent."""

    ledger: Ledger  # the split so far
    version: int = 1  # the new version: batch of unknown files
    files: dict[str, SourceFile] = field(default_factory=dict)  # path -> file in the parent
    ingest: str = ""  # path of the parent's ingest outcome, or empty

    def batches(self, listing: Listing) -> Int32:
        """Return the batch of every listed file, shape (n_files,)."""
        numbers = np.full(len(listing.entries), self.version, dtype=np.int32)
        for i, (path, n_bytes, etag) in enumerate(listing.identity):
            known = self.files.get(shown_path(path))
            if known is not None and (known.n_bytes, known.etag) == (n_bytes, etag):
                numbers[i] = known.batch
        return numbers


def baselines(store: Store, listing: Listing, source: Source, seed: int) -> list[Baseline]:
    """Return the baseline of the next version and, if one is published, that of the published one.

    The second finds the stage of the very run that published the newest version.
    """
    unit = "record"
    if source.group_column or source.group_pattern:
        column, pattern = source.group_column, source.group_pattern
        unit = f"group:{column}" if column else f"pattern:{pattern}"
    first = Ledger(make_salt(seed), unit, has_own_holdout=bool(source.holdout_uri))
    if listing.manifest is not None and listing.manifest.ledger is not None:
        first = read_ledger(listing.store, listing.manifest.ledger.path)
    result = [Baseline(first)]
    newest = latest_version(store)
    if newest is not None:
        manifest = _of_a_run(store, newest)
        assert manifest is not None
        before = _of_a_run(store, manifest.parent)
        result = [
            _from(store, manifest, first, newest + 1),
            _from(store, before, first, manifest.version),
        ]
    _refuse_other_split(result[0].ledger, unit, source)
    return result


def _of_a_run(store: Store, version: int | None) -> Manifest | None:
    """Return a version; of a rollback, the version before it that a run published, for which the source was last read.

    None where that is gone, after ``gc --keep-last`` and ``erase``.
    """
    there = list_versions(store)
    manifest = None
    while version in there:
        manifest = read_manifest(store, version)
        if not is_rollback(manifest):
            break
        version = manifest.parent
    return manifest


def _from(store: Store, manifest: Manifest | None, first: Ledger, version: int) -> Baseline:
    if manifest is None:
        return Baseline(first, version)
    ledger = first if manifest.ledger is None else read_ledger(store, manifest.ledger.path)
    return Baseline(ledger, version, _read_files(store, manifest), manifest.ingest)


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


def _refuse_other_split(ledger: Ledger, unit: str, source: Source) -> None:
    """Refuse another kind of split: records of validation or hold-out would move to training."""
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
            f"the dataset's earlier version had {was}; keep it so, or publish to another destination."
        )
