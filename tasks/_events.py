"""Events that other deployments and notifications can be triggered by.

``prefect-augment.dataset.published`` and ``prefect-augment.run.refused`` carry the dataset as their
resource. Outside a run nothing is sent.
"""

from typing import Any

from prefect.events import emit_event

from prefect_augment.schema import Commit, ReportRef, Verdict
from prefect_augment.storage import Store, read_manifest
from prefect_augment.tasks._display import artifact_key, dataset_slug, in_run

PUBLISHED = "prefect-augment.dataset.published"
REFUSED = "prefect-augment.run.refused"

# Beyond this the event carries totals only; the manifest has the counts per class.
MAX_CLASSES = 200


def dataset_resource(uri: str) -> dict[str, str]:
    """Return a dataset as the resource of an event.

    >>> dataset_resource("s3://lake/Defects/")["prefect.resource.id"]
    'prefect-augment.dataset.lake-defects'
    """
    slug = artifact_key(dataset_slug(uri))
    return {
        "prefect.resource.id": f"prefect-augment.dataset.{slug}",
        "prefect.resource.name": slug,
        "prefect-augment.uri": uri,
    }


def emit_published(store: Store, commit: Commit) -> None:
    """Announce a published version: where it is, what is in it, and its verdict."""
    if not in_run():
        return
    manifest = read_manifest(store, commit.version)
    totals = {
        split: sum(sum(origins.values()) for origins in classes.values())
        for split, classes in manifest.class_counts.items()
    }
    few = all(len(classes) <= MAX_CLASSES for classes in manifest.class_counts.values())
    payload: dict[str, Any] = {
        "uri": store.uri,
        "version": commit.version,
        "manifest": f"{commit.root}/{commit.manifest}",
        "content_digest": commit.content_digest,
        "report": f"{store.uri}/{manifest.report}" if manifest.report else "",
        "n_records": totals,
        "counts": manifest.class_counts if few else {},
        "verdict": manifest.verdict.decision if manifest.verdict else "not compared",
        "answers": list(manifest.verdict.answers) if manifest.verdict else [],
        "reasons": list(manifest.verdict.reasons) if manifest.verdict else [],
        "recipe": manifest.recipe.strategy.name,
        "sentence": manifest.recipe.sentence,
    }
    emit_event(PUBLISHED, resource=dataset_resource(store.uri), payload=payload)


def emit_refused(uri: str, verdict: Verdict, report: ReportRef) -> None:
    """Announce that a run was refused, why, and where its report is."""
    if not in_run():
        return
    payload = {
        "uri": uri,
        "verdict": verdict.decision,
        "answers": list(verdict.answers),
        "reasons": list(verdict.reasons),
        "strategy": verdict.chosen,
        "report": f"{report.root}/{report.prefix}/report.html",
    }
    emit_event(REFUSED, resource=dataset_resource(uri), payload=payload)
