"""Redaction: the report's texts without values of real records, where it may not show any.

Reasons and notes quote values: a cell that is no number, an unknown class. Sheets and shapes are made
without real records where those may not be shown.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable

from prefect_augment.report.json import ReportData
from prefect_augment.schema import BalancePlan, ColumnInfo

HIDDEN = "'…'"
# As repr writes text: in single quotes, or in double ones where it contains a single one. No letter
# comes before the first, or the apostrophes of "others' records and others'" would be a pair.
_QUOTED = re.compile(r"""(?<!\w)'((?:[^'\\]|\\.)*)'|(?<!\w)"((?:[^"\\]|\\.)*)\"""")


def redact(data: ReportData) -> ReportData:
    """The data that the report may show; everything where ``pictures`` is ``real``.

    Otherwise doubted labels, neighbours and values that reasons and notes quote are hidden, with ``none``
    also those of synthetic records. Names of columns, classes and strata stay.
    """
    if data.pictures == "real":
        return data
    hide = redactor({*quotable(data.label, data.columns, data.plan), *data.counts_before})
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
    sheets = data.sheets if data.pictures == "synthetic" else {}
    return data.model_copy(
        update={
            "quarantine": dict(quarantine),
            "notes": tuple(map(hide, data.notes)),
            "method_notes": method_notes,
            "columns": tuple(c.model_copy(update={"note": hide(c.note)}) for c in data.columns),
            "candidates": candidates,
            "neighbours": (),
            "doubted": (),
            "shapes": data.shapes if data.pictures == "synthetic" else (),
            "sheets": sheets,
            "images": {file: data.images[file] for file in sheets.values()},
        }
    )


def quotable(label: str, columns: Iterable[ColumnInfo], plan: BalancePlan | None) -> set[str]:
    """Texts that may be quoted, since they are no record's values."""
    strata = plan.classes if plan else ()
    names = {name for c in strata for name in (c.name, c.label, *c.by)}
    return {label, *(column.name for column in columns)} | names


def redactor(names: Collection[str]) -> Callable[[str], str]:
    """A function that hides what a text quotes, except these names."""

    def replace(match: re.Match[str]) -> str:
        quoted = match[1] if match[1] is not None else match[2]
        return match[0] if quoted in names else HIDDEN

    return lambda text: _QUOTED.sub(replace, text)
