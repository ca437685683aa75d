"""What the verdict's reading of the hold-out says further: robustness, groups, calibration.

Nothing here reads records: it gets the hold-out as the verdict has read it, and predictions of the
estimators that the verdict has trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.encoding.arrays import Matrix, Records, by_columns
from prefect_augment.encoding.strata import NULL_TEXT
from prefect_augment.encoding.values import plain
from prefect_augment.evaluation.metrics.bootstrap import Draws
from prefect_augment.evaluation.metrics.calibration import calibration_of, n_bins_of, prior_factors
from prefect_augment.evaluation.metrics.corruptions import (
    IMAGE_CORRUPTIONS,
    TABLE_CORRUPTIONS,
    Corruption,
    Scale,
)
from prefect_augment.evaluation.metrics.decision import StrategyPredictions
from prefect_augment.evaluation.metrics.robustness import robustness, rows_to_corrupt
from prefect_augment.evaluation.metrics.scores import predict_classes
from prefect_augment.evaluation.metrics.slices import slices
from prefect_augment.experiment.evaluator import Evaluator, Synthetic
from prefect_augment.plan.priors import class_shares, left_by_loss, shares_of
from prefect_augment.plan.strategies import wanted_records
from prefect_augment.schema.base import Strategy, Verdict
from prefect_augment.schema.experiment import (
    CalibrationResult,
    HoldoutResult,
    RobustnessResult,
    SliceResult,
)
from prefect_augment.synthesis.soft_labels import share_sums

__all__ = ["Copies", "Holdout", "corrupted_copies", "diagnose", "pairs_of"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]

# Corrupted copies are predicted by every estimator of every strategy and seed. So many records tell balanced
# accuracy to half a point; with many classes, and of images, fewer keep their arrays below 100 MiB.
MAX_CORRUPTED = 20_000
MAX_PROBABILITIES = 4_000_000
MAX_VALUES = 100 << 20
# Of probabilities that calibration looks at, per estimator and seed: 40 MiB.
MAX_CALIBRATED = 5_000_000
# Enough for an interval of three sums; the verdict's own has evaluation.n_bootstrap.
CALIBRATION_DRAWS = 500
MAX_LOOKED_AT = 10  # classes whose probabilities are looked at one by one


@dataclass(frozen=True)
class Holdout:
    """The hold-out as it was read, and what its groups are.

    Attributes
    ----------
    records : Records
    by : dict of str to list of str
        Values of the ``balance.by`` columns, as text.
    """

    records: Records
    by: dict[str, list[str]]

    @classmethod
    def of(cls, evaluator: Evaluator, table: pa.Table) -> Holdout:
        """Take the hold-out from its table."""
        by = {
            name: plain(table[name]).cast(pa.string()).fill_null(NULL_TEXT).to_pylist()
            for name in by_columns(evaluator.plan)
        }
        return cls(evaluator.read(table), by)


@dataclass(frozen=True)
class Copies:
    """Corrupted copies of some hold-out records.

    Attributes
    ----------
    rows : ndarray of int64, shape (n_rows,)
        Which records.
    corruptions : tuple of Corruption
    X : ndarray, shape (n_corruptions * n_rows, ...)
        One corruption after the other.
    """

    rows: Int
    corruptions: tuple[Corruption, ...]
    X: NDArray[Any]

    def hits(self, proba: Float, y: Int, multipliers: Float | None) -> NDArray[np.bool_]:
        """Tell of which copies the class is found, shape (n_corruptions, n_rows); ``y`` is the hold-out's."""
        predicted = predict_classes(proba, multipliers).reshape(len(self.corruptions), -1)
        return np.asarray(predicted == y[self.rows])


def corrupted_copies(evaluator: Evaluator, holdout: Records, *, seed: int) -> Copies:
    """Return hold-out records of judged classes, corrupted in every way that their kind knows."""
    X, is_image = holdout.X, evaluator.info.image is not None
    corruptions = IMAGE_CORRUPTIONS if is_image else TABLE_CORRUPTIONS
    most = min(MAX_CORRUPTED, max(2000, MAX_PROBABILITIES // len(holdout.classes)))
    if is_image:
        most = min(most, MAX_VALUES // (len(corruptions) * int(np.prod(X.shape[1:]))))
    rows = rows_to_corrupt(holdout.y, evaluator.records.compared, most=most, seed=seed)
    scale = None
    if not is_image:
        matrix = cast("Matrix", evaluator.records)
        scale = Scale.of(matrix.X, matrix.is_category)
    made = [
        corruption.apply(X[rows], np.random.default_rng([seed, i]), scale)
        for i, corruption in enumerate(corruptions)
    ]
    return Copies(rows, corruptions, np.concatenate(made))


def pairs_of(verdict: Verdict) -> list[tuple[str, str]]:
    """Return the pairs that the verdict compares, without a strategy that is only shown."""
    fixed = {verdict.chosen, verdict.baseline} | {d.against for d in verdict.differences}
    return [(d.strategy, d.against) for d in verdict.differences if d.strategy in fixed]


def diagnose(
    verdict: Verdict,
    predictions: Mapping[str, StrategyPredictions],
    corrupted: Mapping[str, Float],
    *,
    evaluator: Evaluator,
    holdout: Holdout,
    copies: Copies,
    given: Synthetic | None,
) -> HoldoutResult:
    """Return what the predictions say beside the verdict.

    Parameters
    ----------
    verdict : Verdict
    predictions : mapping of strategy to StrategyPredictions
        At least of the strategies that the verdict compares.
    corrupted : mapping of strategy to ndarray of float64, shape (n_seeds, n_corruptions, n_rows)
        Share of estimators that are right about each copy.
    given : Synthetic, optional
        What strategies with a model trained on.
    """
    if not verdict.balanced_accuracy:  # no judged class has a record
        return HoldoutResult()
    params = evaluator.experiment.params
    draws = {"n_bootstrap": params.evaluation.n_bootstrap, "seed": params.seed}
    return HoldoutResult(
        robustness=_robustness(verdict, predictions, corrupted, evaluator, holdout, copies, **draws),
        slices=_slices(verdict, predictions, evaluator, holdout, **draws) if holdout.by else None,
        calibration=_calibration(
            verdict, {name: predictions[name] for name in corrupted}, evaluator, holdout, given,
            seed=params.seed,
        ),
    )  # fmt: skip


def _robustness(
    verdict: Verdict,
    predictions: Mapping[str, StrategyPredictions],
    corrupted: Mapping[str, Float],
    evaluator: Evaluator,
    holdout: Holdout,
    copies: Copies,
    *,
    n_bootstrap: int,
    seed: int,
) -> RobustnessResult:
    data, rows = holdout.records, copies.rows
    return robustness(
        data.y[rows],
        {name: predictions[name].hits(data.y)[:, rows] for name in corrupted},
        {
            corruption.name: {name: hits[:, i] for name, hits in corrupted.items()}
            for i, corruption in enumerate(copies.corruptions)
        },
        corruptions=copies.corruptions,
        pairs=pairs_of(verdict),
        compared=evaluator.records.compared,
        groups=None if data.groups is None else data.groups[rows],
        n_bootstrap=n_bootstrap,
        seed=seed,
    )


def _slices(
    verdict: Verdict,
    predictions: Mapping[str, StrategyPredictions],
    evaluator: Evaluator,
    holdout: Holdout,
    *,
    n_bootstrap: int,
    seed: int,
) -> SliceResult:
    data = holdout.records
    as_is = next(name for name, p in predictions.items() if p.strategy.family == "as_is")
    # Where nothing is changed, the strategy that was asked about says what it would have done.
    after = verdict.published if verdict.published != as_is else verdict.chosen
    return slices(
        data.y,
        {name: predictions[name].hits(data.y) for name in {as_is, after}},
        holdout.by,
        classes=data.classes,
        compared=evaluator.records.compared,
        before=as_is,
        after=after,
        groups=data.groups,
        n_bootstrap=n_bootstrap,
        seed=seed,
    )


def _calibration(
    verdict: Verdict,
    predictions: Mapping[str, StrategyPredictions],
    evaluator: Evaluator,
    holdout: Holdout,
    given: Synthetic | None,
    *,
    seed: int,
) -> CalibrationResult:
    data = holdout.records
    rows = _some(len(data.y), MAX_CALIBRATED // len(data.classes), seed=seed)
    draws = Draws.of(
        len(rows),
        None if data.groups is None else data.groups[rows],
        n_seeds=predictions[verdict.chosen].n_seeds,
        n_draws=CALIBRATION_DRAWS,
        seed=seed,
    )
    looked_at = _rarest(data.y[rows], evaluator.records.compared)
    true = class_shares(evaluator.plan)
    train = {name: _trained(p.strategy, evaluator, given) for name, p in predictions.items()}
    strategies = {
        name: {
            estimator: calibration_of(
                data.y[rows],
                proba[:, rows],
                classes=data.classes,
                looked_at=looked_at,
                factors=prior_factors(data.classes, true, train[name]),
                draws=draws,
                seed=seed,
            )
            for estimator, proba in p.proba.items()
        }
        for name, p in predictions.items()
    }
    info = CalibrationResult(
        n_records=len(rows),
        n_bins=n_bins_of(len(rows)),
        looked_at=tuple(data.classes[k] for k in looked_at),
        strategies=strategies,
        prior_true=true,
        prior_train=train,
        published=verdict.published,
        sentence="",
    )
    return info.model_copy(update={"sentence": _said(info)})


def _some(n: int, most: int, *, seed: int) -> Int:
    """Return all records, or a random sample of so many: class shares stay what they are."""
    rows = np.arange(n)
    if n <= max(1, most):
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def _rarest(y: Int, compared: NDArray[np.bool_]) -> list[int]:
    """Return the rarest judged classes that occur; of two the rarer: the other says the same."""
    counts = np.bincount(y, minlength=len(compared))
    there = np.flatnonzero(compared & (counts > 0))
    there = there[np.argsort(counts[there], kind="stable")]
    most = 1 if len(compared) == 2 else MAX_LOOKED_AT
    return [int(k) for k in there[:most]]


def _trained(strategy: Strategy, evaluator: Evaluator, given: Synthetic | None) -> dict[str, float]:
    """Return the class shares that a strategy trains with: records times weight."""
    available = shares = None
    if strategy.has_model and given is not None:
        names = evaluator.records.strata_names
        sizes = np.bincount(given.strata, minlength=len(names))
        available = {name: int(n) for name, n in zip(names, sizes, strict=True)}
        if given.shares is not None:
            shares = share_sums(given.strata, given.shares, names)
    counts = {c.name: c.n_real for c in evaluator.plan.classes}
    wanted = wanted_records(strategy, counts, evaluator.plan, available=available, shares=shares)
    found = shares_of(evaluator.plan, {name: w.effective for name, w in wanted.items()})
    return left_by_loss(found, strategy) if strategy.family == "loss" else found


def _said(info: CalibrationResult) -> str:
    """Say what was found of the published strategy's probabilities."""
    estimators = info.strategies[info.published]
    corrected = [c for c in estimators.values() if c.corrected is not None]
    name = f"“{info.published}”"
    if not corrected:
        return f"{name} trains with the class shares that there are, so its probabilities need no correction."
    better = sum(c.change is not None and c.change.high < 0 for c in corrected)
    worse = sum(c.change is not None and c.change.low > 0 for c in corrected)
    said = f"the correction is shown to lower the Brier score for {better} of {len(corrected)} estimators"
    if worse:
        said += f", and to raise it for {worse}"
    return (
        f"{name} trains with other class shares than there are. On the hold-out {said}. Use corrected probabilities "
        "where a probability is read as one, and the uncorrected ones to choose a class: these are what was judged."
    )
