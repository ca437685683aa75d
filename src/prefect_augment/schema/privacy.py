"""Facts of the privacy measurement: shares, distances and intervals, never a value of a record."""

from __future__ import annotations

from typing import Literal

from prefect_augment.schema.base import Interval, Result

__all__ = ["Attack", "ClassPrivacy", "Closeness", "Exposure", "Privacy", "PrivacySide"]

Finding = Literal["leak", "gap", "none shown", "too few", "not measured"]
Records = Literal["drawn", "kept"]


class Attack(Result):
    """How well distances to synthetic records tell who was in the training data."""

    auc: Interval  # share of pairs (a member, another) told apart rightly; 0.5 is guessing
    n_members: int
    n_others: int
    # Of the members, those nearer than all but the nearest 5 % of the others; None below 20 others.
    found_share: float | None = None


class Closeness(Result):
    """Distances to the closest record among the members, of synthetic records and of others."""

    synthetic_median: float
    synthetic_low: float  # the 5 % quantile
    others_median: float
    others_low: float
    nearer_share: float  # of the synthetic ones, those nearer than others_low: 0.05 is expected
    synthetic_copies: float  # share that equals a member
    others_copies: float


class Exposure(Result):
    """Of the most isolated real records, those with a synthetic record among their k nearest."""

    n_members: int
    n_others: int
    members: float
    others: float  # what is expected of the members, too, where nothing leaks
    difference: Interval


class ClassPrivacy(Result):
    """One class; what it has too few records for is None."""

    name: str
    n_synthetic: int
    attack: Attack | None
    closeness: Closeness | None
    exposure: Exposure | None
    finding: Finding


class PrivacySide(Result):
    """All drawn records, or those of them that were kept.

    ``attack`` and ``exposure`` are over all classes; the classes' own intervals hold together at 95 %.
    """

    records: Records
    n_synthetic: int
    attack: Attack | None
    closeness: Closeness | None
    exposure: Exposure | None
    classes: tuple[ClassPrivacy, ...]
    finding: Finding
    sentence: str


class Privacy(Result):
    """What synthetic records give away about the records that they were made from."""

    members: str  # in words: what the records were made from
    others: str  # real records that they were not made from
    feature_space: str
    k: int  # neighbours of an isolated record
    rare_share: float  # most isolated records of each class
    sides: tuple[PrivacySide, ...]  # what goes out first
    finding: Finding
    sentence: str  # what it means, in plain words
    notes: tuple[str, ...] = ()
