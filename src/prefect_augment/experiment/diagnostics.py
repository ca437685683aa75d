"""Secondary results on the hold-out: groups and calibration.

Nothing here reads records: the confirmation passes the hold-out that it has read, and the
predictions of the estimators that it has trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from prefect_augment.array_types import Bool, Int
from prefect_augment.encoding.arrays import Records, by_columns
from prefect_augment.encoding.strata import NULL_TEXT
from prefect_augment.encoding.values import plain
from prefect_augment.evaluation.metrics.bootstrap import Draws
from prefect_augment.evaluation.metrics.calibration import (
    calibration_of,
    n_calibration_bins,
    prior_factors,
)
from prefect_augment.evaluation.metrics.predictions import StrategyPredictions
from prefect_augment.evaluation.metrics.slices import slices
from prefect_augment.experiment.evaluator import Evaluator, Synthetic
from prefect_augment.experiment.training_set import wanted_with
from prefect_augment.plan.weights import class_shares, shares_of, shares_trained
from prefect_augment.schema import CalibrationResult, HoldoutResult, SliceResult, Strategy, Verdict
from prefect_augment.storage import Store

# Probabilities for calibration, per estimator and seed: 40 MiB.
MAX_CALIBRATED = 5_000_000
# Enough for an interval of three sums; the verdict's own has evaluation.n_bootstrap.
CALIBRATION_DRAWS = 500
MAX_RARE_CLASSES = 10  # classes whose calibration is measured one by one


@dataclass(frozen=True)
class Holdout:
    """The hold-out as it was read, with the values of the ``balance.by`` columns as text."""

    records: Records
    by: dict[str, list[str]]

    @classmethod
    def of(cls, evaluator: Evaluator, store: Store) -> "Holdout":
        """The hold-out, read here."""
        records, table = evaluator.read_holdout(store)
        by = {
            name: plain(table[name]).cast(pa.string()).fill_null(NULL_TEXT).to_pylist()
            for name in by_columns(evaluator.plan)
        }
        return cls(records, by)


def diagnose(
    verdict: Verdict,
    predictions: Mapping[str, StrategyPredictions],
    *,
    evaluator: Evaluator,
    holdout: Holdout,
    candidates: Synthetic | None,
) -> HoldoutResult:
    """Secondary results; strategies with a model have trained on ``candidates``."""
    if not verdict.balanced_accuracy:  # no compared class has a record
        return HoldoutResult()
    return HoldoutResult(
        slices=_slices(verdict, predictions, evaluator, holdout) if holdout.by else None,
        calibration=_calibration(verdict, predictions, evaluator, holdout, candidates),
    )


def _slices(
    verdict: Verdict,
    predictions: Mapping[str, StrategyPredictions],
    evaluator: Evaluator,
    holdout: Holdout,
) -> SliceResult:
    data, params = holdout.records, evaluator.experiment.params
    as_is = next(name for name, p in predictions.items() if p.strategy.family == "as_is")
    return slices(
        data.y,
        {name: predictions[name].hits(data.y) for name in {as_is, verdict.shown}},
        holdout.by,
        classes=data.classes,
        compared=evaluator.records.compared,
        before=as_is,
        after=verdict.shown,
        groups=data.groups,
        n_bootstrap=params.evaluation.n_bootstrap,
        seed=params.seed,
    )


def _calibration(
    verdict: Verdict,
    predictions: Mapping[str, StrategyPredictions],
    evaluator: Evaluator,
    holdout: Holdout,
    candidates: Synthetic | None,
) -> CalibrationResult:
    data, seed = holdout.records, evaluator.experiment.params.seed
    rows, most = np.arange(len(data.y)), max(1, MAX_CALIBRATED // len(data.classes))
    if len(rows) > most:  # at random, which keeps the class shares
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    draws = Draws.of(
        len(rows),
        None if data.groups is None else data.groups[rows],
        n_seeds=predictions[verdict.chosen].n_seeds,
        n_draws=CALIBRATION_DRAWS,
        seed=seed,
    )
    rare = _rarest(data.y[rows], evaluator.records.compared)
    true = class_shares(evaluator.plan)
    train = {
        name: _training_shares(p.strategy, evaluator, candidates) for name, p in predictions.items()
    }
    calibrated = partial(
        calibration_of,
        data.y[rows],
        classes=data.classes,
        rare_classes=rare,
        draws=draws,
        seed=seed,
    )
    strategies = {}
    for name, p in predictions.items():
        factors = prior_factors(data.classes, true, train[name])
        strategies[name] = {k: calibrated(q[:, rows], factors=factors) for k, q in p.proba.items()}
    info = CalibrationResult(
        n_records=len(rows),
        n_bins=n_calibration_bins(len(rows)),
        looked_at=tuple(data.classes[k] for k in rare),
        strategies=strategies,
        prior_true=true,
        prior_train=train,
        published=verdict.published,
        sentence="",
    )
    return info.model_copy(update={"sentence": _sentence(info)})


def _rarest(y: Int, compared: Bool) -> list[int]:
    """The rarest compared classes that occur; of two classes the rarer, since the other says the same."""
    counts = np.bincount(y, minlength=len(compared))
    occurring = np.flatnonzero(compared & (counts > 0))
    occurring = occurring[np.argsort(counts[occurring], kind="stable")]
    most = 1 if len(compared) == 2 else MAX_RARE_CLASSES
    return [int(k) for k in occurring[:most]]


def _training_shares(
    strategy: Strategy, evaluator: Evaluator, candidates: Synthetic | None
) -> dict[str, float]:
    """Class shares that a strategy trains with: records times weight."""
    plan, names = evaluator.plan, evaluator.records.strata_names
    counts = {c.name: c.n_real for c in plan.classes}
    synthetic = candidates if strategy.has_model else None
    wanted = wanted_with(strategy, counts, plan, synthetic, names)
    effective = shares_of(plan, {name: w.effective for name, w in wanted.items()})
    return shares_trained(effective, strategy)


def _sentence(info: CalibrationResult) -> str:
    """What the correction does to the published strategy's probabilities."""
    estimators = info.strategies[info.published]
    corrected = [c for c in estimators.values() if c.corrected is not None]
    name = f"“{info.published}”"
    if not corrected:
        return f"{name} trains with the true class shares, so its probabilities need no correction."
    better = sum(c.change is not None and c.change.high < 0 for c in corrected)
    worse = sum(c.change is not None and c.change.low > 0 for c in corrected)
    effect = f"the correction lowers the Brier score for {better} of {len(corrected)} estimators"
    if worse:
        effect += f" and raises it for {worse}"
    return (
        f"{name} trains with other class shares than the true ones. On the hold-out {effect}. Use corrected "
        "probabilities as probabilities, and the uncorrected ones to choose a class: those were compared."
    )
