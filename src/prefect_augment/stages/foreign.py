"""Records that another tool made, staged as candidates so that they are judged like our own.

They come in any format that a source may have. Columns are found by name and read as the real ones'
types; what cannot be judged goes to quarantine with file, position and reason, and the records that came
are the staged ones plus those.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.datatypes import BalancePlan, DatasetFacts, DatasetRef
from prefect_augment.encoding.columns import did_you_mean, listing
from prefect_augment.encoding.keys import derived_ids
from prefect_augment.encoding.strata import table_strata
from prefect_augment.encoding.values import plain
from prefect_augment.errors import InputError, SchemaError
from prefect_augment.params import Source
from prefect_augment.reading.staged import load_facts, read_part, read_shards
from prefect_augment.shards.parquet import LINEAGE, select_columns
from prefect_augment.spill import Workspace
from prefect_augment.stages.foreign_values import class_codes, read_as
from prefect_augment.stages.image_columns import as_image_columns, find_image_columns
from prefect_augment.stages.judge import write_candidates
from prefect_augment.stages.quarantine import Batch, Quarantine, by_reason
from prefect_augment.stages.records import by_columns
from prefect_augment.stages.source import Listing, Scan, list_source, scan
from prefect_augment.stages.usable_images import ImageChecker
from prefect_augment.staging import Stage, stage_key
from prefect_augment.storage import Store, sha256_hex

__all__ = ["STAGE", "import_candidates", "plan_of_given"]

logger = logging.getLogger(__name__)

ALGORITHM_VERSION = 4
STAGE = "import"
# What one row of a source needs of a table; without the others it cannot be compared.
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
    """Stage records that another tool made as candidates.

    Parameters
    ----------
    dataset : DatasetRef
        The real records; columns, types and classes are taken from them.
    uri : str
        File, folder, glob or URL: whatever a source may be.
    plan : BalancePlan
        Names the strata.
    store : Store
        Where they are staged.
    options : dict, optional
        fsspec storage options of ``uri``.
    max_megapixels : float
        Larger images go to quarantine.

    Returns
    -------
    DatasetRef
        ``n_quarantined`` counts what could not be judged; the facts' notes say why.

    Raises
    ------
    SchemaError
        If the label or a column that models learn is missing.
    InputError
        If there is no record, or none that can be judged.
    """
    facts = load_facts(dataset, store)
    files = list_source(uri, wished="auto", options=options)
    if files.manifest is not None:
        raise InputError(
            f"{uri} is a dataset that this tool has published; give the files of its synthetic records "
            "(data/*synthetic*.parquet), or the records as the other tool left them.",
            uri=uri,
        )
    digest = sha256_hex(repr([(e.path, e.n_bytes, e.etag) for e in files.entries]).encode())
    key = stage_key(
        STAGE,
        algorithm_version=ALGORITHM_VERSION,
        params=[digest, max_megapixels, list(plan.classes)],
        inputs=[dataset.key],
    )
    stage = Stage(store, STAGE, key)
    done = stage.outcome(DatasetFacts)
    if done is None:
        reader = _Reader(facts, plan, store, uri, digest, max_megapixels)
        done = stage.finish(reader.stage(stage, files))
    for note in done.notes:
        logger.info("%s", note)
    return stage.reference(done, done.part_counts["candidates"])


def plan_of_given(plan: BalancePlan, given: DatasetRef) -> BalancePlan:
    """Return the plan that wants all given records: what the gate may keep, and the report shows."""
    classes = []
    for entry in plan.classes:
        n = given.class_counts.get(entry.name, 0)
        wanted = {"n_synthetic": n, "n_classic": 0, "target": entry.n_real + n}
        classes.append(entry.model_copy(update=wanted))
    rule = "the real records and those that were given"
    return plan.model_copy(update={"classes": tuple(classes), "rule": rule})


@dataclass
class _Reader:
    """One import at work."""

    facts: DatasetFacts
    plan: BalancePlan
    store: Store
    uri: str
    digest: str
    max_megapixels: float

    def stage(self, stage: Stage, files: Listing) -> DatasetFacts:
        facts = self.facts
        source = Source(uri=self.uri, label=facts.label, max_megapixels=self.max_megapixels)
        with Workspace() as workspace:
            found = scan(files, source, workspace, has_lineage=True)
            n_read = found.n_records + len(found.quarantine)
            table, notes, quarantine = self._judgeable(found)
        if not table.num_rows:
            raise InputError(
                f"none of the {n_read:,} records of {self.uri} can be judged: "
                f"{_reasons(by_reason(quarantine))}.",
                uri=self.uri,
            )
        if quarantine.num_rows:
            notes.append(
                f"{quarantine.num_rows:,} of {n_read:,} given records could not be judged: "
                f"{_reasons(by_reason(quarantine))}. They lie in {stage.prefix} with file, position and reason"
            )
        strata = table_strata(table, label=facts.label, by=by_columns(self.plan))
        table = self._with_lineage(table, strata)
        shards = write_candidates(stage, table, "candidates", facts.label)
        put = write_candidates(stage, quarantine, "quarantine", "") if quarantine.num_rows else ()
        return stage.facts_of(
            facts,
            shards,
            part="candidates",
            part_counts={"candidates": dict(Counter(strata))},
            n_quarantined=quarantine.num_rows,
            quarantine=put,
            notes=tuple(notes),
        )

    def _judgeable(self, found: Scan) -> tuple[pa.Table, list[str], pa.Table]:
        """Return the records with the real ones' columns and types, what to say, and the others."""
        real = read_shards(self.store, [], like=self.facts.shards)
        kept = [n for n in real.column_names if n not in ("aug_id", "content_key")]
        real = select_columns(real, kept)
        notes, rounded = found.said(), Counter[str]()
        self._check_columns(found.schema.names, real.schema, notes)
        levels = self._levels()
        tables = []
        for batch in found.batches():
            batch = self._named_as_real(batch)
            batch = self._labelled(batch, found.quarantine)
            batch = self._decodable(batch, found.quarantine)
            made = self._typed(batch, real.schema, levels, found.quarantine, rounded)
            tables.append(self._of_known_strata(made, found.quarantine))
        n = found.n_records
        notes += [
            f"column {name!r} holds whole numbers in the real records: {times:,} of {n:,} given values were rounded"
            for name, times in rounded.items()
        ]
        table = pa.concat_tables([real.schema.empty_table(), *tables]).unify_dictionaries()
        return table, notes, found.quarantine.table()

    # --- columns ---

    @property
    def _image(self) -> str:
        return self.facts.image.column if self.facts.image else ""

    def _needed(self) -> list[str]:
        """Columns without which a record cannot be judged."""
        own = [] if self._image else [c.name for c in self.facts.columns if c.kind in LEARNT]
        return [*dict.fromkeys([*own, self.facts.label, *by_columns(self.plan)])]

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
            notes.append(f"columns that the real records have not were left out: {listing(extra)}")

    def _named_as_real(self, batch: Batch) -> Batch:
        """Find the image column, whatever it is called."""
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

    # --- records ---

    def _labelled(self, batch: Batch, quarantine: Quarantine) -> Batch:
        """Set aside what has no class of the real records, or says itself that it is real."""
        names = tuple(dict.fromkeys(c.label for c in self.plan.classes))
        label = batch.table[self.facts.label]
        codes = class_codes(label, names)
        texts = plain(label).cast(pa.string()).to_pylist()
        reasons = [
            "no label" if k == -2 else f"class {texts[i]!r} is none of the real records'"
            for i, k in enumerate(codes.tolist())
            if k < 0
        ]
        batch = quarantine.reject(batch, codes < 0, reasons)
        real = pa.array([names[k] for k in codes[codes >= 0].tolist()], pa.string())
        place = batch.table.column_names.index(self.facts.label)
        table = batch.table.set_column(place, self.facts.label, real)
        batch = Batch(table, batch.file_index, batch.positions)
        if "aug_origin" in table.column_names:
            origins = plain(table["aug_origin"]).cast(pa.string()).to_pylist()
            is_real = np.array([origin == "real" for origin in origins], dtype=bool)
            batch = quarantine.reject(batch, is_real, "aug_origin says that it is a real record")
        return batch

    def _decodable(self, batch: Batch, quarantine: Quarantine) -> Batch:
        if not self._image or not batch.table.num_rows:
            return batch
        checker = ImageChecker(self._image, self.max_megapixels)
        with checker:
            reasons, details = checker.check(batch.table[self._image])
        bad = np.array([why != "" for why in reasons], dtype=bool)
        rows = np.flatnonzero(bad)
        return quarantine.reject(
            batch, bad, [reasons[i] for i in rows], details=[details[i] for i in rows]
        )

    def _levels(self) -> dict[str, pa.Array]:
        """Return the values that categories have in fit and val: no other can be learnt or judged."""
        names = [c.name for c in self.facts.columns if c.kind == "category"]
        if self._image or not names:
            return {}
        table = read_part(self.store, self.facts, ["fit", "val"], columns=names)
        return {name: plain(table[name]).unique() for name in names}

    def _typed(
        self,
        batch: Batch,
        schema: pa.Schema,
        levels: dict[str, pa.Array],
        quarantine: Quarantine,
        rounded: Counter[str],
    ) -> Batch:
        """Read every column as the real one's type."""
        needed, n = set(self._needed()), batch.table.num_rows
        columns: dict[str, pa.Array] = {}
        why: dict[int, str] = {}
        for field in schema:
            name, kind = field.name, _value_type(field.type)
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
                why.setdefault(row, f"column {name!r} holds {text}")
        rounded += Counter()  # without those of none
        bad = np.zeros(n, dtype=bool)
        bad[list(why)] = True
        kept = quarantine.reject(batch, bad, [why[i] for i in sorted(why)])
        arrays = [_encoded(columns[f.name], f.type) for f in schema]
        table = pa.table(arrays, schema=schema).filter(pa.array(~bad))
        return Batch(table, kept.file_index, kept.positions)

    def _of_known_strata(self, batch: Batch, quarantine: Quarantine) -> pa.Table:
        """Set aside combinations with the ``balance.by`` columns that no real record has."""
        by = by_columns(self.plan)
        if not by or not batch.table.num_rows:
            return batch.table
        known = {c.name for c in self.plan.classes}
        strata = table_strata(batch.table, label=self.facts.label, by=by)
        strange = np.array([name not in known for name in strata], dtype=bool)
        reasons = [f"no real record is of {strata[i]!r}" for i in np.flatnonzero(strange)]
        return quarantine.reject(batch, strange, reasons).table

    def _with_lineage(self, table: pa.Table, strata: Sequence[str]) -> pa.Table:
        n = table.num_rows
        ordinals: NDArray[np.int64] = np.arange(n)
        columns = {
            "aug_id": derived_ids("synthetic", self.digest, ordinals.tolist()),
            "aug_model": pa.nulls(n, pa.string()),
            "aug_seed": pa.nulls(n, pa.int64()),
            "aug_stratum": pa.array(strata, pa.string()),
            "aug_ordinal": pa.array(ordinals),
        }
        for name, values in columns.items():
            table = table.append_column(name, values)
        return table


def _value_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    return kind.value_type if pa.types.is_run_end_encoded(kind) else kind


def _encoded(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return values.dictionary_encode().cast(kind)
    if pa.types.is_run_end_encoded(kind):
        import pyarrow.compute as pc

        return pc.run_end_encode(values, run_end_type=kind.run_end_type)
    return values


def _reasons(counts: Counter[str]) -> str:
    shown = [f"{reason} ({n:,})" for reason, n in counts.most_common(MAX_REASONS)]
    rest = len(counts) - len(shown)
    return "; ".join(shown) + (f"; and {rest:,} other reasons" if rest else "")
