"""Publish: the report, then the shards, then the manifest that makes them a version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from prefect import task

from prefect_augment.experiment.filter import unfiltered
from prefect_augment.params import AutoModel, Balance, Classic, Gate, Publish, Report
from prefect_augment.plan.plan import plan as make_plan
from prefect_augment.plan.strategies import plain_recipe
from prefect_augment.publish.publish import publish
from prefect_augment.publish.synthetic_records import classic_counts
from prefect_augment.report.build import report
from prefect_augment.schema.base import (
    ApprovalDecision,
    BalancePlan,
    Commit,
    DatasetRef,
    FilterResult,
    ModelRef,
    Recipe,
    ReportRef,
    StrategyScore,
    Verdict,
)
from prefect_augment.schema.report import Findings
from prefect_augment.tasks._events import emit_published
from prefect_augment.tasks._runtime import (
    TASK_OPTIONS,
    artifact_key,
    dataset_slug,
    markdown_artifact,
    named,
    open_block_store,
    progress,
    run_log,
)

__all__ = ["publish_dataset", "write_report"]


@task(
    name="write_report",
    task_run_name=named(lambda p: f"report on {dataset_slug(p['dataset'].root)}"),
    **TASK_OPTIONS,
)
def write_report(
    dataset: DatasetRef,
    plan: BalancePlan,
    *,
    scores: Sequence[StrategyScore] = (),
    verdict: Verdict | None = None,
    recipe: Recipe | None = None,
    gate: FilterResult | None = None,
    model: ModelRef | None = None,
    pictures: Report | None = None,
    classic: Classic | None = None,
    status: Literal["published", "proposed", "refused", "evaluated"] = "published",
    approval: ApprovalDecision | None = None,
    findings: Findings | None = None,
    seed: int = 0,
) -> ReportRef:
    """Write the page that shows what was done and whether it helped.

    Parameters
    ----------
    dataset, plan
        What was asked.
    scores, verdict, recipe, gate, model
        What was found; whatever is missing is shown as not run.
    pictures : Report, optional
        Whether real records may appear.
    classic : Classic, optional
        The policy that picture sheets of images show at work.
    status : {"published", "proposed", "refused", "evaluated"}
        What becomes of the run.
    approval : ApprovalDecision, optional
        Who let the version out, where somebody was asked.
    findings : Findings, optional
        Further measurements, each shown in a section of its own.
    seed : int
        The run's seed.

    Returns
    -------
    ReportRef
        The report's files, staged; also shown as an artifact.
    """
    with run_log():
        ref, summary = report(
            dataset,
            plan=plan,
            scores=scores,
            verdict=verdict,
            recipe=recipe,
            gate=gate,
            model=model,
            pictures=(pictures or Report()).pictures,
            classic=classic,
            status=status,
            approval=approval,
            findings=findings or Findings(),
            seed=seed,
            store=open_block_store(dataset.root, dataset.block),
        )
        key = artifact_key(dataset_slug(dataset.root), "report")
        markdown_artifact(key, summary, "Report")
        return ref


@task(
    name="publish_dataset",
    task_run_name=named(lambda p: f"publish {dataset_slug(p['dataset'].root)}"),
    **TASK_OPTIONS,
)
def publish_dataset(
    dataset: DatasetRef,
    candidates: FilterResult | DatasetRef | None = None,
    *,
    plan: BalancePlan | None = None,
    recipe: Recipe | None = None,
    verdict: Verdict | None = None,
    classic: DatasetRef | None = None,
    models: Sequence[ModelRef] = (),
    report: ReportRef | None = None,
    settings: Publish | None = None,
    params: dict[str, Any] | None = None,
    approval: ApprovalDecision | None = None,
) -> Commit:
    """Write the version's shards, then its manifest: readers see all of it or nothing.

    Parameters
    ----------
    dataset : DatasetRef
        The real records; their root is the destination.
    candidates : FilterResult or DatasetRef, optional
        Synthetic records to publish: judged ones, or sampled ones as they are, which the manifest
        then says.
    plan : BalancePlan, optional
        Names the strata; the default plan's otherwise.
    recipe : Recipe, optional
        How many records of each kind, and their weights. Otherwise all that were given; where synthetic
        ones have soft labels, weighted so that each class counts as much as its target.
    verdict, classic, models, report
        The evidence, and the other records to go with it.
    settings : Publish, optional
        How shards are written.
    params : dict, optional
        The run's parameters, for the manifest.
    approval : ApprovalDecision, optional
        Who let the version out, where somebody was asked.

    Returns
    -------
    Commit
        The version; ``created`` is False where the same inputs had been published before.
    """
    with run_log(), progress("publish", dataset.root) as on_progress:
        store = open_block_store(dataset.root, dataset.block)
        gate = unfiltered(candidates, store) if isinstance(candidates, DatasetRef) else candidates
        plan = plan or make_plan(
            dataset, balance=Balance(), model=AutoModel(), gate=Gate(), store=store
        )
        if recipe is None:
            made = classic_counts(store, classic) if classic else {}
            kept, shares = (gate.kept_counts, gate.shares) if gate else ({}, {})
            recipe = plain_recipe(plan, kept, shares, made)
        commit = publish(
            dataset=dataset,
            plan=plan,
            recipe=recipe,
            verdict=verdict,
            gate=gate,
            classic=classic,
            models=models,
            report=report,
            publish=settings or Publish(),
            params=params or {},
            store=store,
            approval=approval,
            on_progress=on_progress,
        )
        if commit.created:
            emit_published(store, commit)
        return commit
