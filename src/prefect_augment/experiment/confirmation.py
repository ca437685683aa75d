"""Confirmation: the one reading of the hold-out, for a comparison that was fixed beforehand.

Also when a run is refused after its report: nothing helps, or records reveal what they were made
from.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from prefect_augment.array_types import Array, Bool, Float
from prefect_augment.encoding.arrays import Labelled, Matrix, Records, by_columns
from prefect_augment.encoding.subsample import read_parts
from prefect_augment.evaluation.metrics.predictions import StrategyPredictions
from prefect_augment.evaluation.neighbours import FeatureSpace
from prefect_augment.evaluation.privacy.holdout_leaks import holdout_leaks
from prefect_augment.evaluation.verdict.decision import decide, inconclusive
from prefect_augment.experiment.diagnostics import Copies, Holdout, corrupted_copies, diagnose
from prefect_augment.experiment.evaluator import (
    Evaluator,
    Synthetic,
    chosen_measure,
    compared_sample,
    kept_synthetic,
    sampled_note,
)
from prefect_augment.experiment.evaluators import open_evaluator
from prefect_augment.experiment.looks import Looks
from prefect_augment.experiment.out_of_fold import evidence
from prefect_augment.experiment.privacy import measure_external
from prefect_augment.params import RunParams
from prefect_augment.plan.strategies import as_trained
from prefect_augment.schema import (
    BalancePlan,
    Choice,
    Experiment,
    HoldoutResult,
    Privacy,
    Strategy,
    StrategyScore,
    Verdict,
)
from prefect_augment.storage import Stage, Store

logger = logging.getLogger(__name__)

DIAGNOSTICS = "diagnostics"


def confirm(
    experiment: Experiment,
    choice: Choice,
    scores: Sequence[StrategyScore],
    store: Store,
    *,
    workers: int = 1,
) -> Verdict:
    """Compare the chosen strategy, the best baseline and the data as they are on the hold-out.

    The estimators train on training and validation records together, as users of the published
    training split will. Under the first seed a strategy with a model trains on the very records
    that would be published, under the others on records of the same model, trained and drawn anew
    (images: the same records, since their models take too long). For tables the best strategy with
    synthetic records is shown too, whatever is published. The same reading and estimators serve
    robustness, recall per group of ``balance.by`` and calibration
    (:mod:`prefect_augment.experiment.diagnostics`). ``scores`` bring the tuned thresholds. The
    verdict is stored, so that the hold-out is read once for these inputs. It is one look among all
    at this hold-out, which fixes the level of the deciding interval
    (:mod:`prefect_augment.experiment.looks`).
    """
    stage = Stage(store, "confirm", experiment.key("confirm", choice))
    return stage.run(Verdict, lambda: _confirm(experiment, choice, scores, stage, workers))


def _confirm(
    experiment: Experiment,
    choice: Choice,
    scores: Sequence[StrategyScore],
    stage: Stage,
    workers: int,
) -> Verdict:
    store, evaluation, run_seed = stage.store, experiment.params.evaluation, experiment.params.seed
    evaluator = open_evaluator(store, experiment)
    data = evaluator.records
    looks = Looks(store, evaluator.info)
    look = looks.take(stage.key)  # before the hold-out is read
    (table,) = read_parts(
        store,
        evaluator.info,
        ["holdout"],
        by=by_columns(evaluator.plan),
        sample=compared_sample(experiment),
    )
    holdout = Holdout.of(evaluator, table)
    del table
    records, is_external = holdout.records, choice.chosen.family == "external"
    if is_external and experiment.candidates is not None:
        measure_external(evaluator, records, store)  # of this one reading
    copies = corrupted_copies(evaluator, records, seed=run_seed)
    # Shown, whatever is chosen; an image's classifier takes minutes for that.
    shown = choice.model if evaluator.info.image is None else None
    compared = {s.name: s for s in (choice.chosen, choice.baseline, choice.as_is)}
    strategies = compared | ({shown.name: shown} if shown else {})
    candidates = kept_synthetic(evaluator, store, with_dropped=is_external)
    multipliers = {
        name: _multipliers(strategy, data.classes, scores, evaluation.n_seeds)
        for name, strategy in strategies.items()
    }
    predictions, corrupted = _predict_strategies(
        _Reading(evaluator, records, copies, candidates, run_seed),
        strategies,
        multipliers,
        with_copies=compared,
        n_seeds=evaluation.n_seeds,
        workers=workers,
    )
    verdict = decide(
        records.y,
        predictions,
        classes=data.classes,
        measure=chosen_measure(evaluator),
        compared=data.compared,
        chosen=choice.chosen.name,
        baseline=choice.baseline.name,
        as_is=choice.as_is.name,
        model=choice.model.name if choice.model else None,
        on_no_gain=evaluation.on_no_gain,
        require=experiment.params.publish.require,
        max_recall_loss=evaluation.max_recall_loss,
        level=look.level,
        n_bootstrap=evaluation.n_bootstrap,
        seed=run_seed,
        groups=records.groups,
        twins=np.isin(records.content, data.content),
        not_compared={c.label: c.note for c in evaluator.plan.classes if not c.compared and c.note},
        out_of_fold=evidence(evaluator, scores, store),
    )
    leaks = _leaks(data, records)
    copied = _copied(data, records, candidates) if is_external and candidates else ""
    if copied:
        leaks = (*leaks, copied)
        nothing = {"synthetic": "no gain shown", "decision": "inconclusive", "answers": (copied,)}
        verdict = verdict.model_copy(update=nothing)
    for leak in leaks:
        logger.warning("%s", leak)
    if sampled := sampled_note(evaluator, records):
        logger.info("%s", sampled)
        verdict = verdict.model_copy(update={"reasons": (*verdict.reasons, sampled)})
    stage.item(
        DIAGNOSTICS,
        HoldoutResult,
        lambda: diagnose(
            verdict,
            predictions,
            {name: corrupted[name] for name in compared},
            evaluator=evaluator,
            holdout=holdout,
            copies=copies,
            candidates=candidates,
        ),
    )
    if verdict.synthetic == "proven":
        looks.mark_proven(look)
    diagnostics = f"{stage.prefix}/{DIAGNOSTICS}.json"
    known = {"look": look, "leaks": leaks, "diagnostics": diagnostics}
    return verdict.model_copy(update=known | {"estimators": evaluator.estimator_infos})


def without_comparison(plan: BalancePlan) -> tuple[Strategy, Verdict]:
    """The strategy and verdict where fewer than two classes are large enough to be compared.

    The rare classes get a mild treatment: weight, at most five times that of the others.
    """
    strategy = Strategy(name="class weights", family="weights", amount=1.0)
    not_compared = {c.label: c.note for c in plan.classes if not c.compared}
    n_classes = len({c.label for c in plan.classes})
    reasons = (
        (
            f"Fewer than two of {n_classes} classes are large enough for training, validation and hold-out, "
            "so no strategy could be compared."
        ),
        "The rare classes get weight, at most five times that of the others.",
    )
    verdict = inconclusive(
        reasons,
        chosen=strategy.name,
        baseline=strategy.name,
        published=strategy.name,
        not_compared=not_compared,
    )
    return strategy, verdict


Requested = Mapping[str, dict[str, Float]]  # strategy -> estimator -> multipliers
Predicted = dict[str, Float]


@dataclass(frozen=True)
class _Reading:
    """The hold-out as it was read, and what predicts it."""

    evaluator: Evaluator
    holdout: Records
    copies: Copies
    candidates: Synthetic | None
    run_seed: int

    @cached_property
    def X(self) -> Array:
        """The hold-out's records and after them the corrupted copies."""
        return np.concatenate([self.holdout.X, self.copies.X])


def _predict_strategies(
    reading: _Reading,
    strategies: Mapping[str, Strategy],
    multipliers: Requested,
    *,
    with_copies: Collection[str],
    n_seeds: int,
    workers: int,
) -> tuple[dict[str, StrategyPredictions], Predicted]:
    """Predictions of the hold-out by strategy, and hits on the copies for those ``with_copies``."""
    # A strategy and the same with tuned thresholds are trained once.
    names_of: dict[Strategy, list[str]] = {}
    for name, strategy in strategies.items():
        names_of.setdefault(as_trained(strategy), []).append(name)
    requested = {
        trained: {name: multipliers[name] for name in names if name in with_copies}
        for trained, names in names_of.items()
    }
    predictions: dict[str, StrategyPredictions] = {}
    corrupted: Predicted = {}
    for trained, (proba, hits) in _predict_all(
        reading, requested, n_seeds=n_seeds, workers=workers
    ).items():
        corrupted |= hits
        for name in names_of[trained]:
            predictions[name] = StrategyPredictions(
                strategies[name],
                proba,
                multipliers[name],
                is_fixed=reading.evaluator.is_fixed(trained),
            )
    return predictions, corrupted


def _predict_all(
    reading: _Reading, requested: Mapping[Strategy, Requested], *, n_seeds: int, workers: int
) -> dict[Strategy, tuple[Predicted, Predicted]]:
    """Train every strategy with each seed, ``workers`` at the same time, and predict the hold-out.

    ``requested`` has the multipliers of those strategies whose corrupted copies are predicted too.
    The result has, by estimator, probabilities (n_seeds, n_records, n_classes), and by strategy
    name the share of estimators that are right about each copy, (n_seeds, n_corruptions, n_rows).
    """
    evaluator = reading.evaluator
    assert len(reading.X)  # computed here, once, before threads use it
    with ThreadPoolExecutor(workers) as pool:
        # A strategy that draws nothing is the same under every seed.
        jobs = {
            strategy: [
                # The run's log goes by the context.
                pool.submit(copy_context().run, _predict, strategy, reading, of, i)
                for i in range(1 if evaluator.is_fixed(strategy) else n_seeds)
            ]
            for strategy, of in requested.items()
        }
        try:
            done = {s: [job.result() for job in of_seeds] for s, of_seeds in jobs.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # jobs that wait are not started
            raise
    return {
        strategy: (
            {name: _over_seeds([p[name] for p, _ in of], n_seeds) for name in evaluator.estimators},
            {
                name: _over_seeds([hits[name] for _, hits in of], n_seeds)
                for name in requested[strategy]
            },
        )
        for strategy, of in done.items()
    }


def _predict(
    strategy: Strategy, reading: _Reading, requested: Requested, i: int
) -> tuple[Predicted, Predicted]:
    """Train a strategy with seed ``i``: its probabilities on the hold-out, and its hits on the copies."""
    evaluator, y = reading.evaluator, reading.holdout.y
    rows, n, seed = np.arange(len(evaluator.records.y)), len(y), reading.run_seed * 1000 + i
    synthetic = reading.candidates if strategy.has_model else None
    if strategy.has_model and i:
        synthetic = evaluator.synthetic(rows, candidates=reading.candidates, seed=seed)
    proba: Predicted = {}
    hits: dict[str, list[Bool]] = {name: [] for name in requested}
    X = reading.X if requested else reading.X[:n]
    for estimator, p in evaluator.predictions(strategy, rows, X, synthetic=synthetic, seed=seed):
        proba[estimator] = p[:n].copy()  # a view would keep the copies' in memory
        for name, multipliers in requested.items():
            tuned = multipliers[estimator][i] if estimator in multipliers else None
            hits[name].append(reading.copies.hits(p[n:], y, tuned))
    return proba, {name: np.mean(per_estimator, axis=0) for name, per_estimator in hits.items()}


def _over_seeds(values: list[Float], n_seeds: int) -> Float:
    """Stack the seeds' arrays; a single one is shown for all seeds without copies of it."""
    if len(values) == 1:
        return np.broadcast_to(values[0], (n_seeds, *values[0].shape))
    return np.stack(values)


# Share of a class's hold-out records that external ones may repeat by chance.
MAX_COPIED = 0.02


def _copied(data: Records, holdout: Records, external: Synthetic) -> str:
    """Whether whoever made the external records has copied the hold-out, in a sentence; empty if not.

    Hold-out records that are also among the real training records do not count.
    """
    synthetic, real = ({row.tobytes() for row in X} for X in (external.X, data.X))
    rows = [row.tobytes() for row in holdout.X]
    is_copied = np.array([row in synthetic for row in rows])
    has_twin = np.array([row in real for row in rows])
    for k in np.unique(holdout.y):
        of_class = holdout.y == k
        n, n_twins = int(is_copied[of_class].sum()), int((is_copied & has_twin)[of_class].sum())
        if n - n_twins > max(2, MAX_COPIED * of_class.sum()):
            return (
                f"Leak: {n} of {int(of_class.sum())} hold-out records of {data.classes[k]} are among the external "
                "records, value for value. Whoever made them has seen the hold-out, so it cannot tell whether they "
                "help. Make them from other records, or give a hold-out that was kept apart (source.holdout_uri)."
            )
    return ""


def _leaks(data: Records, holdout: Records) -> tuple[str, ...]:
    """Signs of a leak in a table; near-duplicate images were kept on one side."""
    if not isinstance(data, Matrix):
        return ()
    training, validation = (
        Labelled(data.X[rows], data.y[rows]) for rows in (~data.is_validation, data.is_validation)
    )
    space = FeatureSpace.of(training.X, data.is_category)
    return holdout_leaks(training, validation, Labelled(holdout.X, holdout.y), space)


def _multipliers(
    strategy: Strategy, classes: Sequence[str], scores: Sequence[StrategyScore], n_seeds: int
) -> dict[str, Float]:
    """Thresholds that were tuned on validation records, the same for every seed."""
    tuned = next((s.thresholds for s in scores if s.strategy == strategy), {})
    return {
        estimator: np.tile([values.get(c, 1.0) for c in classes], (n_seeds, 1))
        for estimator, values in tuned.items()
    }


LEAKS = ("leak", "gap")


def _helps(verdict: Verdict) -> bool:
    """Whether what was tried is published: synthetic records, or where there are none any gain."""
    if verdict.synthetic == "not tried":
        return verdict.decision == "accept"
    return verdict.published == verdict.chosen and verdict.synthetic in ("proven", "preferred")


def refusal_reason(
    params: RunParams, verdict: Verdict | None, privacy: Privacy | None, *, goes_out: bool
) -> str:
    """Why nothing may be published (``evaluation.on_no_gain``, ``quality.on_leak``); empty where it may.

    ``goes_out``: the synthetic records are to be published, or are themselves what is evaluated.
    """
    if params.evaluation.on_no_gain == "fail" and verdict is not None and not _helps(verdict):
        answers = " ".join((*verdict.answers, *verdict.reasons))
        return f"synthetic records did not help, and evaluation.on_no_gain is 'fail'. {answers}"
    fails = params.quality.on_leak == "fail" and goes_out
    if fails and privacy is not None and privacy.finding in LEAKS:
        return f"the synthetic records leak and quality.on_leak is 'fail'. {privacy.sentence}"
    return ""
