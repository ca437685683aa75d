"""What counts as too near, and that trees of few records do not give these back."""

import numpy as np
import pytest
from numpy.typing import NDArray

from prefect_augment.genmodels.base import FitContext, TableData, TableSpec
from prefect_augment.genmodels.counter_rng import seeds_from
from prefect_augment.genmodels.trees import model as table_trees
from prefect_augment.genmodels.trees.growth import too_near
from prefect_augment.genmodels.trees.model import TableTrees
from prefect_augment.params import TreesModel

SPEC = TableSpec(
    names=("a", "b", "c", "d", "kind"),
    is_category=(False, False, False, False, True),
    n_levels=(0, 0, 0, 0, 3),
    classes=("many", "few"),
    class_counts=(120, 30),
)


def records(seed: int) -> TableData:
    rng = np.random.default_rng(seed)
    y = np.repeat([0, 1], [120, 30])
    X = np.column_stack([rng.normal(y[:, None], 1.0, (150, 4)), rng.integers(0, 3, 150)])
    X[rng.random(X.shape) < 0.05] = np.nan
    return TableData(X, y)


def drawing(from_: TableData):
    """Return real records, whichever are asked for."""

    def draw(conditions: NDArray[np.int64], seeds: NDArray[np.int64]) -> NDArray[np.float64]:
        rng = np.random.default_rng(abs(int(seeds[0])))
        rows = [rng.choice(np.flatnonzero(from_.y == k)) for k in conditions]
        return from_.X[rows]

    return draw


def test_copies_are_too_near() -> None:
    data = records(0)
    assert too_near(data, SPEC, drawing(data), seed=0)


def test_copies_of_the_rarer_class_alone_are_too_near() -> None:
    data, others = records(0), records(1)
    X = np.where((data.y == 1)[:, None], data.X, others.X)
    assert too_near(data, SPEC, drawing(TableData(X, data.y)), seed=0)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_nearer_than_records_that_are_all_equal(seed: int) -> None:
    data = TableData(np.ones((150, 5)), records(seed).y)
    assert not too_near(data, SPEC, drawing(data), seed=seed)


def fitted(data: TableData, min_leaf: int) -> TableTrees:
    model = TableTrees.build(TreesModel(min_leaf=min_leaf), SPEC)
    model.fit(data, FitContext(seed=0, steps=0, report=lambda step, scalars: None))
    return model


def leaf_sizes(model: TableTrees) -> NDArray[np.int32]:
    arrays = model.state()[1]
    sizes = np.concatenate([array for name, array in arrays.items() if name.endswith(".size")])
    return sizes[sizes > 0]


def test_leaves_of_a_small_table_grow_to_at_most_twice_what_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five records of 150 in a leaf would be given back nearly as they are."""
    data = records(0)
    grown = leaf_sizes(fitted(data, 5))
    assert 5 <= grown.min() <= 10
    seeds = seeds_from(9, 0, 150)
    drawn = [fitted(data, 5).sample(data.y, seeds=seeds) for _ in range(2)]
    assert np.array_equal(drawn[0], drawn[1], equal_nan=True)
    monkeypatch.setattr(table_trees, "too_near", lambda *given, **named: False)
    assert grown.mean() > 1.3 * leaf_sizes(fitted(data, 5)).mean()
