"""The split ledger: the part of every record, group or image, and the result of a split."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from prefect_augment.array_types import Array, Int, Int8, Int32
from prefect_augment.storage.external_sort import PartitionedRows
from prefect_augment.storage.keys import KEY, Coded, as_keys, group_ids, joined, pairs_of_equals
from prefect_augment.storage.spill import ArraySpill, Workspace

PARTS = ("training", "validation", "holdout")
TRAINING, VALIDATION, HOLDOUT = 0, 1, 2

ROWS_AT_ONCE = 131_072
THUMBS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class ImageRows:
    """The ledger's entry of each image, by which later versions find its near-duplicates."""

    # (n_images,) content key of one of the cluster's first members, and strictness of its comparison
    clusters: Array = field(default_factory=lambda: np.zeros(0, dtype=KEY))
    levels: Int = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    thumbs: Int8 | ArraySpill = field(default_factory=lambda: np.zeros((0, 1024), dtype=np.int8))

    def __post_init__(self) -> None:
        object.__setattr__(self, "clusters", as_keys(self.clusters))
        object.__setattr__(self, "levels", np.asarray(self.levels, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Ledger:
    """Parts assigned so far, sorted by key and occurrence; arrays of shape (n,)."""

    salt: str  # fixed in the first version
    unit: str = "record"  # record, group:<column>, pattern:<expression> or near-duplicate
    # Content keys, or the groups' values as text; number among records of one key, 0 for groups.
    keys: Array = ()  # type: ignore[assignment]
    occurrences: Int32 = ()  # type: ignore[assignment]
    labels: Coded = ()  # type: ignore[assignment]  # empty for groups, which may hold several
    parts: Int8 = ()  # type: ignore[assignment]  # index into PARTS
    has_own_holdout: bool = False  # at another URI, so no record here may be in it
    images: ImageRows | None = None  # one row per key, for near-duplicate

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", as_keys(self.keys))
        object.__setattr__(self, "occurrences", np.asarray(self.occurrences, dtype=np.int32))
        object.__setattr__(self, "labels", Coded.of(self.labels))
        object.__setattr__(self, "parts", np.asarray(self.parts, dtype=np.int8))

    @property
    def digest(self) -> str:
        """sha256 of the content: equal for equal ledgers, however they are stored."""
        labels = self.labels.only_used()
        columns = [self.keys, labels.names, labels.codes, self.occurrences, self.parts]
        if self.images is not None:
            columns += [self.images.clusters, self.images.levels]
        described: list[tuple[np.dtype[Any], int, Iterable[Array]]]
        described = [(column.dtype, len(column), [column]) for column in columns]
        if self.images is not None:
            thumbs, n = self.images.thumbs, len(self.images.thumbs)
            pieces = (thumbs[i : i + THUMBS_AT_ONCE] for i in range(0, n, THUMBS_AT_ONCE))
            described.append((thumbs.dtype, n, pieces))
        return _digest(self, described)

    def rows_of(self, keys: Array) -> Int:
        """Return the row of each key, -1 for none; each row is taken once."""
        ids = group_ids(joined(self.keys, keys))
        return pairs_of_equals(ids[: len(self.keys)], ids[len(self.keys) :])

    def take(self, rows: slice) -> "Ledger":
        """Return some of the rows."""
        images = self.images
        return replace(
            self,
            keys=self.keys[rows],
            occurrences=self.occurrences[rows],
            labels=self.labels.take(rows),
            parts=self.parts[rows],
            images=images
            and ImageRows(images.clusters[rows], images.levels[rows], images.thumbs[rows]),
        )

    def blocks(self, size: int) -> "Iterator[Ledger]":
        """Yield the rows ``size`` at a time; one empty block for an empty ledger."""
        for start in range(0, max(1, len(self.keys)), size):
            yield self.take(slice(start, start + size))


class LedgerSpill:
    """A ledger by record on local disk, with the salt and unit of ``like``; label codes index ``names``."""

    images = None

    def __init__(self, like: Ledger, names: Array, workspace: Workspace) -> None:
        self.salt, self.unit, self.has_own_holdout = like.salt, like.unit, like.has_own_holdout
        self._like = Ledger(like.salt, like.unit, has_own_holdout=like.has_own_holdout)
        self._names = names
        self._is_used = np.zeros(len(names), dtype=bool)
        fields = [("key", KEY), ("label", np.int32), ("occurrence", np.int32), ("part", np.int8)]
        self._rows = PartitionedRows(workspace, np.dtype(fields))

    def append(self, piece: Ledger) -> None:
        """Add the next rows."""
        rows = np.zeros(len(piece.keys), dtype=self._rows.dtype)
        rows["key"], rows["label"] = piece.keys, piece.labels.codes
        rows["occurrence"], rows["part"] = piece.occurrences, piece.parts
        self._is_used[piece.labels.codes] = True
        self._rows.add(rows)

    def blocks(self, size: int) -> Iterator[Ledger]:
        """Yield the rows ``size`` at a time; one empty block for an empty ledger."""
        if len(self._rows) == 0:
            yield self._like
        for rows in self._rows.blocks(0, size):
            yield replace(
                self._like,
                keys=np.ascontiguousarray(rows["key"]),
                occurrences=rows["occurrence"],
                labels=Coded(rows["label"], self._names),
                parts=rows["part"],
            )

    @property
    def digest(self) -> str:
        """The digest that the equal :class:`Ledger` has."""
        codes = (np.cumsum(self._is_used) - 1).astype(np.int32)

        def column(name: str) -> tuple[np.dtype[Any], int, Iterable[Array]]:
            blocks = (rows[name] for rows in self._rows.blocks(0, ROWS_AT_ONCE))
            if name == "label":
                blocks = (codes[values] for values in blocks)
            return self._rows.dtype[name], len(self._rows), blocks

        names = self._names[self._is_used]
        columns = [column("key"), (names.dtype, len(names), [names])]
        columns += [column(name) for name in ("label", "occurrence", "part")]
        return _digest(self, columns)


def _digest(
    ledger: Ledger | LedgerSpill, columns: Iterable[tuple[np.dtype[Any], int, Iterable[Array]]]
) -> str:
    """Hash columns, each with its type, its length and its values in pieces."""
    digest = hashlib.sha256(repr((ledger.salt, ledger.unit, ledger.has_own_holdout)).encode())
    for dtype, n, pieces in columns:
        plain = dtype.kind in "OU"
        digest.update(f"{n} {plain} ".encode())
        for values in pieces:
            digest.update(
                repr(values.tolist()).encode() if plain else np.ascontiguousarray(values).data
            )
    return digest.hexdigest()


@dataclass(frozen=True)
class Assignment:
    """The result of :func:`assign`."""

    parts: Int8  # (n_records,) index into PARTS
    occurrences: Int  # (n_records,) as in the ledger; 0 with groups
    ledger: Ledger
    n_new: int = 0  # records that the old ledger did not know
    n_kept_against_mark: int = 0  # on the other side in the ledger than the hold-out column says
