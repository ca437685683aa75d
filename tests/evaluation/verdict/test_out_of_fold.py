"""Evidence of the search's out-of-fold predictions: its width, the price of choosing, and pooling."""

import tracemalloc

import numpy as np
import pytest

from prefect_augment.evaluation.metrics.bootstrap import paired_bootstrap
from prefect_augment.evaluation.metrics.measures import balanced_accuracy, log_loss
from prefect_augment.evaluation.metrics.predictions import StrategyPredictions
from prefect_augment.evaluation.verdict.out_of_fold import N_CHOICES, OutOfFold, pooled
from prefect_augment.schema import Interval, Strategy

Y = np.repeat([0, 1], [900, 100])


def hits(rng, recalls, *, n_seeds=1):
    return (rng.random((n_seeds, len(Y))) < np.array(recalls)[Y]).astype(float)


def evidence(of, *, n_folds=5, **kwargs):
    share = kwargs.pop("test_share", 1 / n_folds)
    predictions = {
        name: StrategyPredictions(
            Strategy(name=name, family="as_is"), {"one": probabilities(right)}
        )
        for name, right in of.items()
    }
    return OutOfFold(Y, predictions, n_folds, share, n_bootstrap=400, **kwargs)


def probabilities(right):
    """Of an estimator that is right where ``right`` is 1, (n_seeds, n_records, 2)."""
    of_second = 0.5 + 0.4 * np.where(right == 1, 1, -1) * np.where(Y == 1, 1, -1)
    return np.stack([1 - of_second, of_second], axis=2)


@pytest.mark.parametrize(("n_folds", "test_share", "widen"), [(5, 0.2, 1.5), (1, 0.2, 1.118)])
def test_folds_that_share_training_records_widen_the_interval(n_folds, test_share, widen):
    """Nadeau and Bengio: 1 / 5 + 1 / 4 of a fold's variance instead of 1 / 5."""
    rng = np.random.default_rng(0)
    of = {"as is": hits(rng, (0.9, 0.5)), "weights": hits(rng, (0.8, 0.8))}
    boot = paired_bootstrap(Y, of, compared=np.ones(2, bool), n_bootstrap=400)
    records = boot.difference("weights", "as is")
    found = evidence(of, n_folds=n_folds, test_share=test_share).difference("weights", "as is")
    assert found.estimate == pytest.approx(records.estimate)
    assert found.high - found.low == pytest.approx(widen * (records.high - records.low), rel=0.03)


def test_the_best_of_many_equal_strategies_is_not_taken_at_its_word():
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        of = {name: hits(rng, (0.9, 0.6)) for name in ("as is", "a", "b", "c", "d", "e")}
        balanced = {name: np.mean([h[0, k == Y].mean() for k in (0, 1)]) for name, h in of.items()}
        best = max("abcde", key=lambda name: balanced[name])
        plain = balanced[best] - balanced["as is"]
        found.append((plain, evidence(of, seed=seed).difference(best, "as is").estimate))
    plain, corrected = np.mean(found, axis=0)
    assert plain > 0.02, "the luckiest of five"
    assert abs(corrected) < 0.4 * plain


def test_a_strategy_without_rivals_needs_no_correction():
    rng = np.random.default_rng(1)
    of = {"weights": hits(rng, (0.8, 0.6)), "trees": hits(rng, (0.8, 0.9), n_seeds=3)}
    found = evidence(of, models={"trees"}).difference("trees", "weights")
    recalls = [of[n][:1, k == Y].mean() for n in ("trees", "weights") for k in (0, 1)]
    assert found.estimate == pytest.approx((recalls[0] + recalls[1] - recalls[2] - recalls[3]) / 2)


def test_choices_among_many_groups_are_repeated_in_one_matrix():
    """A weight of each group in each draw is the largest array of a run: it is held once, in eight bytes."""
    rng = np.random.default_rng(0)
    of = {name: hits(rng, (0.9, 0.6)) for name in ("as is", "a", "b")}
    many = evidence(of, groups=np.arange(len(Y)))
    tracemalloc.start()
    resampled = many._resampled
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert resampled["a"].shape == (2, N_CHOICES)
    assert peak < 1.6 * 8 * N_CHOICES * len(Y)


def test_pooled_estimates_weigh_by_precision():
    wide = Interval(estimate=0.10, low=0.00, high=0.20)
    narrow = Interval(estimate=0.01, low=-0.04, high=0.06)
    found = pooled([wide, narrow])
    assert found.estimate == pytest.approx((0.10 + 4 * 0.01) / 5)
    assert (found.high - found.low) / 2 == pytest.approx(0.1 / np.sqrt(5))
    exact = Interval(estimate=0.0, low=0.0, high=0.0)
    assert pooled([wide, exact]) == exact


def test_another_measure_has_out_of_fold_evidence_too():
    rng = np.random.default_rng(2)
    of = {"as is": hits(rng, (0.9, 0.5)), "weights": hits(rng, (0.8, 0.8))}
    compared = np.ones(2, bool)
    default = evidence(of).difference("weights", "as is")
    named = evidence(of, measure=balanced_accuracy(compared)).difference("weights", "as is")
    assert named.estimate == pytest.approx(default.estimate)
    assert named.high - named.low == pytest.approx(default.high - default.low, rel=0.15)
    loss = evidence(of, measure=log_loss(compared)).difference("weights", "as is")
    wrong = [np.mean(of[name] == 0) for name in ("weights", "as is")]
    assert loss.estimate == pytest.approx((wrong[1] - wrong[0]) * np.log(9)), "less loss is a gain"
