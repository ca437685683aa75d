"""The comparison of strategies, as both flows run it: a search on validation records by successive halving."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefect_augment.experiment.search import best_settings, finalists, go_on, rung
from prefect_augment.params import Budget, Classic, Gate, ModelParams
from prefect_augment.plan.schedule import Clock, model_of, pilot_budget, suitable
from prefect_augment.plan.search_space import PILOT_EFFORT, pilot_groups, settings
from prefect_augment.plan.strategies import make_strategies
from prefect_augment.registry import load_model_class
from prefect_augment.schema.base import (
    BalancePlan,
    DatasetRef,
    FilterResult,
    Strategy,
    StrategyScore,
)
from prefect_augment.schema.experiment import Rung, SearchResult
from prefect_augment.shards.staged import load_info
from prefect_augment.tasks._runtime import open_block_store, run_each
from prefect_augment.tasks.compare import pilot_strategy, score_strategy

__all__ = ["Search", "choose_model", "search_strategies"]


@dataclass(frozen=True)
class Search:
    """What a search came to.

    Attributes
    ----------
    scores : list of StrategyScore
        Of strategies that were scored in full.
    n_seeds : int
        What the best of them were scored with, and the hold-out is to compare with.
    info : SearchResult
        Every rung, for the report.
    """

    scores: list[StrategyScore]
    n_seeds: int
    info: SearchResult


def search_strategies(
    strategies: Sequence[Strategy],
    dataset: DatasetRef,
    plan: BalancePlan,
    *,
    model: ModelParams,
    classic: Classic,
    gate: Gate,
    budget: Budget,
    seed: int,
    workers: int,
    candidates: FilterResult | None = None,
    copies: bool = False,
    kind: str = "",
    piloted: Sequence[Rung] = (),
) -> Search:
    """Try every setting of all strategies, the best strategies in full, and the best of these with all seeds.

    Parameters
    ----------
    gate : Gate
        With as many seeds as are asked for.
    budget : Budget
        Where it is in minutes, so many strategies go on, with so many seeds, as there is time for.
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

    tried = pilot_groups(strategies, plan=plan, classic=classic, copies=copies)
    pilots = [
        s for found in each(pilot_strategy, [{"strategies": t} for t in tried]) for s in found
    ]
    n_kept = clock.n_kept(pilots, best_settings(pilots))
    kept = go_on(pilots, n_kept=n_kept)
    first = each(score_strategy, [{"strategy": strategy, "seed": 0} for strategy in kept])
    last = finalists(first)
    n_seeds = clock.n_seeds(pilots, first, last, most=gate.n_seeds)
    if n_seeds == 1:  # there is nothing to add to it: all of them stand for election
        last = kept
    rest = each(
        score_strategy,
        [{"strategy": strategy, "seed": i} for strategy in last for i in range(1, n_seeds)],
    )
    said: dict[str, Any] = {"timed": not budget.steps, "model": kind}
    rungs = [
        *piloted,
        rung(
            "pilots",
            pilots,
            kept,
            effort=PILOT_EFFORT,
            reasons={
                "": f"the best setting of its strategy, and not of the best {n_kept} strategies"
            },
            **said,
        ),
        rung(
            "in full",
            first,
            last,
            reasons={"": f"not of the best {len(last) - 1} strategies"},
            **said,
        ),
    ]
    if rest:
        scores = [score for score in [*first, *rest] if score.strategy in last]
        rungs.append(rung("all seeds", scores, last, reasons={}, **said))
    info = SearchResult(rungs=tuple(rungs), n_settings=plan.n_settings)
    return Search([*first, *rest], n_seeds, info)


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
        The wish itself, or the model whose best setting scored highest on validation records.
    tuple of Rung
        The pilots; empty where there was nothing to compare.
    dict of str to str
        Kinds that were passed over, and why.
    """
    info = load_info(dataset, open_block_store(dataset.root, dataset.block))
    kinds, over = suitable(info, plan, model)
    if len(kinds) < 2:
        return model, (), over
    (strategy,) = (
        strategy
        for strategy in make_strategies(
            dataset.modality, model="model", classic=classic, soft_labels=plan.soft_labels
        )
        if strategy.family == "model"
    )
    tried = [
        settings(strategy.model_copy(update={"name": kind}), plan=plan, classic=classic)
        for kind in kinds
    ]
    pilots = run_each(
        pilot_strategy,
        [{"strategies": t, "model": model_of(kind)} for kind, t in zip(kinds, tried, strict=True)],
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
            [max(scores, key=lambda s: s.score).strategy] if i == best else [],
            effort=PILOT_EFFORT,
            reasons={"": f"{kinds[best]} scored higher"},
            timed=not budget.steps,
            model=kind,
        )
        for i, (kind, scores) in enumerate(zip(kinds, pilots, strict=True))
    ]
    found = trials[0].model_copy(update={"trials": tuple(t for r in trials for t in r.trials)})
    return model_of(kinds[best]), (found,), over
