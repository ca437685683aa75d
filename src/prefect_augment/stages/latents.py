"""A trained model at work on staged records: what all uses of its latents share.

A use reads the records some megabytes at a time, writes a shard for each shard that it reads, and
leaves everything in one folder: ``data/*.parquet``, a picture, and last ``index.json``, without which
nothing there counts. Receipts in the folder let an interrupted use go on; they go when it is done.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from prefect_augment.datatypes import (
    DatasetFacts,
    DatasetRef,
    Fact,
    LatentFacts,
    LatentRef,
    LatentUse,
    ModelRef,
    Origin,
    ShardFact,
)
from prefect_augment.encoding.strata import table_strata
from prefect_augment.errors import ParameterError, SchemaError
from prefect_augment.params import Output
from prefect_augment.reading.latents import INDEX
from prefect_augment.reading.staged import iter_shards, load_facts
from prefect_augment.shards.formats import label_names
from prefect_augment.shards.streams import write_stream
from prefect_augment.stages.abilities import Ability, check_able
from prefect_augment.stages.models import Encoder, load_model
from prefect_augment.staging import Stage, stage_key
from prefect_augment.storage import Store, sha256_hex

__all__ = ["NOT_SUMMED", "Job", "Piece", "Progress", "Strata", "add_up", "head"]

# What becomes of the hold-out is written per record and never summed up: it is for the one comparison of
# a version (DESIGN §8), and whoever saw its scores would choose by them.
NOT_SUMMED = "holdout"
SHARD_RECORDS = 1_000_000
SHARD_BYTES = 128 << 20

Progress = Callable[[float, str], None]


class Piece(Fact):
    """The receipt of one shard that was read: what was written for it, and numbers that add up."""

    shards: tuple[ShardFact, ...]
    sums: dict[str, Any] = Field(default_factory=dict)


class _Folder(Stage):
    """A stage in the folder of its result, whose outcome is the index."""

    def __init__(self, store: Store, use: LatentUse, kind: str, key: str, *, beside: bool) -> None:
        super().__init__(store, use, key)
        name = f"{re.sub(r'[^A-Za-z0-9.-]+', '-', kind)}-{key[:12]}"
        self.prefix = f"_{use}/{name}" if beside else name
        self.outcome_path = f"{self.prefix}/{INDEX}"


@dataclass(frozen=True)
class Job:
    """One use: what is asked for, what it reads, and where its result goes. Made by :meth:`of`."""

    use: LatentUse
    store: Store  # of dataset and model
    dataset: DatasetRef
    facts: DatasetFacts
    model: ModelRef
    params: dict[str, Any]
    parts: tuple[str, ...]
    stage: _Folder

    @classmethod
    def of(
        cls,
        use: LatentUse,
        *,
        algorithm_version: int,
        dataset: DatasetRef,
        model: ModelRef,
        store: Store,
        output: Output | None,
        out: Store | None,
        params: Mapping[str, Any] | None = None,
    ) -> Job:
        """Return the job of a use.

        Parameters
        ----------
        use : str
            Names the folder beside the dataset, with an underscore before it.
        algorithm_version : int
            Raised whenever the code would give other bytes.
        dataset : DatasetRef
            Any staged records: ingested ones, candidates, a published version.
        model : ModelRef
            Trained on records with the same columns.
        store : Store
            The root that both lie under.
        output : Output, optional
            Which parts are read, of records that are divided into fit, val and hold-out.
        out : Store, optional
            Where the result goes; beside the dataset where not given.
        params : mapping, optional
            What changes the bytes beside that.
        """
        facts = load_facts(dataset, store)
        wanted = (output or Output()).parts
        there = list(dict.fromkeys(shard.split for shard in facts.shards))
        divided = {"fit", "val"} & set(there)
        parts = tuple(part for part in there if part in wanted or not divided)
        if not parts:
            raise ParameterError(
                f"the dataset has no records in {', '.join(wanted)}; there are: "
                f"{', '.join(there) or 'none'}."
            )
        params = dict(params or {})
        key = stage_key(
            use,
            algorithm_version=algorithm_version,
            params=[params, sorted(parts)],
            inputs=[dataset.key, dataset.digest, model.key, model.digest],
        )
        folder = _Folder(out or store, use, model.kind, key, beside=out is None)
        return cls(use, store, dataset, facts, model, params, parts, folder)

    # --- what is read -------------------------------------------------------------------------

    @property
    def shards(self) -> list[ShardFact]:
        """The shards that are read, in their order."""
        return [shard for shard in self.facts.shards if shard.split in self.parts]

    def load(self, ability: Ability) -> tuple[Any, Encoder]:
        """Return the fitted model and its encoder.

        Raises
        ------
        ParameterError
            If the model lacks the ability.
        """
        fitted, encoder = load_model(self.store, self.model)
        check_able(fitted, self.model.kind, ability, modality=self.facts.modality)
        return fitted, encoder

    def tables(
        self, shards: Sequence[ShardFact], columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """Yield records, some megabytes at a time."""
        return iter_shards(self.store, shards, columns)

    # --- what is written ----------------------------------------------------------------------

    def found(self) -> LatentRef | None:
        """Return the result where it has been made; what a kill left beside it goes."""
        facts = self.stage.outcome(LatentFacts)
        if facts is None:
            return None
        self._tidy(facts)
        return self.reference(facts)

    def each_shard(
        self,
        make: Callable[[pa.Table, ShardFact], tuple[pa.Table, Mapping[str, Any]]],
        on_progress: Progress | None,
        *,
        folder: str = "data",
    ) -> list[Piece]:
        """Write what is made of each shard's records, each with a receipt.

        Parameters
        ----------
        make : callable
            ``(records, their shard) -> (records to write, numbers)``, some megabytes at a time; numbers
            of the same name are added up over the shard.
        on_progress : callable, optional
            Called with the fraction done and what is being done.
        folder : str
            Where to, below the result's; all but ``data`` go when the result is whole.
        """
        total, done, pieces = sum(shard.n_records for shard in self.shards), 0, []
        for i, shard in enumerate(self.shards):

            def build(i: int = i, shard: ShardFact = shard) -> Piece:
                sums: dict[str, Any] = {}

                def tables() -> Iterator[pa.Table]:
                    for table in self.tables([shard]):
                        written, numbers = make(table, shard)
                        _add(sums, numbers)
                        yield written

                written = self.put(
                    tables(),
                    shard.n_records,
                    f"{shard.split}-{i:05d}",
                    split=shard.split,
                    origin=shard.origin,
                    folder=folder,
                )
                return Piece(shards=written, sums=sums)

            pieces.append(self.stage.item(f"shard-{i:05d}", Piece, build))
            done += shard.n_records
            if on_progress is not None:
                on_progress(done / max(1, total), f"{done:,} of {total:,} records")
        return pieces

    def put(
        self,
        tables: Iterator[pa.Table],
        n_records: int,
        stem: str,
        *,
        split: str,
        origin: Origin,
        folder: str = "data",
    ) -> tuple[ShardFact, ...]:
        """Put records as Parquet below the result's folder."""
        return write_stream(
            self.stage.store,
            tables,
            n_records=n_records,
            prefix=f"{self.stage.prefix}/{folder}",
            stem=stem,
            split=split,
            origin=origin,
            label=self.facts.label,
            max_records=SHARD_RECORDS,
            max_bytes=SHARD_BYTES,
        )

    def put_picture(self, png: bytes) -> str:
        """Put the picture; return its path."""
        path = f"{self.stage.prefix}/picture-{sha256_hex(png)[:12]}.png"
        self.stage.store.put_if_absent(path, png)
        return path

    def finish(
        self,
        shards: Sequence[ShardFact],
        *,
        found: Mapping[str, Any],
        picture: str = "",
        notes: Sequence[str] = (),
    ) -> LatentRef:
        """Write the index, which makes the result count, and remove the receipts."""
        facts = self.stage.finish(
            LatentFacts(
                use=self.use,
                key=self.stage.key,
                digest=sha256_hex("\n".join(shard.sha256 for shard in shards).encode()),
                dataset=self.dataset,
                version=self.facts.extra.get("version"),
                model=self.model,
                label=self.facts.label,
                params={**self.params, "parts": list(self.parts)},
                shards=tuple(
                    shard.model_copy(update={"path": self._within(shard.path)}) for shard in shards
                ),
                picture=self._within(picture),
                found=dict(found),
                notes=tuple(notes),
            )
        )
        self._tidy(facts)
        return self.reference(facts)

    def _tidy(self, facts: LatentFacts) -> None:
        """Remove receipts, and what was staged on the way."""
        kept = {INDEX, facts.picture, *(shard.path for shard in facts.shards)}
        for path in self.stage.store.list(self.stage.prefix):
            if self._within(path) not in kept:
                self.stage.store.delete(path)

    def _within(self, path: str) -> str:
        return path.removeprefix(f"{self.stage.prefix}/")

    def reference(self, facts: LatentFacts) -> LatentRef:
        """Return the reference to a result, to hand on."""
        return LatentRef(
            use=self.use,
            root=self.stage.store.uri,
            folder=self.stage.prefix,
            key=facts.key,
            digest=facts.digest,
            n_records=sum(shard.n_records for shard in facts.shards),
            found=facts.found,
            notes=facts.notes,
        )


def head(
    table: pa.Table, label: str, shard: ShardFact, taken: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the columns ``aug_id``, the label under its own name, ``aug_split`` and ``aug_origin``.

    Raises
    ------
    SchemaError
        If the label is named like one of the columns that follow.
    """
    if label in taken:
        raise SchemaError(
            f"the label column is named {label!r}, like a column of the result; rename it in the source.",
            columns=[label],
        )
    return {
        "aug_id": table["aug_id"],
        label: table[label],
        "aug_split": pa.array([shard.split] * table.num_rows, pa.string()),
        "aug_origin": pa.array([shard.origin] * table.num_rows, pa.string()),
    }


@dataclass(frozen=True)
class Strata:
    """A model's strata, and the class that each belongs to."""

    encoder: Encoder

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Strata in the model's order."""
        return self.encoder.strata

    @cached_property
    def labels(self) -> pa.Array:
        """The label's value of each stratum."""
        return self.encoder.stratum_labels()

    @cached_property
    def of_class(self) -> tuple[str, ...]:
        """The class's name of each stratum."""
        return tuple(label_names(self.labels))

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Classes that the model knows, in the order of their first stratum."""
        return tuple(dict.fromkeys(self.of_class))

    def codes(self, table: pa.Table) -> NDArray[np.int64]:
        """Return each record's stratum; -1 where the model does not know it."""
        index = {name: k for k, name in enumerate(self.names)}
        names = table_strata(table, label=self.encoder.label, by=self.encoder.by)
        return np.array([index.get(name, -1) for name in names], dtype=np.int64)


def _add(sums: dict[str, Any], numbers: Mapping[str, Any]) -> None:
    """Add numbers, or mappings of numbers, to those of the same name."""
    for name, value in numbers.items():
        if isinstance(value, Mapping):
            _add(sums.setdefault(name, {}), value)
        else:
            sums[name] = sums.get(name, 0) + value


def add_up(pieces: Sequence[Piece]) -> dict[str, Any]:
    """Return the numbers of all receipts, added up by name."""
    total: dict[str, Any] = {}
    for piece in pieces:
        _add(total, piece.sums)
    return total
