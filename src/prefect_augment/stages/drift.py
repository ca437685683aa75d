"""Drift: what changed since the version before, from what its report keeps; its records stay unread."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from pydantic import ValidationError

from prefect_augment.datatypes import (
    ArmScore,
    DatasetFacts,
    DatasetRef,
    Fact,
    Recipe,
    Verdict,
)
from prefect_augment.errors import IntegrityError, SchemaError
from prefect_augment.evaluation.drift import (
    arm_drifts,
    class_drifts,
    column_drifts,
    drift_sentence,
    n_shared,
)
from prefect_augment.facts_drift import Contents, Drift
from prefect_augment.manifest import Manifest, list_versions, read_manifest
from prefect_augment.reading.staged import load_facts
from prefect_augment.stages.contents import read_sample
from prefect_augment.staging import Stage, stage_key
from prefect_augment.storage import Store

__all__ = ["Before", "find_before", "look"]

logger = logging.getLogger(__name__)

ALGORITHM_VERSION = 1
# A report is some 100 kB to some MB; one that is larger is none of ours.
MAX_REPORT_BYTES = 256 << 20


class Before(Fact):
    """The version that a run compares itself with: its manifest's and its report's facts."""

    version: int
    classes: dict[str, int]  # real training records
    recipe: Recipe
    verdict: Verdict | None
    contents: Contents | None
    val: dict[str, float]  # arm -> balanced accuracy
    notes: tuple[str, ...] = ()


class _Looked(Fact):
    """The receipt of a look at the records."""

    contents: Contents
    drift: Drift | None


def find_before(store: Store, run: str) -> Before | None:
    """Return the newest version that is not the run's own; None where there is none.

    A run that comes again upon what it has published compares itself with the version before that, so
    that its report stays the same.
    """
    for version in reversed(list_versions(store)):
        try:
            manifest = read_manifest(store, version)
        except (IntegrityError, SchemaError) as exc:
            logger.info("drift: version %d is left out: %s", version, exc)
            continue
        facts, notes = _report(store, manifest)
        contents = _contents(facts)
        if contents is not None and contents.run == run:
            continue
        if contents is None and not notes:
            notes = (f"The report of version {version} keeps no facts about its columns.",)
        return Before(
            version=version,
            classes=_classes(manifest),
            recipe=manifest.recipe,
            verdict=manifest.verdict,
            contents=contents,
            val=_val(facts),
            notes=notes,
        )
    return None


def _classes(manifest: Manifest) -> dict[str, int]:
    return {
        name: origins["real"]
        for name, origins in manifest.class_counts.get("train", {}).items()
        if origins.get("real")
    }


def _report(store: Store, manifest: Manifest) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return a version's report.json, and what is to be said where there is none."""
    version = manifest.version
    path = next((f.path for f in manifest.report_files if f.path.endswith("/report.json")), "")
    if not path:
        return {}, (f"Version {version} has no report: only what its manifest says is compared.",)
    try:
        if store.size(path) > MAX_REPORT_BYTES:
            raise ValueError("it is too large")
        facts = json.loads(store.read(path))
        if not isinstance(facts, dict):
            raise ValueError("it is no object")
    except FileNotFoundError:
        return {}, (f"The report of version {version} is gone: columns are not compared.",)
    except (ValueError, RecursionError) as exc:
        return {}, (f"The report of version {version} cannot be read: {exc}.",)
    return facts, ()


def _contents(facts: dict[str, Any]) -> Contents | None:
    try:
        return Contents.model_validate(facts["contents"]) if facts.get("contents") else None
    except ValidationError:  # of another release
        return None


def _val(facts: dict[str, Any]) -> dict[str, float]:
    """Return each arm's mean score on val; what another release wrote otherwise is left out."""
    found: dict[str, list[float]] = {}
    try:
        for score in facts.get("arm_scores") or ():
            found.setdefault(str(score["arm"]["name"]), []).append(float(score["score"]))
    except (KeyError, TypeError, ValueError):
        return {}
    return {name: fmean(scores) for name, scores in found.items()}


def look(
    dataset: DatasetRef,
    before: Before | None,
    *,
    run: str,
    show: bool,
    scores: Sequence[ArmScore],
    verdict: Verdict | None,
    recipe: Recipe | None,
    store: Store,
) -> tuple[Contents, Drift | None]:
    """Return what the training records look like, and what changed since the version before.

    Parameters
    ----------
    dataset : DatasetRef
        Fit and val are read, as many records as a distance needs; the hold-out is not.
    before : Before or None
        From :func:`find_before`.
    run : str
        Names what the report is of.
    show : bool
        Whether the report may hold real values. Where it may not, nothing is kept of the columns but
        how many values are empty, and the next version says so.
    scores, verdict, recipe
        Of this run.
    store : Store
    """
    key = stage_key(
        "drift", algorithm_version=ALGORITHM_VERSION, params=[run, show, before],
        inputs=[dataset.key, dataset.digest],
    )  # fmt: skip
    stage = Stage(store, "drift", key)
    looked = stage.outcome(_Looked)
    if looked is None:
        looked = stage.finish(_look(load_facts(dataset, store), before, run, show, store))
    if looked.drift is None or before is None:
        return looked.contents, None
    drift = looked.drift.model_copy(
        update={
            "arms": arm_drifts((before.val, before.verdict), (scores, verdict)),
            "recipe_before": before.recipe.arm.name,
            "recipe_now": recipe.arm.name if recipe else "",
            "verdict_before": before.verdict.decision if before.verdict else "",
            "verdict_now": verdict.decision if verdict else "",
        }
    )
    return looked.contents, drift.model_copy(update={"sentence": drift_sentence(drift)})


def _look(
    facts: DatasetFacts, before: Before | None, run: str, show: bool, store: Store
) -> _Looked:
    sample = read_sample(store, facts, run=run)
    now = sample.contents(show=show)
    if before is None:
        return _Looked(contents=now, drift=None)
    old, notes = before.contents, before.notes
    shared = n_shared(old, now) if old else 0
    if old and not show:
        notes += ("This report may not hold real values, so columns are not compared.",)
    return _Looked(
        contents=now,
        drift=Drift(
            version=before.version,
            n_before=sum(before.classes.values()),
            n_now=now.n_records,
            n_shared=shared,
            classes=class_drifts(before.classes, now.classes, shared),
            columns=column_drifts(old, now, sample.on(old), shared) if old and show else (),
            notes=notes,
        ),
    )
