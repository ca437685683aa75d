"""Groups: a planted harm is flagged, chance is not, and small slices say nothing."""

from functools import partial

import numpy as np
import pytest

from prefect_augment.evaluation.metrics.slices import MIN_SLICE, slices

sliced = partial(slices, classes=["head", "tail"], compared=np.ones(2, dtype=bool))


def records(n_head=1000, n_tail=400):
    """Half of each class from either site."""
    y = np.repeat([0, 1], [n_head, n_tail])
    site = np.where(np.arange(len(y)) % 2, "north", "south")
    return y, site


def compared(before, after, *, y=None, site=None, seed=0, by=None, n_bootstrap=400, **kwargs):
    """``before`` and ``after`` are recalls by (class, site); three seeds have their own luck."""
    if y is None:
        y, site = records()
    rng = np.random.default_rng(seed)
    luck = rng.random((3, len(y)))
    rate = {
        strategy: np.array([table[int(k), s] for k, s in zip(y, site, strict=True)])
        for strategy, table in (("as is", before), ("weights", after))
    }
    hits = {strategy: (luck < r).astype(float) for strategy, r in rate.items()}
    by = {"site": list(site)} if by is None else by
    return sliced(y, hits, by, before="as is", after="weights", n_bootstrap=n_bootstrap, **kwargs)


FLAT = {(0, "north"): 0.8, (0, "south"): 0.8, (1, "north"): 0.6, (1, "south"): 0.6}
PLANTED = FLAT | {(1, "north"): 0.85, (1, "south"): 0.40}


def of(found, label, site):
    return next(s for s in found.slices if s.label == label and s.group == {"site": site})


def test_a_planted_harm_of_one_group_is_flagged():
    found = compared(FLAT, PLANTED)
    assert of(found, "tail", "north").decision == "gains"
    assert of(found, "tail", "south").decision == "loses"
    assert of(found, "head", "north").decision == "not shown"
    assert "Class tail: site=north gains and site=south loses." in found.flags
    assert "Over the classes: site=north gains and site=south loses." in found.flags
    gap = next(g for g in found.gaps if g.label == "tail")
    assert gap.change.low > 0.2, "the gap between the sites grew"
    assert of(found, "tail", "south").n_holdout == 200
    assert any("gap between groups of site widens" in flag for flag in found.flags)


def test_a_gain_of_all_groups_is_no_flag():
    found = compared(FLAT, {k: v + 0.15 for k, v in FLAT.items()})
    assert {g.decision for g in found.groups} == {"gains"}
    assert found.flags == ()


def test_a_gap_that_widens_is_flagged_though_nobody_loses():
    found = compared(FLAT, FLAT | {(1, "north"): 0.9, (0, "north"): 0.9})
    assert {g.decision for g in found.groups} == {"gains", "not shown"}
    (flag,) = found.flags
    assert flag.startswith("The gap between groups of site widens")


@pytest.mark.slow
def test_strategies_that_are_alike_are_rarely_told_apart_in_any_slice():
    """Together the intervals hold at 95 %: four slices and two groups, 100 repetitions."""
    false = 0
    y, site = records(400, 160)
    for seed in range(100):
        rng = np.random.default_rng(seed)
        hits = {strategy: (rng.random((2, len(y))) < 0.7).astype(float) for strategy in ("a", "b")}
        by = {"site": list(site)}
        found = sliced(y, hits, by, before="a", after="b", n_bootstrap=200)
        false += any(s.decision != "not shown" for s in found.slices)
    assert false <= 10


@pytest.mark.slow
def test_groups_of_many_columns_are_rarely_told_apart_in_any_of_them():
    """Six tables, of five columns and of their combinations: each alone at 95 % made it 16 in 100."""
    false = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        y, luck = rng.integers(0, 2, 900), rng.random(900)
        own = {
            strategy: np.where(rng.random(900) < 0.7, luck, rng.random(900)) for strategy in "ab"
        }
        hits = {strategy: 1.0 * (of < 0.8)[None] for strategy, of in own.items()}
        by = {f"column {j}": rng.integers(0, 3, 900).astype(str).tolist() for j in range(5)}
        found = sliced(y, hits, by, before="a", after="b", n_bootstrap=200, seed=seed)
        false += any(g.decision != "not shown" for g in found.groups if g.decision != "too few")
    assert false <= 4


def test_slices_with_too_few_records_say_so_and_have_their_count():
    y, site = records(400, 100)
    site = site.copy()
    few = np.flatnonzero((y == 1) & (site == "south"))[MIN_SLICE - 1 :]
    site[few] = "north"
    found = compared(FLAT, PLANTED, y=y, site=site)
    small = of(found, "tail", "south")
    assert (small.decision, small.n_holdout, small.before) == ("too few", MIN_SLICE - 1, None)
    assert found.n_too_few == 1
    assert next(g for g in found.groups if g.group == {"site": "south"}).n_classes == 1


def test_where_all_slices_are_too_small_nothing_is_said():
    y, site = records(20, 10)
    found = compared(FLAT, PLANTED, y=y, site=site)
    assert {s.decision for s in found.slices} == {g.decision for g in found.groups} == {"too few"}
    assert found.gaps == ()


def test_several_columns_are_looked_at_one_by_one_and_together():
    y, site = records()
    sex = np.where(np.arange(len(y)) % 4 < 2, "f", "m")
    found = compared(FLAT, FLAT, by={"site": list(site), "sex": list(sex)})
    assert {tuple(g.group) for g in found.groups} == {("site",), ("sex",), ("site", "sex")}
    assert sum(g.n_holdout for g in found.groups if tuple(g.group) == ("sex",)) == len(y)
    together = [s for s in found.slices if len(s.group) == 2]
    assert sum(s.n_holdout for s in together) == len(y)


def test_the_same_strategy_neither_gains_nor_loses():
    y, site = records(100, 60)
    hits = {"as is": (np.random.default_rng(0).random((2, len(y))) < 0.7).astype(float)}
    by = {"site": list(site)}
    found = sliced(y, hits, by, before="as is", after="as is", n_bootstrap=100)
    assert {s.decision for s in found.slices} == {"not shown"}
    assert found.slices[0].difference.estimate == pytest.approx(0)
