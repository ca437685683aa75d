"""The simulation of many looks at one hold-out, with few of them."""

from types import ModuleType

import pytest


def test_with_the_rule_looks_after_the_first_are_harder(evidence: ModuleType) -> None:
    levels = evidence.level_rule([300] * 5)
    assert levels == sorted(levels)
    assert levels[0] == pytest.approx(0.95)
    assert sum((1 - level) / 2 for level in levels) < 0.05
    assert evidence.level_rule([300] * 4 + [3000])[-1] < levels[-1]


def test_the_rule_finds_a_false_proven_no_more_often_than_no_rule(evidence: ModuleType) -> None:
    found = evidence.any_false_proven([800] * 6, n_seeds=1, repetitions=12)
    assert found["at the first look"] <= found["with"] < found["without"]
    assert found["preferred, with"] < found["preferred, without"]


def test_the_rule_loses_little_of_the_power_where_records_arrive(evidence: ModuleType) -> None:
    found = evidence.sequences(n=1000)["twice as many at look 20, look 20"]
    assert found["rule"] > 2 * max(found["k^-1.2"], found["k^-1.6"], found["k^-2.0"])


@pytest.mark.slow
@pytest.mark.parametrize(("n_seeds", "draws"), [(3, "both"), (5, "both"), (3, "one"), (1, "none")])
def test_intervals_cover_the_truth_and_are_not_much_wider_than_they_have_to_be(
    intervals: ModuleType, n_seeds: int, draws: str
) -> None:
    """The quick form of the benchmark; its bounds leave room for 90 repetitions, a third with a gain."""
    setting = intervals.Setting(1000, n_seeds, 0.02 * (draws != "none"), draws)
    found = intervals.measure(setting, 90, seed=1)
    assert 0.90 <= found["coverage"] <= 0.995
    assert found["width"] < 1.25
    assert found["false"] <= 0.085
    assert found["power"] > 0.25


def test_one_seed_proves_nothing_for_what_draws(intervals: ModuleType) -> None:
    found = intervals.measure(intervals.Setting(3000, 1, 0.02, "both"), 9, seed=1)
    assert found["false"] == found["power"] == 0
