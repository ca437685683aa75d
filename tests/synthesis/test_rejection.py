"""Given values and constraints: kept by every staged record, and refused by name where they cannot be."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from support.staging import Made, people

from prefect_augment.encoding.columns import describe_columns
from prefect_augment.encoding.strata import table_strata
from prefect_augment.encoding.tables import TableEncoder
from prefect_augment.errors import IntegrityError, ParameterError
from prefect_augment.evaluation.quality.likeness import c2st_auc
from prefect_augment.genmodels.base import TableData
from prefect_augment.params import Combination, Constraint, Inequality, Positive, TreesModel, Unique
from prefect_augment.shards.staged import read_part
from prefect_augment.storage import Store
from prefect_augment.synthesis import sample as stage
from prefect_augment.synthesis.draw import candidate_seeds
from prefect_augment.synthesis.model_store import table_spec
from prefect_augment.synthesis.rejection import Rules, draw_kept
from prefect_augment.synthesis.train import fit_model


def visits(n: int = 240) -> pa.Table:
    """``people`` with a stay's days, a city in its country, and an amount that may be a debt."""
    table = people(n)
    rng = np.random.default_rng(1)
    since = table["since"].cast(pa.int32()).to_numpy()
    city = rng.choice(4, n)
    columns = {
        "until": pa.array(since + rng.integers(0, 400, n), pa.int32()).cast(pa.date32()),
        "city": np.array(["Bonn", "Kiel", "Graz", "Linz"])[city],
        "country": np.array(["D", "D", "A", "A"])[city],
        "amount": np.round(rng.normal(20, 15, n), 2),
    }
    for i, (name, values) in enumerate(columns.items()):
        table = table.add_column(4 + i, name, pa.array(values))
    return table


@pytest.fixture
def made(store: Store) -> Made:
    return Made.of(visits(), store, rare=40, ill=30)


RULES: list[Constraint] = [
    Inequality(left="since", operator="<", right="until"),
    Combination(columns=["city", "country"]),
    Positive(columns=["amount", "age"]),
    Unique(columns=["city", "age", "sex"]),
]


def test_constraints_hold_in_every_record_and_counts_are_exact(made: Made) -> None:
    info = made.info(constraints=RULES)
    table = read_part(made.store, info, ["candidates"])
    assert info.part_counts == {"candidates": {"ill": 30, "rare": 40}}
    assert pc.all(pc.less(table["since"], table["until"])).as_py()
    assert pc.min(table["amount"]).as_py() > 0
    assert {*zip(*(table[c].to_pylist() for c in ("city", "country")), strict=True)} <= {
        ("Bonn", "D"), ("Kiel", "D"), ("Graz", "A"), ("Linz", "A"),
    }  # fmt: skip
    keys = [key for key in _keys(table) if None not in key]
    assert len(keys) == len(set(keys))
    assert not set(keys) & set(_keys(visits())), "nor as a real record"


def _keys(table: pa.Table) -> list[tuple[Any, ...]]:
    return list(zip(*(table[c].to_pylist() for c in ("city", "age", "sex")), strict=True))


def test_the_accepted_share_is_reported(made: Made) -> None:
    info = made.info(constraints=RULES[:3], conditions={"sex": "f"})
    rules = info.extra["rules"]
    assert rules["given"] == {"sex": "f"}
    assert [rule["kind"] for rule in rules["constraints"]] == [
        "inequality", "combination", "positive",
    ]  # fmt: skip
    assert 0 < rules["accepted"]["rare"] < 1
    assert rules["passed"]["draws"] >= rules["passed"]["given"] >= rules["passed"]["since < until"]
    assert "accepted" in info.notes[-1]
    assert info.extra["purpose"] == "faithful"


@pytest.mark.parametrize(
    "given", [{"sex": "f"}, {"age": 41}, {"age": "41", "city": "Graz"}, {"age": None}]
)
def test_every_record_has_the_given_values(made: Made, given: dict[str, Any]) -> None:
    table = made.drawn(conditions=given, counts={"rare": 25})
    assert table.num_rows == 25
    for name, value in given.items():
        assert set(table[name].to_pylist()) == {int(value) if value == "41" else value}


def test_batches_and_more_records_extend_what_was_drawn(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"conditions": {"sex": "m"}, "constraints": RULES[:3]}
    once = made.drawn(**given)
    longer = made.drawn(counts={"rare": 60}, **given)
    monkeypatch.setattr(stage, "BATCH_RECORDS", 7)
    made.clear()
    assert made.drawn(**given).equals(once)
    rare = once.filter(pc.equal(once["aug_stratum"], "rare"))
    assert longer.slice(0, 40).equals(rare)


def test_records_with_other_conditions_have_other_ids(made: Made) -> None:
    given = {"sex": "m", "age": 41}
    table = made.drawn(conditions=given, counts={"rare": 5})
    other = made.drawn(conditions={"sex": "f"}, counts={"rare": 5})
    assert not set(table["aug_id"].to_pylist()) & set(other["aug_id"].to_pylist())


def test_constraints_alone_leave_the_lineage_as_it_is(made: Made) -> None:
    """What is kept are candidates of the same sequence, so a published one is remade as ever."""
    kept = made.drawn(constraints=RULES, counts={"rare": 9})
    ordinals, seeds = kept["aug_ordinal"].to_numpy(), kept["aug_seed"].to_numpy()
    assert (candidate_seeds(1, "rare", 0, int(ordinals.max()) + 1)[ordinals] == seeds).all()
    assert ordinals.max() > 8


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"conditions": {"sx": "f"}}, "'sx', which is not a column .did you mean 'sex'"),
        ({"conditions": {"sex": "x"}}, "none of its values: 'f', 'm'"),
        ({"conditions": {"sex": None}}, "no training record lacks one"),
        ({"conditions": {"age": 400}}, "they go from 31 to 79"),
        ({"conditions": {"age": "old"}}, "which holds int64"),
        ({"conditions": {"age": 70.5}}, "holds int64"),
        ({"conditions": {"since": "yesterday"}}, "date32"),
        ({"conditions": {"id": 3}}, "'id', which no model learns"),
        ({"conditions": {"state": "ill"}}, "the class .* determines already"),
        ({"constraints": [Inequality(left="since", right="untl")]}, "did you mean 'until'"),
        ({"constraints": [Inequality(left="since", right="city")]}, "city is string"),
        ({"constraints": [Positive(columns=["city"])]}, "'city', which holds string"),
        ({"constraints": [Unique(columns=["id"])]}, "'id', which no model learns"),
    ],
)
def test_what_does_not_fit_the_columns_is_told(
    made: Made, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        made.drawn(**asked)


@pytest.mark.slow
def test_a_rule_that_hardly_any_draw_keeps_ends_with_the_shares(made: Made) -> None:
    rules = [Unique(columns=["city", "sex"]), RULES[0]]
    with pytest.raises(ParameterError, match=r"0\.00% keep 'unique \(city, sex\)'") as raised:
        made.drawn(constraints=rules, counts={"rare": 9})
    assert raised.value.accepted_share < 0.001  # type: ignore[attr-defined]


def test_models_that_cannot_set_values_are_asked_until_they_have_them() -> None:
    """Any engine of the registry: what it happens to draw is kept, whole numbers and levels."""
    table = visits()
    encoder, fitted = _fitted(table, "state")

    class Plain:
        sample = staticmethod(fitted.sample)

    rules = Rules.of(encoder, lambda: table, conditions={"sex": "f", "age": 70})
    args: dict[str, Any] = {"start": 0, "n": 4, "taken": [], "stratum": "ill"}
    kept = draw_kept(
        Plain(), encoder, rules, seeds_of=lambda lo, n: candidate_seeds(0, "ill", lo, n), **args
    )
    made = encoder.decode(kept.X, strata=["ill"] * 4)
    assert made["sex"].to_pylist() == ["f"] * 4
    assert made["age"].to_pylist() == [70] * 4


def _fitted(table: pa.Table, label: str) -> tuple[TableEncoder, Any]:
    encoder = TableEncoder.fit(table, columns=describe_columns(table, label=label), label=label)
    y = _codes(table, encoder)
    data = TableData(encoder.encode(table), y)
    return encoder, fit_model(data, table_spec(encoder, y), TreesModel(), 1)


def _codes(table: pa.Table, encoder: TableEncoder) -> np.ndarray:
    names = table_strata(table, label=encoder.label)
    return np.array([encoder.strata.index(name) for name in names])


def test_remaking_a_conditioned_record_without_its_values_is_refused() -> None:
    """Its seed is none of the run's plain ones, so that no other record passes for it."""
    seeds = candidate_seeds(1, "rare", 0, 100, conditions={"sex": "f"})
    assert not np.isin(seeds, candidate_seeds(1, "rare", 0, 100_000)).any()
    from prefect_augment.synthesis.reproduce import _ordinal

    with pytest.raises(IntegrityError, match="another run"):
        _ordinal(1, "rare", int(seeds[0]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "label"),
    [
        ({"sex": "Female"}, "<=50K"),
        ({"sex": "Female"}, ">50K"),
        ({"occupation": "Sales"}, ">50K"),
        ({"age": 37}, "<=50K"),
        ({"hours_per_week": 60}, ">50K"),
    ],
)
def test_conditioned_records_of_adult_income_look_like_real_ones_of_that_kind(
    adult: tuple[pa.Table, TableEncoder, Any], given: dict[str, Any], label: str
) -> None:
    """benchmarks/conditions.py has the figures; unconditioned records are told apart at 0.63 to 0.91."""
    held_out, encoder, fitted = adult
    X, y = encoder.encode(held_out), _codes(held_out, encoder)
    rules = Rules.of(encoder, lambda: held_out, conditions=given)
    real = y == encoder.strata.index(label)
    for j, value in rules.values.items():
        real &= X[:, j] == value
    kept = draw_kept(
        fitted,
        encoder,
        rules,
        stratum=label,
        start=0,
        n=int(real.sum()),
        seeds_of=lambda lo, n: candidate_seeds(3, label, lo, n, rules.values_json),
        taken=rules.taken(),
    )
    rest = [j for j in range(X.shape[1]) if j not in rules.values]
    auc = c2st_auc(
        X[real][:, rest],
        kept.X[:, rest],
        n_levels=encoder.n_levels[rest],
    )
    assert auc <= 0.65


@pytest.fixture(scope="module")
def adult(shared_data: Path) -> tuple[pa.Table, TableEncoder, Any]:
    table = pq.read_table(shared_data / "tabular" / "adult_income.parquet")
    table = table.take(pa.array(np.random.default_rng(0).permutation(table.num_rows)[:24_000]))
    encoder, fitted = _fitted(table.slice(0, 12_000), "income")
    return table.slice(12_000), encoder, fitted


def test_records_near_to_a_training_record_are_passed_over_and_said(made: Made) -> None:
    counts = {"ill": 60}
    plain = made.info(counts=counts)
    info = made.info(counts=counts, max_near=0.0)
    found = info.extra["rules"]
    assert found["max_near"] == 0.0
    assert found["passed"]["distance to the training records"] >= 60
    assert 0 < found["accepted"]["ill"] < 1
    assert info.part_counts == {"candidates": counts}
    assert info.key != plain.key
    all_ordinals = read_part(made.store, info, ["candidates"])["aug_ordinal"].to_pylist()
    assert all_ordinals == sorted(all_ordinals)
    few = made.drawn(counts={"ill": 5}, max_near=0.0)
    assert few["aug_ordinal"].to_pylist() == all_ordinals[:5], "more extend those there are"
    with pytest.raises(ParameterError, match="max_near=1"):
        made.drawn(max_near=1.0)
