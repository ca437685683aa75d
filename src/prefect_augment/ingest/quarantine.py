"""Quarantine: the rejected records of a source, with file, position, reason and content."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.array_types import Bool, Int, Int32

# Binary values up to this size are kept whole in the quarantine.
MAX_SHOWN_BYTES = 256
ROWS_AT_ONCE = 4_096  # Python objects of so many rows are alive at a time
SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("position", pa.int64()),
        ("reason", pa.string()),
        ("record", pa.string()),
    ]
)


@dataclass(frozen=True)
class Batch:
    """Some records of a source."""

    table: pa.Table  # category columns as plain values
    file_index: Int32  # (n_records,) index of the source file
    positions: Int  # (n_records,) row or line in it, from 1

    def filter(self, keep: Bool) -> "Batch":
        """Return some of the records."""
        if keep.all():
            return self
        return Batch(self.table.filter(pa.array(keep)), self.file_index[keep], self.positions[keep])


class Quarantine:
    """Rejected records, with file, position and reason."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths
        self.by_file = np.zeros(len(paths), dtype=np.int64)
        self._tables: list[pa.Table] = []
        self._rows: list[tuple[str, int, str, str]] = []

    def add(self, file: int, position: int, reason: str, record: str, *, path: str = "") -> None:
        """Add one record."""
        self.by_file[file] += 1
        self._rows.append((path or self.paths[file], position, reason, record))
        if len(self._rows) >= ROWS_AT_ONCE:
            self._flush()

    def reject(self, batch: Batch, unusable: Bool, reason: str) -> Batch:
        """Add the records where ``unusable`` is true and return the others."""
        return self._reject(batch, unusable, repeat(reason), repeat(""))

    def reject_each(
        self, batch: Batch, reasons: Sequence[str], details: Sequence[str] | None = None
    ) -> Batch:
        """Add the records that have a reason and return the others; ``details`` are kept with them."""
        unusable = np.fromiter(map(bool, reasons), dtype=bool, count=len(reasons))
        rows = np.flatnonzero(unusable).tolist()
        more = repeat("") if details is None else (details[i] for i in rows)
        return self._reject(batch, unusable, (reasons[i] for i in rows), more)

    def _reject(
        self, batch: Batch, unusable: Bool, reasons: Iterable[str], details: Iterable[str]
    ) -> Batch:
        rows = np.flatnonzero(unusable)
        why = zip(reasons, details, strict=False)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[start : start + ROWS_AT_ONCE]
            records = batch.table.take(pa.array(some)).to_pylist()
            for i, record in zip(some.tolist(), records, strict=True):
                reason, detail = next(why)
                if detail:
                    record = {**record, "detail": detail}
                text = json.dumps(record, ensure_ascii=False, default=_plain_text)
                self.add(int(batch.file_index[i]), int(batch.positions[i]), reason, text)
        return batch.filter(~unusable)

    def __len__(self) -> int:
        return int(self.by_file.sum())

    def table(self, *, prefix: str = "", previous: pa.Table | None = None) -> pa.Table:
        """Return file, position, reason and record of each, sorted by file and position.

        ``prefix`` is put before file names; ``previous`` is such a table of files read by earlier runs.
        """
        self._flush()
        whole = pa.concat_tables([SCHEMA.empty_table(), *self._tables])
        if prefix:
            named = pc.binary_join_element_wise(prefix, whole["file"], "")
            whole = whole.set_column(0, SCHEMA.field(0), named)
        if previous is not None:
            whole = pa.concat_tables([previous.cast(SCHEMA), whole])
        keys = [("file", "ascending"), ("position", "ascending"), ("reason", "ascending")]
        return whole.sort_by(keys)

    def _flush(self) -> None:
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
            self._tables.append(pa.table(arrays, schema=SCHEMA))
            self._rows = []


def by_reason(table: pa.Table) -> Counter[str]:
    """Return how many records have each reason."""
    counts = table["reason"].value_counts().to_pylist()
    return Counter({item["values"]: item["counts"] for item in counts})


def _plain_text(value: Any) -> str:
    if not isinstance(value, bytes):
        return str(value)
    # The file leads back to an image; a bomb in the quarantine would be one more bomb.
    return value.hex() if len(value) <= MAX_SHOWN_BYTES else f"{len(value)} bytes"
