"""The privacy measurement over all classes, and its sentences for the report."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prefect_augment.array_types import Array, Int
from prefect_augment.evaluation.neighbours import Space
from prefect_augment.evaluation.privacy.attack_suite import (
    RATES,
    ClassScores,
    Suite,
    most_real,
    run_suite,
    score_class,
)
from prefect_augment.evaluation.privacy.membership_inference import (
    K_EXPOSED,
    MIN_RECORDS,
    RARE_SHARE,
    Distances,
    attack,
    closeness,
    exposure,
    measure_distances,
)
from prefect_augment.schema import (
    Attack,
    AttackName,
    ClassPrivacy,
    Exposure,
    Finding,
    Interval,
    Privacy,
    PrivacySide,
    Records,
)
from prefect_augment.text import count, percent

MAX_NAMED = 5  # classes in a sentence
LIMITS = (
    "The attacks look for copies, for records changed a little or by one rule, and for parts of records. If "
    "they find nothing, another attack still may."
)
CUT_LEVEL = 0.995  # of the attack by distance on records that the other attacks leave out


@dataclass(frozen=True)
class Part:
    """Records with their class codes and groups."""

    X: Array  # (n, ...)
    y: Int
    groups: Int | None = None

    def of(self, k: int, most: int) -> tuple[Array, Int]:
        """The first ``most`` records of a class, and their groups; without any, each is its own."""
        rows = np.flatnonzero(self.y == k)[:most]
        return self.X[rows], rows if self.groups is None else self.groups[rows]


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
    scored: list[ClassScores] = []
    n_synthetic = {name: int((synthetic.y == k).sum()) for k, name in enumerate(classes)}
    n_classes = max(1, sum(n > 0 for n in n_synthetic.values()))
    for k, name in enumerate(classes):
        if not n_synthetic[name]:
            continue
        own, own_groups = members.of(k, max_real)
        unseen, unseen_groups = others.of(k, max_real)
        if not len(own) or not len(unseen):
            continue
        drawn = synthetic.of(k, max_synthetic)[0]
        measured[name] = measure_distances(
            own, unseen, drawn, space=space, member_groups=own_groups, other_groups=unseen_groups
        )
        if min(len(own), len(unseen)) >= MIN_RECORDS:
            scored.append(
                score_class(
                    name, measured[name], own, unseen, drawn, space=space, n_classes=n_classes
                )
            )
    suite = run_suite(scored)
    distances = list(measured.values())
    # The classes' attacks and the exposure over all hold together at 95 %, beside the attack over all.
    level = 1.0 - 0.05 / (1 + len(measured))
    whole, exposed = attack(distances), exposure(distances, level=level)
    by_class = []
    for name, n in n_synthetic.items():
        of_class = [measured[name]] if name in measured else []
        if n:
            by_class.append(
                ClassPrivacy(
                    name=name,
                    n_synthetic=n,
                    attack=attack(of_class, level=level),
                    closeness=closeness(of_class),
                    exposure=exposure(of_class, level=level),
                    finding=suite.classes.get(name, "too few") if suite else "too few",
                )
            )
    finding = _finding(suite, distances, most_real(n_classes))
    return PrivacySide(
        records=records,
        n_synthetic=sum(n_synthetic.values()),
        attack=whole,
        closeness=closeness(distances),
        exposure=exposed,
        classes=tuple(by_class),
        attacks=suite.results if suite else (),
        finding=finding,
        sentence=_sentence(records, finding, whole, exposed, by_class, suite, names),
    )


def _finding(suite: Suite | None, distances: Sequence[Distances], most: int) -> Finding:
    """What the attacks find; where they leave records out, also what the distances of all of them show."""
    if suite is None:
        return "too few"
    if suite.finding == "none shown" and any(max(d.n_pairs) > most for d in distances):
        over_all = attack(distances, level=CUT_LEVEL)
        if over_all is not None and not over_all.auc.low <= 0.5 <= over_all.auc.high:
            return "leak" if over_all.auc.low > 0.5 else "gap"
    return suite.finding


def _sentence(
    records: Records,
    finding: Finding,
    whole: Attack | None,
    exposed: Exposure | None,
    classes: Sequence[ClassPrivacy],
    suite: Suite | None,
    names: SideNames,
) -> str:
    subject = SUBJECTS[records]
    if not classes:
        return f"{subject}: there are none."
    if whole is None or suite is None:
        return (
            f"{subject}: no class has five records of {names.members} and five of {names.others}, so "
            "privacy cannot be measured."
        )
    sentences = [f"{subject} {MEANINGS[finding]}", _strongest(suite, whole, finding, names)]
    leaking = [c.name for c in classes if c.finding == "leak"]
    if leaking and not any(a.detected for a in suite.results):
        sentences.append(f"In single classes attacks do better than chance: {_listed(leaking)}.")
    if exposed is not None:
        sentences.append(
            f"Of the most isolated {100 * RARE_SHARE:.0f} % of them, {percent(exposed.members)} % have a "
            f"synthetic record as their nearest; {percent(exposed.others)} % are expected by chance."
        )
    return " ".join(sentences)


def _strongest(suite: Suite, whole: Attack, finding: Finding, names: SideNames) -> str:
    """The attack that succeeds most; the one by distance where none is found."""
    detected = [a for a in suite.results if a.detected]
    given = f"Given one record of {names.members} and one of {names.others}, both of a class, "
    best = max(detected, key=lambda a: a.success.estimate - a.chance, default=suite.results[0])
    if best.name == "nearest":
        # Without a find a simple interval might say more than all attacks together show.
        shown = suite.results[0].success if finding == "none shown" else whole.auc
        level = "all attacks together: " if finding == "none shown" else "95 %: "
        return (
            f"{given}guessing that the one nearer to a synthetic record is the first is right in "
            f"{_shares(shown, level)} of cases; chance is 50 %."
        )
    lead = f"The strongest of {count(len(suite.results))} attacks looks at {ATTACKS[best.name]}."
    success = _shares(best.success, "all attacks together: ")
    if best.name in RATES:
        return (
            f"{lead} It succeeds on {success} of the records that they were made from; on "
            f"{percent(best.chance)} % of others, which is what chance gives."
        )
    return f"{lead} {given}it tells which is which in {success} of cases; chance is 50 %."


ATTACKS: dict[AttackName, str] = {
    "nearest": "the nearest synthetic record",
    "columns": "the nearest synthetic record in a part of the columns",
    "ranks": "the order of the values within each column, which shifts and other scales leave as it is",
    "density": "how dense synthetic records are around a record, over how dense real ones are (DOMIAS)",
    "origins": "how many synthetic records a record is the likeliest origin of",
    "classifier": "all the others together, by a classifier that knows which are which of other records",
    "singling out": "conditions that hold for one synthetic record alone",
    "linkability": "whether two halves of the columns lead to the same synthetic record",
    "inference": "a column that is guessed from the synthetic record nearest in the others",
}
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


def _shares(interval: Interval, level: str = "95 %: ") -> str:
    low, high = percent(interval.low), percent(interval.high)
    return f"{percent(interval.estimate)} % ({level}{low} to {high})"


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

    ``why_blind`` says why the others may have been seen, which makes the measurement blind; else it is empty.
    """
    main = sides[0]
    blind = bool(why_blind) and main.finding in ("none shown", "gap")
    finding: Finding = "not measured" if blind else main.finding
    sentences = [main.sentence, *([] if main.finding == "too few" else [LIMITS])]
    for side in sides[1:]:
        if main.records == "kept" and side.finding == "leak":
            sentences.insert(
                1, "The model's records before the filter leak: do not share the model."
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
