"""The hold-out's verdict: its truth table, its guard, and what it publishes."""

import json
from dataclasses import replace

import numpy as np
import pytest

from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.metrics.chosen_measure import measure_of
from prefect_augment.evaluation.metrics.predictions import StrategyPredictions
from prefect_augment.evaluation.verdict.answers import with_safety
from prefect_augment.evaluation.verdict.decision import decide
from prefect_augment.params.metrics import Metric
from prefect_augment.schema import Privacy, Strategy

CLASSES = ["head", "mid", "tail"]
N_K = (600, 200, 100)
Y = np.repeat(np.arange(3), N_K)
FAMILIES = {"as is": "as_is", "weights": "weights", "trees": "model"}
MIDDLING = (0.80, 0.80, 0.80)


def strategy(name, recall, *, n_seeds=3, y=Y):
    """Predictions that are right on the first records of each class, up to its recall."""
    predicted = (y + 1) % 3
    for k, r in enumerate(recall):
        of_class = np.flatnonzero(y == k)
        predicted[of_class[: round(r * len(of_class))]] = k
    proba = np.stack([np.eye(3)[predicted] * 0.9 + 0.1 / 3] * n_seeds)
    return StrategyPredictions(
        Strategy(name=name, family=FAMILIES[name]), {"boosting": proba, "logistic": proba}
    )


def verdict(recalls, *, chosen="trees", y=Y, **kwargs):
    """Verdict on strategies of the given recalls per class."""
    of = {name: strategy(name, r, y=y) for name, r in recalls.items()}
    return decided(of, chosen=chosen, y=y, **kwargs)


def decided(of, *, y=Y, **kwargs):
    given = {
        "compared": np.ones(3, dtype=bool),
        "baseline": "weights",
        "n_bootstrap": 500,
        **kwargs,
    }
    return decide(y, of, classes=CLASSES, as_is="as is", **given)


BETTER, WORSE = (0.9, 0.9, 0.9), (0.7, 0.7, 0.7)
SAME, SLIGHTLY = (0.80, 0.795, 0.80), (0.80, 0.805, 0.80)


@pytest.mark.parametrize(
    ("trees", "weights", "on_no_gain", "synthetic", "decision", "published"),
    [
        (BETTER, MIDDLING, "recipe", "proven", "accept", "trees"),
        (BETTER, MIDDLING, "fail", "proven", "accept", "trees"),
        (SAME, SLIGHTLY, "recipe", "no gain shown", "inconclusive", "weights"),
        (SAME, SLIGHTLY, "fail", "no gain shown", "inconclusive", "weights"),
        # A baseline without a gain gives way to the data as they are.
        (SAME, MIDDLING, "recipe", "no gain shown", "inconclusive", "as is"),
        (SAME, MIDDLING, "fail", "no gain shown", "inconclusive", "as is"),
        (SAME, MIDDLING, "publish", "no gain shown", "inconclusive", "trees"),
        (WORSE, SLIGHTLY, "recipe", "harmful", "inconclusive", "weights"),
        (WORSE, MIDDLING, "recipe", "harmful", "inconclusive", "as is"),
        (WORSE, MIDDLING, "publish", "harmful", "reject", "trees"),
        # What is published beats the data as they are, whatever synthetic records do.
        (SAME, BETTER, "recipe", "harmful", "accept", "weights"),
        # The baseline harms, too; that the worst class is shown to lose is harm by itself.
        (WORSE, WORSE, "recipe", "harmful", "inconclusive", "as is"),
    ],
)
def test_truth_table_of_a_strategy_with_synthetic_records(
    trees, weights, on_no_gain, synthetic, decision, published
):
    found = verdict({"trees": trees, "weights": weights, "as is": MIDDLING}, on_no_gain=on_no_gain)
    assert (found.synthetic, found.decision, found.published) == (synthetic, decision, published)
    assert (found.gain is None) is (published == "as is")


@pytest.mark.parametrize(
    ("weights", "decision", "published"),
    [
        (BETTER, "accept", "weights"),
        (SLIGHTLY, "inconclusive", "weights"),
        (MIDDLING, "inconclusive", "as is"),
        (SAME, "inconclusive", "as is"),
        (WORSE, "inconclusive", "as is"),
    ],
)
def test_truth_table_of_a_chosen_baseline(weights, decision, published):
    found = verdict({"weights": weights, "as is": MIDDLING}, chosen="weights")
    assert (found.synthetic, found.decision) == ("not tried", decision)
    assert found.published == published
    assert [(d.strategy, d.against) for d in found.differences] == [("weights", "as is")]
    assert len(found.answers) == 1


@pytest.mark.parametrize(
    ("gain", "n_seeds", "is_fixed", "require", "synthetic", "published"),
    [
        (0.04, 3, False, "proven", "proven", "trees"),
        (0.04, 1, True, "proven", "proven", "trees"),
        (0.04, 1, False, "proven", "preferred", "as is"),
        (0.04, 2, False, "proven", "preferred", "as is"),
        (0.04, 1, False, "preferred", "preferred", "trees"),
        (0.005, 3, False, "preferred", "preferred", "trees"),
        (0.005, 3, False, "proven", "preferred", "as is"),
        (0.0, 3, False, "preferred", "no gain shown", "as is"),
    ],
)
def test_fewer_than_three_seeds_prove_nothing_and_a_likely_gain_is_preferred(
    gain, n_seeds, is_fixed, require, synthetic, published
):
    recall = np.array([0.8, 0.8, 0.8])
    of = {
        name: replace(strategy(name, r, n_seeds=n_seeds), is_fixed=is_fixed or name != "trees")
        for name, r in {"trees": recall + gain, "weights": recall, "as is": recall}.items()
    }
    found = decided(of, chosen="trees", require=require)
    assert (found.synthetic, found.published) == (synthetic, published)


def test_as_is_chosen_has_nothing_to_prove():
    found = decided({"as is": strategy("as is", MIDDLING)}, chosen="as is", baseline="as is")
    assert (found.decision, found.published, found.differences) == ("inconclusive", "as is", ())
    assert found.answers[0].startswith("Use your data as they are: nothing else was clearly better")
    assert found.reasons[-1] == "The real records are published as they are."


@pytest.mark.parametrize(
    ("head_recall", "synthetic"), [(0.79, "proven"), (0.77, "proven"), (0.6, "harmful")]
)
def test_a_gain_must_not_cost_the_worst_class(head_recall, synthetic):
    """Mean recall rises in all three; the worst falls by 1, by 3 (not shown) and by 20 points."""
    plain = (0.80, 0.82, 0.82)
    found = verdict({"trees": (head_recall, 1.0, 1.0), "weights": plain, "as is": plain})
    assert found.synthetic == synthetic
    assert ("worst recall changes" in found.answers[1]) is (synthetic == "harmful")
    named = "recall of head" in found.answers[0]
    assert named is (found.published == "trees")


def test_differences_and_scores_are_those_of_the_recalls():
    found = verdict({"trees": BETTER, "weights": MIDDLING, "as is": WORSE})
    gaps = {(d.strategy, d.against): d.interval.estimate for d in found.differences}
    assert gaps == pytest.approx(
        {("trees", "weights"): 0.1, ("trees", "as is"): 0.2, ("weights", "as is"): 0.1}
    )
    assert found.balanced_accuracy["trees"].estimate == pytest.approx(0.9)
    assert found.strategies["as is"]["logistic"].recall == pytest.approx(
        dict.fromkeys(CLASSES, 0.7)
    )
    assert found.class_recall["weights"]["tail"].estimate == pytest.approx(0.8)
    first = next(d.interval for d in found.differences if d.against == "weights")
    assert found.minimum_detectable_effect == pytest.approx((first.high - first.low) / 2)
    assert (found.n_holdout, found.n_seeds) == (900, 3)


def test_classes_are_decided_one_by_one():
    recalls = {"trees": (0.5, 0.8, 0.99), "weights": MIDDLING, "as is": MIDDLING}
    found = verdict(recalls, on_no_gain="publish")
    assert found.class_decisions == {"head": "reject", "mid": "inconclusive", "tail": "accept"}


def test_answers_give_the_numbers():
    found = verdict({"trees": (0.9, 0.9, 0.6), "weights": MIDDLING, "as is": (0.8, 0.5, 0.7)})
    use, synthetic = found.answers
    assert use.startswith(
        "Use weights: +13.3 points of balanced accuracy over your data as they are (95 % interval +"
    )
    assert synthetic.startswith("Synthetic records: no gain shown. With trees: ")
    assert "cannot be told from chance" in found.reasons[0]
    assert found.reasons[-1] == "The recipe of weights is published."
    found = verdict({"weights": (0.6, 0.9, 0.9), "as is": (0.8, 0.5, 0.7)}, chosen="weights")
    assert found.answers[0].endswith(
        "Its price: recall of head 80.0 to 60.0, Brier score 25.3 to 27.3."
    )


def test_another_level_is_of_the_synthetic_records_alone():
    recalls = {"trees": (0.82, 0.82, 0.82), "weights": MIDDLING, "as is": MIDDLING}
    wide, narrow = (verdict(recalls, level=level) for level in (0.9999, 0.95))
    assert (wide.synthetic, narrow.synthetic) == ("preferred", "proven")
    assert "99.99 % interval" in wide.answers[1]


def test_at_a_later_look_a_likely_gain_has_to_be_larger():
    place = (
        np.arange(len(Y)) % 50
    )  # 40 of 50 records are right; trees wins two of them and loses one
    right_of = {"trees": (place < 42) & (place != 7), "weights": place < 40, "as is": place < 40}
    predictions = {}
    for name, right in right_of.items():
        proba = np.eye(3)[np.where(right, Y, (Y + 1) % 3)][None] * 0.9 + 0.1 / 3
        predictions[name] = StrategyPredictions(
            Strategy(name=name, family=FAMILIES[name]), {"boosting": proba}, is_fixed=True
        )
    first, later = (decided(predictions, chosen="trees", level=level) for level in (0.95, 0.9998))
    assert (first.synthetic, first.published) == ("preferred", "trees")
    assert later.synthetic == "no gain shown"
    assert later.published != "trees"


def test_classes_not_compared_never_enter_and_say_why():
    compared = np.array([True, True, False])
    recalls = {"trees": (0.9, 0.9, 0.0), "weights": MIDDLING, "as is": MIDDLING}
    found = verdict(recalls, compared=compared, not_compared={"tail": "it has 2 records"})
    assert found.decision == "accept"
    assert found.not_compared == {"tail": "it has 2 records"}
    recall = found.strategies["trees"]["boosting"].recall
    assert set(found.class_decisions) == set(recall) == {"head", "mid"}


def test_the_strategy_with_synthetic_records_is_shown_where_another_is_published():
    recalls = {"as is": MIDDLING, "weights": BETTER, "trees": WORSE}
    alone, shown = (verdict(recalls, chosen="weights", model=m) for m in (None, "trees"))
    assert shown.published == "weights"
    assert shown.balanced_accuracy["trees"].estimate == pytest.approx(0.7)
    assert ("trees", "weights") in {(d.strategy, d.against) for d in shown.differences}
    same = {"decision", "published", "chosen", "class_decisions"}
    assert shown.answers[0] == alone.answers[0]
    assert (shown.synthetic, alone.synthetic) == ("harmful", "not tried")
    assert shown.model_dump(include=same) == alone.model_dump(include=same)
    assert "trees" not in alone.balanced_accuracy


def test_a_class_missing_from_the_holdout_is_not_compared():
    y = Y[Y != 2]
    found = verdict({"trees": BETTER, "weights": MIDDLING, "as is": MIDDLING}, y=y)
    assert found.not_compared == {"tail": "it has no record in the hold-out"}
    assert found.decision == "accept"


@pytest.mark.parametrize(("on_no_gain", "published"), [("recipe", "weights"), ("publish", "trees")])
def test_nothing_compared_is_inconclusive(on_no_gain, published):
    recalls = {"trees": BETTER, "weights": MIDDLING, "as is": MIDDLING}
    found = verdict(recalls, compared=np.zeros(3, dtype=bool), on_no_gain=on_no_gain)
    assert (found.decision, found.published) == ("inconclusive", published)
    assert "no record of any compared class" in found.reasons[0]
    assert set(found.not_compared) == set(CLASSES)


def test_one_compared_class_is_inconclusive():
    """Its recall can be raised at will by calling everything that class."""
    recalls = {"trees": (0.1, 0.1, 1.0), "weights": MIDDLING, "as is": MIDDLING}
    found = verdict(recalls, compared=np.array([False, False, True]))
    assert (found.decision, found.synthetic) == ("inconclusive", "no gain shown")
    assert "only one class" in found.answers[0]


def test_scores_are_given_without_twins():
    twins = np.zeros(len(Y), dtype=bool)
    twins[Y == 0] = np.arange(600) < 540  # all but the 60 records that trees gets wrong
    found = verdict({"trees": BETTER, "weights": MIDDLING, "as is": MIDDLING}, twins=twins)
    assert found.without_twins["trees"] == pytest.approx((0.0 + 0.9 + 0.9) / 3)
    assert found.n_without_twins == 360
    every = verdict({"trees": BETTER, "weights": MIDDLING, "as is": MIDDLING}, twins=twins | True)
    assert (every.without_twins, every.n_without_twins) == ({}, 0)


def test_tuned_thresholds_decide_what_an_strategy_predicts():
    plain = strategy("weights", MIDDLING, n_seeds=2)
    always_tail = {name: np.tile([1e-9, 1e-9, 1.0], (2, 1)) for name in plain.proba}
    tuned = StrategyPredictions(plain.strategy, plain.proba, always_tail)
    assert np.array_equal(tuned.hits(Y), np.tile((Y == 2).astype(float), (2, 1)))
    assert tuned.scores(Y, CLASSES, np.ones(3, bool))["boosting"].recall["tail"] == 1.0


def test_verdict_is_the_same_bytes_again_and_plain_json():
    recalls = {"trees": BETTER, "weights": MIDDLING, "as is": MIDDLING}
    a, b = (verdict(recalls, groups=np.arange(len(Y)) // 3).to_json() for _ in range(2))
    assert a == b
    json.loads(a, parse_constant=lambda s: pytest.fail(f"{s} is not JSON"))


def test_missing_predictions_are_an_error():
    with pytest.raises(ParameterError, match="as is"):
        verdict({"trees": BETTER, "weights": MIDDLING})


def test_another_measure_decides_in_its_own_unit():
    """The strategy with more recall on average costs more where a missed head is dear."""
    recalls = {"trees": (0.70, 0.95, 0.95), "weights": MIDDLING, "as is": MIDDLING}
    matrix = {"head": {"mid": 10.0, "tail": 10.0}, "mid": {"tail": 1.0}, "tail": {"head": 1.0}}
    metric, compared = Metric(name="cost", matrix=matrix), np.ones(3, bool)
    cost = measure_of(metric, classes=CLASSES, compared=compared, counts=np.array(N_K))
    by_recall, by_cost = verdict(recalls), verdict(recalls, measure=cost, on_no_gain="publish")
    assert (by_recall.synthetic, by_cost.synthetic) == ("proven", "harmful")
    assert by_cost.decision == "reject"
    assert by_cost.gain.interval.estimate == pytest.approx(-(600 * 0.1 * 10 - 45) / 900, rel=0.02)
    assert "mean cost +0.6" in by_cost.answers[0]


@pytest.mark.parametrize(
    ("finding", "answer"),
    [("none shown", "yes, as far as"), ("leak", "no. Told apart."), ("too few", "not known")],
)
def test_the_third_answer_is_whether_records_are_safe_to_publish(finding, answer):
    found = verdict({"trees": BETTER, "weights": MIDDLING, "as is": MIDDLING})
    privacy = Privacy.model_construct(finding=finding, sentence="Told apart.")
    assert with_safety(found, privacy).answers[:2] == found.answers
    assert with_safety(found, privacy).answers[2].startswith(f"Safe to publish: {answer}")
    assert with_safety(found, None) == found


def test_a_loss_of_one_estimator_does_not_hide_in_the_mean():
    better, worse = strategy("weights", (1.0, 1.0, 1.0)), strategy("weights", WORSE)
    proba = {"boosting": better.proba["boosting"], "logistic": worse.proba["logistic"]}
    of = {"as is": strategy("as is", MIDDLING), "weights": replace(better, proba=proba)}
    found = decided(of, chosen="weights")
    assert found.gain.interval.estimate == pytest.approx(0.05)
    gains = {name: i.estimate for name, i in found.by_estimator.items()}
    assert gains == pytest.approx({"boosting": 0.2, "logistic": -0.1})
    assert found.reasons[0].startswith(
        "logistic loses by it. With weights: −10.0 points of balanced"
    )
