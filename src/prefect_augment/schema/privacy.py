"""Results of the privacy measurement: shares, distances and intervals, never a record's values."""

from typing import Literal

from pydantic import AliasChoices, Field

from prefect_augment.schema.base import Interval, Result

Finding = Literal["leak", "gap", "none shown", "too few", "not measured"]
Records = Literal["drawn", "kept"]
AttackName = Literal[
    "nearest", "columns", "ranks", "density", "origins", "classifier", "singling out", "linkability", "inference"
]  # fmt: skip


class Attack(Result):
    """How well distances to synthetic records separate members of the training data from others."""

    auc: Interval  # share of pairs (a member, another) in the right order; 0.5 is chance
    n_members: int
    n_others: int
    # True positive rate at a false positive rate of 5 %; None below 20 others.
    detected_share: float | None = Field(
        default=None, validation_alias=AliasChoices("detected_share", "found_share")
    )


class AttackResult(Result):
    """One attack of several, over all classes.

    ``success`` is a share of pairs of a member and another (chance: one half), or of members where the
    attack is a risk by itself: singling out, linkability, inference. There ``chance`` is the share of others.
    """

    name: AttackName
    success: Interval
    chance: float
    detected: bool  # beyond what all attacks together reach by luck


class Closeness(Result):
    """Distances to the closest member, of synthetic records and of others."""

    synthetic_median: float
    synthetic_low: float  # the 5 % quantile
    others_median: float
    others_low: float
    nearer_share: float  # of the synthetic records, those below others_low; 0.05 is expected
    synthetic_copies: float  # share that equals a member
    others_copies: float


class Exposure(Result):
    """Share of the most isolated real records with a synthetic record among their k nearest."""

    n_members: int
    n_others: int
    members: float
    others: float  # expected also of the members without a leak
    difference: Interval


class ClassPrivacy(Result):
    """One class; measurements with too few records are None."""

    name: str
    n_synthetic: int
    attack: Attack | None
    closeness: Closeness | None
    exposure: Exposure | None
    finding: Finding


class PrivacySide(Result):
    """All drawn records, or those of them that were kept.

    ``attack`` and ``exposure`` are over all classes; intervals of single classes are simultaneous at 95 %.
    """

    records: Records
    n_synthetic: int
    attack: Attack | None
    closeness: Closeness | None
    exposure: Exposure | None
    classes: tuple[ClassPrivacy, ...]
    attacks: tuple[AttackResult, ...] = ()  # all that were tried, the first of them ``attack``
    finding: Finding
    sentence: str


class Privacy(Result):
    """What synthetic records reveal about the records that they were made from."""

    members: str  # in words: the records that models were trained on
    others: str  # in words: other real records
    feature_space: str
    k: int  # neighbours of an isolated record
    rare_share: float  # most isolated records of each class
    sides: tuple[PrivacySide, ...]  # published records first
    finding: Finding
    sentence: str  # in plain words
    notes: tuple[str, ...] = ()
