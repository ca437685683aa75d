"""What a version's records look like in few numbers, and what changed since the version before."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prefect_augment.schema.base import Interval, Result

__all__ = ["ClassDrift", "ColumnContent", "ColumnDrift", "Contents", "Drift", "StrategyDrift"]


class ColumnContent(Result):
    """How the values of a column lie, without any record.

    ``at_most`` counts the values up to each of ``points``; ``counts`` those in the bins between
    ``edges``, the outer bins holding what lies beyond. Dates are days since 1970. All of them are
    empty where the report may not show real values.
    """

    name: str
    kind: Literal["numeric", "date", "category"]
    n: int  # values, of the records that were looked at
    n_null: int
    points: tuple[float, ...] = ()
    at_most: tuple[int, ...] = ()
    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    levels: dict[str, int] = Field(default_factory=dict)  # the most frequent ones
    n_levels: int = 0  # all of them


class Contents(Result):
    """What the real training records of a version look like, for the next version to compare with.

    Of images the columns are brightness, contrast, width and height, and ``mean_picture`` is the
    mean of the images at 8×8 pixels in gray, row by row.
    """

    run: str  # names what the report is of
    n_records: int
    n_looked_at: int  # the records with the smallest ids
    classes: dict[str, int]
    columns: tuple[ColumnContent, ...] = ()
    sketch: tuple[
        str, ...
    ] = ()  # the smallest ids, folded: they say how many records two versions share
    mean_picture: tuple[float, ...] = ()
    picture_spread: tuple[float, ...] = ()  # standard deviation of each of its pixels


class ClassDrift(Result):
    """A class's real training records before and now."""

    name: str
    before: int  # 0: the class is new
    now: int  # 0: the class is gone
    noise: float  # how far its share would move by chance
    changed: bool

    @property
    def is_new(self) -> bool:
        """Whether the version before had no record of it."""
        return self.before == 0


class ColumnDrift(Result):
    """A column's values before and now.

    ``distance`` is the largest gap between the two cumulative distributions for numbers and dates, the
    total variation distance for categories; ``noise`` what it stays below, by chance alone, in 99 of
    100 versions, all columns taken together. Both are None where there was nothing to compare.
    """

    column: str
    kind: Literal["numeric", "date", "category", "picture"]
    status: Literal["same", "changed", "new", "gone", "not compared"]
    why: str = ""  # not compared
    distance: float | None = None
    noise: float | None = None
    null_before: float | None = None  # shares of the records
    null_now: float | None = None
    null_noise: float | None = None
    null_changed: bool = False
    new_levels: dict[str, int] = Field(default_factory=dict)  # level -> records now
    vanished_levels: dict[str, int] = Field(default_factory=dict)  # level -> records before
    edges: tuple[float, ...] = ()
    levels: tuple[str, ...] = ()
    before: tuple[float, ...] = ()  # shares of the values, per bin or level
    now: tuple[float, ...] = ()


class StrategyDrift(Result):
    """A strategy's balanced accuracy before and now."""

    name: str
    validation_before: float | None = None
    validation_now: float | None = None
    holdout_before: Interval | None = None
    holdout_now: Interval | None = None
    changed: bool = False  # on the hold-out, by more than the two intervals allow


class Drift(Result):
    """What changed since the version before."""

    version: int  # the one before
    n_before: int
    n_now: int
    n_shared: int  # records that are in both, estimated where there are many
    classes: tuple[ClassDrift, ...]
    columns: tuple[ColumnDrift, ...]
    strategies: tuple[StrategyDrift, ...] = ()
    recipe_before: str = ""
    recipe_now: str = ""
    verdict_before: str = ""
    verdict_now: str = ""
    notes: tuple[str, ...] = ()
    sentence: str = ""  # the whole of it, for the artifact and the card
