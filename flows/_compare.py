"""The comparison of arms, as both flows run it: a search on val by successive halving."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefect_augment.experiment.search import best_settings, finalists, go_on, rung
from prefect_augment.params import Budget, Classic, Gate, ModelParams
from prefect_augment.plan.schedule import Clock, model_of, pilot_budget, suitable
from prefect_augment.plan.search_space import PILOT_EFFORT, pilot_groups, settings
from prefect_augment.plan.strategies import make_arms
from prefect_augment.registry import load_model_class
from prefect_augment.schema.base import Arm, ArmScore, BalancePlan, DatasetRef, GateReport
from prefect_augment.schema.experiment import Rung, SearchFacts
from prefect_augment.shards.staged import load_facts
from prefect_augment.tasks._runtime import open_block_store, run_each
from prefect_augment.tasks.compare import pilot_arm, score_arm

__all__ = ["Search", "choose_model", "search_arms"]


@dataclass(frozen=True)
class Search:
    """What a search came to.

    Attributes
    ----------
    scores : list of ArmScore
        Of arms that were scored in full.
    n_seeds : int
        What the best of them were scored with, and the hold-out is to compare with.
    facts : SearchFacts
        Every rung, for the report.
    """

    scores: list[ArmScore]
    n_seeds: int
    facts: SearchFacts


def search_arms(
    arms: Sequence[Arm],
    dataset: DatasetRef,
    plan: BalancePlan,
    *,
    model: ModelParams,
    classic: Classic,
    gate: Gate,
    budget: Budget,
    seed: int,
    workers: int,
    candidates: GateReport | None = None,
    copies: bool = False,
    kind: str = "",
    piloted: Sequence[Rung] = (),
) -> Search:
    """Try every setting of all arms, the best arms in full, and the best of these with all seeds.

    Parameters
    ----------
    gate : Gate
        With as many seeds as are asked for.
    budget : Budget
        Where it is in minutes, so many arms go on, with so many seeds, as there is time for.
    copies : bool
        Duplicates are published instead of weights.
    kind : str
        Of the generative model, for the report.
    piloted : sequence of Rung
        Of generative models that were compared before.
    """
    trains_network = (
        candidates is not None
        and load_model_class(model, modality=dataset.modality).trained_in_steps
    )
    spent = math.fsum(trial.seconds for one in piloted for trial in one.trials)
    clock = Clock.of(budget, workers=workers, trains_network=trains_network, spent=spent)

    def each(task: Any, items: list[dict[str, object]]) -> list[Any]:
        return run_each(
            task,
            items,
            workers=workers,
            dataset=dataset,
            plan=plan,
            model=model,
            classic=classic,
            gate=gate,
            run_seed=seed,
            candidates=candidates,
            device=budget.device,
        )

    tried = pilot_groups(arms, plan=plan, classic=classic, copies=copies)
    pilots = [s for found in each(pilot_arm, [{"arms": t} for t in tried]) for s in found]
    n_kept = clock.n_kept(pilots, best_settings(pilots))
    kept = go_on(pilots, n_kept=n_kept)
    first = each(score_arm, [{"arm": arm, "seed": 0} for arm in kept])
    last = finalists(first)
    n_seeds = clock.n_seeds(pilots, first, last, most=gate.n_seeds)
    if n_seeds == 1:  # there is nothing to add to it: all of them stand for election
        last = kept
    rest = each(score_arm, [{"arm": arm, "seed": i} for arm in last for i in range(1, n_seeds)])
    said: dict[str, Any] = {"timed": not budget.steps, "model": kind}
    rungs = [
        *piloted,
        rung(
            "pilots",
            pilots,
            kept,
            effort=PILOT_EFFORT,
            reasons={"": f"the best setting of its arm, and not of the best {n_kept} arms"},
            **said,
        ),
        rung(
            "in full",
            first,
            last,
            reasons={"": f"not of the best {len(last) - 1} arms"},
            **said,
        ),
    ]
    if rest:
        scores = [score for score in [*first, *rest] if score.arm in last]
        rungs.append(rung("all seeds", scores, last, reasons={}, **said))
    facts = SearchFacts(rungs=tuple(rungs), n_settings=plan.n_settings)
    return Search([*first, *rest], n_seeds, facts)


def choose_model(
    dataset: DatasetRef,
    plan: BalancePlan,
    *,
    model: ModelParams,
    classic: Classic,
    gate: Gate,
    budget: Budget,
    seed: int,
    workers: int,
) -> tuple[ModelParams, tuple[Rung, ...], dict[str, str]]:
    """Compare the generative models that suit the records by pilots, where there are several.

    Returns
    -------
    ModelParams
        The wish itself, or the model whose best setting scored highest on val.
    tuple of Rung
        The pilots; empty where there was nothing to compare.
    dict of str to str
        Kinds that were passed over, and why.
    """
    facts = load_facts(dataset, open_block_store(dataset.root, dataset.block))
    kinds, over = suitable(facts, plan, model)
    if len(kinds) < 2:
        return model, (), over
    (arm,) = (
        arm
        for arm in make_arms(
            dataset.modality, model="model", classic=classic, soft_labels=plan.soft_labels
        )
        if arm.family == "model"
    )
    tried = [
        settings(arm.model_copy(update={"name": kind}), plan=plan, classic=classic)
        for kind in kinds
    ]
    pilots = run_each(
        pilot_arm,
        [{"arms": t, "model": model_of(kind)} for kind, t in zip(kinds, tried, strict=True)],
        workers=workers,
        dataset=dataset,
        plan=plan,
        classic=classic,
        gate=gate,
        run_seed=seed,
        device=budget.device,
        budget=pilot_budget(budget),
    )
    best = max(range(len(kinds)), key=lambda i: max(s.score for s in pilots[i]))
    trials = [
        rung(
            "models",
            scores,
            [max(scores, key=lambda s: s.score).arm] if i == best else [],
            effort=PILOT_EFFORT,
            reasons={"": f"{kinds[best]} scored higher"},
            timed=not budget.steps,
            model=kind,
        )
        for i, (kind, scores) in enumerate(zip(kinds, pilots, strict=True))
    ]
    found = trials[0].model_copy(update={"trials": tuple(t for r in trials for t in r.trials)})
    return model_of(kinds[best]), (found,), over
