"""The choice among strategies on validation records."""

import pytest

from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.verdict.selection import choose_strategy, scale_of
from prefect_augment.schema import MeasureInfo, Strategy, StrategyScore

BALANCED = MeasureInfo()
COST = MeasureInfo(title="mean cost", unit="plain", higher_is_better=False)


def scores(name, family, values, *, amount=1.0, n_validation=1000, measure=BALANCED):
    strategy = Strategy(name=name, family=family, amount=amount)
    given = {"measure": measure, "estimators": {}, "n_train": 100, "n_validation": n_validation}
    return [
        StrategyScore(strategy=strategy, seed=s, score=v, **given) for s, v in enumerate(values)
    ]


def test_best_of_each_kind_is_named():
    choice = choose_strategy(
        scores("as is", "as_is", [0.70])
        + scores("weights", "weights", [0.80])
        + scores("smote", "classic", [0.78])
        + scores("trees", "model", [0.85])
        + scores("trees half", "model", [0.83], amount=0.5)
    )
    assert (choice.chosen.name, choice.baseline.name) == ("trees", "weights")
    assert choice.model.name == "trees"
    assert choice.scores["smote"] == 0.78


@pytest.mark.parametrize("gap", [0.0, 0.0015, -0.0015])
def test_ties_go_to_the_simpler_strategy(gap):
    choice = choose_strategy(
        scores("mix", "mixture", [0.80 + gap])
        + scores("over", "resampling", [0.80 + gap / 2])
        + scores("weights", "weights", [0.80])
        + scores("as is", "as_is", [0.70])
    )
    assert choice.chosen.name == "weights"


def test_ties_within_a_family_go_to_the_smaller_amount():
    choice = choose_strategy(
        scores("as is", "as_is", [0.70])
        + scores("a", "model", [0.8], amount=1.0)
        + scores("b", "model", [0.8], amount=0.5)
    )
    assert choice.chosen.name == "b"


def test_one_record_of_validation_is_a_tie():
    """With 50 validation records, 1.5 points are less than one record of an average class."""
    for n, chosen in ((50, "as is"), (500, "trees")):
        as_is = scores("as is", "as_is", [0.80], n_validation=n)
        trees = scores("trees", "model", [0.815], n_validation=n)
        assert choose_strategy(as_is + trees).chosen.name == chosen


def test_a_gap_within_the_noise_of_seeds_is_a_tie():
    as_is = scores("as is", "as_is", [0.70, 0.80, 0.75])
    noisy, steady = (
        scores("trees", "model", [0.80, 0.72, 0.76]),
        scores("trees", "model", [0.71, 0.81, 0.76]),
    )
    assert choose_strategy(as_is + noisy).chosen.name == "as is"
    assert choose_strategy(as_is + steady).chosen.name == "trees"


def test_an_strategy_of_one_seed_does_not_beat_finalists():
    choice = choose_strategy(
        scores("as is", "as_is", [0.70, 0.71, 0.70])
        + scores("weights", "weights", [0.80, 0.78, 0.76])
        + scores("trees", "model", [0.79])
    )
    assert choice.chosen.name == "weights"
    assert choice.model.name == "trees"


def test_order_of_scores_does_not_matter():
    given = (
        scores("as is", "as_is", [0.70, 0.72])
        + scores("weights", "weights", [0.80, 0.78])
        + scores("trees", "model", [0.79, 0.79])
    )
    assert choose_strategy(given) == choose_strategy(given[::-1])


def test_publishing_anyway_takes_the_model_to_the_holdout():
    as_is, trees = scores("as is", "as_is", [0.9]), scores("trees", "model", [0.5])
    assert choose_strategy(as_is + trees).chosen.name == "as is"
    assert choose_strategy(as_is + trees, prefer_model=True).chosen.name == "trees"
    assert choose_strategy(as_is, prefer_model=True).chosen.name == "as is"


def test_something_must_be_there_to_compare_with():
    with pytest.raises(ParameterError, match="as is"):
        choose_strategy(scores("trees", "model", [0.5]))


def test_where_a_noisy_model_ties_with_as_is_the_best_baseline_is_compared():
    """As is ties with trees, whose seeds differ, and loses to weights under every seed."""
    choice = choose_strategy(
        scores("as is", "as_is", [0.80, 0.80, 0.80])
        + scores("weights", "weights", [0.83, 0.83, 0.83])
        + scores("trees", "model", [0.90, 0.78, 0.82])
    )
    assert choice.chosen == choice.baseline
    assert choice.chosen.name == "weights"


def test_ties_of_costs_are_relative_to_the_data_as_they_are():
    """A mean cost of 800 that falls by 3 % is a gain; one that falls by 0.1 % is a tie."""
    for unit in (1000.0, 0.001):
        as_is = scores("as is", "as_is", [-0.8 * unit], measure=COST)
        trees = scores("trees", "model", [-0.776 * unit], measure=COST)
        assert choose_strategy(as_is + trees).chosen.name == "trees"
        trees = scores("trees", "model", [-0.7992 * unit], measure=COST)
        assert choose_strategy(as_is + trees).chosen.name == "as is"
        assert scale_of(as_is + trees) == pytest.approx(0.8 * unit)
        assert scale_of(trees) == pytest.approx(0.7992 * unit)
