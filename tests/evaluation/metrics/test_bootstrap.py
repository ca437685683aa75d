"""Intervals: they cover what is known, are paired, and stay honest with few records."""

import numpy as np
import pytest

from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.evaluation.metrics.bootstrap import paired_bootstrap, simultaneous

BOTH = np.ones(2, dtype=bool)


def two_strategies(n_k, right, seed, *, n_seeds=1, group_size=1):
    """Hits of strategies a and b with given recalls; half of the luck is shared, within groups too."""
    rng = np.random.default_rng(seed)
    y = np.repeat([0, 1], n_k)
    shared = np.repeat(rng.random(len(y) // group_size + 1), group_size)[: len(y)]
    hits = {}
    for strategy, recall in right.items():
        luck = np.where(rng.random((n_seeds, len(y))) < 0.5, shared, rng.random((n_seeds, len(y))))
        hits[strategy] = (luck < recall).astype(float)
    return y, hits


@pytest.mark.parametrize("n_k", [(200, 12), (800, 60)])
def test_intervals_cover_the_known_difference_at_their_rate(n_k):
    """a is right on 80 %, b on 70 %: 95 % of the intervals hold the 10 points, 200 draws of data."""
    covered = 0
    for s in range(200):
        y, hits = two_strategies(n_k, {"a": 0.8, "b": 0.7}, s)
        gap = paired_bootstrap(y, hits, compared=BOTH, n_bootstrap=400, seed=s).difference("a", "b")
        covered += gap.low <= 0.1 <= gap.high
    assert 0.90 <= covered / 200 <= 0.995


def test_intervals_cover_where_groups_share_their_luck():
    """Treating groups of five as single records would make intervals far too narrow."""
    covered = {"groups": 0, "records": 0}
    for s in range(100):
        y, hits = two_strategies((400, 100), {"a": 0.7}, s, group_size=5)
        for name, groups in (("groups", np.arange(500) // 5), ("records", None)):
            boot = paired_bootstrap(y, hits, compared=BOTH, groups=groups, n_bootstrap=300, seed=s)
            interval = boot.balanced_accuracy("a")
            covered[name] += interval.low <= 0.7 <= interval.high
    assert covered["groups"] >= 90
    assert covered["records"] <= 85


def test_groups_of_one_record_are_records():
    y, hits = two_strategies((500, 80), {"a": 0.8, "b": 0.7}, 0, n_seeds=3)
    a, b = (
        paired_bootstrap(y, hits, compared=BOTH, groups=g, n_bootstrap=4000).difference("a", "b")
        for g in (None, np.arange(len(y)))
    )
    assert (a.low, a.high) == pytest.approx((b.low, b.high), abs=0.005)


def test_pairing_makes_a_difference_narrower_than_its_parts():
    y, hits = two_strategies((500, 80), {"a": 0.8, "b": 0.8}, 0)
    hits["b"] = np.where(np.arange(len(y)) % 50 == 0, 1 - hits["a"], hits["a"])
    boot = paired_bootstrap(y, hits, compared=BOTH)
    gap, own = boot.difference("a", "b"), boot.balanced_accuracy("a")
    assert gap.high - gap.low < 0.6 * (own.high - own.low)


def test_estimates_are_plain_means():
    y = np.array([0, 0, 0, 0, 1, 1])
    hits = {"a": np.array([[1, 1, 1, 0, 1, 0], [1, 1, 0, 0, 0, 0]], dtype=float)}
    boot = paired_bootstrap(y, hits, compared=BOTH)
    assert boot.balanced_accuracy("a").estimate == pytest.approx((5 / 8 + 1 / 4) / 2)
    assert boot.class_recall("a")[1].estimate == pytest.approx(1 / 4)


def test_seeds_widen_an_interval():
    """Two seeds, one right and one wrong throughout: records alone would call 0.5 certain."""
    y = np.repeat([0, 1], 2000)
    hits = {"a": np.stack([np.ones(4000), np.zeros(4000)])}
    interval = paired_bootstrap(y, hits, compared=BOTH).balanced_accuracy("a")
    assert interval.low < 0.01
    assert interval.high > 0.99


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
def test_intervals_cover_where_seeds_differ_and_records_do_not(n_seeds):
    """Two strategies of equal recall, a point of noise a seed, many records: three seeds tell little of it."""
    covered = 0
    for s in range(100):
        rng = np.random.default_rng(s)
        y, share = np.repeat([0, 1], 500), np.linspace(0, 1, 500)
        recalls = {strategy: 0.8 + 0.01 * rng.normal(size=n_seeds) for strategy in "ab"}
        hits = {a: np.stack([1.0 * np.tile(share < r, 2) for r in of]) for a, of in recalls.items()}
        gap = paired_bootstrap(y, hits, compared=BOTH, n_bootstrap=300, seed=s).difference("a", "b")
        covered += gap.low <= 0 <= gap.high
    assert covered >= 85


@pytest.mark.slow
def test_intervals_cover_over_many_small_classes():
    """The imaginary records' pull towards no difference does not shrink with the number of classes."""
    covered = 0
    for s in range(60):
        rng = np.random.default_rng(s)
        y = np.repeat(np.arange(100), 12)
        luck = rng.random(len(y))
        hits = {"a": 1.0 * (luck < 0.9)[None], "b": 1.0 * (luck < 0.7)[None]}
        boot = paired_bootstrap(y, hits, compared=np.ones(100, bool), n_bootstrap=300, seed=s)
        gap = boot.difference("a", "b")
        covered += gap.low <= 0.2 <= gap.high
    assert covered >= 51


@pytest.mark.parametrize(("n_tail", "shown"), [(1, False), (3, False), (8, True)])
def test_a_handful_of_records_shows_nothing(n_tail, shown):
    """Strategy a is right on every tail record and b on none: a plain bootstrap sees no doubt at all."""
    y = np.array([0] * 500 + [1] * n_tail)
    hits = {"a": np.ones((1, len(y))), "b": (y == 0)[None].astype(float)}
    gap = paired_bootstrap(y, hits, compared=BOTH).difference("a", "b")
    assert gap.estimate == 0.5
    assert (gap.low > 0) is shown


def test_few_records_that_differ_make_an_interval_wider_than_many():
    """Four of 200 records of a class differ, or forty: the deviation of the former is itself known to 18 %."""
    y = np.repeat([0, 1], 200)
    ratio = {}
    for n in (4, 40):
        a = np.zeros(400)
        a[np.r_[:n, 200 : 200 + n]] = 1
        boot = paired_bootstrap(y, {"a": a[None], "b": np.zeros((1, 400))}, compared=BOTH)
        gap = boot.difference("a", "b")
        ratio[n] = (gap.high - gap.low) / (boot.draws[:, 0] - boot.draws[:, 1]).mean(axis=1).std()
    assert ratio[40] < 4.1
    assert ratio[4] > 1.04 * ratio[40]


def test_imaginary_groups_are_as_alike_as_real_ones():
    """Where records of a group are independent, two imaginary groups of five must not be ten equal records."""
    rng = np.random.default_rng(0)
    y, groups = np.repeat([0, 1], (300, 50)), np.arange(350) // 5
    alike = np.repeat(rng.random(70) < 0.7, 5)
    width = {}
    for name, right in (("alike", alike), ("apart", rng.permutation(alike))):
        hits = {"a": right[None].astype(float)}
        boot = paired_bootstrap(y, hits, compared=BOTH, groups=groups)
        width[name] = boot.units.sizes(np.flatnonzero(boot.units.klass == 1))[1]
    assert width["apart"] < 2 < 4 < width["alike"]


def test_classes_that_are_not_compared_do_not_enter():
    y, hits = two_strategies((100, 50), {"a": 0.8}, 0)
    boot = paired_bootstrap(y, hits, compared=np.array([True, False]))
    assert list(boot.classes) == [0]
    assert boot.balanced_accuracy("a").estimate == pytest.approx(hits["a"][0, :100].mean())


def test_draws_do_not_depend_on_the_order_of_records():
    y, hits = two_strategies((300, 40), {"a": 0.8, "b": 0.7}, 0, n_seeds=2)
    order = np.random.default_rng(1).permutation(len(y))
    a = paired_bootstrap(y, hits, compared=BOTH, seed=5)
    b = paired_bootstrap(y[order], {k: h[:, order] for k, h in hits.items()}, compared=BOTH, seed=5)
    assert np.array_equal(a.draws, b.draws)


def test_class_differences_are_corrected_for_their_number():
    y, hits = two_strategies((300, 40), {"a": 0.8, "b": 0.7}, 0)
    boot = paired_bootstrap(y, hits, compared=BOTH)
    j = list(boot.classes).index(1)
    plain = np.quantile(boot.draws[:, 0, j] - boot.draws[:, 1, j], [0.025, 0.975])
    corrected = boot.class_difference("a", "b")[1]
    assert corrected.low < plain[0]
    assert corrected.high > plain[1]


def test_nothing_to_compare_is_an_error():
    y, hits = two_strategies((10, 5), {"a": 0.8}, 0)
    with pytest.raises(EmptyClassError):
        paired_bootstrap(y, hits, compared=~BOTH)
    with pytest.raises(ParameterError, match="one shape"):
        paired_bootstrap(y, {"a": hits["a"], "b": np.ones((2, 15))}, compared=BOTH)


@pytest.mark.slow
@pytest.mark.parametrize("n_classes", [2, 60])
def test_intervals_of_many_classes_hold_together(n_classes):
    """Equal strategies: at most about 5 % of repetitions show a difference in any class, however many."""
    y = np.repeat(np.arange(n_classes), 30)
    false = 0
    for s in range(60):
        rng = np.random.default_rng(s)
        hits = {strategy: (rng.random((1, len(y))) < 0.7).astype(float) for strategy in ("a", "b")}
        boot = paired_bootstrap(
            y, hits, compared=np.ones(n_classes, dtype=bool), n_bootstrap=200, seed=s
        )
        found = boot.class_difference("a", "b").values()
        false += any(i.low > 0 or i.high < 0 for i in found)
    assert false <= 7


def test_a_real_difference_of_one_class_among_many_is_shown():
    y = np.repeat(np.arange(50), 60)
    rng = np.random.default_rng(0)
    luck = rng.random((1, len(y)))
    hits = {"a": (luck < np.where(y == 7, 0.95, 0.6)) * 1.0, "b": (luck < 0.6) * 1.0}
    boot = paired_bootstrap(y, hits, compared=np.ones(50, dtype=bool), n_bootstrap=400)
    shown = {k for k, i in boot.class_difference("a", "b").items() if i.low > 0}
    assert shown == {7}


def test_no_difference_of_shares_goes_beyond_one() -> None:
    draws = np.random.default_rng(0).normal(0.1, 0.3, (500, 2))
    for interval in simultaneous(np.array([0.1, 0.1]), draws, np.array([2, 2])):
        assert (interval.low, interval.high) == (-1.0, 1.0)


def test_no_recall_goes_beyond_one() -> None:
    """Seeds that differ widen the interval of a class of few records; 100.4 % was shown."""
    y = np.repeat([0, 1], (200, 12))
    right = np.ones((3, 212))
    right[0, 200:203] = right[1, 203] = right[1, :40] = 0
    boot = paired_bootstrap(y, {"a": right}, compared=BOTH, n_bootstrap=400)
    assert boot._interval(boot._weights({"a": 1}, 1), boot.draws[:, 0, 1]).high > 1
    assert boot.class_recall("a")[1].high == 1
    assert boot.balanced_accuracy("a").high <= 1
