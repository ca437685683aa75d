"""What a report may say of real records: texts without their values where it may show none.

Reasons and notes quote values: the cell that is no number, the class that is unknown. Pictures, shapes and
neighbours are left out where they are drawn; here the words are.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Collection

from prefect_augment.report.json import ReportData

__all__ = ["HIDDEN", "disclosable", "hiding"]

HIDDEN = "'…'"
# As repr writes text: in single quotes, or in double ones where it holds a single one. No letter stands
# before the first, or the apostrophes of "others' records and others'" would be a pair.
_QUOTED = re.compile(r"""(?<!\w)'((?:[^'\\]|\\.)*)'|(?<!\w)"((?:[^"\\]|\\.)*)\"""")


def disclosable(data: ReportData) -> ReportData:
    """Return what the report may show.

    Parameters
    ----------
    data : ReportData

    Returns
    -------
    ReportData
        The same where ``pictures`` is ``real``. Else values that are quoted in reasons and notes are
        hidden; names of columns, classes and strata stay. With ``none`` also those of synthetic records.
    """
    if data.pictures == "real":
        return data
    hide = hiding(_names(data))
    quarantine: Counter[str] = Counter()
    for reason, n in data.quarantine.items():
        quarantine[hide(reason)] += n
    candidates = data.candidates
    method_notes = tuple(map(hide, data.method_notes))
    if candidates is not None and data.pictures == "none":
        candidates = candidates.model_copy(update={"notes": tuple(map(hide, candidates.notes))})
    elif candidates is not None:
        shown = set(candidates.notes)
        method_notes = tuple(n if n in shown else hide(n) for n in data.method_notes)
    return dataclasses.replace(
        data,
        quarantine=dict(quarantine),
        notes=tuple(map(hide, data.notes)),
        method_notes=method_notes,
        columns=tuple(c.model_copy(update={"note": hide(c.note)}) for c in data.columns),
        candidates=candidates,
    )


def _names(data: ReportData) -> set[str]:
    """Words that may be quoted: they are no record's own."""
    names = {data.label, *(c.name for c in data.columns), *data.counts_before, *data.not_compared}
    if data.plan is not None:
        names |= {name for c in data.plan.classes for name in (c.name, c.label, *c.by)}
    return names


def hiding(names: Collection[str]) -> Callable[[str], str]:
    """A function that hides what a text quotes, but for these names."""

    def replaced(match: re.Match[str]) -> str:
        quoted = match[1] if match[1] is not None else match[2]
        return match[0] if quoted in names else HIDDEN

    return lambda text: _QUOTED.sub(replaced, text)
