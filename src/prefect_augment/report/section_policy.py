"""The report's section on a policy of classic augmentation: whether changed images keep their class."""

from __future__ import annotations

from prefect_augment.report.markup import (
    Picture,
    figures,
    heading,
    name,
    note,
    paragraph,
    table,
    tag,
)
from prefect_augment.schema.report import PolicyCheck
from prefect_augment.text import MISSING, count, percent, visible

__all__ = ["section"]


def section(check: PolicyCheck | None, sheet: bytes | None) -> str:
    """HTML of the section, with the sheet of changed images where they may be shown; empty for none."""
    if check is None:
        return ""
    bad = ", ".join(op.name for op in check.damaging)
    said = (
        f"These operations may change what an image shows: {bad}."
        if bad
        else "No operation changes what the probe sees."
    )
    rows = [
        (
            name(op.name),
            percent(op.rate),
            percent(op.low),
            name(op.worst_class),
            percent(op.worst_rate),
            name(op.becomes) if op.becomes else MISSING,
            tag("may damage", "reject") if op.damages else "",
        )
        for op in check.operations
    ]
    head = (
        "Operation", "Another class, %", "At least, %", "Worst class", "Of it, %", "Taken for", "",
    )  # fmt: skip
    alt = f"Images as they are, and under each operation of the policy {visible(check.policy)}."
    return str(
        heading(f"Policy check: {visible(check.policy)}")
        + (note(f"Not judged: {check.note}.") if check.note else paragraph(said, lead=True))
        + paragraph(
            f"A classifier that is right about {percent(check.accuracy)} % of {count(check.n_images)} real validation "
            "images was shown each of them under every operation, always applied. It has not learnt strong "
            "changes: what it takes for another class may still be its own to you. Look at the pictures."
        )
        + (figures(Picture(sheet, alt, photo=True)) if sheet else "")
        + table("Operations of the policy", head, rows, numbers=(1, 2, 4))
    )
