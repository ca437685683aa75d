"""From a plan to a verdict: draw and filter synthetic records, search strategies, confirm the choice."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from prefect_augment.evaluation.verdict.answers import first_answer
from prefect_augment.experiment.audit import audit_seconds, has_doubted_labels, why_not_audited
from prefect_augment.experiment.confirmation import without_comparison
from prefect_augment.experiment.evaluators import open_evaluator
from prefect_augment.experiment.score import evidence, published_strategy
from prefect_augment.experiment.search import (
    best_kind,
    best_settings,
    finalists,
    rung,
    survivors,
    with_choice,
)
from prefect_augment.plan.search_space import (
    PILOT_STEP_SHARE,
    TABLE_MODELS,
    Schedule,
    pilot_budget,
    pilot_groups,
    settings,
    suitable,
    training_budget,
)
from prefect_augment.plan.strategies import as_trained, candidates_wanted, make_strategies
from prefect_augment.registry import load_model_class, resolve_model
from prefect_augment.schema import (
    BalancePlan,
    Choice,
    DatasetRef,
    Experiment,
    Findings,
    ModelRef,
    Privacy,
    Rung,
    SearchResult,
    Strategy,
    StrategyScore,
    Verdict,
)
from prefect_augment.shards.staged import load_info
from prefect_augment.synthesis.sample import n_batches
from prefect_augment.tasks._display import progress
from prefect_augment.tasks._runtime import call, open_root, run, run_each, share
from prefect_augment.tasks.compare import (
    choose_strategy,
    confirm_choice,
    filter_candidates,
    fit_part,
    measure_privacy,
    pilot_strategy,
    score_strategy,
)
from prefect_augment.tasks.sample import draw_part, sample_classes
from prefect_augment.tasks.train import train_model
from prefect_augment.text import measured

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Synthesis:
    """What was drawn for an experiment, and how its model was chosen."""

    experiment: Experiment
    model: ModelRef | None = None
    drawn: DatasetRef | None = None  # all that was drawn, kept or not
    pilots: tuple[Rung, ...] = ()  # of the generative models that were compared
    tried: tuple[StrategyScore, ...] = ()  # pilots of strategies without a model, beside these
    skipped: dict[str, str] | None = None  # reason by kind of model that was not tried


@dataclass(frozen=True)
class Search:
    """Strategies scored in full, and every rung of the search for the report."""

    scores: list[StrategyScore]
    n_seeds: int  # that the hold-out is compared with
    result: SearchResult
    privacy: Privacy | None = None


@dataclass(frozen=True)
class Comparison:
    """The strategy that won, and the evidence."""

    strategy: Strategy
    verdict: Verdict
    scores: tuple[StrategyScore, ...] = ()
    findings: Findings = field(default_factory=Findings)


def synthesize(experiment: Experiment, *, workers: int) -> Synthesis:
    """Choose a generative model, train it, draw from it and filter what it drew.

    Nothing is trained where the plan has no synthetic records.
    """
    nothing = _choose_model(experiment, workers=workers)
    trains, chosen = nothing.experiment, nothing.experiment.params.model
    n_tried = len({trial.model for one in nothing.pilots for trial in one.trials})
    dataset, plan, params = experiment.dataset, experiment.plan, experiment.params
    if not (resolve_model(chosen, modality=dataset.modality) and plan.n_synthetic):
        return nothing
    own = trains.with_budget(training_budget(params.budget, n_tried))
    model = run(train_model, own)
    wanted = candidates_wanted(plan, params.quality, model.strata)
    if not wanted:
        logger.warning(
            "No class has as many records as a model needs, so there are no synthetic records."
        )
        return nothing
    rules = params.quality.constraints
    if not rules:
        seed, most = params.seed, n_batches(wanted, dataset.modality)
        share(
            lambda i, n: call(draw_part, dataset, model, wanted, seed=seed, part=i, n_parts=n),
            step="sample",
            most=most,
        )
    drawn = run(sample_classes, dataset, model, wanted, seed=params.seed, constraints=rules)
    filtered = run(filter_candidates, trains, drawn)
    trains = trains.model_copy(update={"candidates": filtered})
    return replace(nothing, experiment=trains, model=model, drawn=drawn)


def compare_first(experiment: Experiment) -> list[StrategyScore]:
    """Score the data as they are with and without tuned thresholds, and say what these bring.

    It takes seconds, so the first answer is there before any model is trained.
    """
    if not _is_comparable(experiment.plan):
        return []
    modality, classic = experiment.dataset.modality, experiment.params.classic
    strategies = make_strategies(modality, model=None, classic=classic)
    as_is, threshold = (s for s in strategies if s.family in ("as_is", "threshold"))
    with progress("first comparison"):
        scores = [run(score_strategy, experiment, strategy, 0) for strategy in (as_is, threshold)]
    store = open_root(experiment.dataset)
    of_search = evidence(open_evaluator(store, experiment), scores, store)
    if of_search is not None:
        logger.info("%s", first_answer(of_search, threshold.name, as_is.name))
    return scores


def _is_comparable(plan: BalancePlan) -> bool:
    return len({c.label for c in plan.classes if c.compared}) > 1


def compare(
    synthesis: Synthesis, first: Sequence[StrategyScore] = (), *, workers: int
) -> Comparison:
    """Choose a strategy on validation records and confirm it on the hold-out; ``first`` are known scores."""
    experiment, plan = synthesis.experiment, synthesis.experiment.plan
    if not _is_comparable(plan):
        strategy, verdict = without_comparison(plan)
        drawn = synthesis.drawn
        privacy = None if drawn is None else run(measure_privacy, experiment, drawn)
        return Comparison(strategy, verdict, findings=Findings(privacy=privacy))
    modality, params = experiment.dataset.modality, experiment.params
    strategies = make_strategies(
        modality,
        model=_model_kind(experiment) or None,
        classic=params.classic,
        soft_labels=plan.soft_labels,
        own_estimators=bool(params.evaluation.own_estimators),
        clean=has_doubted_labels(experiment, first, open_root(experiment.dataset)),
        encoder=bool(params.encoder.uri),
    )
    search = search_strategies(experiment, strategies, first, synthesis, workers=workers)
    prefer_model = params.evaluation.on_no_gain == "publish"
    choice = run(choose_strategy, search.scores, prefer_model=prefer_model)
    confirms = experiment.with_seeds(search.n_seeds)
    verdict = confirm(confirms, choice, search.scores, workers=workers)
    result = with_choice(search.result, choice)
    result = result.model_copy(update={"skipped": synthesis.skipped or {}})
    findings = Findings(privacy=search.privacy, search=result)
    strategy = published_strategy(choice, verdict)
    return Comparison(strategy, verdict, tuple(search.scores), findings)


def confirm(
    experiment: Experiment, choice: Choice, scores: Sequence[StrategyScore], *, workers: int
) -> Verdict:
    """Confirm a choice on the hold-out; with an engine its workers share the fits, else threads do."""
    share(
        lambda i, n: call(fit_part, experiment, choice, scores, part=i, n_parts=n),
        step="confirm on the hold-out",
    )
    return run(confirm_choice, experiment, choice, scores, workers=workers)


def search_strategies(
    experiment: Experiment,
    strategies: Sequence[Strategy],
    first: Sequence[StrategyScore] = (),
    synthesis: Synthesis | None = None,
    *,
    workers: int,
) -> Search:
    """Try every setting of all strategies, the best strategies in full, and the best of these with all seeds.

    ``strategies`` come simplest first. A budget in minutes decides how many of them go on and with how
    many seeds. ``first`` are known scores, and ``synthesis`` has those of its pilots. What its records reveal
    is measured meanwhile.
    """
    plan, params = experiment.plan, experiment.params
    synthesis = synthesis or Synthesis(experiment)
    pilots, drawn = synthesis.pilots, synthesis.drawn
    trains_network = (
        experiment.candidates is not None
        and load_model_class(params.model, modality=experiment.dataset.modality).trained_in_steps
    )
    spent = math.fsum(trial.seconds for one in pilots for trial in one.trials)
    if why_not_audited(experiment, first) is None:  # with the report
        spent += audit_seconds(experiment, first)
    schedule = Schedule.of(
        params.budget, workers=workers, trains_network=trains_network, spent=spent
    )

    known = {(score.strategy, score.seed): score for score in first}

    def score_all(pairs: Sequence[tuple[Strategy, int]], step: str) -> list[StrategyScore]:
        # Strategies that differ in thresholds alone share their predictions, so one of them goes first.
        of_trained = {(as_trained(s), seed): (s, seed) for s, seed in reversed(pairs)}
        for group in (list(of_trained.values())[::-1], pairs):
            left = [pair for pair in group if pair not in known]
            calls = [call(score_strategy, experiment, strategy, seed) for strategy, seed in left]
            known.update(zip(left, run_each(calls, workers=workers, step=step), strict=True))
        return [known[pair] for pair in pairs]

    # Pilots: every setting of every strategy.
    copies = params.publish.materialise == "copies"
    groups = pilot_groups(strategies, plan=plan, classic=params.classic, copies=copies)
    piloted = {score.strategy: score for score in synthesis.tried}
    pieces = [call(pilot_strategy, experiment, g) for g in groups if g[0] not in piloted]
    beside = [] if drawn is None else [call(measure_privacy, experiment, drawn)]
    calls: list[Callable[[], tuple[StrategyScore, ...] | Privacy]] = [*pieces, *beside]
    privacy = None
    for done in run_each(calls, workers=workers, step="try settings"):
        if isinstance(done, Privacy):
            privacy = done
        else:
            piloted |= {score.strategy: score for score in done}
    tried = [piloted[strategy] for group in groups for strategy in group]
    # In full: the best setting of the best strategies.
    n_kept = schedule.n_kept(tried, best_settings(tried))
    kept = survivors(tried, n_kept=n_kept)
    full = score_all([(strategy, 0) for strategy in kept], "score the best settings")
    logger.info("%s", _ranking(full))
    # All seeds: the best of these.
    last = finalists(full)
    n_seeds = schedule.n_seeds(tried, full, last, most=params.evaluation.n_seeds)
    if n_seeds == 1:  # no further seeds to score: all of them are finalists
        last = kept
    seeds_left = [(strategy, i) for strategy in last for i in range(1, n_seeds)]
    rest = score_all(seeds_left, "score with further seeds")
    as_rung = partial(rung, timed=not params.budget.steps, model=_model_kind(experiment))
    why = {"": f"the best setting of its strategy, and not of the best {n_kept} strategies"}
    rungs = [*pilots, as_rung("pilots", tried, kept, step_share=PILOT_STEP_SHARE, reasons=why)]
    why = {"": f"not of the best {len(last) - 1} strategies"}
    why |= {s.name: "a control: what soft labels know" for s in strategies if s.is_control}
    rungs.append(as_rung("in full", full, last, reasons=why))
    if rest:
        scores = [score for score in [*full, *rest] if score.strategy in last]
        rungs.append(as_rung("all seeds", scores, last, reasons={}))
    result = SearchResult(rungs=tuple(rungs), n_settings=plan.n_settings)
    # A seed on the hold-out is one training, where a finalist's are five. With five seeds instead of three a gain of
    # 4 points on 1,000 records is shown in 50 % instead of 38 % (benchmarks/evidence.py).
    n_confirmed = n_seeds if experiment.dataset.modality == "image" else 2 * n_seeds - 1
    return Search([*full, *rest], n_confirmed, result, privacy)


def _model_kind(experiment: Experiment) -> str:
    """The kind of model that the candidates are of; empty without any."""
    if experiment.candidates is None:
        return ""
    return resolve_model(experiment.params.model, modality=experiment.dataset.modality) or ""


def _ranking(scores: Sequence[StrategyScore]) -> str:
    """Say how strategies scored, the best first."""
    measure = scores[0].measure
    ranked = sorted(scores, key=lambda score: -score.score)
    listed = (f"{s.strategy.name} {measured(measure.shown(s.score), measure)}" for s in ranked)
    return f"{measure.title[:1].upper()}{measure.title[1:]} on validation records: {', '.join(listed)}."


def _choose_model(experiment: Experiment, *, workers: int) -> Synthesis:
    """Choose the requested model or, where several suit the records, the cheapest of those with the best pilot.

    Strategies without a model are tried meanwhile, so that no worker waits for the slowest model.
    """
    dataset, plan, params = experiment.dataset, experiment.plan, experiment.params
    candidates, skipped = suitable(load_info(dataset, open_root(dataset)), plan, params.model)
    if len(candidates) < 2:
        return Synthesis(experiment, skipped=skipped)
    classic = params.classic
    strategies = make_strategies(
        dataset.modality, model="model", classic=classic, soft_labels=plan.soft_labels
    )
    (strategy,) = (strategy for strategy in strategies if strategy.family == "model")
    named = [strategy.model_copy(update={"name": kind}) for kind in candidates]
    calls = [
        call(
            pilot_strategy,
            experiment.with_model(TABLE_MODELS[one.name]),
            settings(one, plan=plan, classic=classic),
            budget=pilot_budget(params.budget),
        )
        for one in named
    ]
    copies = params.publish.materialise == "copies"
    without = [s for s in strategies if s.family in ("weights", "resampling", "classic")]
    groups = pilot_groups(without, plan=plan, classic=classic, copies=copies)
    beside = [call(pilot_strategy, experiment, group) for group in groups]
    scored = run_each([*beside, *calls], workers=workers, step="compare models")
    tried, pilots = scored[: len(beside)], scored[len(beside) :]
    best = best_kind(pilots)
    trials = [
        rung(
            "models",
            scores,
            [max(scores, key=lambda s: s.score).strategy] if i == best else [],
            step_share=PILOT_STEP_SHARE,
            reasons={"": f"{candidates[best]} scored higher, or as high at less cost"},
            timed=not params.budget.steps,
            model=kind,
        )
        for i, (kind, scores) in enumerate(zip(candidates, pilots, strict=True))
    ]
    together = tuple(trial for one in trials for trial in one.trials)
    return Synthesis(
        experiment.with_model(TABLE_MODELS[candidates[best]]),
        pilots=(trials[0].model_copy(update={"trials": together}),),
        tried=tuple(score for scores in tried for score in scores),
        skipped=skipped,
    )
