"""The main job: a labelled imbalanced dataset goes in, a balanced, judged, published one comes out."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from prefect import flow

from prefect_augment.datatypes import ArmScore, RunResult
from prefect_augment.errors import RefusedError
from prefect_augment.flows._scoring import score_arms
from prefect_augment.params import (
    AutoModel,
    Balance,
    Budget,
    Classic,
    Compute,
    Destination,
    Gate,
    ModelParams,
    Publish,
    Report,
    Source,
)
from prefect_augment.registry import resolve_model
from prefect_augment.stages.arms import candidates_wanted, make_arms, make_recipe
from prefect_augment.stages.checks import as_json, check_parameters, judge_seeds
from prefect_augment.stages.example import example_source
from prefect_augment.stages.publish import check_destination
from prefect_augment.stages.result import summarise
from prefect_augment.stages.score import published_arm
from prefect_augment.stages.verdict import without_comparison
from prefect_augment.tasks._runtime import dataset_slug, open_destination, run, run_log
from prefect_augment.tasks.augment import augment_records
from prefect_augment.tasks.ingest import ingest_dataset
from prefect_augment.tasks.judge import choose_arm, judge_candidates, verify_choice
from prefect_augment.tasks.plan import plan_balance
from prefect_augment.tasks.publish import publish_dataset, write_report
from prefect_augment.tasks.sample import sample_classes
from prefect_augment.tasks.train import train_model

__all__ = ["rebalance"]

logger = logging.getLogger(__name__)


@flow(name="rebalance", flow_run_name="rebalance {source.uri}", persist_result=False)
def rebalance(
    source: Source = Source(),
    destination: Destination = Destination(),
    balance: Balance = Balance(),
    classic: Classic = Classic(),
    model: ModelParams = AutoModel(),
    budget: Budget = Budget(),
    gate: Gate = Gate(),
    publish: Publish = Publish(),
    report: Report = Report(),
    compute: Compute = Compute(),
    seed: int = 0,
    plan_only: bool = False,
) -> RunResult:
    """Bring the rare classes of a labelled dataset up, in the way that helps on held-out real data.

    Args:
        source: Where the labelled records are. Empty: the built-in example.
        destination: Where the balanced dataset is published, version by version.
        balance: How many records each class should have.
        classic: Classic augmentation.
        model: The generative model.
        budget: How much effort the run may take.
        gate: What synthetic records and recipes must pass.
        publish: What is written.
        report: What the report may show.
        compute: How many workers.
        seed: Seed of everything random; the same input, parameters and seed give the same bytes.
        plan_only: Show the plan and an estimate; train and publish nothing.
    """
    started = time.monotonic()
    with run_log():
        check_parameters(source=source, destination=destination, budget=budget, model=model)
        destination = _or_default(destination, source)
        source = source if source.uri else example_source(f"{destination.uri}-example", seed=0)
        dataset = run(ingest_dataset, source, destination, seed=seed)
        plan = run(plan_balance, dataset, balance, model=model, gate=gate, budget=budget, seed=seed)
        if plan_only:
            return summarise(dataset, plan, status="planned", started=started)
        store = open_destination(destination)
        check_destination(store, dataset)

        trained, candidates = None, None
        kind = resolve_model(model, modality=dataset.modality)
        if kind and plan.n_synthetic:
            trained = run(train_model, dataset, model, plan=plan, budget=budget, seed=seed)
            wanted = candidates_wanted(plan, gate, trained.strata)
            drawn = run(sample_classes, dataset, trained, wanted, seed=seed)
            candidates = run(
                judge_candidates, dataset, drawn, plan, gate=gate, seed=seed, device=budget.device
            )

        scores: list[ArmScore] = []
        if len({c.label for c in plan.classes if c.judged}) < 2:
            arm, verdict = without_comparison(plan)
        else:
            # What half of the budget does not allow is left out, on val and on the hold-out.
            affordable = gate.model_copy(update={"n_seeds": judge_seeds(plan, budget, gate)})
            scores = score_arms(
                make_arms(dataset.modality, model=kind if candidates else None, classic=classic),
                dataset,
                plan,
                model=model,
                classic=classic,
                gate=affordable,
                seed=seed,
                n_seeds=affordable.n_seeds,
                workers=compute.workers,
                candidates=candidates,
                device=budget.device,
            )
            choice = run(choose_arm, scores, prefer_model=gate.on_no_gain == "publish")
            verdict = run(
                verify_choice,
                dataset,
                choice,
                plan,
                scores=scores,
                model=model,
                candidates=candidates,
                classic=classic,
                gate=affordable,
                seed=seed,
                device=budget.device,
            )
            arm = published_arm(choice, verdict)
        logger.info("Verdict: %s. %s", verdict.decision, " ".join(verdict.reasons))
        recipe = make_recipe(
            arm,
            plan,
            kept=candidates.kept_counts if candidates else None,
            scores=scores,
            copies=publish.materialise == "copies",
            policy=classic.image,
        )
        page = run(
            write_report,
            dataset,
            plan,
            scores=scores,
            verdict=verdict,
            recipe=recipe,
            gate=candidates,
            model=trained,
            pictures=report,
            classic=classic,
            seed=seed,
        )
        if gate.on_no_gain == "fail" and verdict.decision != "accept":
            raise RefusedError(
                f"refused: the verdict is {verdict.decision} and gate.on_no_gain is 'fail', so nothing was "
                f"published. {' '.join(verdict.reasons)} The report is {page.root}/{page.prefix}/report.html.",
                verdict=verdict,
                report=f"{page.root}/{page.prefix}/report.html",
            )

        made = None
        if recipe.classic:
            made = run(augment_records, dataset, plan, recipe.classic, classic, seed=seed)
        commit = run(
            publish_dataset,
            dataset,
            candidates,
            plan=plan,
            recipe=recipe,
            verdict=verdict,
            classic=made,
            models=[trained] if trained else [],
            report=page,
            settings=publish,
            params=as_json(
                source, destination, balance, classic, model, budget, gate, publish, report
            )
            | {"seed": seed},
        )
        return summarise(
            dataset,
            plan,
            status="published" if commit.created else "unchanged",
            started=started,
            store=store,
            commit=commit,
            scores=scores,
            recipe=recipe,
            verdict=verdict,
            report=page,
        )


def _or_default(destination: Destination, source: Source) -> Destination:
    """Return the destination, or a folder in the home folder: a worker's own folder is temporary."""
    if destination.uri:
        return destination
    name = dataset_slug(source.uri) if source.uri else "example"
    return Destination(uri=str(Path.home() / "prefect-augment" / f"{name}-balanced"))
