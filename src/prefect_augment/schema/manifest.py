"""The manifest: the list of one version's shards, and the only thing that readers trust.

Offers the fact itself, reading it (checked: whole, ours, of a known schema, no path that leaves the
folder) and :func:`commit`, which makes a version visible by writing its manifest where none is.
What goes into a version is decided by ``stages/publish.py``.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
from collections import Counter
from typing import Annotated, Any

from pydantic import AfterValidator, AliasChoices, Field

from prefect_augment.schema.base import (
    ApprovalDecision,
    ClassFilter,
    ClassPlan,
    ColumnInfo,
    Recipe,
    Result,
    ShardInfo,
    Verdict,
    class_order,
)

__all__ = [
    "SCHEMA_VERSION",
    "Manifest",
    "PublishedFile",
    "PublishedModel",
    "content_digest",
    "software_versions",
]

SCHEMA_VERSION = 1
ROLLED_BACK = "Rolled back to"  # how the note of such a version begins


# Recorded, not compared: numbers, names and notes of this run, and what depends on when and where it ran.
_NOT_CONTENT = frozenset(
    {
        "approval",
        "content_digest",
        "created_at",
        "ingest",
        "ledger",
        "notes",
        "params",
        "parent",
        "report",
        "report_files",
        "software",
        "sources",
        "version",
    }
)


def _inside(path: str) -> str:
    """Refuse a path that could leave the dataset's folder: a manifest may come from anybody."""
    segments = path.split("/")
    if (
        path.startswith("/")
        or "\\" in path
        or ":" in segments[0]
        or {"", ".", ".."} & set(segments)
    ):
        raise ValueError(
            f"path {path!r} is not a plain relative path inside the dataset's folder; refused"
        )
    return path


def _sound_shard(shard: ShardInfo) -> ShardInfo:
    """Refuse what no shard can be; whether it is what it says is found out by reading it."""
    _inside(shard.path)
    counts = shard.class_counts.values()
    if min(shard.n_records, shard.n_bytes, *counts) < 0 or (
        counts and sum(counts) != shard.n_records
    ):
        raise ValueError(
            f"{shard.path} has {shard.n_records} records and {shard.n_bytes} bytes, and {sum(counts)} records over "
            "its classes; refused"
        )
    _digest(shard.sha256)
    return shard


def _digest(sha256: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ValueError(f"{sha256[:80]!r} is no sha256; refused")
    return sha256


def _once(shards: tuple[ShardInfo, ...]) -> tuple[ShardInfo, ...]:
    """Refuse a list that names a shard twice: its records would count twice."""
    counts = Counter(shard.path for shard in shards)
    twice = [path for path, n in counts.items() if n > 1]
    if twice:
        raise ValueError(f"{twice[0]} is listed {counts[twice[0]]} times; refused")
    return shards


InsidePath = Annotated[str, AfterValidator(_inside)]
PathOrNothing = Annotated[str, AfterValidator(lambda path: path and _inside(path))]
PublishedShard = Annotated[ShardInfo, AfterValidator(_sound_shard)]
PublishedShards = Annotated[tuple[PublishedShard, ...], AfterValidator(_once)]
Digest = Annotated[str, AfterValidator(_digest)]


class PublishedFile(Result):
    """One object of a version that is not a shard of its records."""

    path: InsidePath
    n_bytes: Annotated[int, Field(ge=0)]
    sha256: Digest


class PublishedModel(Result):
    """A model whose records are in the version; paths relative to the dataset's folder."""

    kind: str
    key: str
    digest: str  # aug_model of its records
    encoder_digest: str
    path: InsidePath  # of the training stage's outcome
    checkpoint: InsidePath
    config: InsidePath
    strata: tuple[str, ...]
    n_training: int = Field(validation_alias=AliasChoices("n_training", "n_fit"))
    steps: int
    notes: tuple[str, ...] = ()


class Manifest(Result):
    """One published version.

    ``class_counts`` is split -> class -> origin -> records. ``content_digest`` covers what the
    version is and leaves out when, where and with which software it was made; ``dataset_key`` names
    the inputs it was made from.
    """

    schema_version: int = SCHEMA_VERSION
    version: int
    parent: int | None
    dataset_key: str
    content_digest: str = ""
    created_at: str  # UTC, ISO 8601
    label: str
    label_type: str
    source_schema: str  # digest of the source's columns, in order, with their types
    columns: tuple[ColumnInfo, ...]  # of the source, without the label
    class_counts: dict[str, dict[str, dict[str, int]]]
    shards: PublishedShards
    plan: tuple[ClassPlan, ...]
    recipe: Recipe
    # Stratum -> aug_weight of its records in train; 1 where not named.
    weights: dict[str, float] = Field(default_factory=dict)
    verdict: Verdict | None
    filtered: tuple[ClassFilter, ...] = Field(
        default=(), validation_alias=AliasChoices("filtered", "gate")
    )
    models: tuple[PublishedModel, ...] = ()
    params: dict[str, Any]
    approval: ApprovalDecision | None = None  # None where nobody was asked
    software: dict[str, str]
    report: str = ""  # path of report.html
    report_files: tuple[PublishedFile, ...] = ()
    n_quarantined: int = 0
    quarantine: PublishedShards = ()
    ledger: PublishedFile | None = None
    sources: PublishedFile | None = None  # the source's files, and which version saw each first
    ingest: PathOrNothing = (
        ""  # outcome of the ingest stage, whose records the next run may use again
    )
    holdout_uri: str = ""  # where the hold-out was given by URI and not copied
    holdout_digest: str = ""
    notes: tuple[str, ...] = ()

    def sealed(self) -> Manifest:
        """Return the manifest with its ``content_digest``."""
        return self.model_copy(
            update={"content_digest": content_digest(self.model_dump(mode="json"))}
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes of the version: by number where all are numbers, else by text."""
        return tuple(
            class_order({name for counts in self.class_counts.values() for name in counts})
        )

    def split_shards(self, split: str) -> tuple[ShardInfo, ...]:
        """Return the shards of one split, in the order they are read."""
        return tuple(s for s in self.shards if s.split == split)


def content_digest(fields: dict[str, Any]) -> str:
    """Return the sha256 of what a manifest says about the data, 64 hexadecimal digits.

    Parameters
    ----------
    fields : dict
        The manifest as it stands in its JSON, so that fields which later releases add stay covered.
    """
    content = {k: v for k, v in fields.items() if k not in _NOT_CONTENT}
    return hashlib.sha256(
        json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


# --- reading ----------------------------------------------------------------------------------


# --- committing -------------------------------------------------------------------------------


def is_rollback(manifest: Manifest) -> bool:
    """Tell whether a version is an older one again, and no run's."""
    return any(note.startswith(ROLLED_BACK) for note in manifest.notes)


def software_versions() -> dict[str, str]:
    """Return the installed version of every package that shapes the bytes."""
    found = {"python": platform.python_version()}
    for name in _SOFTWARE:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # run from a source tree, or a part that is not installed
    return found


_SOFTWARE = (
    "prefect-augment",
    "prefect",
    "pyarrow",
    "pandas",
    "numpy",
    "scikit-learn",
    "imbalanced-learn",
    "fsspec",
    "pillow",
    "albumentations",
    "opencv-python-headless",
    "torch",
)
