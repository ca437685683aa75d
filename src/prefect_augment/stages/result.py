"""What a run says of itself when it ends."""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from prefect_augment.datatypes import (
    ApprovalDecision,
    ArmScore,
    BalancePlan,
    Commit,
    DatasetRef,
    GateReport,
    Recipe,
    ReportRef,
    RunResult,
    Verdict,
)
from prefect_augment.evaluation.disclosure import hiding
from prefect_augment.facts_privacy import Privacy
from prefect_augment.manifest import read_manifest
from prefect_augment.reading.staged import load_facts
from prefect_augment.storage import Store

__all__ = ["peak_rss_bytes", "summarise", "with_given"]


def summarise(
    dataset: DatasetRef,
    plan: BalancePlan,
    *,
    status: Literal[
        "published", "unchanged", "evaluated", "planned", "awaiting_approval", "rejected"
    ],
    started: float,
    store: Store | None = None,
    commit: Commit | None = None,
    scores: Sequence[ArmScore] = (),
    recipe: Recipe | None = None,
    verdict: Verdict | None = None,
    report: ReportRef | None = None,
    proposal: str = "",
    approval: ApprovalDecision | None = None,
) -> RunResult:
    """Return the run's result.

    Parameters
    ----------
    started : float
        ``time.monotonic()`` at the start.
    store : Store, optional
        The destination, to read the counts of what was published.
    proposal : str, optional
        Id of what somebody has to decide, or has decided.
    approval : ApprovalDecision, optional
        What somebody decided.
    """
    counts: dict[str, dict[str, dict[str, int]]] = {}
    page = f"{report.root}/{report.prefix}/report.html" if report else ""
    if commit is not None and store is not None:
        manifest = read_manifest(store, commit.version)
        for shard in manifest.shards:
            split = counts.setdefault(shard.split, {})
            for name, n in shard.class_counts.items():
                origins = split.setdefault(name, {})
                origins[shard.origin] = origins.get(shard.origin, 0) + n
        page = f"{store.uri}/{manifest.report}" if manifest.report else ""
    return RunResult(
        status=status,
        version=commit.version if commit else None,
        manifest=f"{commit.root}/{commit.manifest}" if commit else "",
        counts=counts,
        quarantined=dataset.n_quarantined,
        plan=plan,
        arms=tuple(scores),
        recipe=recipe,
        verdict=verdict,
        report=page,
        seconds=round(time.monotonic() - started, 2),
        peak_rss_bytes=peak_rss_bytes(),
        notes=plan.warnings,
        proposal=proposal,
        approval=approval,
    )


def with_given(
    result: RunResult,
    given: DatasetRef,
    judged: GateReport,
    privacy: Privacy | None,
    *,
    pictures: Literal["real", "synthetic", "none"],
    store: Store,
) -> RunResult:
    """Add what became of records that another tool made: those given are those judged and those quarantined.

    With ``pictures`` none, notes quote no value of them.
    """
    dropped = Counter[str]()
    for c in judged.classes:
        dropped.update({why: n for why, n in c.reasons.items() if why != "surplus"})
    why = ", ".join(f"{reason} {n:,}" for reason, n in dropped.most_common())
    said = [f"the gate would drop {sum(dropped.values()):,} of {given.n_records:,}: {why}"] * bool(
        why
    )
    notes = judged.notes
    if pictures == "none":
        facts = load_facts(given, store)
        strata = [name for c in result.plan.classes for name in (c.name, c.label)]
        notes = tuple(map(hiding({facts.label, *(c.name for c in facts.columns), *strata}), notes))
    counts = {
        "given": given.n_records + given.n_quarantined,
        "quarantined": given.n_quarantined,
        "judged": given.n_records,
        "passed": sum(c.n_passed for c in judged.classes),
        "kept": sum(c.n_kept for c in judged.classes),
    }
    return result.model_copy(
        update={
            "given": counts,
            "quarantined": result.quarantined + given.n_quarantined,
            "privacy": privacy.finding if privacy else "",
            "notes": (
                *result.notes,
                *notes,
                *said,
                *([privacy.sentence] if privacy else []),
            ),
        }
    )


def peak_rss_bytes() -> int:
    """Return the largest resident size that this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes everywhere but there
