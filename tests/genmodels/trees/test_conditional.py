"""Given values: every record has them, and the columns before and after follow as they should."""

import numpy as np
import pytest

from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.genmodels.base import FitContext, SamplesWithValues, TableData, TableSpec
from prefect_augment.genmodels.counter_rng import seeds_from
from prefect_augment.genmodels.trees.model import TableTrees
from prefect_augment.params import TreesModel

N = 6000


@pytest.fixture(scope="module")
def model() -> TableTrees:
    """A category that shifts a number by 4, another number with an atom, and a rare level."""
    rng = np.random.default_rng(0)
    y = (rng.random(N) < 0.3).astype(np.int64)
    side = (rng.random(N) < np.where(y == 1, 0.8, 0.5)).astype(float)
    x = rng.normal(4 * side)
    amount = np.where(rng.random(N) < 0.7, 0.0, 10 + x + rng.random(N))
    level = np.where(rng.random(N) < 0.02 + 0.1 * (side == 1), 2, rng.integers(0, 2, N)).astype(
        float
    )
    level[rng.random(N) < 0.1] = np.nan
    X = np.column_stack([x, amount, side, level])
    spec = TableSpec(
        names=("x", "amount", "side", "level"),
        is_category=(False, False, True, True),
        n_levels=(0, 0, 2, 4),
        classes=("a", "b"),
        class_counts=tuple(int(n) for n in np.bincount(y)),
    )
    trees = TableTrees.build(TreesModel(), spec)
    trees.fit(TableData(X, y), FitContext(seed=0))
    return trees


def draw(
    model: TableTrees, given: dict[int, float], k: int = 0, n: int = 20_000, key: int = 5
) -> np.ndarray:
    seeds = seeds_from(key, 0, n)
    kept, X = model.sample_with_values(np.full(n, k, dtype=np.int64), seeds=seeds, values=given)
    assert len(kept) == len(X)
    assert (np.diff(kept) > 0).all()
    return X


def test_trees_can_be_given_values(model: TableTrees) -> None:
    assert isinstance(model, SamplesWithValues)


@pytest.mark.parametrize(
    "given", [{2: 1.0}, {3: 2.0}, {0: 2.5}, {1: 0.0}, {3: np.nan}, {0: 0.5, 3: 0.0, 1: 0.0}]
)
def test_every_record_has_the_given_values(model: TableTrees, given: dict[int, float]) -> None:
    X = draw(model, given)
    assert len(X) > 20
    for j, value in given.items():
        assert np.array_equal(X[:, j], np.full(len(X), value), equal_nan=True)


@pytest.mark.parametrize(("k", "x"), [(0, 2.0), (1, 2.0), (0, 4.0)])
def test_a_column_drawn_before_follows_the_given_one(model: TableTrees, k: int, x: float) -> None:
    """As among all that the model draws: those that happen to lie near the value."""
    free = model.sample(np.full(200_000, k), seeds=seeds_from(9, 0, 200_000))
    near = np.abs(free[:, 0] - x) < 0.1
    assert draw(model, {0: x}, k=k)[:, 2].mean() == pytest.approx(free[near, 2].mean(), abs=0.04)


def test_a_column_drawn_after_follows_the_given_one(model: TableTrees) -> None:
    X = draw(model, {2: 1.0})
    assert X[:, 0].mean() == pytest.approx(4.0, abs=0.2)
    assert (X[:, 1] == 0).mean() == pytest.approx(0.7, abs=0.05)


def test_a_value_between_those_seen_takes_the_nearest_ones_for_it(model: TableTrees) -> None:
    X = draw(model, {1: 14.123456})
    assert (X[:, 1] == 14.123456).all()
    assert X[:, 0].mean() == pytest.approx(3.6, abs=0.5), "amount is 10 + x + a half"


def test_a_rare_level_is_found_about_as_often_as_it_occurs(model: TableTrees) -> None:
    """The bound on the leaves' shares only makes it quicker: nothing but the others' odds count."""
    odds = (draw(model, {3: 2.0})[:, 2] == 1).mean()
    assert odds == pytest.approx(0.12 / 0.14, abs=0.08)


def test_a_record_depends_on_its_own_seed_alone(model: TableTrees) -> None:
    classes, seeds = np.zeros(500, dtype=np.int64), seeds_from(1, 0, 500)
    kept, X = model.sample_with_values(classes, seeds=seeds, values={3: 1.0, 0: 1.0})
    for i in (0, len(kept) - 1):
        one, alone = model.sample_with_values(
            classes[:1], seeds=seeds[kept[i] : kept[i] + 1], values={3: 1.0, 0: 1.0}
        )
        assert one.tolist() == [0]
        assert alone.tobytes() == X[i : i + 1].tobytes()


def test_a_value_that_no_training_record_has_is_refused(model: TableTrees) -> None:
    with pytest.raises(ParameterError, match=r"class 'a' .* column 'level'"):
        draw(model, {3: 3.0})
    with pytest.raises(ParameterError, match="column 'x'"):
        draw(model, {0: np.nan})
    with pytest.raises(EmptyClassError, match="classes 0 to 1"):
        draw(model, {2: 1.0}, k=2)


def test_a_value_between_those_that_come_again_and_again_is_refused() -> None:
    rng = np.random.default_rng(0)
    a = rng.choice([0.0, 10.0, 30.0, 40.0], 400)
    X, y = np.column_stack([a, a + rng.normal(size=400)]), np.arange(400) % 2
    spec = TableSpec(
        names=("a", "b"),
        is_category=(False, False),
        n_levels=(0, 0),
        classes=("x", "y"),
        class_counts=(200, 200),
    )
    trees = TableTrees.build(TreesModel(), spec)
    trees.fit(TableData(X, y), FitContext(seed=0))
    seeds = seeds_from(1, 0, 100)
    _, drawn = trees.sample_with_values(
        np.zeros(100, dtype=np.int64), seeds=seeds, values={0: 30.0}
    )
    assert drawn[:, 1].mean() == pytest.approx(30, abs=1)
    with pytest.raises(ParameterError, match="column 'a'"):
        trees.sample_with_values(np.zeros(100, dtype=np.int64), seeds=seeds, values={0: 20.0})


def test_nothing_asked_is_nothing_drawn(model: TableTrees) -> None:
    assert draw(model, {2: 1.0}, n=0).shape == (0, 4)
