"""The outcome of an ingest: staged shards, quarantine, ledger, and the info that describes them."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass

import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.encoding.labels import label_text
from prefect_augment.ingest.column_roles import describe
from prefect_augment.ingest.incremental import ReusedRecords, schema_text, write_files
from prefect_augment.ingest.quarantine import by_reason
from prefect_augment.ingest.schema import plain_name
from prefect_augment.ingest.validate import Candidates
from prefect_augment.ingest.validate_images import image_notes
from prefect_augment.ingest.write_shards import Dealt, SplitResult, place_holdout, write_staged
from prefect_augment.params import Source
from prefect_augment.params.keys import canonical_json
from prefect_augment.schema import (
    BatchInfo,
    ColumnInfo,
    CorrectedLabels,
    DatasetInfo,
    ShardInfo,
    SourceFile,
)
from prefect_augment.shards.base import read_shard, write_shards
from prefect_augment.sources.discovery import listing_notes, notes_of_files
from prefect_augment.sources.images.scan import by_folder, shown_path
from prefect_augment.split.assignment import MIN_COMPARED
from prefect_augment.split.corrections import Corrections
from prefect_augment.split.ledger import PARTS
from prefect_augment.storage import Stage, Store, sha256_hex
from prefect_augment.text import class_list

QUARANTINE_RECORDS = 1_000_000
QUARANTINE_BYTES = 64 << 20


@dataclass(frozen=True)
class Ingested:
    """An ingest whose split is made, to be written."""

    source: Source
    stage: Stage
    candidates: Candidates
    held: Candidates | None  # a hold-out with a source of its own
    split: SplitResult
    reused: ReusedRecords | None  # reused staged records
    request: str
    notes: tuple[str, ...]

    def write(self) -> DatasetInfo:
        """Write the stage's objects and return its outcome."""
        split, roles, scan = self.split, self.candidates.roles, self.candidates.scan
        dealt = Dealt(self.candidates, split.layout)
        if self.reused is not None:
            self.reused.add_columns(self.stage.store, dealt.summaries)
        columns = describe(dealt.summaries, roles, self.source)
        shards = [*write_staged(self.stage.store, dealt, prefix=self.stage.prefix)]
        shards += self.reused.shards if self.reused else ()
        # By part, then by batch and number, which the names begin with.
        shards.sort(key=lambda s: (PARTS.index(s.split), s.path.rpartition("/")[2]))
        own_holdout: tuple[ShardInfo, ...] = ()
        if self.held is not None:
            held = Dealt(self.held, place_holdout(self.held), describes=False)
            own_holdout = write_staged(self.stage.store, held, prefix=f"{self.stage.prefix}/given")
        every = (*shards, *own_holdout)
        counts: dict[str, dict[str, int]] = {part: Counter() for part in PARTS}
        for shard in every:
            counts[shard.split].update(shard.class_counts)
        compared = tuple(k for k in split.classes if all(counts[part].get(k) for part in PARTS))
        # The batches, files and quarantine that a later run reads.
        batches = self._batches(dealt)
        files = self._files()
        ours, theirs, put = self._quarantine()
        schema = roles.schema
        notes = self._notes(batches, columns, counts, compared, by_reason(ours) + by_reason(theirs))
        return DatasetInfo(
            stage="ingest",
            key=self.stage.key,
            digest=sha256_hex("".join(s.sha256 for s in every).encode()),
            label=roles.label,
            label_type=str(schema.field(roles.label).type),
            schema_digest=sha256_hex(
                canonical_json([[f.name, plain_name(str(f.type))] for f in schema])
            ),
            columns=columns,
            shards=every,
            part_counts=counts,
            compared=compared,
            n_quarantined=ours.num_rows + theirs.num_rows,
            quarantine=(*put, *self._put_quarantine(theirs, "quarantine-holdout")),
            sources=by_folder(files) if scan.folder is not None else tuple(files),
            holdout_uri=self.source.holdout_uri,
            holdout_digest=sha256_hex("".join(s.sha256 for s in own_holdout).encode())
            if own_holdout
            else "",
            ledger=split.ledger,
            group_column=roles.grouped_by,
            n_twins=split.n_twins,
            modality="image" if roles.image else "table",
            image=split.image,
            notes=(*self.notes, *notes, *image_notes(split.image)),
            extra={
                "ledger_digest": split.ledger_digest,
                "n_new": split.n_new,
                "n_quarantined_holdout": theirs.num_rows,
                "n_quarantine_shards": len(put),
                "n_given": len(own_holdout),
                "schema": schema_text(scan.schema),
                "request": self.request,
                "labels": "" if scan.folder is None else scan.folder.labels_digest(),
            },
            batches=batches,
            files=write_files(self.stage.store, files, prefix=self.stage.prefix),
        )

    def _batches(self, dealt: Dealt) -> tuple[BatchInfo, ...]:
        """Describe each batch so that a later run can reuse it."""
        reused = {b.batch: b for b in self.reused.info.batches} if self.reused else {}
        scan = self.candidates.scan
        paths = [e.path for e in scan.listing.entries]
        numbers = dict(zip(paths, scan.batch_of_file.tolist(), strict=True))
        # The files of each note, by batch.
        notes: defaultdict[int, defaultdict[str, list[str]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for note, path in scan.notes:
            if path:
                notes[numbers[path]][note].append(path)
        for number, (path, n_records) in self.split.indexes.items():
            if number not in reused:
                reused[number] = BatchInfo(
                    batch=number,
                    index=path,
                    n_records=n_records,
                    columns={name: astuple(c) for name, c in dealt.counts[number].items()},
                    notes=tuple((note, of[0], len(of)) for note, of in notes[number].items()),
                )
        return tuple(reused[number] for number in sorted(reused))

    def _files(self) -> list[SourceFile]:
        scan = self.candidates.scan
        reused = self.reused.files if self.reused else {}
        files = []
        for i, (path, n_bytes, etag) in enumerate(scan.listing.identity):
            shown = shown_path(path)
            if not scan.files_read[i] and shown in reused:
                files.append(reused[shown])
                continue
            files.append(
                SourceFile(
                    path=shown,
                    n_bytes=n_bytes,
                    etag=etag,
                    n_records=int(self.split.n_used[i]),
                    n_quarantined=int(scan.quarantine.by_file[i]),
                    batch=int(scan.batch_of_file[i]),
                )
            )
        return files

    def _quarantine(self) -> tuple[pa.Table, pa.Table, tuple[ShardInfo, ...]]:
        reused = self.reused.quarantined(self.stage.store) if self.reused else None
        ours = self.candidates.scan.quarantine.table(previous=reused)
        theirs = ours.slice(0, 0)
        if self.held is not None:
            theirs = self.held.scan.quarantine.table(prefix="hold-out ")
        return ours, theirs, self._put_quarantine(ours, "quarantine")

    def _put_quarantine(self, table: pa.Table, stem: str) -> tuple[ShardInfo, ...]:
        return write_shards(
            self.stage.store,
            table,
            prefix=self.stage.prefix,
            stem=stem,
            split="quarantine",
            origin="real",
            label="",
            max_records=QUARANTINE_RECORDS,
            max_bytes=QUARANTINE_BYTES,
        )

    def _notes(
        self,
        batches: tuple[BatchInfo, ...],
        columns: Sequence[ColumnInfo],
        counts: dict[str, dict[str, int]],
        compared: Sequence[str],
        reasons: Counter[str],
    ) -> tuple[str, ...]:
        scan, split = self.candidates.scan, self.split
        notes = [note for note, path in scan.notes if not path]
        notes += notes_of_files(note for batch in batches for note in batch.notes)
        notes += listing_notes(scan.listing)
        if self.held is not None:
            of_held = dict.fromkeys(note for note, _ in self.held.scan.notes)
            notes += [f"hold-out: {note}" for note in of_held]
        notes += [f"quarantined {n} records: {reason}" for reason, n in reasons.most_common()]
        notes += [f"column {c.name!r} ({c.kind}): {c.note}" for c in columns if c.note]
        left_out = {k: n for k, n in split.class_counts.items() if k not in compared}
        notes += too_small(left_out)
        notes += [
            _why_not_compared(name, counts, grouped=split.is_grouped)
            for name, n in left_out.items()
            if n >= MIN_COMPARED
        ]
        if not compared:
            notes.append(
                f"no class has the {MIN_COMPARED} records needed in all parts, so strategies cannot be compared"
            )
        if split.n_kept_against_mark:
            notes.append(
                f"{split.n_kept_against_mark} records keep the part of an earlier version, although the "
                "hold-out column now differs"
            )
        return tuple(notes)


def with_corrected(info: DatasetInfo, corrections: Corrections, store: Store) -> DatasetInfo:
    """Return the outcome with the records whose labels people corrected, and notes on what was not applied."""
    if not corrections:
        return info
    sources = {
        (key, label): source
        for key, known in corrections.labels.items()
        for source, label in known.items()
    }
    keys = {key for key, _ in sources}
    staged = staged_labels(info, store, "content_key", keys)
    by_id = {aug_id: (key, label) for aug_id, key, label in staged if (key, label) in sources}
    decided = []
    for decision in corrections.decisions:
        of_it = {i: sources[r] for i, r in by_id.items() if corrections.last[r] is decision}
        if of_it:
            decided.append(
                CorrectedLabels(
                    by=decision.by,
                    comment=decision.comment,
                    decided_at=decision.decided_at,
                    n_records=len(of_it),
                    digest=corrections.digest,
                    source_labels=of_it,
                )
            )
    notes = [of.sentence for of in decided]
    if n_missing := len(sources.keys() - by_id.values()):
        notes.append(
            f"corrected labels of {n_missing} records were not applied: the records are gone from the source, or have "
            "another label there; correct them again where they need it"
        )
    return info.model_copy(
        update={
            "notes": (*info.notes, *notes),
            "extra": {**info.extra, "corrected": [of.model_dump() for of in decided]},
        }
    )


def staged_labels(
    info: DatasetInfo, store: Store, column: str, values: Collection[str]
) -> Iterator[tuple[str, str, str]]:
    """Yield ``aug_id``, content key and label of the staged records that have one of these values in a column."""
    wanted = pa.array(sorted(values), pa.string())
    for shard in info.shards:
        table = read_shard(store, shard.path, ["aug_id", "content_key", info.label])
        table = table.filter(pc.is_in(table[column], wanted))
        columns = (table["aug_id"], table["content_key"], label_text(table[info.label]))
        yield from zip(*(c.to_pylist() for c in columns), strict=True)


def too_small(classes: Mapping[str, int]) -> tuple[str, ...]:
    """The classes that have too few records to be compared in a sentence, the largest by name; none without any."""
    small = {repr(name): n for name, n in classes.items() if n < MIN_COMPARED}
    if not small:
        return ()
    return (
        f"fewer than {MIN_COMPARED} records, so trained on but not compared: {class_list(small)}",
    )


def _why_not_compared(name: str, counts: dict[str, dict[str, int]], *, grouped: bool) -> str:
    where = ", ".join(f"{counts[part].get(name, 0)} in {part}" for part in PARTS)
    why = (
        "its groups are too few or too large"
        if grouped
        else "the source's own split leaves a part without it"
    )
    return f"class {name!r} is not compared: {why} ({where})"
