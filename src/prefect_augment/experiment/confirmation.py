"""Confirmation: the one reading of the hold-out, for a comparison that was fixed beforehand.

Also when a run is refused after its report: nothing helps, or records reveal what they were made from.
"""

import io
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from prefect_augment.array_types import Float
from prefect_augment.encoding.arrays import Labelled, Matrix, Records
from prefect_augment.evaluation.metrics.predictions import StrategyPredictions
from prefect_augment.evaluation.neighbours import FeatureSpace
from prefect_augment.evaluation.privacy.holdout_leaks import holdout_leaks
from prefect_augment.evaluation.verdict.decision import decide, inconclusive
from prefect_augment.experiment.diagnostics import Holdout, diagnose
from prefect_augment.experiment.evaluator import (
    Evaluator,
    Synthetic,
    chosen_measure,
    kept_synthetic,
    sampled_note,
)
from prefect_augment.experiment.evaluators import open_evaluator
from prefect_augment.experiment.looks import Looks
from prefect_augment.experiment.privacy import measure_external
from prefect_augment.experiment.score import Predictions, evidence
from prefect_augment.params import RunParams
from prefect_augment.plan.strategies import as_trained
from prefect_augment.schema import (
    BalancePlan,
    Choice,
    Experiment,
    HoldoutResult,
    Look,
    Privacy,
    Result,
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

    The estimators train on training and validation records together, as users of the published training split will.
    Under the first seed a strategy with a model trains on the very records that would be published, under the others
    on records of the same model, trained and drawn anew (images: the same records, since their models take too long).
    For tables the best strategy with synthetic records is shown too. The same reading serves recall per group of
    ``balance.by`` and calibration (:mod:`.diagnostics`). ``scores`` bring the tuned thresholds. The hold-out is read
    once for these inputs: one look among all at it, which fixes the level of the deciding interval (:mod:`.looks`).
    """
    stage = Stage(store, "confirm", experiment.key("confirm", choice))
    return stage.run(Verdict, lambda: _confirm(experiment, choice, scores, stage, workers))


def fit_part(
    experiment: Experiment,
    choice: Choice,
    scores: Sequence[StrategyScore],
    store: Store,
    *,
    part: int,
    n_parts: int,
) -> int:
    """Train every ``n_parts``-th estimator of a comparison, and stage what it predicts of the hold-out.

    The last part looks for leaks, too. :func:`confirm` with the same arguments finds it all. Returns how many
    were trained.
    """
    stage = Stage(store, "confirm", experiment.key("confirm", choice))
    if stage.outcome(Verdict) is not None:
        return 0
    case = _Case.of(experiment, choice, scores, stage)
    own = [fit for i, fit in enumerate(case.fits()) if i % n_parts == part]
    left = [fit for fit in own if fit.load(case) is None]
    for fit in left:
        fit.save(case, fit.predict(case))
    if part == n_parts - 1:
        case.leaks()
    return len(left)


class _Leaks(Result):
    """Signs of a leak, in sentences."""

    sentences: tuple[str, ...]


@dataclass(frozen=True)
class _Fit:
    """A strategy that is trained with one seed, and where its predictions are staged."""

    strategy: Strategy
    seed: int
    name: str

    def predict(self, case: "_Case") -> Predictions:
        """Train the strategy, and predict the hold-out."""
        evaluator, candidates, i = case.evaluator, case.candidates, self.seed
        rows = np.arange(len(evaluator.records.y))
        seed = evaluator.params.seed * 1000 + i
        synthetic = candidates if self.strategy.has_model else None
        if self.strategy.has_model and i:
            synthetic = evaluator.synthetic(rows, candidates=candidates, seed=seed)
        X = case.holdout.records.X
        return dict(evaluator.predictions(self.strategy, rows, X, synthetic=synthetic, seed=seed))

    def load(self, case: "_Case") -> Predictions | None:
        """Return what was staged, None if nothing was."""
        try:
            data = case.stage.store.read(f"{case.stage.prefix}/{self.name}")
        except FileNotFoundError:
            return None
        stored = np.load(io.BytesIO(data), allow_pickle=False)
        return dict(zip(case.evaluator.estimators, stored, strict=True))

    def save(self, case: "_Case", predicted: Predictions) -> None:
        """Stage what the estimators predict."""
        file = io.BytesIO()
        np.save(file, np.stack([*predicted.values()]))
        case.stage.store.put_if_absent(f"{case.stage.prefix}/{self.name}", file.getvalue())


@dataclass(frozen=True)
class _Case:
    """One comparison on the hold-out: what is read for it, and what is trained."""

    stage: Stage
    looks: Looks
    look: Look
    evaluator: Evaluator
    holdout: Holdout
    candidates: Synthetic | None
    strategies: dict[str, Strategy]
    compared: dict[str, Strategy]
    multipliers: dict[str, dict[str, Float]]

    @classmethod
    def of(
        cls, experiment: Experiment, choice: Choice, scores: Sequence[StrategyScore], stage: Stage
    ) -> "_Case":
        """Read the hold-out, after the look at it is recorded."""
        store = stage.store
        evaluator = open_evaluator(store, experiment)
        looks = Looks(store, evaluator.info)
        look = looks.take(stage.key)
        holdout = Holdout.of(evaluator, store)
        # Shown, whatever is chosen; an image's classifier takes minutes for that.
        shown = choice.model if evaluator.info.image is None else None
        compared = {s.name: s for s in (choice.chosen, choice.baseline, choice.as_is)}
        strategies = compared | ({shown.name: shown} if shown else {})
        is_external = choice.chosen.family == "external"
        candidates = kept_synthetic(evaluator, store, with_dropped=is_external)
        multipliers = {
            name: _multipliers(strategy, evaluator, scores) for name, strategy in strategies.items()
        }
        return cls(
            stage, looks, look, evaluator, holdout, candidates, strategies, compared, multipliers
        )

    @cached_property
    def names_of(self) -> dict[Strategy, list[str]]:
        """Names by strategy that is trained: one and the same with tuned thresholds are trained once."""
        names: dict[Strategy, list[str]] = {}
        for name, strategy in self.strategies.items():
            names.setdefault(as_trained(strategy), []).append(name)
        return names

    def fits(self) -> list[_Fit]:
        """What is trained; a strategy that draws nothing is the same under every seed."""
        return [
            _Fit(strategy, seed, f"fit-{i:03d}-{seed:03d}.npy")
            for i, strategy in enumerate(self.names_of)
            for seed in range(1 if self.evaluator.is_fixed(strategy) else self.n_seeds)
        ]

    def leaks(self) -> tuple[str, ...]:
        """Signs of a leak in a table; near-duplicate images were kept on one side."""
        data, holdout = self.evaluator.records, self.holdout.records
        if not isinstance(data, Matrix):
            return ()

        def search() -> _Leaks:
            training, validation = (
                Labelled(data.X[rows], data.y[rows])
                for rows in (~data.is_validation, data.is_validation)
            )
            space = FeatureSpace.of(training.X, data.is_category)
            of_holdout = Labelled(holdout.X, holdout.y)
            return _Leaks(sentences=holdout_leaks(training, validation, of_holdout, space))

        return self.stage.item("leaks", _Leaks, search).sentences

    @property
    def n_seeds(self) -> int:
        """Seeds that strategies are compared with."""
        return self.evaluator.params.evaluation.n_seeds


def _confirm(
    experiment: Experiment,
    choice: Choice,
    scores: Sequence[StrategyScore],
    stage: Stage,
    workers: int,
) -> Verdict:
    store, evaluation = stage.store, experiment.params.evaluation
    case = _Case.of(experiment, choice, scores, stage)
    evaluator, candidates, look = case.evaluator, case.candidates, case.look
    data, records = evaluator.records, case.holdout.records
    is_external = choice.chosen.family == "external"
    if is_external and experiment.candidates is not None:
        measure_external(evaluator, records, store)  # of this one reading
    predictions, leaks = _predict_all(case, workers=workers)
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
        seed=experiment.params.seed,
        groups=records.groups,
        twins=np.isin(records.content, data.content),
        not_compared={c.label: c.note for c in evaluator.plan.classes if not c.compared and c.note},
        out_of_fold=evidence(evaluator, scores, store),
    )
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
            {name: predictions[name] for name in case.compared},
            evaluator=evaluator,
            holdout=case.holdout,
            candidates=candidates,
        ),
    )
    if verdict.synthetic == "proven":
        case.looks.mark_proven(look)
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


def _predict_all(
    case: _Case, *, workers: int
) -> tuple[dict[str, StrategyPredictions], tuple[str, ...]]:
    """Train every strategy with each seed, ``workers`` at the same time, and predict the hold-out.

    Leaks are looked for meanwhile. What :func:`fit_part` has staged is not done again.
    """

    def one(fit: _Fit) -> Predictions:
        return fit.load(case) or fit.predict(case)

    fits = case.fits()
    with ThreadPoolExecutor(workers) as pool:
        # The run's log goes by the context.
        search = pool.submit(copy_context().run, case.leaks)
        jobs = [pool.submit(copy_context().run, one, fit) for fit in fits]
        try:
            predicted, leaks = [job.result() for job in jobs], search.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # jobs that wait are not started
            raise
    of_seeds: dict[Strategy, list[Predictions]] = {}
    for fit, result in zip(fits, predicted, strict=True):
        of_seeds.setdefault(fit.strategy, []).append(result)
    predictions: dict[str, StrategyPredictions] = {}
    for trained, results in of_seeds.items():
        proba = {
            estimator: _over_seeds([p[estimator] for p in results], case.n_seeds)
            for estimator in case.evaluator.estimators
        }
        for name in case.names_of[trained]:
            predictions[name] = StrategyPredictions(
                case.strategies[name],
                proba,
                case.multipliers[name],
                is_fixed=case.evaluator.is_fixed(trained),
            )
    return predictions, leaks


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


def _multipliers(
    strategy: Strategy, evaluator: Evaluator, scores: Sequence[StrategyScore]
) -> dict[str, Float]:
    """Thresholds that were tuned on validation records, the same for every seed."""
    classes, n_seeds = evaluator.records.classes, evaluator.params.evaluation.n_seeds
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
