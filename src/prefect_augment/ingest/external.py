"""Synthetic records of another tool, staged as candidates and filtered like our own.

Any source format works. Columns are matched by name and read as the real column's type: lossless casts are
taken, fractions in integer columns rounded and counted. A record with any other value goes to quarantine
with file, position and reason.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.array_types import Int
from prefect_augment.encoding.arrays import by_columns
from prefect_augment.encoding.columns import did_you_mean, listing
from prefect_augment.encoding.record_ids import derived_ids
from prefect_augment.encoding.strata import table_strata
from prefect_augment.encoding.values import is_text, plain, value_type
from prefect_augment.errors import InputError, SchemaError
from prefect_augment.ingest.quarantine import Batch, Quarantine, by_reason
from prefect_augment.ingest.scan import Scan, scan
from prefect_augment.ingest.validate_images import ImageChecker
from prefect_augment.params import Source
from prefect_augment.params.keys import step_key
from prefect_augment.schema import BalancePlan, DatasetInfo, DatasetRef
from prefect_augment.shards.parquet import LINEAGE, select_columns
from prefect_augment.shards.staged import load_info, read_part, read_shards, write_candidates
from prefect_augment.sources.discovery import Listing, list_source
from prefect_augment.sources.images.columns import as_image_columns, find_image_columns
from prefect_augment.storage import Stage, Store, sha256_hex
from prefect_augment.storage.spill import Workspace

logger = logging.getLogger(__name__)

STAGE = "import"
# A table's records must have these columns.
LEARNT = ("numeric", "category")
MAX_REASONS = 5  # in a sentence


def import_candidates(
    dataset: DatasetRef,
    uri: str,
    *,
    plan: BalancePlan,
    store: Store,
    options: dict[str, Any] | None = None,
    max_megapixels: float = 50.0,
) -> DatasetRef:
    """Stage records that another tool made as candidates, with the columns of ``dataset`` and the strata of ``plan``.

    ``n_quarantined`` counts invalid records; the notes say why. Raises SchemaError if the label or a learnt column is
    missing, InputError if no record is valid.
    """
    info = load_info(dataset, store)
    files = list_source(uri, requested="auto", options=options)
    if files.manifest is not None:
        raise InputError(
            f"{uri} is a dataset that this tool has published; give the files of its synthetic records "
            "(data/*synthetic*.parquet), or the records as the other tool left them.",
            uri=uri,
        )
    digest = sha256_hex(repr([(e.path, e.n_bytes, e.etag) for e in files.entries]).encode())
    key = step_key(
        STAGE,
        {"source": Source(max_megapixels=max_megapixels)},
        inputs=[dataset.key, digest, plan.identity],
    )
    stage = Stage(store, STAGE, key)
    done = stage.outcome(DatasetInfo)
    if done is None:
        reader = _Reader(info, plan, store, uri, digest, max_megapixels)
        done = stage.finish(reader.stage(stage, files))
    for note in done.notes:
        logger.info("%s", note)
    return stage.reference(done, done.part_counts["candidates"])


def plan_of_external(plan: BalancePlan, external: DatasetRef) -> BalancePlan:
    """Return the plan that requests all external records: the filter's limit, and the report's target."""
    classes = []
    for entry in plan.classes:
        n = external.class_counts.get(entry.name, 0)
        wanted = {"n_synthetic": n, "n_classic": 0, "target": entry.n_real + n}
        classes.append(entry.model_copy(update=wanted))
    rule = "the real and the external records"
    return plan.model_copy(update={"classes": tuple(classes), "rule": rule})


@dataclass
class _Reader:
    info: DatasetInfo
    plan: BalancePlan
    store: Store
    uri: str
    digest: str
    max_megapixels: float
    quarantine: Quarantine = field(default_factory=lambda: Quarantine(()))

    def stage(self, stage: Stage, files: Listing) -> DatasetInfo:
        info = self.info
        source = Source(uri=self.uri, label=info.label, max_megapixels=self.max_megapixels)
        with Workspace() as workspace:
            scanned = scan(files, source, workspace, has_lineage=True)
            self.quarantine = scanned.quarantine
            n_read = scanned.n_records + len(scanned.quarantine)
            table, notes, quarantine = self._valid_records(scanned)
        if not table.num_rows:
            raise InputError(
                f"none of the {n_read:,} records of {self.uri} is valid: "
                f"{_reasons(by_reason(quarantine))}.",
                uri=self.uri,
            )
        if quarantine.num_rows:
            notes.append(
                f"{quarantine.num_rows:,} of {n_read:,} external records are invalid: "
                f"{_reasons(by_reason(quarantine))}. They are in {stage.prefix} with file, position and reason"
            )
        strata = table_strata(table, label=info.label, by=by_columns(self.plan))
        table = self._with_lineage(table, strata)
        shards = write_candidates(stage, table, "candidates", info.label)
        return stage.info_of(
            info,
            shards,
            part="candidates",
            part_counts={"candidates": dict(Counter(strata))},
            n_quarantined=quarantine.num_rows,
            quarantine=write_candidates(stage, quarantine, "quarantine", ""),
            notes=tuple(notes),
        )

    def _valid_records(self, scanned: Scan) -> tuple[pa.Table, list[str], pa.Table]:
        """Return the valid records with the real columns and types, the notes, and the quarantined ones."""
        real = read_shards(self.store, [], like=self.info.shards)
        kept = [n for n in real.column_names if n not in ("aug_id", "content_key")]
        real = select_columns(real, kept)
        notes, rounded = scanned.all_notes(), Counter[str]()
        self._check_columns(scanned.schema.names, real.schema, notes)
        levels = self._levels()
        tables = []
        for batch in scanned.batches():
            batch = self._named_as_real(batch)
            batch = self._decodable(self._labelled(batch))
            typed = self._typed(batch, real.schema, levels, rounded)
            tables.append(self._of_known_strata(typed))
        n = scanned.n_records
        notes += [
            f"column {name!r} holds whole numbers in the real records: {times:,} of {n:,} external values were rounded"
            for name, times in rounded.items()
            if times
        ]
        table = pa.concat_tables([real.schema.empty_table(), *tables]).unify_dictionaries()
        return table, notes, scanned.quarantine.table()

    @property
    def _image(self) -> str:
        return self.info.image.column if self.info.image else ""

    def _needed(self) -> list[str]:
        """Return the columns that every record must have."""
        own = [] if self._image else [c.name for c in self.info.columns if c.kind in LEARNT]
        return [*dict.fromkeys([*own, self.info.label, *by_columns(self.plan)])]

    def _check_columns(self, names: Sequence[str], real: pa.Schema, notes: list[str]) -> None:
        missing = [name for name in self._needed() if name not in names]
        if missing:
            hint = did_you_mean(missing[0], [n for n in names if n not in real.names])
            raise SchemaError(
                f"{self.uri} lacks {'columns' if len(missing) > 1 else 'the column'} {listing(missing)}, which the "
                f"real records have{hint}; it has {listing(names)}. Add what is missing, or leave the column "
                "out of the real records too.",
                uri=self.uri,
                columns=missing,
            )
        extra = [n for n in names if n not in real.names and n not in LINEAGE.names]
        if extra and not self._image:
            notes.append(f"columns that the real records lack were left out: {listing(extra)}")

    def _named_as_real(self, batch: Batch) -> Batch:
        if not self._image:
            return batch
        names = find_image_columns(batch.table)
        if self._image not in names and len(names) != 1:
            raise SchemaError(
                f"{self.uri} has {'several image columns' if names else 'no image column'}; expected "
                f"one called {self._image!r} as in the real records; it has {listing(batch.table.column_names)}.",
                uri=self.uri,
            )
        name = self._image if self._image in names else names[0]
        table = as_image_columns(batch.table, [name])
        if name != self._image:
            renamed = [self._image if n == name else n for n in table.column_names]
            table = table.rename_columns(renamed)
        return Batch(table, batch.file_index, batch.positions)

    def _labelled(self, batch: Batch) -> Batch:
        """Reject records without a known class, and those marked as real."""
        names = tuple(dict.fromkeys(c.label for c in self.plan.classes))
        label = batch.table[self.info.label]
        codes = class_codes(label, names)
        texts = plain(label).cast(pa.string()).to_pylist()
        unknown = "class {!r} is none of the real records'"
        reasons = [
            "" if k >= 0 else "no label" if k == -2 else unknown.format(text)
            for k, text in zip(codes.tolist(), texts, strict=True)
        ]
        batch = self.quarantine.reject_each(batch, reasons)
        real = pa.array([names[k] for k in codes[codes >= 0].tolist()], pa.string())
        place = batch.table.column_names.index(self.info.label)
        table = batch.table.set_column(place, self.info.label, real)
        batch = Batch(table, batch.file_index, batch.positions)
        if "aug_origin" in table.column_names:
            values = plain(table["aug_origin"]).cast(pa.string()).to_pylist()
            is_real = np.array([value == "real" for value in values], dtype=bool)
            batch = self.quarantine.reject(
                batch, is_real, "aug_origin says that it is a real record"
            )
        return batch

    def _decodable(self, batch: Batch) -> Batch:
        if not self._image or not batch.table.num_rows:
            return batch
        checker = ImageChecker(self._image, self.max_megapixels)
        with checker:
            reasons, details = checker.check(batch.table[self._image])
        return self.quarantine.reject_each(batch, reasons, details)

    def _levels(self) -> dict[str, pa.Array]:
        """Return the categories of training and validation: no others can be learnt or scored."""
        names = [c.name for c in self.info.columns if c.kind == "category"]
        if self._image or not names:
            return {}
        table = read_part(self.store, self.info, ["training", "validation"], columns=names)
        return {name: plain(table[name]).unique() for name in names}

    def _typed(
        self, batch: Batch, schema: pa.Schema, levels: dict[str, pa.Array], rounded: Counter[str]
    ) -> Batch:
        needed, n = set(self._needed()), batch.table.num_rows
        columns: dict[str, pa.Array] = {}
        reasons = [""] * n
        for column in schema:
            name, kind = column.name, value_type(column.type)
            if name not in batch.table.column_names or (name not in needed and name != self._image):
                columns[name] = pa.nulls(n, kind)
                continue
            if name == self._image:
                columns[name] = batch.table[name].combine_chunks()
                continue
            read = read_as(batch.table[name], kind, levels.get(name))
            columns[name] = read.values
            rounded[name] += read.n_rounded
            for row, text in read.unfit.items():
                reasons[row] = reasons[row] or f"column {name!r} holds {text}"
        kept = self.quarantine.reject_each(batch, reasons)
        arrays = [_encoded(columns[f.name], f.type) for f in schema]
        table = pa.table(arrays, schema=schema).filter(
            pa.array([why == "" for why in reasons], pa.bool_())
        )
        return Batch(table, kept.file_index, kept.positions)

    def _of_known_strata(self, batch: Batch) -> pa.Table:
        """Reject combinations with the ``balance.by`` columns that no real record has."""
        by = by_columns(self.plan)
        if not by or not batch.table.num_rows:
            return batch.table
        known = {c.name for c in self.plan.classes}
        strata = table_strata(batch.table, label=self.info.label, by=by)
        reasons = ["" if s in known else f"no real record is of {s!r}" for s in strata]
        return self.quarantine.reject_each(batch, reasons).table

    def _with_lineage(self, table: pa.Table, strata: Sequence[str]) -> pa.Table:
        n = table.num_rows
        columns = {
            "aug_id": derived_ids("synthetic", self.digest, range(n)),
            "aug_model": pa.nulls(n, pa.string()),
            "aug_seed": pa.nulls(n, pa.int64()),
            "aug_stratum": pa.array(strata, pa.string()),
            "aug_ordinal": pa.array(np.arange(n)),
        }
        for name, values in columns.items():
            table = table.append_column(name, values)
        return table


def _encoded(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return values.dictionary_encode().cast(kind)
    if pa.types.is_run_end_encoded(kind):
        return pc.run_end_encode(values, run_end_type=kind.run_end_type)
    return values


def _reasons(counts: Counter[str]) -> str:
    shown = [f"{reason} ({n:,})" for reason, n in counts.most_common(MAX_REASONS)]
    rest = len(counts) - len(shown)
    return "; ".join(shown) + (f"; and {rest:,} other reasons" if rest else "")


SHOWN = 40  # characters of a value
TRUE, FALSE = frozenset({"true", "1", "1.0"}), frozenset({"false", "0", "0.0"})


@dataclass(frozen=True)
class Read:
    """A column converted to another type."""

    values: pa.Array  # null where a value cannot be converted
    unfit: dict[int, str] = field(default_factory=dict)  # row -> reason
    n_rounded: int = 0  # fractions in an integer column


def read_as(column: pa.ChunkedArray | pa.Array, kind: pa.DataType, levels: pa.Array | None) -> Read:
    """Return a column in another type; ``levels`` are the values that real records of a category have."""
    read = _converted(plain(column), kind)
    if levels is None or not len(read.values):
        return read
    strange = pc.and_(
        pc.is_valid(read.values), pc.invert(pc.is_in(read.values, value_set=levels))
    ).to_numpy(zero_copy_only=False)
    if not strange.any():
        return read
    why = {
        int(i): f"{_shown(read.values[int(i)].as_py())}, which no real record has"
        for i in np.flatnonzero(strange)
    }
    known = pc.if_else(pa.array(strange), pa.scalar(None, read.values.type), read.values)
    return Read(known, {**read.unfit, **why}, read.n_rounded)


def _converted(values: pa.Array, kind: pa.DataType) -> Read:
    t = pa.types
    if values.type == kind:
        return Read(values)
    if t.is_boolean(kind):
        return _each(values, kind, _as_bool)
    if t.is_integer(kind) and (t.is_floating(values.type) or t.is_decimal(values.type)):
        return _rounded(values.cast(pa.float64(), safe=False), kind)
    try:
        return Read(values.cast(kind))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    if t.is_floating(kind) and t.is_integer(values.type):
        return Read(values.cast(kind, safe=False))  # beyond 2**53: the nearest float
    if t.is_integer(kind) and is_text(values.type):
        numbers = _each(values, pa.float64(), float)
        whole = _rounded(numbers.values, kind)
        return Read(whole.values, {**whole.unfit, **numbers.unfit}, whole.n_rounded)
    if t.is_floating(kind) and t.is_floating(values.type):
        return Read(values.cast(kind, safe=False))
    return _each(values, kind, None)


def _rounded(values: pa.Array, kind: pa.DataType) -> Read:
    x = values.to_numpy(zero_copy_only=False).astype(np.float64)
    missing = np.isnan(x)
    whole = np.rint(x)
    bits = kind.bit_width - (0 if pa.types.is_unsigned_integer(kind) else 1)
    low = 0.0 if pa.types.is_unsigned_integer(kind) else -(2.0**bits)
    with np.errstate(invalid="ignore"):
        beyond = ~missing & ~((whole >= low) & (whole < 2.0**bits))
    lost = missing | beyond
    n_rounded = int((~lost & (whole != x)).sum())
    rounded = pa.array(np.where(lost, 0, whole).astype(np.int64), mask=lost).cast(kind)
    unfit = {int(i): f"{x[i]:g}, which is no {kind}" for i in np.flatnonzero(beyond)}
    return Read(rounded, unfit, n_rounded)


def _each(values: pa.Array, kind: pa.DataType, convert: Any) -> Read:
    """Convert each distinct value by itself."""
    coded = values.dictionary_encode()
    values_by_code: list[Any] = []
    wrong: dict[int, str] = {}
    for code, value in enumerate(coded.dictionary):
        try:
            # An empty cell of a CSV file is no value.
            text = value.as_py()
            if isinstance(text, str) and not text.strip() and not is_text(kind):
                values_by_code.append(None)
            elif convert is not None:
                values_by_code.append(convert(text))
            else:
                values_by_code.append(pa.array([text], values.type).cast(kind)[0].as_py())
        except (ValueError, TypeError, pa.ArrowInvalid, pa.ArrowNotImplementedError):
            values_by_code.append(None)
            wrong[code] = f"{_shown(value.as_py())}, which is no {kind}"
    codes = coded.indices.to_numpy(zero_copy_only=False)
    unfit = {int(i): wrong[int(codes[i])] for i in np.flatnonzero(np.isin(codes, list(wrong)))}
    return Read(pa.array(values_by_code, kind).take(coded.indices), unfit)


def _as_bool(value: Any) -> bool | None:
    if value is None or value != value:
        return None
    text = str(value).strip().casefold()
    if text in TRUE or text in FALSE:
        return text in TRUE
    raise ValueError(text)


def class_codes(column: pa.ChunkedArray | pa.Array, classes: tuple[str, ...]) -> Int:
    """Return the index of each label in ``classes``, -1 for another, -2 for none; 1, 1.0, "1" and " 1" are one."""
    coded = plain(column).dictionary_encode()
    # "1.0" is the class "1" only where no other class is spelled so.
    known = {_normalised(name): k for k, name in enumerate(classes)}
    known |= {name: k for k, name in enumerate(classes)}
    codes = []
    for value in coded.dictionary.to_pylist():
        text = str(value)
        blank = value is None or value != value or not text.strip()
        codes.append(-2 if blank else known.get(text, known.get(_normalised(text), -1)))
    codes.append(-2)  # of null
    of_record: Int = coded.indices.fill_null(len(codes) - 1).to_numpy()
    return np.array(codes, dtype=np.int64)[of_record]


def _normalised(text: str) -> str:
    """Return a label as types print it: 1.0 as 1, True as true; other text keeps its case."""
    text = text.strip()
    if text in ("True", "False"):
        return text.casefold()
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else repr(number)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    # In quotes, as every value of a record, which a report may have to hide.
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")
