"""The main job: from a labelled, imbalanced dataset to a balanced, compared and published one."""

import logging
import time

from prefect_augment import params
from prefect_augment.errors import RefusedError
from prefect_augment.evaluation.classifiers.own_estimator import check_estimators
from prefect_augment.evaluation.verdict.answers import with_controls, with_safety
from prefect_augment.experiment.audit import counted_records, with_doubted
from prefect_augment.experiment.confirmation import refusal_reason
from prefect_augment.flows._approval import announce, publish_or_ask
from prefect_augment.flows._classic import with_classic
from prefect_augment.flows._compare import Comparison, compare, compare_first, synthesize
from prefect_augment.flows._flow import DestinationLike, SourceLike, flow, named_by_source
from prefect_augment.flows._inputs import (
    as_json,
    check_before_work,
    check_comparison,
    check_encoder,
    check_parameters,
    ingested,
    reading,
)
from prefect_augment.plan.strategies import make_recipe
from prefect_augment.plan.weights import keep_weights
from prefect_augment.report.run_summary import summarise
from prefect_augment.schema import Experiment, Release, ReportRef, RunResult
from prefect_augment.tasks._display import STEPS
from prefect_augment.tasks._events import emit_refused
from prefect_augment.tasks._runtime import conclude, open_root, run
from prefect_augment.tasks.plan import plan_balance
from prefect_augment.tasks.publish import write_report

logger = logging.getLogger(__name__)


@flow("rebalance", named_by_source)
def rebalance(
    source: SourceLike = params.Source(),
    destination: DestinationLike = params.Destination(),
    balance: params.Balance = params.Balance(),
    model: params.ModelParams = params.AutoModel(),
    classic: params.Classic = params.Classic(),
    encoder: params.Encoder = params.Encoder(),
    budget: params.Budget = params.Budget(),
    evaluation: params.Evaluation = params.Evaluation(),
    quality: params.Quality = params.Quality(),
    approval: params.Approval = params.Approval(),
    publish: params.Publish = params.Publish(),
    report: params.Report = params.Report(),
    compute: params.Compute = params.Compute(),
    seed: int = 0,
    plan_only: bool = False,
    label: str = "",
) -> RunResult:
    """Bring the rare classes of a labelled dataset up, in the way that helps on held-out real data.

    Args:
        source: Where the labelled records are. Empty: the built-in example.
        destination: Where the balanced dataset is published, version by version.
        balance: How far the rare classes are brought up.
        model: The generative model.
        classic: Classic augmentation.
        encoder: A pretrained network of yours for images.
        budget: How much effort the run may take.
        evaluation: How strategies are compared, and what happens where synthetic records do not help.
        quality: What synthetic records have to meet, and what happens where they leak.
        approval: Whether somebody has to say yes before anything is published.
        publish: What is written.
        report: What may be seen in the report.
        compute: Where tasks run, and how many at the same time.
        seed: Seed of everything random; the same input, parameters and seed give the same bytes.
        plan_only: Show the plan and an estimate; train and publish nothing.
        label: The column that holds the class, where the source does not name it.

    From Python, source and destination may also be a path or URL, and source a pandas, polars or Arrow table or a
    ``datasets.Dataset``: ``rebalance(df, "balanced", label="kind")``.
    """
    started = time.monotonic()
    if label:
        source = source.model_copy(update={"label": label})
    run_params = params.RunParams(
        balance=balance, model=model, classic=classic, encoder=encoder, budget=budget,
        evaluation=check_estimators(evaluation), quality=quality, publish=publish, report=report, seed=seed,
    )  # fmt: skip
    check_parameters(source, destination, run_params, compares=True)
    steps = ("ingest",) if plan_only else tuple(STEPS)
    job = "" if plan_only else "rebalance"
    with reading(source, destination, steps=steps, publish=publish, job=job, compute=compute) as (
        source,
        destination,
        workers,
    ):
        if approval.ask and not plan_only:
            announce(approval)
        check_encoder(encoder, destination)
        experiment = _plan(source, destination, run_params)
        if plan_only:
            result = summarise(Release(experiment=experiment), status="planned", started=started)
            return conclude(result, experiment.dataset)
        check_before_work(experiment)
        first = compare_first(experiment)
        synthesis = synthesize(experiment, workers=workers)
        comparison = compare(synthesis, first, workers=workers)
        models = (synthesis.model,) if synthesis.model else ()
        release = _release(synthesis.experiment, comparison).model_copy(
            update={
                "models": models,
                "requested": as_json(run_params, source, destination, approval),
            }
        )
        page = run(write_report, release, status="proposed" if approval.ask else "published")
        _refuse(release, page, destination)
        release = with_classic(release)
        return publish_or_ask(release, page, approval, started=started)


def _plan(
    source: params.Source, destination: params.Destination, run_params: params.RunParams
) -> Experiment:
    """Ingest the records, and plan what each class gets."""
    if run_params.publish.materialise == "copies":  # soft labels would need weights
        quality = run_params.quality.model_copy(update={"labels": "hard"})
        run_params = run_params.model_copy(update={"quality": quality})
    dataset = ingested(source, destination, seed=run_params.seed)
    check_comparison(dataset, run_params)
    plan = run(plan_balance, dataset, run_params, searched=True)
    if run_params.quality.constraints:  # SMOTE does not keep constraints
        classic = run_params.classic.model_copy(update={"table": "none"})
        run_params = run_params.model_copy(update={"classic": classic})
    return Experiment(dataset=dataset, plan=plan, params=run_params)


def _release(experiment: Experiment, comparison: Comparison) -> Release:
    """Write the winner down as a recipe, with the evidence for it."""
    verdict = with_controls(comparison.verdict, comparison.scores)
    recipe = make_recipe(experiment, comparison.strategy, comparison.scores)
    findings = comparison.findings
    release = Release(experiment=experiment, recipe=recipe)
    if not release.lets_synthetic_out:  # then nobody is told what they give away
        findings = findings.model_copy(update={"privacy": None})
    elif findings.privacy is not None:
        verdict = with_safety(verdict, findings.privacy)
        logger.info("Privacy: %s", findings.privacy.sentence)
    logger.info("Verdict: %s. %s", verdict.word, " ".join((verdict.headline, *verdict.details)))
    publish, store = experiment.params.publish, open_root(experiment.dataset)
    cleans = recipe.strategy.family == "clean"
    counted = counted_records(recipe, experiment, store) if cleans else None
    recipe = keep_weights(recipe, experiment.plan, publish, store, counted=counted)
    if cleans:
        recipe = with_doubted(recipe, experiment, store)
    return release.model_copy(
        update={
            "recipe": recipe,
            "verdict": verdict,
            "scores": comparison.scores,
            "findings": findings,
        }
    )


def _refuse(release: Release, page: ReportRef, destination: params.Destination) -> None:
    """Raise where the parameters let a run without a gain, or with a leak, publish nothing."""
    verdict = release.verdict
    assert verdict is not None
    run_params, privacy = release.experiment.params, release.findings.privacy
    why = refusal_reason(run_params, verdict, privacy, goes_out=release.lets_synthetic_out)
    if not why:
        return
    emit_refused(destination.uri, verdict, page)
    place = open_root(release.dataset).place(f"{page.prefix}/report.html")
    raise RefusedError(
        f"refused, nothing was published: {why} The report is {place}.",
        verdict=verdict,
        report=place,
    )
