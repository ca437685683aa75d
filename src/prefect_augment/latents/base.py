"""A trained model applied to staged records: what all uses of its latents share.

A use reads the records in batches of some megabytes and writes a shard for each shard that it reads. All of it is
in one folder: shards, pictures, a card, and last its index. Without ``index.json`` the result is not valid. Receipts
let an interrupted use continue; they are removed, with all other staged objects, when the index is written.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import yaml
from pydantic import Field

from prefect_augment.array_types import Int
from prefect_augment.encoding.strata import codes_of, table_strata
from prefect_augment.errors import ParameterError, SchemaError
from prefect_augment.params import Output
from prefect_augment.params.base import Params
from prefect_augment.params.keys import step_key
from prefect_augment.params.latents import LATENT_COMMANDS
from prefect_augment.report.card import CARD
from prefect_augment.schema import (
    INDEX,
    DatasetInfo,
    DatasetRef,
    LatentInfo,
    LatentRef,
    LatentUse,
    ModelRef,
    Origin,
    Result,
    ShardInfo,
)
from prefect_augment.shards.base import label_names
from prefect_augment.shards.staged import iter_shards, load_info
from prefect_augment.shards.stream_writer import write_stream
from prefect_augment.storage import Stage, Store, sha256_hex
from prefect_augment.synthesis.model_store import Encoder
from prefect_augment.text import markdown_text

SHARD_RECORDS = 1_000_000
SHARD_BYTES = 128 << 20

_CARD = """
# {title}

Results of {model} on the records of {dataset}. {rows}
docs/latents.md of prefect-augment describes the other columns.

| From | |
| --- | --- |
| model | {kind} `{digest}`, trained on {n_training:,} records |
| records | `{records}` of {root} |
| parameters | {params} |

`open_latents(FOLDER)` of prefect-augment, `datasets.load_dataset(FOLDER)` and every reader of Parquet read it.
"""

_ROWS = (
    "One row is one record, joined to the dataset by `aug_id`; `aug_split` is its part, `aug_origin` is `real`, "
    "`classic` or `synthetic`."
)
_STEPS = "One row is one step, numbered by `aug_step`; the first and the last are records, named by `aug_id`."
_SHIFTED = (
    "One row is one record, named by `aug_id`, shifted by one strength, `aug_strength`; `aug_split` is the part of "
    "the record."
)


class Piece(Result):
    """The receipt of one shard: the shards written for it, and additive numbers."""

    shards: tuple[ShardInfo, ...]
    sums: dict[str, Any] = Field(default_factory=dict)


class LatentFolder(Stage):
    """A stage in the folder of its result, whose outcome is the index.

    With ``beside`` the dataset, the use names the folder above, with an underscore; ``kind`` of the model and
    ``key`` name the folder.
    """

    def __init__(
        self, store: Store, use: LatentUse, kind: str, key: str, *, label: str, beside: bool
    ) -> None:
        super().__init__(store, use, key)
        self.use = use
        self.label = label
        name = f"{re.sub(r'[^A-Za-z0-9.-]+', '-', kind)}-{key[:12]}"
        self.prefix = f"_{use}/{name}" if beside else name
        self.outcome_path = f"{self.prefix}/{INDEX}"

    def existing(self) -> LatentRef | None:
        """Return the result if it exists, and remove leftovers of a killed run."""
        info = self.outcome(LatentInfo)
        return None if info is None else self._tidied(info)

    def put(
        self,
        tables: Iterator[pa.Table],
        n_records: int,
        stem: str,
        *,
        split: str,
        origin: Origin,
        folder: str = "data",
    ) -> tuple[ShardInfo, ...]:
        """Put records as Parquet below the folder; everything outside ``data`` is removed at the end."""
        return write_stream(
            self.store,
            tables,
            n_records=n_records,
            prefix=f"{self.prefix}/{folder}",
            stem=stem,
            split=split,
            origin=origin,
            label=self.label,
            max_records=SHARD_RECORDS,
            max_bytes=SHARD_BYTES,
        )

    def put_pictures(self, pngs: Sequence[bytes]) -> tuple[str, ...]:
        """Put non-empty pictures; return their paths within the folder."""
        paths = []
        for png in filter(None, pngs):
            paths.append(f"picture-{sha256_hex(png)[:12]}.png")
            self.store.put_if_absent(f"{self.prefix}/{paths[-1]}", png)
        return tuple(paths)

    def close(self, info: LatentInfo) -> LatentRef:
        """Write the card and the index with paths relative to the folder, and remove the receipts."""
        shards = [
            shard.model_copy(update={"path": self._within(shard.path)}) for shard in info.shards
        ]
        info = info.model_copy(update={"shards": tuple(shards)})
        self.store.put(f"{self.prefix}/{CARD}", _card(info).encode())
        return self._tidied(self.finish(info))

    def _tidied(self, info: LatentInfo) -> LatentRef:
        """Remove receipts and other staged objects; return the reference to the result."""
        kept = {INDEX, CARD, *info.pictures, *(shard.path for shard in info.shards)}
        for path in self.store.list(self.prefix):
            if self._within(path) not in kept:
                self.store.delete(path)
        return LatentRef(
            use=self.use,
            root=self.store.uri,
            folder=self.prefix,
            key=info.key,
            digest=info.digest,
            n_records=sum(shard.n_records for shard in info.shards),
            summary=info.summary,
            notes=info.notes,
        )

    def _within(self, path: str) -> str:
        return path.removeprefix(f"{self.prefix}/")


def _card(info: LatentInfo) -> str:
    """Return the folder's README.md, by which ``load_dataset`` finds the parts; names are escaped."""
    files: dict[str, list[str]] = {}
    for shard in info.shards:
        files.setdefault(shard.split, []).append(shard.path)
    entries = [{"split": split, "path": paths} for split, paths in files.items()]
    front = {"configs": [{"config_name": "default", "data_files": entries}]}
    params = ", ".join(f"{name} {value!r}" for name, value in info.params.items())
    version = f", version {info.version}" if info.version else ""
    text = _CARD.format(
        title=info.use.capitalize(),
        model=f"a model of kind {markdown_text(info.model.kind)}",
        dataset=markdown_text(info.dataset.root) + version,
        rows={"interpolations": _STEPS, "shifts": _SHIFTED}.get(info.use, _ROWS),
        kind=markdown_text(info.model.kind),
        digest=info.model.digest,
        n_training=info.model.n_training,
        records=info.dataset.digest,
        root=markdown_text(info.dataset.root),
        params=markdown_text(params),
    )
    return f"---\n{yaml.safe_dump(front, sort_keys=False, width=100_000)}---\n{text}"


def add(sums: dict[str, Any], numbers: Mapping[str, Any]) -> None:
    """Add numbers, or mappings of numbers, by name."""
    for name, value in numbers.items():
        if isinstance(value, Mapping):
            add(sums.setdefault(name, {}), value)
        else:
            sums[name] = sums.get(name, 0) + value


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
    params: Params | None
    parts: tuple[str, ...]
    folder: LatentFolder
    on_progress: Progress | None = None

    @classmethod
    def of(
        cls,
        use: LatentUse,
        dataset: DatasetRef,
        model: ModelRef,
        store: Store,
        *,
        params: Params | None = None,
        output: Output | None = None,
        out: Store | None = None,
        on_progress: Progress | None = None,
    ) -> "Job":
        """The job of a use, with the arguments of :func:`prefect_augment.tasks.latents.use_latents`.

        The result goes to ``out``, or beside the dataset. Raises ParameterError if the dataset has none of the
        requested parts.
        """
        known, output = LATENT_COMMANDS[use], output or Output()
        params = params or (known.params() if known.params else None)
        info = load_info(dataset, store)
        requested = output.parts
        existing = list(dict.fromkeys(shard.split for shard in info.shards))
        divided = {"training", "validation"} & set(existing)
        parts = tuple(part for part in existing if part in requested or not divided)
        if not parts:
            raise ParameterError(
                f"the dataset has no records in {', '.join(requested)}; there are: "
                f"{', '.join(existing) or 'none'}."
            )
        used: dict[str, Params] = {"output": output.model_copy(update={"parts": sorted(parts)})}
        used |= {known.section: params} if params else {}
        inputs = [dataset.key, dataset.digest, model.key, model.digest]
        key = step_key(use, used, inputs=inputs)
        folder = LatentFolder(
            out or store, use, model.kind, key, label=info.label, beside=out is None
        )
        return cls(use, store, dataset, info, model, params, parts, folder, on_progress)

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

    def tables(
        self, shards: Sequence[ShardInfo], columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """Yield records in batches of some megabytes."""
        return iter_shards(self.store, shards, columns)

    def put(
        self, tables: Iterator[pa.Table], n: int, i: int, shard: ShardInfo, folder: str = "data"
    ) -> tuple[ShardInfo, ...]:
        """Put the ``n`` records that were made of the i-th shard."""
        stem = f"{shard.split}-{i:05d}"
        return self.folder.put(
            tables, n, stem, split=shard.split, origin=shard.origin, folder=folder
        )

    def each_shard(
        self,
        make: Callable[[pa.Table, ShardInfo], tuple[pa.Table, Mapping[str, Any]]],
        *,
        folder: str = "data",
        n_written: Mapping[str, int] | None = None,
    ) -> tuple[list[ShardInfo], dict[str, Any]]:
        """Write the results of each shard's records, with a receipt per shard; return the shards and added numbers.

        ``make`` maps records and their shard to records and numbers, in batches of some megabytes; numbers are
        added up by name over the shard. Everything outside the folder ``data`` is removed at the end.
        ``n_written`` is the number of records written by the shard's path, by default as many as are read.
        """
        total, done = sum(shard.n_records for shard in self.shards), 0
        all_shards: list[ShardInfo] = []
        all_sums: dict[str, Any] = {}

        def build(i: int, shard: ShardInfo) -> Piece:
            sums: dict[str, Any] = {}

            def tables() -> Iterator[pa.Table]:
                for table in self.tables([shard]):
                    written, numbers = make(table, shard)
                    add(sums, numbers)
                    yield written

            n = shard.n_records if n_written is None else n_written[shard.path]
            return Piece(shards=self.put(tables(), n, i, shard, folder), sums=sums)

        for i, shard in enumerate(self.shards):
            piece = self.folder.item(f"shard-{i:05d}", Piece, partial(build, i, shard))
            all_shards += piece.shards
            add(all_sums, piece.sums)
            done += shard.n_records
            if self.on_progress is not None:
                self.on_progress(done / max(1, total), f"{done:,} of {total:,} records")
        return all_shards, all_sums

    def finish(
        self,
        shards: Sequence[ShardInfo],
        *,
        summary: Mapping[str, Any],
        pictures: Sequence[bytes] = (),
        notes: Sequence[str] = (),
    ) -> LatentRef:
        """Put the pictures that are not empty, and the index, which makes the result valid; remove the receipts."""
        params = self.params.model_dump(mode="json") if self.params else {}
        return self.folder.close(
            LatentInfo(
                use=self.use,
                key=self.folder.key,
                digest=sha256_hex("\n".join(shard.sha256 for shard in shards).encode()),
                dataset=self.dataset,
                version=self.info.extra.get("version"),
                model=self.model,
                label=self.info.label,
                params={**params, "parts": list(self.parts)},
                shards=tuple(shards),
                pictures=self.folder.put_pictures(pictures),
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


class Strata:
    """A model's strata and their classes."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.names = encoder.strata  # in the model's order
        self.labels = encoder.stratum_labels()  # the label's value of each stratum
        self.of_class = tuple(label_names(self.labels))  # the class's name of each stratum
        self.classes = tuple(dict.fromkeys(self.of_class))  # in the order of their first stratum

    def codes(self, table: pa.Table) -> Int:
        """Each record's stratum; -1 if the model does not know it."""
        names = table_strata(table, label=self.encoder.label, by=self.encoder.by)
        return codes_of(names, self.names)


def suffixes(names: Sequence[str]) -> tuple[str, str]:
    """Return the suffixes of reconstructions and errors, chosen so that no two columns share a name."""
    second, third = "_reconstructed", "_error"
    while any(name + suffix in names for name in names for suffix in (second, third)):
        second, third = f"_{second}", f"_{third}"
    return second, third
