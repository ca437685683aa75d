"""Earlier batches of a source that only grew: their staged records stand, and their files are not read.

What the split needs of them comes from their index. It is decided anew for all records together, so what
comes out is what reading everything would give; where that would change a staged record, everything is
read after all.
"""

from __future__ import annotations

import base64
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.datatypes import DatasetFacts, ShardFact, SourceFile
from prefect_augment.encoding.columns import ColumnCounts, ColumnSummary
from prefect_augment.errors import IntegrityError
from prefect_augment.shards.formats import open_shard, read_shard
from prefect_augment.stages.image_reading import Folder, shown_path
from prefect_augment.stages.inherit import Inherited
from prefect_augment.stages.listing import Listing
from prefect_augment.stages.record_index import RecordIndex, read_index
from prefect_augment.staging import read_fact
from prefect_augment.storage import Store

__all__ = [
    "Earlier",
    "NotReusableError",
    "find_earlier",
    "labels_said",
    "n_moved",
    "refuse_moved",
    "schema_text",
]

logger = logging.getLogger(__name__)


class NotReusableError(Exception):
    """Why all files have to be read; never leaves ingest."""


@dataclass(frozen=True)
class Earlier:
    """What an earlier ingest staged of files that are as they were.

    Parameters
    ----------
    facts : DatasetFacts
        Its outcome.
    schema : pyarrow.Schema
        The one of the source's files.
    wanted : frozenset of str
        Files that are new, as the listing names them.
    files : dict
        Path -> source file, as it was.
    """

    facts: DatasetFacts
    schema: pa.Schema
    wanted: frozenset[str]
    files: dict[str, SourceFile]

    @property
    def shards(self) -> tuple[ShardFact, ...]:
        """Its staged real shards, those of a hold-out of its own left out."""
        given = self.facts.extra["n_given"]
        return self.facts.shards[: len(self.facts.shards) - given]

    def indexes(self, store: Store) -> list[RecordIndex]:
        """Return the index of each batch.

        Raises
        ------
        NotReusableError
            If one cannot be read.
        """
        try:
            return [read_index(store, b.index, batch=b.batch) for b in self.facts.batches]
        except (FileNotFoundError, pa.ArrowException, KeyError) as exc:
            raise NotReusableError(
                f"what was staged of it is damaged ({type(exc).__name__})"
            ) from exc

    def add_columns(self, store: Store, summaries: Mapping[str, ColumnSummary]) -> None:
        """Take the earlier records' columns into summaries: counts as noted, values from staged shards."""
        for batch in self.facts.batches:
            for name, counts in batch.columns.items():
                summaries[name].add_counts(ColumnCounts(*counts))  # type: ignore[arg-type]
        names = [name for name, summary in summaries.items() if summary.is_comparable]
        for shard in self.shards if names else ():
            with open_shard(store, shard.path, mapped=False) as file:
                for group in range(len(file.group_rows)):
                    table = file.read(names, groups=[group])
                    for name in names:
                        summaries[name].add_values(table[name])

    def quarantined(self, store: Store) -> pa.Table | None:
        """Return what was put into quarantine, that of a hold-out of its own left out."""
        shards = self.facts.quarantine[: self.facts.extra["n_quarantine_shards"]]
        tables = [read_shard(store, shard.path) for shard in shards]
        return pa.concat_tables(tables) if tables else None


def n_moved(index: RecordIndex, parts: NDArray[np.int8], numbers: NDArray[np.int32]) -> int:
    """Return how many staged records would stand elsewhere by what was decided."""
    moved = (parts != index.parts) | ((parts >= 0) & (numbers != index.numbers))
    return int((moved & (index.rows < 0)).sum())


def refuse_moved(n: int) -> None:
    """Raise :class:`NotReusableError` if any staged record would stand elsewhere."""
    if n:
        raise NotReusableError(f"{n} of its records would stand elsewhere")


def find_earlier(
    store: Store,
    listing: Listing,
    parent: Inherited,
    *,
    wishes: str,
    folder: Folder | None,
) -> Earlier | None:
    """Return the earlier batches that need not be read again; None where nothing was published.

    Raises
    ------
    NotReusableError
        If all files have to be read, with the reason.
    """
    if not parent.files:
        return None
    listed = {shown_path(path): (path, n, etag) for path, n, etag in listing.identity}
    gone = Counter[str]()
    for path, file in parent.files.items():
        if path not in listed:
            gone["are gone"] += 1
        elif listed[path][1:] != (file.n_bytes, file.etag):
            gone["have changed"] += 1
    if gone:
        said = " and ".join(f"{n} {what}" for what, n in sorted(gone.items()))
        raise NotReusableError(f"of {len(parent.files)} known files {said}")
    if not parent.ingest:
        raise NotReusableError("the version does not say where its records were staged")
    try:
        facts = read_fact(store, parent.ingest, DatasetFacts)
    except IntegrityError as exc:
        raise NotReusableError("what was staged of it is damaged") from exc
    if facts is None:
        raise NotReusableError("what was staged of it has been removed (gc)")
    if facts.extra.get("wishes") != wishes:
        raise NotReusableError("it was read with other parameters")
    if folder is not None:
        known = set(parent.files)
        if folder.has_boxes:
            raise NotReusableError("annotations of objects are looked at as a whole")
        if facts.extra.get("labels") != folder.labels_digest(known):
            raise NotReusableError("the labels of known files are others now")
    earlier = Earlier(
        facts,
        pa.ipc.read_schema(pa.BufferReader(base64.b64decode(facts.extra["schema"]))),
        frozenset(listed[path][0] for path in listed if path not in parent.files),
        parent.files,
    )
    _check_there(store, earlier)
    return earlier


def _check_there(store: Store, earlier: Earlier) -> None:
    try:
        for shard in (*earlier.shards, *earlier.facts.quarantine):
            if store.size(shard.path) != shard.n_bytes:
                raise NotReusableError(f"{shard.path} is not what was staged")
        for batch in earlier.facts.batches:
            store.size(batch.index)
    except FileNotFoundError as exc:
        raise NotReusableError("a part of what was staged of it is gone") from exc


def schema_text(schema: pa.Schema) -> str:
    """Return a schema as text, to be kept in facts."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def labels_said(folder: Folder | None, paths: list[str]) -> str:
    """Return a hash of what loose files' classes are; empty for other sources."""
    return "" if folder is None else folder.labels_digest({shown_path(path) for path in paths})
