"""The privacy measurement over all classes, and its sentences for the report."""

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
from prefect_augment.schema import (
    Attack,
    ClassPrivacy,
    Exposure,
    Finding,
    Interval,
    Privacy,
    PrivacySide,
    Records,
)
from prefect_augment.text import count, percent

__all__ = ["LIMITS", "Part", "SideNames", "privacy_side", "summarise"]

Int = NDArray[np.int64]

MAX_NAMED = 5  # classes in a sentence
LIMITS = (
    "This is one attack, by distance. It finds copies and records that were changed a little; if it "
    "finds nothing, another attack still may."
)


@dataclass(frozen=True)
class Part:
    """Records with their class codes and groups."""

    X: NDArray[Any]  # (n, ...)
    y: Int
    groups: Int | None = None

    def of(self, k: int, most: int) -> tuple[NDArray[Any], Int | None]:
        """The first ``most`` records of a class, and their groups."""
        rows = np.flatnonzero(self.y == k)[:most]
        return self.X[rows], None if self.groups is None else self.groups[rows]


@dataclass(frozen=True)
class SideNames:
    """What the report calls members and others."""

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
    max_real: int,
    max_synthetic: int,
    names: SideNames,
) -> PrivacySide:
    """Measure one set of synthetic records.

    The first records of large classes count, so all parts are in random order. ``space`` must be
    made without knowing who is a member.
    """
    measured: dict[str, Distances] = {}
    n_synthetic = {name: int((synthetic.y == k).sum()) for k, name in enumerate(classes)}
    for k, name in enumerate(classes):
        if not n_synthetic[name]:
            continue
        own, own_groups = members.of(k, max_real)
        unseen, unseen_groups = others.of(k, max_real)
        if not len(own) or not len(unseen):
            continue
        measured[name] = measure_distances(
            own,
            unseen,
            synthetic.of(k, max_synthetic)[0],
            space=space,
            member_groups=own_groups,
            other_groups=unseen_groups,
        )
    distances = list(measured.values())
    # The classes' attacks and the exposure over all hold together at 95 %, beside the attack over all.
    level = 1.0 - 0.05 / (1 + len(measured))
    whole, exposed = attack(distances), exposure(distances, level=level)
    by_class = tuple(
        _of_class(name, n, measured.get(name), level) for name, n in n_synthetic.items() if n
    )
    finding = _finding(whole, exposed, by_class)
    return PrivacySide(
        records=records,
        n_synthetic=sum(n_synthetic.values()),
        attack=whole,
        closeness=closeness(distances),
        exposure=exposed,
        classes=by_class,
        finding=finding,
        sentence=_sentence(records, finding, whole, exposed, by_class, names),
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


def _of_attack(result: Attack | None) -> Finding:
    if result is None:
        return "too few"
    if result.auc.low > 0.5:
        return "leak"
    return "gap" if result.auc.high < 0.5 else "none shown"


def _finding(
    whole: Attack | None, exposed: Exposure | None, classes: Sequence[ClassPrivacy]
) -> Finding:
    over_all = _of_attack(whole)
    if over_all == "leak" or any(c.finding == "leak" for c in classes):
        return "leak"
    if exposed is not None and exposed.difference.low > 0:
        return "leak"
    if any(c.finding == "gap" for c in classes):
        return "gap"
    return over_all


def _sentence(
    records: Records,
    finding: Finding,
    whole: Attack | None,
    exposed: Exposure | None,
    classes: Sequence[ClassPrivacy],
    names: SideNames,
) -> str:
    subject = SUBJECTS[records]
    if not classes:
        return f"{subject}: there are none."
    if whole is None:
        return (
            f"{subject}: no class has five records of {names.members} and five of {names.others}, so "
            "privacy cannot be measured."
        )
    sentences = [
        f"{subject} {MEANINGS[finding]}",
        (
            f"Given one record of {names.members} and one of {names.others}, both of a class, guessing "
            "that the one nearer to a synthetic record is the first is right in "
            f"{_shares(whole.auc)} of cases; chance is 50 %."
        ),
    ]
    leaking = [c.name for c in classes if c.finding == "leak"]
    if leaking and whole.auc.low <= 0.5:
        sentences.append(f"In single classes that is more than chance: {_listed(leaking)}.")
    if exposed is not None:
        sentences.append(
            f"Of the most isolated {100 * RARE_SHARE:.0f} % of them, {percent(exposed.members)} % have a "
            f"synthetic record as their nearest; {percent(exposed.others)} % are expected by chance."
        )
    return " ".join(sentences)


SUBJECTS = {
    "drawn": "All synthetic records together",
    "kept": "The synthetic records that were kept",
}
MEANINGS: dict[Finding, str] = {
    "leak": "reveal which real records they were made from: protect them like the real records.",
    "gap": "keep a distance from the real records they were made from, which reveals those: protect "
    "them like the real records.",
    "none shown": "reveal no more about the real records they were made from than about others like them.",
    "too few": "",
    "not measured": "",
}


def _shares(interval: Interval) -> str:
    return f"{percent(interval.estimate)} % (95 %: {percent(interval.low)} to {percent(interval.high)})"


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {count(rest)} more" if rest > 0 else "")


def summarise(
    sides: Sequence[PrivacySide],
    *,
    names: SideNames,
    feature_space: str,
    notes: Sequence[str] = (),
    why_blind: str = "",
) -> Privacy:
    """The measurement as the report shows it; the finding of ``sides[0]``, what is handed out, is the whole's.

    ``why_blind`` says why the others may have been seen, which makes the measurement blind; else it
    is empty.
    """
    main = sides[0]
    blind = bool(why_blind) and main.finding in ("none shown", "gap")
    finding: Finding = "not measured" if blind else main.finding
    sentences = [main.sentence, *([] if main.finding == "too few" else [LIMITS])]
    for side in sides[1:]:
        if main.records == "kept" and side.finding == "leak" and side.attack is not None:
            sentences.insert(
                1,
                f"The model's records before the filter leak ({_shares(side.attack.auc)}, or in a class or "
                "among isolated records): do not share the model.",
            )
    return Privacy(
        members=names.members,
        others=names.others,
        feature_space=feature_space,
        k=K_EXPOSED,
        rare_share=RARE_SHARE,
        sides=tuple(sides),
        finding=finding,
        sentence=why_blind if blind else " ".join(sentences),
        notes=(*notes, *([why_blind] if why_blind else [])),
    )
