"""The report's section on privacy: what the synthetic records give away, over all and per class."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from prefect_augment.report.markup import (
    bullets,
    folded,
    heading,
    name,
    paragraph,
    table,
    tag,
)
from prefect_augment.schema.base import Interval
from prefect_augment.schema.privacy import (
    Attack,
    ClassPrivacy,
    Closeness,
    Exposure,
    Finding,
    Privacy,
    PrivacySide,
)
from prefect_augment.text import MISSING, count, number, percent

__all__ = ["section"]

TITLES = {"drawn": "All records that were drawn", "kept": "Records that were kept"}
SHORT = {"drawn": "drawn", "kept": "kept"}
MEASURED = ("AUC (95 %)", "Members found, %")
NEAR = ("Distance", "of others", "Near, %", "Copies, %")
ISOLATED = ("Isolated, %", "expected, %")
SAID: dict[Finding, tuple[str, str]] = {
    "leak": ("more than luck", "reject"),
    "gap": ("a gap around them", "reject"),
    "none shown": ("nothing shown", "accept"),
    "too few": ("too few records", "none"),
    "not measured": ("not measured", "inconclusive"),
}
MAX_CLASSES = 100


def section(info: Privacy | None) -> str:
    """The section's HTML.

    Parameters
    ----------
    info : Privacy, optional

    Returns
    -------
    str
        Empty where nothing was measured. Holds numbers and class names, no value of any record.
    """
    if info is None:
        return ""
    parts = [
        heading("Privacy: what the synthetic records give away"),
        paragraph(info.sentence, lead=True),
        _over_all(info.sides),
        *(_side(side, is_open=i == 0) for i, side in enumerate(info.sides) if side.classes),
        heading("How it was measured", level=3),
        bullets(_method(info)),
    ]
    return str(Markup("").join(parts))


def _over_all(sides: Sequence[PrivacySide]) -> Markup:
    head = ["Synthetic records", "Number", "Found", *MEASURED, *NEAR[2:], *ISOLATED]
    rows = [
        [
            SHORT[side.records],
            count(side.n_synthetic),
            tag(*SAID[side.finding]),
            *_attack(side.attack),
            *_closeness(side.closeness)[2:],
            *_exposure(side.exposure),
        ]
        for side in sides
    ]
    return table("Privacy over all classes", head, rows, numbers={1, *range(3, 9)})


def _side(side: PrivacySide, *, is_open: bool) -> Markup:
    head = ["Class", "Synthetic", "Found", "Members", "Others", *MEASURED, *NEAR, *ISOLATED]
    rows = [_row(c) for c in side.classes[:MAX_CLASSES]]
    title = f"{TITLES[side.records]}, per class"
    shown = table(f"Privacy: {title.lower()}", head, rows, numbers={1, *range(3, 13)})
    if len(side.classes) > MAX_CLASSES:
        rest = count(len(side.classes) - MAX_CLASSES)
        shown += paragraph(f"… and {rest} more classes, in report.json.")
    return heading(title, level=3) + shown if is_open else folded(title, shown)


def _row(c: ClassPrivacy) -> list[object]:
    return [
        name(c.name),
        count(c.n_synthetic),
        tag(*SAID[c.finding]),
        count(c.attack.n_members if c.attack else None),
        count(c.attack.n_others if c.attack else None),
        *_attack(c.attack),
        *_closeness(c.closeness),
        *_exposure(c.exposure),
    ]


def _attack(found: Attack | None) -> tuple[str, str]:
    if found is None:
        return MISSING, MISSING
    return _auc(found.auc), percent(found.found_share)


def _auc(interval: Interval) -> str:
    return f"{interval.estimate:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _closeness(found: Closeness | None) -> tuple[str, str, str, str]:
    if found is None:
        return MISSING, MISSING, MISSING, MISSING
    return (
        number(found.synthetic_median),
        number(found.others_median),
        percent(found.nearer_share),
        percent(found.synthetic_copies),
    )


def _exposure(found: Exposure | None) -> tuple[str, str]:
    return (MISSING, MISSING) if found is None else (percent(found.members), percent(found.others))


def _method(info: Privacy) -> list[str]:
    return [
        f"Members are real records of {info.members}; others are real records of {info.others}.",
        (
            "AUC: the attack takes a real record for a member the nearer its nearest synthetic record of the "
            "class is, as measured by how far the real records around it lie apart. It is the share of pairs of "
            "a member and another that are told apart; 0.5 is luck, 1 always."
        ),
        "Members found: how many, where 5 % of the others are accused wrongly.",
        (
            "Distance: the median to the nearest member, of synthetic records and of others. Near: synthetic "
            "records nearer to a member than the nearest 5 % of the others are; 5 % are expected. Copies: "
            "those that equal a member."
        ),
        (
            f"Isolated are the {100 * info.rare_share:.0f} % of each class with the fewest real records around "
            "them; they are found out first, and means over all records hide it. Shown is how many members "
            "among them have a synthetic record as their nearest; expected is the share among others."
        ),
        (
            "Intervals of the classes and of the isolated records hold together at 95 %; equal records and "
            "groups count together."
        ),
        f"Feature space: {info.feature_space}.",
        *info.notes,
    ]
