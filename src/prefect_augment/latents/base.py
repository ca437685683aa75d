"""A trained model applied to staged records: what all uses of its latents share.

A use reads the records in batches of some megabytes, writes a shard for each shard that it reads, and
leaves everything in one :class:`.LatentFolder`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from prefect_augment.array_types import Int
from prefect_augment.encoding.strata import table_strata
from prefect_augment.encoding.tables import TableEncoder
from prefect_augment.errors import ParameterError, SchemaError
from prefect_augment.latents.capabilities import Ability, check_able
from prefect_augment.latents.output import LatentFolder, Piece, add
from prefect_augment.params import Output
from prefect_augment.params.base import Params
from prefect_augment.params.keys import step_key
from prefect_augment.schema import (
    DatasetInfo,
    DatasetRef,
    LatentInfo,
    LatentRef,
    LatentUse,
    ModelRef,
    ShardInfo,
)
from prefect_augment.shards.base import label_names
from prefect_augment.shards.staged import iter_shards, load_info
from prefect_augment.storage import Store, sha256_hex
from prefect_augment.synthesis.model_store import Encoder, load_model

# Results on the hold-out are written per record and never summed up: it is kept for the one comparison of
# a version (DESIGN §8), and scores on it would influence choices.
NOT_SUMMED = "holdout"

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Job:
    """One use: its parameters, what it reads, and where its result goes. Made by :meth:`of`."""

    use: LatentUse
    store: Store  # of dataset and model
    dataset: DatasetRef
    info: DatasetInfo
    model: ModelRef
    params: dict[str, Any]
    parts: tuple[str, ...]
    folder: LatentFolder

    @classmethod
    def of(
        cls,
        use: LatentUse,
        *,
        dataset: DatasetRef,
        model: ModelRef,
        store: Store,
        output: Output | None,
        out: Store | None,
        params: Mapping[str, Params] | None = None,
    ) -> "Job":
        """Return the job of a use; the result goes to ``out``, or beside the dataset.

        ``dataset`` may be ingested records, candidates or a published version; ``params`` are the use's own, by
        the section's name in :data:`~prefect_augment.params.keys.STEPS`. Raises ParameterError if the dataset
        has none of the requested parts.
        """
        info = load_info(dataset, store)
        requested = (output or Output()).parts
        existing = list(dict.fromkeys(shard.split for shard in info.shards))
        divided = {"training", "validation"} & set(existing)
        parts = tuple(part for part in existing if part in requested or not divided)
        if not parts:
            raise ParameterError(
                f"the dataset has no records in {', '.join(requested)}; there are: "
                f"{', '.join(existing) or 'none'}."
            )
        used = {"output": (output or Output()).model_copy(update={"parts": sorted(parts)})}
        inputs = [dataset.key, dataset.digest, model.key, model.digest]
        key = step_key(use, {**used, **(params or {})}, inputs=inputs)
        folder = LatentFolder(
            out or store, use, model.kind, key, label=info.label, beside=out is None
        )
        values: dict[str, Any] = {}
        for section in (params or {}).values():
            values |= section.model_dump(mode="json")
        return cls(use, store, dataset, info, model, values, parts, folder)

    # --- what is read -------------------------------------------------------------------------

    @property
    def shards(self) -> list[ShardInfo]:
        """The shards that are read."""
        return [shard for shard in self.info.shards if shard.split in self.parts]

    @property
    def learnt_shards(self) -> list[ShardInfo]:
        """The training shards, read or not; of records without parts those that are read.

        The hold-out is among them only if there is nothing else.
        """
        training = [shard for shard in self.info.shards if shard.split == "training"]
        return training or [s for s in self.shards if s.split != NOT_SUMMED] or self.shards

    @property
    def shown_part(self) -> str:
        """The part of the shown records: validation if it is read, the hold-out only if nothing else is."""
        parts = set(self.parts) - {NOT_SUMMED} or {NOT_SUMMED}
        return "validation" if "validation" in parts else min(parts)

    def load(self, ability: Ability) -> tuple[Any, Encoder]:
        """Return the fitted model and its encoder; ParameterError if the model lacks the ability."""
        fitted, encoder = load_model(self.store, self.model)
        check_able(fitted, self.model.kind, ability, modality=self.info.modality)
        # Of real records, whose values it may write.
        return fitted, encoder.guarding(None) if isinstance(encoder, TableEncoder) else encoder

    def tables(
        self, shards: Sequence[ShardInfo], columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """Yield records in batches of some megabytes."""
        return iter_shards(self.store, shards, columns)

    # --- what is written ----------------------------------------------------------------------

    def each_shard(
        self,
        make: Callable[[pa.Table, ShardInfo], tuple[pa.Table, Mapping[str, Any]]],
        on_progress: Progress | None,
        *,
        folder: str = "data",
        n_written: Callable[[ShardInfo], int] | None = None,
    ) -> tuple[list[ShardInfo], dict[str, Any]]:
        """Write the results of each shard's records, with a receipt per shard; return the shards and added numbers.

        ``make`` maps records and their shard to records and numbers, in batches of some megabytes; numbers are
        added up by name over the shard. Everything outside the folder ``data`` is removed at the end.
        ``n_written`` is the number of records written for a shard, by default as many as are read.
        """
        total, done = sum(shard.n_records for shard in self.shards), 0
        all_shards: list[ShardInfo] = []
        all_sums: dict[str, Any] = {}
        for i, shard in enumerate(self.shards):

            def build(i: int = i, shard: ShardInfo = shard) -> Piece:
                sums: dict[str, Any] = {}

                def tables() -> Iterator[pa.Table]:
                    for table in self.tables([shard]):
                        written, numbers = make(table, shard)
                        add(sums, numbers)
                        yield written

                written = self.folder.put(
                    tables(),
                    shard.n_records if n_written is None else n_written(shard),
                    f"{shard.split}-{i:05d}",
                    split=shard.split,
                    origin=shard.origin,
                    folder=folder,
                )
                return Piece(shards=written, sums=sums)

            piece = self.folder.item(f"shard-{i:05d}", Piece, build)
            all_shards += piece.shards
            add(all_sums, piece.sums)
            done += shard.n_records
            if on_progress is not None:
                on_progress(done / max(1, total), f"{done:,} of {total:,} records")
        return all_shards, all_sums

    def finish(
        self,
        shards: Sequence[ShardInfo],
        *,
        summary: Mapping[str, Any],
        pictures: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> LatentRef:
        """Write the index, which makes the result valid, and remove the receipts."""
        return self.folder.close(
            LatentInfo(
                use=self.use,
                key=self.folder.key,
                digest=sha256_hex("\n".join(shard.sha256 for shard in shards).encode()),
                dataset=self.dataset,
                version=self.info.extra.get("version"),
                model=self.model,
                label=self.info.label,
                params={**self.params, "parts": list(self.parts)},
                shards=tuple(shards),
                pictures=tuple(pictures),
                summary=dict(summary),
                notes=tuple(notes),
            )
        )


def head(
    table: pa.Table, label: str, shard: ShardInfo, taken: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the columns ``aug_id``, the label under its own name, ``aug_split`` and ``aug_origin``.

    Raises SchemaError if the label is named like one of the ``taken`` columns.
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
    """A model's strata and their classes."""

    encoder: Encoder

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Strata in the model's order."""
        return self.encoder.strata

    @cached_property
    def labels(self) -> pa.Array:
        """Label value of each stratum."""
        return self.encoder.stratum_labels()

    @cached_property
    def of_class(self) -> tuple[str, ...]:
        """Class name of each stratum."""
        return tuple(label_names(self.labels))

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Classes of the model, in the order of their first stratum."""
        return tuple(dict.fromkeys(self.of_class))

    def codes(self, table: pa.Table) -> Int:
        """Return each record's stratum; -1 if the model does not know it."""
        index = {name: k for k, name in enumerate(self.names)}
        names = table_strata(table, label=self.encoder.label, by=self.encoder.by)
        return np.array([index.get(name, -1) for name in names], dtype=np.int64)


def suffixes(names: Sequence[str]) -> tuple[str, str]:
    """Return the suffixes of reconstructions and errors, chosen so that no two columns share a name."""
    second, third = "_reconstructed", "_error"
    while any(name + suffix in names for name in names for suffix in (second, third)):
        second, third = f"_{second}", f"_{third}"
    return second, third
