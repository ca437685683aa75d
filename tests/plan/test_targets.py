from typing import Any

import pytest
from hypothesis import given, strategies as st

from prefect_augment.encoding.strata import stratum_names, stratum_parts
from prefect_augment.errors import ParameterError
from prefect_augment.params import Balance, ClassTarget
from prefect_augment.plan.targets import (
    MAX_SOFT_LABELS,
    MIN_SAMPLED,
    MIN_SAMPLED_IMAGES,
    plan_classes,
    plan_warnings,
    targets,
)
from prefect_augment.schema import ClassPlan, class_order

COUNTS = {"common": 1000, "rare": 40, "rarest": 5}
OWN_CAP = ClassTarget(name="rare", max_synthetic_per_real=9)

text = st.text(alphabet="ab|\\= '<é🙂/.", max_size=8)
class_counts = st.dictionaries(text, st.integers(1, 10_000), min_size=1, max_size=8)
rules = st.builds(
    Balance,
    target=st.sampled_from(["median", "majority", "sqrt"]),
    max_synthetic_per_real=st.floats(0, 8),
    max_per_class=st.integers(0, 5000),
)


def test_stratum_is_the_class_itself_without_by() -> None:
    assert stratum_names(["a | b", "c"], {}) == ["a | b", "c"]


def test_stratum_names_the_columns_in_the_order_given() -> None:
    by: dict[str, list[str | None]] = {"site": ["x", "y"], "sex": ["f", None]}
    assert stratum_names(["a", "b"], by) == ["a | site=x | sex=f", "b | site=y | sex=null"]


@given(text, text, text)
def test_stratum_names_can_be_taken_apart(label: str, first: str, second: str) -> None:
    [name] = stratum_names([label], {"site": [first], "a=b": [second]})
    assert stratum_parts(name, ["site", "a=b"]) == (label, {"site": first, "a=b": second})


def test_two_strata_never_share_a_name() -> None:
    """A class may hold the very text that separates class and cell."""
    names = stratum_names(["a | s=1", "a"], {"s": ["2", "1 | s=2"]})
    assert names[0] != names[1]


def test_classes_that_are_numbers_are_ordered_by_size() -> None:
    assert class_order({"10", "9", "-1", "2.5"}) == ["-1", "2.5", "9", "10"]
    assert class_order({"10", "9", "nan"}) == ["10", "9", "nan"]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("median", {"common": 1000, "rare": 40, "rarest": 40}),
        ("majority", {"common": 1000, "rare": 1000, "rarest": 1000}),
        ("sqrt", {"common": 1000, "rare": 200, "rarest": 71}),  # sqrt(40 000), sqrt(5 000) upwards
    ],
)
def test_rules_give_known_targets(rule: str, expected: dict[str, int]) -> None:
    assert targets(COUNTS, Balance.model_validate({"target": rule})) == expected


def test_count_and_a_class_of_its_own_are_taken_as_asked() -> None:
    own = [ClassTarget(name="common", target=1200)]
    balance = Balance(target="count", count=300, classes=own)
    assert targets(COUNTS, balance) == {"common": 1200, "rare": 300, "rarest": 300}


def test_a_class_with_only_a_cap_of_its_own_keeps_the_general_target() -> None:
    own = [ClassTarget(name="rare", max_synthetic_per_real=2.0)]
    assert targets(COUNTS, Balance(target="majority", classes=own))["rare"] == 1000


def test_max_per_class_lowers_the_rule_and_not_what_is_there() -> None:
    found = targets(COUNTS, Balance(target="majority", max_per_class=100))
    assert found == {"common": 1000, "rare": 100, "rarest": 100}


@pytest.mark.parametrize(
    "balance",
    [Balance(target="count", count=300), Balance(classes=[ClassTarget(name="common", target=300)])],
)
def test_a_number_below_what_is_there_is_refused(balance: Balance) -> None:
    with pytest.raises(
        ParameterError, match=r"'common' has 1000 training records.*asks for 300"
    ) as info:
        targets(COUNTS, balance)
    assert (info.value.values["n_real"], info.value.values["requested"]) == (1000, 300)


def test_a_number_above_max_per_class_is_refused() -> None:
    balance = Balance(max_per_class=100, classes=[ClassTarget(name="rare", target=500)])
    with pytest.raises(ParameterError, match="max_per_class=100 forbids"):
        targets(COUNTS, balance)


@pytest.mark.parametrize(("wrong", "meant"), [("rarestt", "rarest"), ("COMMON", "common")])
def test_an_unknown_class_is_refused_with_the_nearest_name(wrong: str, meant: str) -> None:
    with pytest.raises(ParameterError, match=f"did you mean '{meant}'"):
        targets(COUNTS, Balance(classes=[ClassTarget(name=wrong, target=2000)]))


def test_each_cell_is_balanced_by_itself() -> None:
    counts = {"a | s=1": 100, "b | s=1": 10, "a | s=2": 30, "b | s=2": 6}
    found = targets(counts, Balance(target="majority", by=["s"]))
    assert found == {"a | s=1": 100, "a | s=2": 30, "b | s=1": 100, "b | s=2": 30}


@given(class_counts, rules, st.randoms(use_true_random=False))
def test_targets_never_shrink_and_do_not_depend_on_the_order(
    counts: dict[str, int], balance: Balance, rng: object
) -> None:
    found = targets(counts, balance)
    assert all(found[name] >= n for name, n in counts.items())
    assert all(t <= max(counts.values()) for t in found.values())
    backwards = dict(reversed(counts.items()))
    assert list(targets(backwards, balance).items()) == list(found.items())


@given(st.integers(1, 10**15), st.integers(1, 10**15))
def test_sqrt_rule_is_the_geometric_mean_upwards(small: int, large: int) -> None:
    small, large = sorted((small, large))
    found = targets({"a": small, "b": large}, Balance(target="sqrt"))["a"]
    assert (found - 1) ** 2 < small * large <= found**2


def planned(counts: dict[str, int], balance: Balance, **options: Any) -> dict[str, ClassPlan]:
    given = {"compared": list(counts), "can_sample": True, **options}
    return {c.name: c for c in plan_classes(counts, balance=balance, **given)}


def test_synthetic_records_are_capped_and_the_rest_is_classic() -> None:
    balance = Balance(target="majority", max_synthetic_per_real=2.5)
    plan = planned(COUNTS, balance, compared=["common", "rare"])
    assert (plan["rare"].n_synthetic, plan["rare"].n_classic) == (100, 860)
    assert (plan["common"].n_synthetic, plan["common"].n_classic) == (0, 0)


def test_soft_labels_are_drawn_of_every_class_that_can_be_sampled() -> None:
    def drawn(**balance: Any) -> list[int]:
        asked = Balance(target="majority", **balance)
        found = planned({"a": 300, "b": 40, "c": 5}, asked, soft_labels=True)
        return [found[name].n_synthetic for name in "abc"]

    assert drawn() == [600, 80, 0]
    own = [ClassTarget(name="b", max_synthetic_per_real=0.0)]
    assert drawn(max_per_class=400, classes=own) == [0, 0, 0], "none below its target"
    assert drawn(max_per_class=400) == [100, 80, 0]


def test_soft_labels_of_large_tables_draw_the_rarer_classes_whole() -> None:
    counts = {"a": 10**6, "b": 10**5, "c": 1000}
    found = plan_classes(counts, counts, Balance(), can_sample=True, soft_labels=True)
    assert [p.n_synthetic for p in found] == [9000, 9000, 2000]
    assert sum(p.n_synthetic for p in found) == MAX_SOFT_LABELS


def test_a_balanced_table_draws_nothing_for_soft_labels() -> None:
    found = plan_classes({"a": 50, "b": 50}, ["a"], Balance(), can_sample=True, soft_labels=True)
    assert [p.n_synthetic for p in found] == [0, 0]


def test_a_class_too_small_for_a_model_gets_classic_records_and_a_note() -> None:
    plan = planned(COUNTS, Balance(), compared=["common"])
    assert (plan["rarest"].n_synthetic, plan["rarest"].n_classic) == (0, 35)
    assert f"a model needs {MIN_SAMPLED}" in plan["rarest"].note
    assert "not compared" in plan["rarest"].note
    assert plan["common"].note == ""


def test_without_a_model_nothing_synthetic_is_planned() -> None:
    plan = plan_classes(COUNTS, list(COUNTS), Balance(target="majority"), can_sample=False)
    assert sum(c.n_synthetic for c in plan) == 0
    assert "no model" in next(c.note for c in plan if c.name == "rare")


def test_a_model_that_auto_declined_is_not_said_to_be_unasked() -> None:
    nothing = {"can_sample": False, "why_no_model": "auto trains no model here"}
    plan = plan_classes(COUNTS, list(COUNTS), Balance(target="majority"), **nothing)  # type: ignore[arg-type]
    note = next(c.note for c in plan if c.name == "rare")
    assert "auto trains no model here" in note
    assert "asked for" not in note


def test_images_need_more_records_for_a_model_than_tables() -> None:
    counts = {"common": 100, "rare": MIN_SAMPLED_IMAGES - 1, "fair": MIN_SAMPLED_IMAGES}
    plan = planned(counts, Balance(target="majority"), least=MIN_SAMPLED_IMAGES)
    assert (plan["rare"].n_synthetic, plan["rare"].n_classic) == (0, 101 - MIN_SAMPLED_IMAGES)
    assert f"a model needs {MIN_SAMPLED_IMAGES}" in plan["rare"].note
    assert plan["fair"].n_synthetic == MIN_SAMPLED_IMAGES


def test_a_cap_that_is_not_given_is_one_per_real_record() -> None:
    given = Balance(target="majority", max_synthetic_per_real=1.0)
    assert planned(COUNTS, given) == planned(COUNTS, Balance(target="majority"))


def test_a_class_may_forbid_synthetic_records() -> None:
    own = [ClassTarget(name="rare", max_synthetic_per_real=0.0)]
    balance = Balance(target="majority", classes=own)
    plan = planned(COUNTS, balance)
    assert (plan["rare"].n_synthetic, plan["rare"].n_classic) == (0, 960)


@given(class_counts, rules, st.booleans())
def test_plans_add_up(counts: dict[str, int], balance: Balance, can_sample: bool) -> None:
    plans = plan_classes(counts, list(counts), balance, can_sample=can_sample)
    assert {p.name for p in plans} == set(counts)
    for p in plans:
        assert p.n_real + p.n_synthetic + p.n_classic == p.target
        assert min(p.n_synthetic, p.n_classic) >= 0
        assert p.n_synthetic <= balance.max_synthetic_per_real * p.n_real
        assert p.n_synthetic == 0 or (can_sample and p.n_real >= MIN_SAMPLED)


def test_plan_keeps_class_and_cell_of_each_stratum() -> None:
    counts = {"a|b | s=1": 20, "c | s=1": 10}
    balance = Balance(by=["s"])
    names = stratum_names(["a|b", "c"], {"s": ["1", "1"]})
    plans = plan_classes(
        dict(zip(names, counts.values(), strict=True)), ["c"], balance, can_sample=True
    )
    assert [(p.label, p.by, p.compared) for p in plans] == [
        ("a|b", {"s": "1"}, False),
        ("c", {"s": "1"}, True),
    ]


@pytest.mark.parametrize(
    ("balance", "expected"),
    [
        (Balance(max_synthetic_per_real=6.0), "balance allows 6 synthetic"),
        (Balance(classes=[OWN_CAP]), "class 'rare' allows 9"),
    ],
)
def test_caps_above_five_are_warned_of(balance: Balance, expected: str) -> None:
    plans = plan_classes(COUNTS, list(COUNTS), balance, can_sample=True)
    assert any(w.startswith(expected) for w in plan_warnings(plans, balance))


def test_more_synthetic_than_real_records_is_warned_of() -> None:
    counts = {"a": 100, "b": 60, "c": 60, "d": 60}
    balance = Balance(
        classes=[ClassTarget(name=k, target=240) for k in "bcd"], max_synthetic_per_real=5
    )
    plans = plan_classes(counts, list(counts), balance, can_sample=True)
    assert any("540 synthetic records for 280 real" in w for w in plan_warnings(plans, balance))


def test_a_balanced_table_is_said_to_be_balanced() -> None:
    plans = plan_classes({"a": 50, "b": 50}, ["a", "b"], Balance(), can_sample=True)
    assert plan_warnings(plans, Balance()) == (
        "every class is at its target already; there is nothing to balance",
    )
