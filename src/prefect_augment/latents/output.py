"""The folder of one use of a model: shards, pictures, a card, and last its index.

Without ``index.json`` the result is not valid. Receipts let an interrupted use continue; they are
removed, with all other staged objects, when the index is written.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import yaml
from pydantic import Field

from prefect_augment.report.card import CARD
from prefect_augment.schema import (
    INDEX,
    LatentInfo,
    LatentRef,
    LatentUse,
    Origin,
    Result,
    ShardInfo,
)
from prefect_augment.shards.stream_writer import write_stream
from prefect_augment.storage import Stage, Store, sha256_hex
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
        if info is None:
            return None
        self._tidy(info)
        return self.referred(info)

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

    def put_pictures(self, *pngs: bytes) -> tuple[str, ...]:
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
        info = self.finish(info)
        self._tidy(info)
        return self.referred(info)

    def referred(self, info: LatentInfo) -> LatentRef:
        """Return the reference to a result."""
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

    def _tidy(self, info: LatentInfo) -> None:
        """Remove receipts and other staged objects."""
        kept = {INDEX, CARD, *info.pictures, *(shard.path for shard in info.shards)}
        for path in self.store.list(self.prefix):
            if self._within(path) not in kept:
                self.store.delete(path)

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
