"""A trained model at work on staged records: what all uses of its latents share.

A use reads the records some megabytes at a time, writes a shard for each shard that it reads, and
leaves everything in one :class:`.LatentFolder`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.encoding.strata import table_strata
from prefect_augment.errors import ParameterError, SchemaError
from prefect_augment.latents.capabilities import Ability, check_able
from prefect_augment.latents.output import LatentFolder, Piece, add
from prefect_augment.params import Output
from prefect_augment.params.base import Params
from prefect_augment.params.keys import step_key
from prefect_augment.schema.base import (
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
from prefect_augment.storage.store import Store, sha256_hex
from prefect_augment.synthesis.model_store import Encoder, load_model

__all__ = ["NOT_SUMMED", "Job", "Progress", "Strata", "head", "suffixes"]

# What becomes of the hold-out is written per record and never summed up: it is for the one comparison of
# a version (DESIGN §8), and whoever saw its scores would choose by them.
NOT_SUMMED = "holdout"

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Job:
    """One use: what is asked for, what it reads, and where its result goes. Made by :meth:`of`."""

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
    ) -> Job:
        """Return the job of a use.

        Parameters
        ----------
        use : str
            Names the folder beside the dataset, with an underscore before it.
        dataset : DatasetRef
            Any staged records: ingested ones, candidates, a published version.
        model : ModelRef
            Trained on records with the same columns.
        store : Store
            The root that both lie under.
        output : Output, optional
            Which parts are read, of records that are divided into training, validation and hold-out.
        out : Store, optional
            Where the result goes; beside the dataset where not given.
        params : mapping of str to Params, optional
            What changes the bytes beside that, by the name that the steps' table has for it.
        """
        info = load_info(dataset, store)
        wanted = (output or Output()).parts
        there = list(dict.fromkeys(shard.split for shard in info.shards))
        divided = {"training", "validation"} & set(there)
        parts = tuple(part for part in there if part in wanted or not divided)
        if not parts:
            raise ParameterError(
                f"the dataset has no records in {', '.join(wanted)}; there are: "
                f"{', '.join(there) or 'none'}."
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
        """The shards that are read, in their order."""
        return [shard for shard in self.info.shards if shard.split in self.parts]

    @property
    def learnt_shards(self) -> list[ShardInfo]:
        """The fit shards, read or not; of records that are not divided those that are read.

        The hold-out is among them only where there is nothing else.
        """
        training = [shard for shard in self.info.shards if shard.split == "training"]
        return training or [s for s in self.shards if s.split != NOT_SUMMED] or self.shards

    @property
    def shown_part(self) -> str:
        """The part that records are shown of: validation where it is read, the hold-out only if nothing else is."""
        parts = set(self.parts) - {NOT_SUMMED} or {NOT_SUMMED}
        return "validation" if "validation" in parts else min(parts)

    def load(self, ability: Ability) -> tuple[Any, Encoder]:
        """Return the fitted model and its encoder.

        Raises
        ------
        ParameterError
            If the model lacks the ability.
        """
        fitted, encoder = load_model(self.store, self.model)
        check_able(fitted, self.model.kind, ability, modality=self.info.modality)
        return fitted, encoder

    def tables(
        self, shards: Sequence[ShardInfo], columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """Yield records, some megabytes at a time."""
        return iter_shards(self.store, shards, columns)

    # --- what is written ----------------------------------------------------------------------

    def each_shard(
        self,
        make: Callable[[pa.Table, ShardInfo], tuple[pa.Table, Mapping[str, Any]]],
        on_progress: Progress | None,
        *,
        folder: str = "data",
        n_made: Callable[[ShardInfo], int] | None = None,
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
        n_made : callable, optional
            How many records are written for a shard; as many as are read where not given.
        """
        total, done, pieces = sum(shard.n_records for shard in self.shards), 0, []
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
                    shard.n_records if n_made is None else n_made(shard),
                    f"{shard.split}-{i:05d}",
                    split=shard.split,
                    origin=shard.origin,
                    folder=folder,
                )
                return Piece(shards=written, sums=sums)

            pieces.append(self.folder.item(f"shard-{i:05d}", Piece, build))
            done += shard.n_records
            if on_progress is not None:
                on_progress(done / max(1, total), f"{done:,} of {total:,} records")
        return pieces

    def finish(
        self,
        shards: Sequence[ShardInfo],
        *,
        found: Mapping[str, Any],
        pictures: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> LatentRef:
        """Write the index, which makes the result count, and remove the receipts."""
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
                found=dict(found),
                notes=tuple(notes),
            )
        )


def head(
    table: pa.Table, label: str, shard: ShardInfo, taken: Sequence[str] = ()
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


def suffixes(names: Sequence[str]) -> tuple[str, str]:
    """Return what the names of reconstructions and errors end in, so that no two columns share one."""
    second, third = "_reconstructed", "_error"
    while any(name + suffix in names for name in names for suffix in (second, third)):
        second, third = f"_{second}", f"_{third}"
    return second, third
