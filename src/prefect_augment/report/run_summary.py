"""The result of a run as an object, a sentence and a page of markdown."""

import re
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from prefect_augment.report.environment import render
from prefect_augment.report.view_model import quotable, redactor
from prefect_augment.schema import (
    ApprovalDecision,
    Commit,
    DatasetRef,
    FilterResult,
    Manifest,
    Privacy,
    Release,
    ReportRef,
    RunResult,
    class_counts,
)
from prefect_augment.shards.staged import load_info
from prefect_augment.storage import Store, read_manifest
from prefect_augment.text import duration, markdown_text

Status = Literal["published", "unchanged", "evaluated", "planned", "awaiting_approval", "rejected"]


def summarise(
    release: Release,
    *,
    status: Status,
    started: float,
    store: Store | None = None,
    commit: Commit | None = None,
    report: ReportRef | None = None,
    proposal: str = "",
    approval: ApprovalDecision | None = None,
) -> RunResult:
    """Result of the run; ``started`` is ``time.monotonic()`` at its start.

    ``store`` is the destination, to read the counts of the ``commit``; ``report`` is where nothing
    was published; ``proposal`` is the id of what has to be approved, or was.
    """
    plan = release.experiment.plan
    counts: dict[str, dict[str, dict[str, int]]] = {}
    page = f"{report.root}/{report.prefix}/report.html" if report else ""
    if report and store is not None:
        page = store.place(f"{report.prefix}/report.html")
    if commit is not None and store is not None:
        manifest = read_manifest(store, commit.version)
        counts = class_counts(manifest.shards)
        page = store.place(manifest.report) if manifest.report else ""
    return RunResult(
        status=status,
        version=commit.version if commit else None,
        manifest=f"{commit.root}/{commit.manifest}" if commit else "",
        counts=counts,
        quarantined=release.dataset.n_quarantined,
        plan=plan,
        strategies=release.scores,
        recipe=release.recipe,
        verdict=release.verdict,
        report=page,
        seconds=round(time.monotonic() - started, 2),
        peak_rss_bytes=peak_rss_bytes(),
        notes=plan.warnings,
        proposal=proposal,
        approval=approval,
    )


def with_external(
    result: RunResult,
    external: DatasetRef,
    filtered: FilterResult,
    privacy: Privacy | None,
    *,
    pictures: Literal["real", "synthetic", "none"],
    store: Store,
) -> RunResult:
    """Add the counts of another tool's records: given, quarantined, filtered, passed and kept.

    With ``pictures="none"`` notes quote none of their values.
    """
    dropped = Counter[str]()
    for c in filtered.classes:
        dropped.update({why: n for why, n in c.reasons.items() if why != "surplus"})
    why = ", ".join(f"{reason} {n:,}" for reason, n in dropped.most_common())
    filter_notes = [
        f"the filter would drop {sum(dropped.values()):,} of {external.n_records:,}: {why}"
    ] * bool(why)
    notes = filtered.notes
    if pictures == "none":
        info = load_info(external, store)
        notes = tuple(map(redactor(quotable(info.label, info.columns, result.plan)), notes))
    counts = {
        "given": external.n_records + external.n_quarantined,
        "quarantined": external.n_quarantined,
        "filtered": external.n_records,
        "passed": sum(c.n_passed for c in filtered.classes),
        "kept": sum(c.n_kept for c in filtered.classes),
    }
    return result.model_copy(
        update={
            "external": counts,
            "quarantined": result.quarantined + external.n_quarantined,
            "privacy": privacy.finding if privacy else "",
            "notes": (
                *result.notes,
                *notes,
                *filter_notes,
                *([privacy.sentence] if privacy else []),
            ),
        }
    )


def peak_rss_bytes() -> int:
    """Largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes everywhere but there


MAX_CLASSES = 50
MAX_SHARDS = 20


def outcome_sentence(result: RunResult, root: str) -> str:
    """What became of a run, and what to do next if anything; ``root`` is the destination."""
    verdict = f" {' '.join(result.verdict.answers)}" if result.verdict else ""
    if result.status == "published":
        n = sum(sum(origins.values()) for origins in result.counts.get("train", {}).values())
        recipe = f" Recipe: {result.recipe.strategy.name}." if result.recipe else ""
        approval = f" {result.approval.sentence}" if result.approval else ""
        version = f" Published version {result.version} with {n:,} training records."
        return f"{verdict}{version}{recipe}{approval}".lstrip()  # the answer comes first
    if result.status == "unchanged":
        return f"Nothing new: the same inputs are version {result.version}.{verdict}"
    if result.status == "awaiting_approval":
        return (
            f"Nothing is published yet: the version waits for approval.{verdict} "
            f"To decide: prefect-augment approve {root} {result.proposal}"
        )
    if result.status == "rejected":
        decision = result.approval.sentence if result.approval else "It was rejected."
        return (
            f"Nothing was published. {decision} The rejection holds for this version; to decide again, set "
            "approval.ask_again, or use prefect-augment approve --again."
        )
    if result.status == "planned":
        estimate = result.plan.estimate
        return f"Plan only: nothing was published. A run takes about {duration(estimate.seconds)}."
    return f"Evaluated only: nothing was published.{verdict}"


def run_page(result: RunResult, root: str, manifest: Manifest | None) -> str:
    """A page of escaped markdown: the verdict, the version, counts before and after, links."""
    target = Counter[str]()
    for entry in result.plan.classes:
        target[entry.label] += entry.target
    without_answers = result.model_copy(update={"verdict": None})  # which stand above
    text = render(
        "run.md.j2",
        result=result,
        outcome=outcome_sentence(without_answers, root),
        before=result.plan.real_counts,
        target=target,
        after={name: sum(n.values()) for name, n in result.counts.get("train", {}).items()},
        max_classes=MAX_CLASSES,
        root=root,
        manifest=manifest,
        max_shards=MAX_SHARDS,
        where=where,
    )
    return text + "\n"


def where(name: str, uri: str) -> str:
    """A link in markdown; a local path becomes a file URL, and special characters are encoded."""
    url = uri if re.match(r"[a-z][a-z0-9+.-]*://", uri) else Path(uri).absolute().as_uri()
    return f"[{markdown_text(name)}]({quote(url, safe='/:%?&=#@+~-._')})"
