"""The manifest: the list of one version's shards, and the only object that readers trust.

Validation accepts only plain relative paths and consistent counts, because a manifest may come from anybody.
"""

import hashlib
import importlib.metadata
import json
import platform
import re
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, AliasChoices, Field

from prefect_augment.schema.base import (
    ClassFilter,
    ClassPlan,
    ColumnInfo,
    PrivacyGuarantee,
    Result,
    ShardInfo,
    class_order,
)
from prefect_augment.schema.comparison import EncoderInfo, Recipe, Verdict
from prefect_augment.schema.run import ApprovalDecision, CorrectedLabels

SCHEMA_VERSION = 2
ROLLED_BACK = "Rolled back to"  # start of such a version's note


# Not part of the content digest: numbers, names and notes of the run, and what depends on time and place.
_NOT_CONTENT = frozenset({
    "approval", "content_digest", "corrected", "created_at", "ingest", "ledger", "notes", "params", "parent",
    "report", "report_files", "software", "sources", "version",
})  # fmt: skip


def _inside(path: str) -> str:
    """Refuse a path that could leave the dataset's folder."""
    segments = path.split("/")
    is_special = path.startswith("/") or "\\" in path or ":" in segments[0]
    if is_special or {"", ".", ".."} & set(segments):
        raise ValueError(
            f"path {path!r} is not a plain relative path inside the dataset's folder; refused"
        )
    return path


def _sound_shard(shard: ShardInfo) -> ShardInfo:
    """Refuse impossible counts, paths and digests of a shard; reading it compares them."""
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
    """A model whose records are in the version; paths are relative to the dataset's folder."""

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
    guarantee: PrivacyGuarantee | None = None  # of a training under differential privacy


class Manifest(Result):
    """One published version.

    ``class_counts`` is split -> class -> origin -> records. ``content_digest`` covers the content, without when, where
    and with which software it was made; ``dataset_key`` names its inputs.
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
    # Stratum -> aug_weight in train, if not 1.
    weights: dict[str, float] = Field(default_factory=dict)
    verdict: Verdict | None
    filtered: tuple[ClassFilter, ...] = Field(
        default=(), validation_alias=AliasChoices("filtered", "gate")
    )
    models: tuple[PublishedModel, ...] = ()
    encoder: EncoderInfo | None = None  # the user's, of images, that the comparison had
    params: dict[str, Any]
    approval: ApprovalDecision | None = None  # None if none was required
    corrected: tuple[CorrectedLabels, ...] = ()  # labels that people corrected, by decision
    software: dict[str, str]
    report: str = ""  # path of report.html
    report_files: tuple[PublishedFile, ...] = ()
    n_quarantined: int = 0
    quarantine: PublishedShards = ()
    ledger: PublishedFile | None = None
    sources: PublishedFile | None = None  # the source's files, and which version read each first
    ingest: PathOrNothing = ""  # outcome of the ingest stage, whose records the next run may reuse
    holdout_uri: str = ""  # of a separate hold-out, which is not copied
    holdout_digest: str = ""
    notes: tuple[str, ...] = ()

    def sealed(self) -> "Manifest":
        """Return the manifest with its ``content_digest``."""
        digest = content_digest(self.model_dump(mode="json"))
        return self.model_copy(update={"content_digest": digest})

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes of the version, in their natural order."""
        names = {name for counts in self.class_counts.values() for name in counts}
        return tuple(class_order(names))

    def split_shards(self, split: str) -> tuple[ShardInfo, ...]:
        """Return the shards of one split, in reading order."""
        return tuple(s for s in self.shards if s.split == split)


def class_counts(shards: Iterable[ShardInfo]) -> dict[str, dict[str, dict[str, int]]]:
    """Return split -> class -> origin -> records."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for shard in shards:
        classes = counts.setdefault(shard.split, {})
        for name, n in shard.class_counts.items():
            origins = classes.setdefault(name, {})
            origins[shard.origin] = origins.get(shard.origin, 0) + n
    return counts


def content_digest(fields: dict[str, Any]) -> str:
    """Return the sha256 of a manifest's content, 64 hexadecimal digits.

    ``fields`` are those of its JSON, so that fields of later releases are covered.
    """
    content = {k: v for k, v in fields.items() if k not in _NOT_CONTENT}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def is_rollback(manifest: Manifest) -> bool:
    """Whether a version is an older one again, and not the result of a run."""
    return any(note.startswith(ROLLED_BACK) for note in manifest.notes)


def software_versions() -> dict[str, str]:
    """Return the installed version of every package that influences the bytes."""
    versions = {"python": platform.python_version()}
    for name in _SOFTWARE:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # a source tree, or an optional package
    return versions


_SOFTWARE = (
    "prefect-augment", "prefect", "pyarrow", "pandas", "numpy", "scikit-learn", "imbalanced-learn", "fsspec",
    "pillow", "albumentations", "opencv-python-headless", "torch",
)  # fmt: skip
