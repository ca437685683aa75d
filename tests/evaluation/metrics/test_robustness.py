"""Corrupted hold-out records: what corruptions do, and what is said of the strategies."""

import tracemalloc

import numpy as np
import pytest

from prefect_augment.evaluation.metrics.corruptions import (
    IMAGE_CORRUPTIONS,
    TABLE_CORRUPTIONS,
    Corruption,
    Scale,
)
from prefect_augment.evaluation.metrics.robustness import robustness, rows_to_corrupt

BOTH = np.ones(2, dtype=bool)


def apply(corruptions, name, X, scale=None, seed=0):
    found = next(c for c in corruptions if c.name == name)
    return found.apply(X, np.random.default_rng(seed), scale)


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    X = np.stack([rng.normal(5, 2, 4000), rng.integers(0, 4, 4000), np.full(4000, 3.0)], axis=1)
    return X, Scale.of(X, np.array([False, True, False]))


def test_table_corruptions_have_the_strength_that_they_say(table):
    X, scale = table
    assert scale.deviation[0] == pytest.approx(2, rel=0.05)
    assert scale.deviation[1:].tolist() == [0, 0]
    missing = apply(TABLE_CORRUPTIONS, "missing", X, scale)
    assert np.isnan(missing).mean(axis=0) == pytest.approx(0.1, abs=0.02)
    noisy = apply(TABLE_CORRUPTIONS, "noise", X, scale)
    assert np.std(noisy[:, 0] - X[:, 0]) == pytest.approx(0.2, rel=0.1)
    rounded = apply(TABLE_CORRUPTIONS, "rounding", X, scale)
    # Sheppard: the error of rounding to multiples of h has the variance h^2 / 12.
    assert np.std(rounded[:, 0] - X[:, 0]) == pytest.approx(1 / np.sqrt(12), rel=0.1)
    for changed in (noisy, rounded):
        assert np.array_equal(changed[:, 1:], X[:, 1:]), "categories and constants stay"


def test_nulls_stay_null_and_outliers_do_not_make_the_noise():
    X = np.concatenate([np.random.default_rng(0).normal(size=(999, 1)), [[1e9]]])
    X[:5] = np.nan
    scale = Scale.of(X, np.array([False]))
    assert scale.deviation[0] == pytest.approx(1, rel=0.2)
    for name in ("noise", "rounding"):
        assert np.isnan(apply(TABLE_CORRUPTIONS, name, X, scale)[:5]).all()


def test_image_corruptions_have_the_strength_that_they_say():
    X = np.full((30, 32, 32, 3), 128, dtype=np.uint8)
    X[:, 10:20, 10:20] = 200
    noisy = apply(IMAGE_CORRUPTIONS, "noise", X)
    assert np.std(noisy.astype(float) - X) == pytest.approx(0.08 * 255, rel=0.05)
    blurred = apply(IMAGE_CORRUPTIONS, "blur", X)
    assert np.abs(np.diff(blurred.astype(float), axis=2)).max() < 72, "edges are softer"
    assert blurred[:, 15, 15].min() == 200
    pale = apply(IMAGE_CORRUPTIONS, "contrast", X)
    assert np.ptp(pale.astype(float)) == pytest.approx(0.4 * 72, abs=1)
    moved = apply(IMAGE_CORRUPTIONS, "shift", X)
    assert (moved == 200).sum() == (X == 200).sum(), "nothing is lost that far from the edge"
    corners = {tuple(np.argwhere(m[..., 0] == 200)[0]) for m in moved}
    assert corners == {(10 + a, 10 + b) for a in (-3, 0, 3) for b in (-3, 0, 3) if a or b}
    for made in (noisy, blurred, pale, moved):
        assert (made.dtype, made.shape) == (np.uint8, X.shape)


@pytest.mark.parametrize("corruption", IMAGE_CORRUPTIONS, ids=lambda c: c.name)
def test_blocks_of_pictures_are_corrupted_as_all_of_them_together(corruption):
    X = np.random.default_rng(0).integers(0, 256, (31, 16, 16, 3), dtype=np.uint8)
    rng = np.random.default_rng(1)
    blocks = [corruption.apply(X[i : i + 7], rng, None) for i in range(0, len(X), 7)]
    whole = corruption.apply(X, np.random.default_rng(1), None)
    assert np.array_equal(np.concatenate(blocks), whole)


@pytest.mark.parametrize("name", [c.name for c in IMAGE_CORRUPTIONS])
def test_corrupting_pictures_takes_two_copies_of_four_bytes_a_value_at_most(name):
    X = np.random.default_rng(0).integers(0, 256, (600, 32, 32, 3), dtype=np.uint8)
    apply(IMAGE_CORRUPTIONS, name, X[:1])  # imports
    tracemalloc.start()
    apply(IMAGE_CORRUPTIONS, name, X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 9.5 * X.nbytes


def test_the_same_seed_corrupts_alike(table):
    X, scale = table
    for corruption in TABLE_CORRUPTIONS:
        a, b, c = (apply(TABLE_CORRUPTIONS, corruption.name, X, scale, s) for s in (1, 1, 2))
        assert np.array_equal(a, b, equal_nan=True)
        if corruption.name != "rounding":
            assert not np.array_equal(a, c, equal_nan=True)


def test_a_sample_keeps_rare_classes_whole():
    y = np.repeat([0, 1, 2, 3], [5000, 900, 40, 7])
    compared = np.array([True, True, True, False])
    rows = rows_to_corrupt(y, compared, most=1000, seed=0)
    counts = np.bincount(y[rows], minlength=4)
    assert counts[2:].tolist() == [40, 0], "the rarest whole; one that is not compared not at all"
    assert counts[0] == counts[1] == 480
    assert len(rows_to_corrupt(y, compared, most=10_000, seed=0)) == 5940


NOISE = Corruption("noise", "some", lambda X, rng, scale: X)
ROUND = Corruption("rounding", "some", lambda X, rng, scale: X)


def hits(rates, y, seed, n_seeds=2):
    """Records are found at a rate per strategy; half of the luck is shared between strategies and conditions."""
    rng = np.random.default_rng(seed)
    luck = rng.random((n_seeds, len(y)))
    return {strategy: (luck < rate).astype(float) for strategy, rate in rates.items()}


def compared(clean, noise, rounding, **kwargs):
    y = np.repeat([0, 1], [1500, 300])
    return robustness(
        y,
        hits(clean, y, 0),
        {"noise": hits(noise, y, 1), "rounding": hits(rounding, y, 2)},
        corruptions=(NOISE, ROUND),
        pairs=[("trees", "as is")],
        compared=BOTH,
        n_bootstrap=300,
        **kwargs,
    )


def test_a_loss_in_robustness_is_seen_though_clean_records_show_a_gain():
    found = compared(
        {"trees": 0.85, "as is": 0.80},
        {"trees": 0.50, "as is": 0.75},
        {"trees": 0.60, "as is": 0.78},
    )
    assert found.clean.differences[0].interval.low > 0
    assert found.conditions[0].differences[0].interval.high < 0
    assert found.mean.changes[0].interval.high < 0
    assert "robustness gets worse" in found.sentence
    assert "worse under noise, rounding." in found.sentence
    assert found.conditions[0].balanced_accuracy["trees"].estimate == pytest.approx(0.5, abs=0.05)


def test_a_gain_in_robustness_is_seen_though_clean_records_show_none():
    found = compared(
        {"trees": 0.80, "as is": 0.80},
        {"trees": 0.75, "as is": 0.50},
        {"trees": 0.78, "as is": 0.6},
    )
    assert "robustness improves." in found.sentence
    assert found.mean.changes[0].interval.low > 0


def test_equal_strategies_show_neither():
    rates = {"trees": 0.8, "as is": 0.8}
    found = compared(rates, rates, rates)
    assert "no clear change in robustness" in found.sentence


def test_all_conditions_have_the_same_draws():
    """A corruption that changes nothing has the intervals of the clean records, and no change."""
    y = np.repeat([0, 1], [300, 60])
    clean = hits({"trees": 0.8, "as is": 0.7}, y, 0)
    found = robustness(
        y, clean, {"noise": clean}, corruptions=(NOISE,), pairs=[("trees", "as is")],
        compared=BOTH, n_bootstrap=200,
    )  # fmt: skip
    assert found.conditions[0].balanced_accuracy == found.clean.balanced_accuracy
    change = found.conditions[0].changes[0].interval
    assert (change.low, change.estimate, change.high) == (0, 0, 0)


def test_one_strategy_alone_is_compared_with_nothing():
    y = np.repeat([0, 1], [50, 20])
    clean = hits({"as is": 0.7}, y, 0)
    found = robustness(
        y, clean, {"noise": clean}, corruptions=(NOISE,), pairs=[], compared=BOTH, n_bootstrap=100
    )
    assert found.sentence.startswith("Only one strategy")
    assert found.mean.differences == ()
