"""Classes as a whole: exact tests against simulation, and what makes a class unsafe."""

import numpy as np
import pytest
from scipy.stats import fisher_exact

from prefect_augment.encoding.arrays import Labelled
from prefect_augment.evaluation.neighbours import FeatureSpace, more_below, more_true
from prefect_augment.evaluation.privacy.holdout_leaks import holdout_leaks
from prefect_augment.evaluation.quality.class_tests import (
    CopyEvidence,
    Evidence,
    class_checks,
    class_verdict,
    describe_faults,
)
from prefect_augment.evaluation.quality.image_filter import perceptual_hashes
from prefect_augment.evaluation.quality.likeness import expected_coverage, likeness
from prefect_augment.params import Quality
from prefect_augment.schema import ClassCheck


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_a_p_value_is_at_most_so_small_so_often(share):
    """Under exchangeability, over many draws: the chance of p <= a is at most a, and near it."""
    rng = np.random.default_rng(0)
    p = np.array([more_below(rng.normal(size=60), rng.normal(size=40), share) for _ in range(3000)])
    for a in (0.01, 0.05, 0.2):
        assert a / 3 < (p <= a).mean() <= a + 3 * np.sqrt(a / 3000)


def test_candidates_nearest_by_one_real_record_in_two():
    """One candidate below the only real value: one of two orders."""
    assert more_below(np.array([1.0]), np.array([2.0]), 0.0) == pytest.approx(0.5)
    # Three below two real ones: of 10 ways to order them, one.
    assert more_below(np.zeros(3), np.ones(2), 0.0) == pytest.approx(1 / 10)


def test_equal_values_are_no_sign_of_copies():
    assert more_below(np.zeros(100), np.zeros(50), 0.25) == 1.0


def test_marks_are_compared_by_fisher_s_exact_test():
    found = more_true(np.arange(200) < 31, np.arange(100) < 8)
    assert found == pytest.approx(fisher_exact([[31, 169], [8, 92]], alternative="greater").pvalue)


def test_expected_coverage_is_the_mean_over_draws():
    rng = np.random.default_rng(0)
    for n, m in ((40, 40), (30, 12)):
        found = [
            likeness(rng.normal(size=(n, 2)), rng.normal(size=(m, 2))).coverage for _ in range(200)
        ]
        assert expected_coverage(n, m) == pytest.approx(np.mean(found), abs=0.02)
    assert np.isnan(expected_coverage(1, 5))


def test_precision_and_recall_of_a_narrow_and_of_a_wide_generator():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(300, 2))
    narrow, wide = (likeness(real, s * rng.normal(size=(300, 2))) for s in (0.3, 4.0))
    assert narrow.precision > 0.95 > 0.7 > narrow.recall
    assert wide.recall > 0.7 > 0.6 > wide.precision


def evidence(n=200, n_real=100, **changes):
    """Of a sound generator, but for what is changed."""
    rng = np.random.default_rng(1)
    given = {
        "valid": np.ones(n, dtype=bool),
        "near": [CopyEvidence(rng.exponential(size=n), rng.exponential(size=n_real))],
        "equal": [CopyEvidence(np.ones(n), np.ones(4 * n_real))],
        "wrong": np.arange(n) < n // 10,
        "real_wrong": np.arange(n_real) < n_real // 10,
        "coverage": 0.9,
        "full_coverage": 0.95,
    }
    return Evidence(**{**given, **changes})


NEAR = evidence().near[0]


def failed(of, **limits):
    return [c.name for c in class_checks(of, Quality(**limits), n_strata=3) if not c.passed]


def test_a_sound_class_is_safe():
    checks = class_checks(evidence(), Quality(), n_strata=3)
    assert [c.name for c in checks] == ["domain", "copies", "noise", "labels", "collapse"]
    assert class_verdict(checks) == "safe"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("domain", {"valid": np.arange(200) < 170, "wrong": np.arange(170) < 17,
                    "near": [CopyEvidence(NEAR.candidates[:170], NEAR.real)]}),
        ("copies", {"near": [CopyEvidence(np.linspace(0.001, 0.1, 200), np.linspace(0.2, 2, 100))]}),
        ("copies", {"equal": [CopyEvidence(1.0 * (np.arange(200) >= 20), np.ones(400))]}),
        ("noise", {"near": [CopyEvidence(np.full(200, 9.0), np.linspace(0.2, 2, 100))]}),
        ("labels", {"wrong": np.arange(200) < 80}),
        ("collapse", {"coverage": 0.3}),
    ],
)  # fmt: skip
def test_each_fault_fails_its_check_alone(name, changes):
    assert failed(evidence(**changes)) == [name]


def test_so_much_as_is_allowed_is_no_fault_and_more_is():
    wrong = {"wrong": np.arange(200) < 56}  # 28 %, of real records 10 %
    assert failed(evidence(**wrong), max_fault_share=0.2) == []
    assert failed(evidence(**wrong), max_fault_share=0.1) == ["labels"]
    assert failed(evidence(coverage=0.5), min_coverage=0.5) == []
    assert failed(evidence(coverage=0.47), min_coverage=0.5) == ["collapse"]


def test_a_class_is_held_to_less_chance_among_many():
    """What is rare for one class happens to one of a thousand."""
    some = np.r_[np.zeros(24), np.linspace(0.5, 2, 176)]
    near = {"near": [CopyEvidence(some, np.linspace(0.5, 2, 100))]}
    alone, among = (class_checks(evidence(**near), Quality(), n_strata=n) for n in (1, 1000))
    assert (class_verdict(alone), class_verdict(among)) == ("unsafe", "safe")


def test_too_few_candidates_or_real_records_have_no_verdict():
    assert class_checks(evidence(n=19), Quality(), n_strata=1) == ()
    none = evidence(near=[], equal=[], wrong=None, coverage=float("nan"))
    checks = class_checks(none, Quality(), n_strata=1)
    assert [c.name for c in checks] == ["domain"]
    assert class_verdict(checks) == "not tested"


def test_what_is_wrong_is_said_in_a_sentence():
    checks = (
        ClassCheck(name="labels", observed=0.41, expected=0.12, p_value=1e-9, passed=False),
        ClassCheck(name="noise", observed=0.05, expected=0.05, p_value=0.5, passed=True),
    )
    assert describe_faults("worn", checks) == (
        "worn: the synthetic records are unsafe: a classifier takes 41% for another class (real 12%)."
    )
    assert describe_faults("worn", checks, dropped=True).endswith("; none of them is used.")


def test_a_picture_keeps_its_hash_when_it_is_brighter_or_has_a_trace_of_noise():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, 16, 16)).cumsum(axis=1).cumsum(axis=2).astype(np.float32)
    hashes = perceptual_hashes(X)
    assert len(np.unique(hashes)) == 50
    assert (perceptual_hashes(2 * X + 30) == hashes).all()
    assert perceptual_hashes(X[:0]).shape == (0,)
    assert len(np.unique(perceptual_hashes(X[:, :4, :4]))) > 40, "smaller than the hash's own grid"


def parts(rng, n=300, shift=0.0):
    y = rng.integers(0, 2, n)
    return Labelled(rng.normal(size=(n, 4)) + 3 * y[:, None] + shift, y)


def test_records_of_one_source_show_no_leak():
    rng = np.random.default_rng(0)
    space = FeatureSpace.of(parts(rng).X, np.zeros(4, dtype=bool))
    for _ in range(20):
        assert holdout_leaks(parts(rng), parts(rng), parts(rng), space) == ()


@pytest.mark.parametrize(
    ("jitter", "n", "says"), [(1e-5, 12, "almost equal"), (0.03, 120, "nearer")]
)
def test_training_records_that_were_changed_a_little_are_found_in_the_holdout(jitter, n, says):
    rng = np.random.default_rng(0)
    training, validation, held = (parts(rng) for _ in range(3))
    held.X[:n] = training.X[:n] + jitter * rng.normal(size=(n, 4))
    held.stratum[:n] = training.stratum[:n]
    space = FeatureSpace.of(training.X, np.zeros(4, dtype=bool))
    found = holdout_leaks(training, validation, held, space)
    assert says in " ".join(found)
    assert "source.group_column" in found[0]


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_rows_measured_twice_are_said_however_many_they_are(share: float) -> None:
    """Where most of the hold-out is seen again, the usual distance to training records is small itself."""
    rng = np.random.default_rng(0)
    once = rng.normal(size=(1500, 4))
    rows = np.concatenate([once, once[rng.random(1500) < share]])
    rows += rng.normal(0, 1e-4, rows.shape)
    part = rng.choice(3, len(rows), p=[0.64, 0.16, 0.2])
    sets = [
        Labelled(rows[part == k], np.zeros((part == k).sum(), dtype=np.int64)) for k in range(3)
    ]
    found = holdout_leaks(*sets, FeatureSpace.of(sets[0].X, np.zeros(4, dtype=bool)))
    assert "almost equal to a training record" in " ".join(found)
