"""Judge synthetic records that any other tool made, with the same rules and the same report."""

from __future__ import annotations

import time

from prefect import flow

from prefect_augment.augmentation.text import check_judgeable
from prefect_augment.errors import ParameterError, RefusedError
from prefect_augment.experiment.confirmation import why_refused
from prefect_augment.experiment.privacy import found_privacy
from prefect_augment.flows._compare import search_strategies
from prefect_augment.flows._inputs import check_seed
from prefect_augment.ingest.external import plan_of_given
from prefect_augment.params import (
    Balance,
    Budget,
    Classic,
    Compute,
    Destination,
    Gate,
    NoModel,
    Report,
    Source,
)
from prefect_augment.plan.strategies import GIVEN, make_strategies
from prefect_augment.report.run_summary import summarise, with_given
from prefect_augment.schema.base import RunResult
from prefect_augment.schema.report import Findings
from prefect_augment.tasks._events import emit_refused
from prefect_augment.tasks._runtime import conclude, open_destination, run, run_log
from prefect_augment.tasks.compare import choose_strategy, confirm_choice, filter_candidates
from prefect_augment.tasks.ingest import ingest_dataset
from prefect_augment.tasks.plan import plan_balance
from prefect_augment.tasks.publish import write_report
from prefect_augment.tasks.sample import import_synthetic

__all__ = ["evaluate"]


@flow(name="evaluate", flow_run_name="evaluate {synthetic}", persist_result=False)
def evaluate(
    source: Source,
    synthetic: str,
    destination: Destination = Destination(uri="evaluation"),
    balance: Balance = Balance(),
    classic: Classic = Classic(),
    budget: Budget = Budget(),
    gate: Gate = Gate(purpose="faithful"),
    report: Report = Report(),
    compute: Compute = Compute(),
    seed: int = 0,
) -> RunResult:
    """Say whether given synthetic records help, copy, and fit their classes.

    Args:
        source: The real records, and the hold-out that no synthetic record was made from.
        synthetic: The records to judge, with the same columns: a file, folder, glob or URL.
        destination: Where the report goes.
        balance: How far the baselines go, for the comparison.
        classic: Classic augmentation, for the comparison.
        budget: How much effort judging may take.
        gate: Thresholds per record, and what a run fails on.
        report: What may be seen in the report.
        compute: How many workers.
        seed: Seed of everything random.
    """
    started = time.monotonic()
    if not synthetic:
        raise ParameterError(
            "synthetic is empty; give the file, folder or URL of the records to judge."
        )
    check_seed(seed)
    with run_log():
        model = NoModel()
        dataset = run(ingest_dataset, source, destination, seed=seed)
        check_judgeable(dataset, open_destination(destination))
        plan = run(plan_balance, dataset, balance, model=model, gate=gate, budget=budget, seed=seed)
        given = run(
            import_synthetic,
            dataset,
            plan,
            synthetic,
            storage_block=source.storage_block,
            max_megapixels=source.max_megapixels,
        )
        asked = plan_of_given(plan, given)
        compared = run(
            filter_candidates, dataset, given, asked, gate=gate, seed=seed, device=budget.device
        )
        found = search_strategies(
            make_strategies(dataset.modality, model=None, classic=classic),
            dataset,
            plan,
            model=model,
            classic=classic,
            gate=gate,
            budget=budget,
            seed=seed,
            workers=compute.workers,
        )
        scores = found.scores
        # Whoever made the records may have seen validation, so they are compared on the hold-out alone.
        best = run(choose_strategy, scores)
        choice = best.model_copy(update={"chosen": GIVEN, "model": GIVEN})
        verdict = run(
            confirm_choice,
            dataset,
            choice,
            plan,
            scores=scores,
            model=model,
            candidates=compared,
            classic=classic,
            gate=gate.model_copy(update={"n_seeds": found.n_seeds}),
            seed=seed,
            device=budget.device,
            workers=compute.workers,
        )
        # Of the records that the verdict has read the hold-out for.
        privacy = found_privacy(open_destination(destination), dataset, compared)
        page = run(
            write_report,
            dataset,
            asked,
            scores=scores,
            verdict=verdict,
            gate=compared,
            pictures=report,
            status="evaluated",
            findings=Findings(privacy=privacy),
            seed=seed,
        )
        result = summarise(
            dataset,
            plan,
            status="evaluated",
            started=started,
            scores=scores,
            verdict=verdict,
            report=page,
        )
        result = with_given(
            result,
            given,
            compared,
            privacy,
            pictures=report.pictures,
            store=open_destination(destination),
        )
        why = why_refused(gate, verdict, privacy, goes_out=True)
        if why:
            conclude(result, dataset.root, dataset.block)
            emit_refused(destination.uri, verdict, page)
            raise RefusedError(
                f"refused: {why} The report is {result.report}.",
                verdict=verdict,
                report=result.report,
                result=result,
            )
        return conclude(result, dataset.root, dataset.block)
