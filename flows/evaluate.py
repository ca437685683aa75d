"""Evaluate synthetic records of any other tool, with the same rules and the same report."""

import time

from prefect_augment import params
from prefect_augment.errors import ParameterError, RefusedError
from prefect_augment.evaluation.classifiers.own_estimator import check_estimators
from prefect_augment.evaluation.metrics.chosen_measure import check_metric
from prefect_augment.evaluation.verdict.answers import with_safety
from prefect_augment.experiment.confirmation import refusal_reason
from prefect_augment.experiment.privacy import stored_privacy
from prefect_augment.flows._compare import confirm, search_strategies
from prefect_augment.flows._flow import flow
from prefect_augment.flows._inputs import (
    check_comparison,
    check_encoder,
    check_measure,
    check_seed,
    ingested,
    running,
    try_estimators,
)
from prefect_augment.ingest.external import plan_of_external
from prefect_augment.params.locations import Location
from prefect_augment.plan.strategies import EXTERNAL, make_strategies
from prefect_augment.report.run_summary import summarise, with_external
from prefect_augment.schema import Experiment, Findings, Release, RunResult
from prefect_augment.tasks._display import STEPS
from prefect_augment.tasks._events import emit_refused
from prefect_augment.tasks._runtime import check_shared, conclude, open_root, run
from prefect_augment.tasks.compare import choose_strategy, filter_candidates, score_strategy
from prefect_augment.tasks.plan import plan_balance
from prefect_augment.tasks.publish import write_report
from prefect_augment.tasks.sample import import_synthetic


@flow("evaluate", "evaluate {synthetic}")
def evaluate(
    source: params.Source,
    synthetic: Location,
    destination: params.Destination = params.Destination(uri="evaluation"),
    balance: params.Balance = params.Balance(),
    classic: params.Classic = params.Classic(),
    encoder: params.Encoder = params.Encoder(),
    budget: params.Budget = params.Budget(),
    evaluation: params.Evaluation = params.Evaluation(),
    quality: params.Quality = params.Quality(purpose="faithful"),
    report: params.Report = params.Report(),
    compute: params.Compute = params.Compute(),
    seed: int = 0,
) -> RunResult:
    """Say whether given synthetic records help, copy, and fit their classes.

    Args:
        source: The real records, and the hold-out that no synthetic record was made from.
        synthetic: The records to evaluate, with the same columns: a file, folder, glob or URL.
        destination: Where the report goes.
        balance: How far the baselines go, for the comparison.
        classic: Classic augmentation, for the comparison.
        encoder: A pretrained network of yours for images, for the comparison and the distances.
        budget: How long the evaluation may take.
        evaluation: How strategies are compared, and whether a run without a gain fails.
        quality: Limits per record and class, and whether a run with a leak fails.
        report: What may be seen in the report.
        compute: Where tasks run, and how many at the same time.
        seed: Seed of everything random.
    """
    started = time.monotonic()
    if not synthetic:
        raise ParameterError(
            "synthetic is empty; give the file, folder or URL of the records to evaluate."
        )
    check_seed(seed)
    check_metric(evaluation.metric)
    # The given records train the network, so that it is compared with itself.
    of_network = [name for name in classic.image_strategies if name != "patch features"]
    classic = classic.model_copy(update={"image_strategies": of_network})
    run_params = params.RunParams(
        balance=balance, model=params.NoModel(), classic=classic, encoder=encoder, budget=budget,
        evaluation=check_estimators(evaluation), quality=quality, report=report, seed=seed,
    )  # fmt: skip
    steps = [step for step in STEPS if step not in ("compare models", "train", "sample", "publish")]
    with running(destination, publishes=False, steps=steps, compute=compute) as workers:
        check_shared(destination, source)
        check_encoder(encoder, destination)
        dataset = ingested(source, destination, seed=seed)
        check_comparison(dataset, run_params)
        store = open_root(dataset)
        plan = run(plan_balance, dataset, run_params)
        baselines = Experiment(dataset=dataset, plan=plan, params=run_params)
        check_measure(baselines)
        try_estimators(baselines)
        external = run(
            import_synthetic,
            dataset,
            plan,
            synthetic,
            storage_block=source.storage_block,
            max_megapixels=source.max_megapixels,
        )
        experiment = baselines.model_copy(update={"plan": plan_of_external(plan, external)})
        filtered = run(filter_candidates, experiment, external)
        experiment = experiment.model_copy(update={"candidates": filtered})
        strategies = make_strategies(
            dataset.modality, model=None, classic=classic, encoder=bool(encoder.uri)
        )
        search = search_strategies(baselines, strategies, workers=workers)
        # Whoever made the records may have seen validation, so they are compared on the hold-out alone.
        best = run(choose_strategy, search.scores)
        choice = best.model_copy(update={"chosen": EXTERNAL, "model": EXTERNAL})
        confirms = baselines.model_copy(update={"candidates": filtered}).with_seeds(search.n_seeds)
        tuned = run(score_strategy, experiment, EXTERNAL, 0)
        verdict = confirm(confirms, choice, [*search.scores, tuned], workers=workers)
        # Of the records that the verdict has read the hold-out for.
        privacy = stored_privacy(store, dataset, filtered)
        release = Release(
            experiment=experiment,
            verdict=with_safety(verdict, privacy),
            scores=tuple(search.scores),
            findings=Findings(privacy=privacy),
        )
        page = run(write_report, release, status="evaluated")
        shown = release.model_copy(update={"experiment": baselines})
        result = summarise(shown, status="evaluated", started=started, report=page)
        result = with_external(
            result, external, filtered, privacy, pictures=report.pictures, store=store
        )
        why = refusal_reason(run_params, verdict, privacy, goes_out=True)
        concluded = conclude(result, dataset)
        if not why:
            return concluded
        emit_refused(destination.uri, verdict, page)
        raise RefusedError(
            f"refused: {why} The report is {result.report}.",
            verdict=verdict,
            report=result.report,
            result=result,
        )
