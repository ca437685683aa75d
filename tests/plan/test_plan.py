from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.staging import ingested

from prefect_augment.errors import ParameterError
from prefect_augment.params import (
    Balance,
    ClassTarget,
    ColumnOverride,
    Combination,
    NoModel,
    Quality,
    RunParams,
    TreesModel,
    Unique,
)
from prefect_augment.plan.plan import plan
from prefect_augment.schema import BalancePlan, DatasetRef
from prefect_augment.shards.staged import load_info
from prefect_augment.storage import Store

N = 300
Planned = Callable[..., BalancePlan]


@pytest.fixture(scope="module")
def dataset(memory_store: Store, tmp_path_factory: pytest.TempPathFactory) -> DatasetRef:
    """250 records of class a, 50 of class b; 80 % of each are training records."""
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "width": rng.normal(size=N),
            "site": pa.array(["north", "south | 1", None] * (N // 3)).dictionary_encode(),
            "shift": pa.array(np.arange(N) % 2),
            "town": [f"town {i % 40}" for i in range(N)],
            "code": [f"{i:04x}" for i in range(N)],
            "kind": ["a"] * 250 + ["b"] * 50,
        }
    )
    overrides = [ColumnOverride(name="town", kind="category")]
    folder = tmp_path_factory.mktemp("source")
    return ingested(table, folder, memory_store, "kind", columns=overrides)


@pytest.fixture(scope="module")
def planned(dataset: DatasetRef, memory_store: Store) -> Planned:
    """Plan for the records; without a model, if none is named."""

    def planned(compares: bool = False, **params: Any) -> BalancePlan:
        asked = RunParams(**{"model": NoModel(), **params})
        return plan(dataset, asked, memory_store, compares=compares)

    return planned


def test_plan_counts_training_records(planned: Planned) -> None:
    found = planned(model=TreesModel(), quality=Quality(labels="hard"))
    classes = [(c.name, c.n_real, c.target) for c in found.classes]
    assert classes == [("a", 200, 200), ("b", 40, 120)]
    assert (found.n_synthetic, found.classes[1].n_classic) == (40, 40)
    assert all(c.compared for c in found.classes)
    assert found.rule == "median, at most 1 synthetic per real"
    assert found.warnings == ()
    assert not found.soft_labels


def test_soft_labels_draw_of_every_class_and_leave_the_balance_to_weights(planned: Planned) -> None:
    found = planned(model=TreesModel())
    classes = [(c.target, c.n_synthetic, c.n_classic) for c in found.classes]
    assert classes == [(200, 400, 0), (120, 80, 0)]
    assert found.rule == "median, at most 2 synthetic per real with soft labels"
    assert found.soft_labels
    assert found.warnings == ()


@pytest.mark.parametrize(
    "quality",
    [
        Quality(labels="hard"),
        Quality(purpose="faithful"),
        Quality(constraints=[Unique(columns=["town"])]),
        Quality(constraints=[Combination(columns=["town", "kind"])]),
    ],
    ids=["hard", "faithful", "no two alike", "the label is bound"],
)
def test_labels_are_hard_where_they_cannot_be_soft(planned: Planned, quality: Quality) -> None:
    found = planned(model=TreesModel(), quality=quality)
    assert not found.soft_labels
    assert [c.n_synthetic for c in found.classes] == [0, 40]


def test_plan_balances_within_columns(
    dataset: DatasetRef, planned: Planned, memory_store: Store
) -> None:
    found = planned(balance=Balance(target="majority", by=["site", "shift"]))
    counts = load_info(dataset, memory_store).part_counts
    n_training = sum(sum(counts[part].values()) for part in ("training", "validation"))
    assert sum(c.n_real for c in found.classes) == n_training
    cells = {tuple(c.by.values()) for c in found.classes}
    assert cells == {(s, n) for s in ("north", "south | 1", "null") for n in ("0", "1")}
    for cell in cells:
        of_cell = [c for c in found.classes if tuple(c.by.values()) == cell]
        assert {c.target for c in of_cell} == {max(c.n_real for c in of_cell)}


def test_plan_without_a_model_has_no_synthetic_records(planned: Planned) -> None:
    found = planned()
    assert (found.n_synthetic, found.classes[1].n_classic) == (0, 80)


def test_plan_is_cheaper_without_a_model(planned: Planned) -> None:
    with_model, without = (
        planned(compares=True, model=model).estimate for model in (TreesModel(), NoModel())
    )
    assert with_model.seconds > without.seconds > 0
    assert min(without.memory_bytes, without.output_bytes) > 0


def test_plan_leaves_nothing_behind(planned: Planned, memory_store: Store) -> None:
    before = memory_store.list()
    planned(balance=Balance(by=["site"]), model=TreesModel())
    assert memory_store.list() == before


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (["sites"], "'sites', which does not exist; did you mean 'site'"),
        (["kind"], "names the label 'kind'"),
        (["site", "shift", "site"], "names 'site' twice"),
        (["width"], "'width', which holds numbers of type double"),
        (["town"], "'town', which has 40 values"),
        (["code"], "'code', which is an identifier column"),
    ],
)
def test_unusable_columns_are_refused_by_name(
    by: list[str], message: str, planned: Planned
) -> None:
    with pytest.raises(ParameterError, match=message):
        planned(balance=Balance(by=by))


def test_a_target_below_the_training_records_is_refused(planned: Planned) -> None:
    with pytest.raises(ParameterError, match="'a' has 200 training records"):
        planned(balance=Balance(classes=[ClassTarget(name="a", target=199)]))


def test_targets_are_said_in_the_rule(planned: Planned) -> None:
    own = [ClassTarget(name="a", target=410), ClassTarget(name="b", target=420)]
    balance = Balance(target="count", count=400, max_per_class=500, by=["shift"], classes=own)
    assert planned(balance=balance).rule == (
        "400 records per class, at most 500 per class, within each shift, "
        "2 classes with a target of their own, at most 1 synthetic per real"
    )
