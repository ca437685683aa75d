"""Publish: the report, then the shards, then the manifest that makes them a version."""

from typing import Literal

from prefect_augment.plan.strategies import plain_recipe
from prefect_augment.publish.publish import publish, publish_part as write_part
from prefect_augment.publish.synthetic_records import classic_counts
from prefect_augment.report.build import report
from prefect_augment.schema import ApprovalDecision, Commit, Release, ReportRef
from prefect_augment.tasks._display import artifact_key, dataset_slug, markdown_artifact, progress
from prefect_augment.tasks._events import emit_published
from prefect_augment.tasks._runtime import open_root, step


@step(lambda p: f"report on {dataset_slug(p['release'].dataset.root)}")
def write_report(
    release: Release,
    *,
    status: Literal["published", "proposed", "refused", "evaluated"] = "published",
    approval: ApprovalDecision | None = None,
) -> ReportRef:
    """Write the page that shows what was done and whether it helped.

    Parameters
    ----------
    release : Release
        Missing parts are shown as not run.
    status : {"published", "proposed", "refused", "evaluated"}
        What becomes of the run.
    approval : ApprovalDecision, optional
        Who approved the version.

    Returns
    -------
    ReportRef
        The report's files, staged; also shown as an artifact.
    """
    dataset = release.dataset
    with progress("write the report"):
        ref, summary = report(release, open_root(dataset), status=status, approval=approval)
        key = artifact_key("report", dataset_slug(dataset.root))
        markdown_artifact(key, summary, "Report: strategies, classes, pictures")
        return ref


@step(lambda p: f"publish {dataset_slug(p['release'].dataset.root)}")
def publish_dataset(
    release: Release, report: ReportRef | None = None, *, approval: ApprovalDecision | None = None
) -> Commit:
    """Write the version's shards, then its manifest: readers see all of it or nothing.

    Parameters
    ----------
    release : Release
        Without a recipe all records are published. Those with soft labels are then weighted so that
        each class counts as much as its target.
    report : ReportRef, optional
        Kept beside the version.
    approval : ApprovalDecision, optional
        Who approved the version.

    Returns
    -------
    Commit
        The version; ``created`` is False where the same inputs had been published before.
    """
    dataset = release.dataset
    with progress("publish", dataset.root) as on_progress:
        store = open_root(dataset)
        if release.recipe is None:
            candidates = release.experiment.candidates
            classic = classic_counts(store, release.classic) if release.classic else {}
            kept, shares = (candidates.kept_counts, candidates.shares) if candidates else ({}, {})
            recipe = plain_recipe(release.experiment.plan, kept, shares, classic)
            release = release.model_copy(update={"recipe": recipe})
        commit = publish(release, report, store, approval=approval, on_progress=on_progress)
        if commit.created:
            emit_published(store, commit)
        return commit


@step(lambda p: f"publish, part {p['part'] + 1} of {p['n_parts']}")
def publish_part(release: Release, *, part: int, n_parts: int) -> int:
    """Write a part of the version's shards for :func:`publish_dataset`, which makes them visible.

    Parameters
    ----------
    release : Release
        With a recipe.
    part, n_parts : int
        Which part, from 0, of how many.

    Returns
    -------
    int
        How many of the staged shards and other portions are this part's.
    """
    return write_part(release, open_root(release.dataset), part=part, n_parts=n_parts)
