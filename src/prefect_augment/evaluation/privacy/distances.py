"""The privacy measurement over all classes, and what it means in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefect_augment.evaluation.neighbours import Space
from prefect_augment.evaluation.privacy.membership_inference import (
    K_EXPOSED,
    RARE_SHARE,
    Distances,
    attack,
    closeness,
    exposure,
    measure_distances,
)
from prefect_augment.schema.base import Interval
from prefect_augment.schema.privacy import (
    Attack,
    ClassPrivacy,
    Exposure,
    Finding,
    Privacy,
    PrivacySide,
    Records,
)
from prefect_augment.text import count, percent

__all__ = ["LIMITS", "Part", "Words", "privacy_side", "summed_up"]

Int = NDArray[np.int64]

NAMED = 5  # classes in a sentence
LIMITS = (
    "This is one attack, by distance. It finds copies and records that were changed a little; that it "
    "finds nothing is no proof that nothing can be found."
)


@dataclass(frozen=True)
class Part:
    """Records with their classes: ``X`` of shape (n_records, ...), class codes, groups."""

    X: NDArray[Any]
    y: Int
    groups: Int | None = None

    def of(self, k: int, most: int) -> tuple[NDArray[Any], Int | None]:
        """The first records of a class, and their groups."""
        rows = np.flatnonzero(self.y == k)[:most]
        return self.X[rows], None if self.groups is None else self.groups[rows]


@dataclass(frozen=True)
class Words:
    """What the sides are called."""

    members: str  # "the records that the generator was fitted on (fit)"
    others: str


def privacy_side(
    records: Records,
    members: Part,
    others: Part,
    synthetic: Part,
    *,
    classes: Sequence[str],
    space: Space,
    most_real: int,
    most_synthetic: int,
    words: Words,
) -> PrivacySide:
    """Measure one set of synthetic records.

    Parameters
    ----------
    records : {"drawn", "kept"}
    members, others, synthetic : Part
        In an order by chance: of large classes the first records are looked at.
    classes : sequence of str
        Names in code order.
    space : Space
        Made without knowing who is a member.
    most_real, most_synthetic : int
        Records of a class that are looked at, per side.
    words : Words
    """
    measured: dict[str, Distances] = {}
    n_synthetic = {name: int((synthetic.y == k).sum()) for k, name in enumerate(classes)}
    for k, name in enumerate(classes):
        if not n_synthetic[name]:
            continue
        own, own_groups = members.of(k, most_real)
        other, other_groups = others.of(k, most_real)
        if not len(own) or not len(other):
            continue
        measured[name] = measure_distances(
            own,
            other,
            synthetic.of(k, most_synthetic)[0],
            space=space,
            member_groups=own_groups,
            other_groups=other_groups,
        )
    everything = list(measured.values())
    # The classes' attacks and the exposure over all hold together at 95 %, beside the attack over all.
    level = 1.0 - 0.05 / (1 + len(measured))
    whole, rare = attack(everything), exposure(everything, level=level)
    found = tuple(
        _of_class(name, n, measured.get(name), level) for name, n in n_synthetic.items() if n
    )
    finding = _finding(whole, rare, found)
    return PrivacySide(
        records=records,
        n_synthetic=sum(n_synthetic.values()),
        attack=whole,
        closeness=closeness(everything),
        exposure=rare,
        classes=found,
        finding=finding,
        sentence=_sentence(records, finding, whole, rare, found, words),
    )


def _of_class(name: str, n: int, distances: Distances | None, level: float) -> ClassPrivacy:
    if distances is None:
        return ClassPrivacy(
            name=name, n_synthetic=n, attack=None, closeness=None, exposure=None, finding="too few"
        )
    own = attack([distances], level=level)
    return ClassPrivacy(
        name=name,
        n_synthetic=n,
        attack=own,
        closeness=closeness([distances]),
        exposure=exposure([distances], level=level),
        finding=_of_attack(own),
    )


def _of_attack(found: Attack | None) -> Finding:
    if found is None:
        return "too few"
    if found.auc.low > 0.5:
        return "leak"
    return "gap" if found.auc.high < 0.5 else "none shown"


def _finding(
    whole: Attack | None, rare: Exposure | None, classes: Sequence[ClassPrivacy]
) -> Finding:
    over_all = _of_attack(whole)
    if over_all == "leak" or any(c.finding == "leak" for c in classes):
        return "leak"
    if rare is not None and rare.difference.low > 0:
        return "leak"
    if any(c.finding == "gap" for c in classes):
        return "gap"
    return over_all


# --- in words -----------------------------------------------------------------------------------


def _sentence(
    records: Records,
    finding: Finding,
    whole: Attack | None,
    rare: Exposure | None,
    classes: Sequence[ClassPrivacy],
    words: Words,
) -> str:
    subject = SUBJECTS[records]
    if not classes:
        return f"{subject}: there are none."
    if whole is None:
        return (
            f"{subject}: no class has five records of {words.members} and five of {words.others}, so "
            "nothing can be said of what they give away."
        )
    parts = [
        f"{subject} {MEANINGS[finding]}",
        (
            f"An attacker who has a real record of {words.members} and one of {words.others}, both of "
            "a class, and takes the one nearer to a synthetic record for the first, is right in "
            f"{_shares(whole.auc)} of the cases; luck is 50 %."
        ),
    ]
    leaking = [c.name for c in classes if c.finding == "leak"]
    if leaking and whole.auc.low <= 0.5:
        parts.append(f"In single classes that is more than luck: {_listed(leaking)}.")
    if rare is not None:
        parts.append(
            f"Of the most isolated {100 * RARE_SHARE:.0f} % of them, {percent(rare.members)} % have a "
            f"synthetic record as their nearest, where {percent(rare.others)} % were to be expected."
        )
    return " ".join(parts)


SUBJECTS = {
    "drawn": "All synthetic records together",
    "kept": "The synthetic records that were kept",
}
MEANINGS: dict[Finding, str] = {
    "leak": "show who was among the real records that they were made from: guard them as you guard "
    "the real records.",
    "gap": "keep away from the real records that they were made from, and so give them away: guard "
    "them as you guard the real records.",
    "none shown": "show no more of the real records that they were made from than of others like them.",
    "too few": "",
    "not measured": "",
}


def _shares(interval: Interval) -> str:
    return f"{percent(interval.estimate)} % (95 %: {percent(interval.low)} to {percent(interval.high)})"


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {count(rest)} more" if rest > 0 else "")


def summed_up(
    sides: Sequence[PrivacySide],
    *,
    words: Words,
    feature_space: str,
    notes: Sequence[str] = (),
    unusable: str = "",
) -> Privacy:
    """The measurement as the report has it.

    Parameters
    ----------
    sides : sequence of PrivacySide
        What goes out first: its finding is the whole's.
    words : Words
    feature_space : str
    notes : sequence of str
    unusable : str
        Why the others may have been seen, which makes the measurement blind; empty where they were
        not.
    """
    main = sides[0]
    blind = bool(unusable) and main.finding in ("none shown", "gap")
    finding: Finding = "not measured" if blind else main.finding
    said = [main.sentence, *([] if main.finding == "too few" else [LIMITS])]
    for other in sides[1:]:
        if main.records == "kept" and other.finding == "leak" and other.attack is not None:
            said.insert(
                1,
                f"What the model drew before the gate leaks ({_shares(other.attack.auc)}, or in a class or "
                "among isolated records): do not hand on the model.",
            )
    return Privacy(
        members=words.members,
        others=words.others,
        feature_space=feature_space,
        k=K_EXPOSED,
        rare_share=RARE_SHARE,
        sides=tuple(sides),
        finding=finding,
        sentence=unusable if blind else " ".join(said),
        notes=(*notes, *([unusable] if unusable else [])),
    )
