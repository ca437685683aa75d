"""Dates as text, for formats that tell numbers from text and have no dates of their own: ISO 8601 alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.shards.csv_types import DATE, TIMESTAMP, ZONED

__all__ = ["DateKind", "date_kinds", "to_dates"]

NANOSECONDS = r"\.\d{7,9}"
# Name, pattern, and the type for seconds of up to six digits and of up to nine.
KINDS = (
    ("date", DATE, pa.date32(), pa.date32()),
    ("point in time", TIMESTAMP, pa.timestamp("us"), pa.timestamp("ns")),
    ("point in time with zone", ZONED, pa.timestamp("us", "UTC"), pa.timestamp("ns", "UTC")),
)


@dataclass(frozen=True)
class DateKind:
    """A kind of date that the texts of a column can be, and the Arrow type they take.

    ``fits_fine`` tells whether all of them fit the type of nanoseconds, which ends in 2262.
    """

    name: str
    arrow_type: pa.DataType
    fits_fine: bool = True


def date_kinds(text: pa.Array, so_far: Sequence[DateKind] | None) -> list[DateKind]:
    """Return the kinds of dates that all values are.

    Parameters
    ----------
    text : pyarrow.Array of string
        Values of one batch, without nulls.
    so_far : sequence of DateKind or None
        What the batches before can be; None for the first.
    """
    found = []
    for name, pattern, coarse, fine in KINDS:
        earlier = next((kind for kind in so_far or () if kind.name == name), None)
        if so_far is not None and earlier is None:
            continue
        if not pc.all(pc.match_substring_regex(text, pattern)).as_py():
            continue
        is_fine = pc.any(pc.match_substring_regex(text, NANOSECONDS)).as_py()
        is_fine = is_fine or (earlier is not None and earlier.arrow_type == fine != coarse)
        fits_fine = (earlier is None or earlier.fits_fine) and _converts(text, fine)
        if fits_fine if is_fine else _converts(text, coarse):
            found.append(DateKind(name, fine if is_fine else coarse, fits_fine))
    return found


def _converts(text: pa.Array, arrow_type: pa.DataType) -> bool:
    """Whether all that look like a date are one: 2024-02-30 is not, nor fits 1600 in nanoseconds."""
    try:
        to_dates(text, arrow_type)
    except pa.ArrowInvalid:
        return False
    return True


def to_dates(text: pa.Array, arrow_type: pa.DataType) -> pa.Array:
    """Return text that :func:`date_kinds` found to be dates as such."""
    return text.cast(arrow_type)
