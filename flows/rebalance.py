"""The main job: a labelled imbalanced dataset goes in, a balanced, judged, published one comes out."""

from __future__ import annotations

import logging
import time

from prefect import flow

from prefect_augment.augmentation.label_preservation import needs_check
from prefect_augment.augmentation.text import check_judgeable
from prefect_augment.errors import RefusedError
from prefect_augment.experiment.confirmation import why_refused, without_comparison
from prefect_augment.experiment.score import published_strategy
from prefect_augment.experiment.search import decided
from prefect_augment.flows._approval import announce, release, settle
from prefect_augment.flows._compare import choose_model, search_strategies
from prefect_augment.flows._inputs import (
    as_json,
    check_parameters,
    default_destination,
    default_source,
    running,
)
from prefect_augment.params import (
    Approval,
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
from prefect_augment.plan.schedule import training_budget
from prefect_augment.plan.strategies import candidates_wanted, make_recipe, make_strategies
from prefect_augment.plan.weights import inherit_weights
from prefect_augment.publish.export import check_export
from prefect_augment.publish.publish import check_destination
from prefect_augment.registry import check_shard_format, resolve_model
from prefect_augment.report.run_summary import summarise
from prefect_augment.schema.base import (
    BalancePlan,
    DatasetRef,
    FilterResult,
    ModelRef,
    RunResult,
    Strategy,
    StrategyScore,
    Verdict,
)
from prefect_augment.schema.experiment import Rung, SearchResult
from prefect_augment.schema.privacy import Privacy
from prefect_augment.schema.report import Findings
from prefect_augment.storage.manifests import find_commit
from prefect_augment.tasks._events import emit_refused
from prefect_augment.tasks._runtime import conclude, open_destination, run
from prefect_augment.tasks.approve import propose_dataset
from prefect_augment.tasks.augment import augment_records
from prefect_augment.tasks.check_policy import check_image_policy
from prefect_augment.tasks.compare import (
    choose_strategy,
    confirm_choice,
    filter_candidates,
    measure_privacy,
)
from prefect_augment.tasks.ingest import ingest_dataset
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
    model: ModelParams = AutoModel(),
    classic: Classic = Classic(),
    budget: Budget = Budget(),
    gate: Gate = Gate(),
    approval: Approval = Approval(),
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
        balance: How far the rare classes are brought up.
        model: The generative model.
        classic: Classic augmentation.
        budget: How much effort the run may take.
        gate: What synthetic records and recipes have to pass, and what happens where nothing helps.
        approval: Whether somebody has to say yes before anything is published.
        publish: What is written.
        report: What may be seen in the report.
        compute: How many workers.
        seed: Seed of everything random; the same input, parameters and seed give the same bytes.
        plan_only: Show the plan and an estimate; train and publish nothing.
    """
    started = time.monotonic()
    check_parameters(
        source=source,
        destination=destination,
        budget=budget,
        model=model,
        seed=seed,
        compared=balance,
    )
    destination = default_destination(destination, source)
    with running(destination, publishes=not plan_only):
        if approval.ask and not plan_only:
            announce(approval)
        source = default_source(source, destination)
        if publish.materialise == "copies":  # what soft labels say is in the weights alone
            gate = gate.model_copy(update={"labels": "hard"})
        dataset = run(ingest_dataset, source, destination, seed=seed)
        check_judgeable(dataset, open_destination(destination))
        plan = run(
            plan_balance,
            dataset,
            balance,
            model=model,
            gate=gate,
            budget=budget,
            seed=seed,
            searched=True,
        )
        if gate.constraints:
            classic = classic.model_copy(update={"table": "none"})
        if plan_only:
            result = summarise(dataset, plan, status="planned", started=started)
            return conclude(result, dataset.root, dataset.block)
        store = open_destination(destination)
        check_destination(store, dataset)
        if publish.export:
            check_export(store, publish.export)
        check_shard_format(publish.format, modality=dataset.modality)

        if needs_check(classic, dataset, balance):
            run(
                check_image_policy,
                dataset,
                classic,
                seed=seed,
                show_pictures=report.pictures == "real",
            )
        chosen, piloted, passed_over = choose_model(
            dataset,
            plan,
            model=model,
            classic=classic,
            gate=gate,
            budget=budget,
            seed=seed,
            workers=compute.workers,
        )
        n_piloted = len({trial.model for rung in piloted for trial in rung.trials})
        trained, candidates, privacy = _candidates(
            dataset,
            plan,
            model=chosen,
            gate=gate,
            budget=training_budget(budget, n_piloted),
            seed=seed,
        )
        strategy, verdict, scores, search = _compare(
            dataset,
            plan,
            candidates,
            model=chosen,
            classic=classic,
            gate=gate,
            budget=budget,
            compute=compute,
            seed=seed,
            copies=publish.materialise == "copies",
            piloted=piloted,
        )
        if search:
            search = search.model_copy(update={"passed_over": passed_over})
        logger.info("Verdict: %s. %s", verdict.decision, " ".join(verdict.reasons))
        recipe = make_recipe(
            strategy,
            plan,
            kept=candidates.kept_counts if candidates else None,
            shares=candidates.shares if candidates else None,
            scores=scores,
            copies=publish.materialise == "copies",
            classic=classic,
        )
        recipe = inherit_weights(recipe, plan, publish, store)
        findings = Findings(privacy=privacy, search=search)
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
            status="proposed" if approval.ask else "published",
            findings=findings,
            seed=seed,
        )
        why = why_refused(gate, verdict, privacy, goes_out=any(recipe.synthetic.values()))
        if why:
            emit_refused(destination.uri, verdict, page)
            raise RefusedError(
                f"refused, nothing was published: {why} The report is {page.root}/{page.prefix}/report.html.",
                verdict=verdict,
                report=f"{page.root}/{page.prefix}/report.html",
            )

        made = None
        if recipe.classic:
            made = run(augment_records, dataset, plan, recipe.classic, classic, seed=seed)
        params = as_json(
            source, destination, balance, classic, model, budget, gate, approval, publish, report
        ) | {"seed": seed}
        decision, proposed = None, ""
        if approval.ask:
            proposal = run(
                propose_dataset,
                dataset,
                plan=plan,
                recipe=recipe,
                verdict=verdict,
                report=page,
                candidates=candidates,
                classic=made,
                models=[trained] if trained else [],
                scores=scores,
                settings=publish,
                pictures=report,
                policy=classic,
                params=params,
                findings=findings,
                seed=seed,
            )
            proposed = proposal.id
            if find_commit(store, proposal.id) is None:
                decision = settle(proposal, approval, store)
                if decision is None or decision.decision == "reject":
                    result = summarise(
                        dataset,
                        plan,
                        status="rejected" if decision else "awaiting_approval",
                        started=started,
                        scores=scores,
                        recipe=recipe,
                        verdict=verdict,
                        report=page,
                        proposal=proposed,
                        approval=decision,
                    )
                    return conclude(result, dataset.root, dataset.block)
            commit, recipe, page = release(proposal, decision)
        else:
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
                params=params,
            )
        result = summarise(
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
            proposal=proposed,
            approval=decision,
        )
        return conclude(result, dataset.root, dataset.block)


def _candidates(
    dataset: DatasetRef,
    plan: BalancePlan,
    *,
    model: ModelParams,
    gate: Gate,
    budget: Budget,
    seed: int,
) -> tuple[ModelRef | None, FilterResult | None, Privacy | None]:
    """Train the model, draw from it and judge what it drew; nothing where the plan wants nothing."""
    if not (resolve_model(model, modality=dataset.modality) and plan.n_synthetic):
        return None, None, None
    trained = run(train_model, dataset, model, plan=plan, budget=budget, seed=seed)
    wanted = candidates_wanted(plan, gate, trained.strata)
    if not wanted:
        logger.warning(
            "No class has the records that a model needs to draw it; there is no synthetic record."
        )
        return None, None, None
    drawn = run(sample_classes, dataset, trained, wanted, seed=seed, constraints=gate.constraints)
    compared = run(
        filter_candidates, dataset, drawn, plan, gate=gate, seed=seed, device=budget.device
    )
    return trained, compared, run(measure_privacy, dataset, drawn, compared, plan)


def _compare(
    dataset: DatasetRef,
    plan: BalancePlan,
    candidates: FilterResult | None,
    *,
    model: ModelParams,
    classic: Classic,
    gate: Gate,
    budget: Budget,
    compute: Compute,
    seed: int,
    copies: bool,
    piloted: tuple[Rung, ...],
) -> tuple[Strategy, Verdict, list[StrategyScore], SearchResult | None]:
    """Choose a strategy on validation records and hold it against the best baseline on the hold-out."""
    if len({c.label for c in plan.classes if c.compared}) < 2:
        strategy, verdict = without_comparison(plan)
        return strategy, verdict, [], None
    kind = resolve_model(model, modality=dataset.modality) if candidates else None
    found = search_strategies(
        make_strategies(
            dataset.modality, model=kind, classic=classic, soft_labels=plan.soft_labels
        ),
        dataset,
        plan,
        model=model,
        classic=classic,
        gate=gate,
        budget=budget,
        seed=seed,
        workers=compute.workers,
        candidates=candidates,
        copies=copies,
        kind=kind or "",
        piloted=piloted,
    )
    scores = found.scores
    choice = run(choose_strategy, scores, prefer_model=gate.on_no_gain == "publish")
    verdict = run(
        confirm_choice,
        dataset,
        choice,
        plan,
        scores=scores,
        model=model,
        candidates=candidates,
        classic=classic,
        gate=gate.model_copy(update={"n_seeds": found.n_seeds}),
        seed=seed,
        device=budget.device,
        workers=compute.workers,
    )
    return published_strategy(choice, verdict), verdict, scores, decided(found.info, choice)
