"""Sequential trees: known distributions come back, and the descent is scikit-learn's."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.tree import DecisionTreeRegressor

from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.base import FitContext, TableData, TableSpec
from prefect_augment.genmodels.counter_rng import record_keys, seeds_from, uniform
from prefect_augment.genmodels.trees import (
    growth as tree_growth,
    model as table_trees,
    nodes as tree_nodes,
)
from prefect_augment.genmodels.trees.growth import Predictors
from prefect_augment.genmodels.trees.model import TableTrees
from prefect_augment.params import NoModel, TreesModel


def trees(X: np.ndarray, y: np.ndarray, n_levels: tuple[int, ...], **params: int) -> TableTrees:
    spec = TableSpec(
        names=tuple(f"c{j}" for j in range(X.shape[1])),
        is_category=tuple(n > 0 for n in n_levels),
        n_levels=n_levels,
        classes=tuple(f"k{k}" for k in range(int(y.max()) + 1)),
        class_counts=tuple(int(n) for n in np.bincount(y)),
    )
    model = TableTrees.build(TreesModel(**params), spec)
    model.fit(TableData(X, y.astype(np.int64)), FitContext(seed=0))
    return model


def draw(model: TableTrees, k: int, n: int, key: int = 11) -> np.ndarray:
    return model.sample(np.full(n, k, dtype=np.int64), seeds=seeds_from(key, 0, n))


def test_two_gaussians_keep_means_deviations_and_correlation() -> None:
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [3000, 300])
    first = rng.normal(loc=np.where(y == 0, 0.0, 4.0))
    X = np.column_stack([first, 0.8 * first + 0.6 * rng.normal(size=len(y))])
    model = trees(X, y, (0, 0))
    for k, mean in ((0, 0.0), (1, 4.0)):
        drawn = draw(model, k, 4000)
        assert drawn[:, 0].mean() == pytest.approx(mean, abs=0.15)
        assert drawn[:, 0].std() == pytest.approx(1.0, abs=0.12)
        assert np.corrcoef(drawn.T)[0, 1] == pytest.approx(0.8, abs=0.08)


def test_a_rule_between_columns_holds() -> None:
    """hypothyroid: a flag *_measured = f implies that the value is null."""
    rng = np.random.default_rng(1)
    flag = (rng.random(2000) < 0.3).astype(float)
    value = np.where(flag == 1, np.nan, rng.normal(size=2000))
    drawn = draw(trees(np.column_stack([value, flag]), np.zeros(2000, int), (0, 2)), 0, 3000)
    assert np.array_equal(np.isnan(drawn[:, 0]), drawn[:, 1] == 1)


def test_redundant_categories_agree() -> None:
    """adult_income names the education twice, as text and as a number."""
    rng = np.random.default_rng(2)
    level = rng.integers(0, 12, 5000)
    number = rng.permutation(12)[level].astype(float)
    drawn = draw(trees(np.column_stack([number, level]), np.zeros(5000, int), (0, 12)), 0, 2000)
    pairs = set(zip(number, level, strict=True))
    assert np.mean([pair in pairs for pair in zip(*drawn.T, strict=True)]) > 0.99


def test_atoms_and_gaps_survive() -> None:
    """A zero-inflated column stays zero-inflated; nothing falls between zero and the smallest amount."""
    rng = np.random.default_rng(3)
    x = np.where(rng.random(3000) < 0.9, 0.0, 1000 + 100 * rng.random(3000))
    drawn = draw(trees(x[:, None], np.zeros(3000, int), (0,)), 0, 4000)[:, 0]
    assert (drawn == 0).mean() == pytest.approx(0.9, abs=0.02)
    assert drawn[drawn != 0].min() >= 1000


def test_a_value_of_a_single_record_is_hardly_ever_returned() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=1000)
    drawn = draw(trees(x[:, None], np.zeros(1000, int), (0,)), 0, 4000)[:, 0]
    assert np.isin(drawn, x).mean() < 0.02
    shared = np.repeat(x[:500], 2)
    drawn = draw(trees(shared[:, None], np.zeros(1000, int), (0,)), 0, 4000)[:, 0]
    assert np.isin(drawn, shared).all(), "values that several records have are real"


def test_extreme_numbers_do_not_overflow() -> None:
    x = np.array(
        [-1.7e308, 1.7e308, 0.0, 5e-324, -1.0, 3.0] * 2 + list(np.linspace(-4e307, 4e307, 88))
    )
    drawn = draw(trees(x[:, None], np.zeros(100, int), (0,), min_leaf=2), 0, 500)
    assert np.isfinite(drawn).all()


def test_descent_reaches_the_leaf_that_scikit_learn_reaches() -> None:
    rng = np.random.default_rng(5)
    codes = rng.integers(-1, 5000, (4000, 6)).astype(np.int32)
    target = rng.normal(size=4000) + codes[:, 2] / 1000
    grower = DecisionTreeRegressor(max_depth=12, min_samples_leaf=3, random_state=0)
    grower.fit(codes.astype(np.float32), target)
    other = DecisionTreeRegressor(max_depth=5, min_samples_leaf=3, random_state=0)
    other.fit(codes.astype(np.float32), codes[:, 4])
    tree = tree_nodes.as_arrays(
        [g.tree_ for g in (grower, other)],
        [g.apply(codes.astype(np.float32)) for g in (grower, other)],
        np.zeros(4000, np.int32),
        range(6),
        {},
    )
    model = trees(np.zeros((10, 5)), np.zeros(10, int), (0,) * 5)
    model._sizes, model._trees = [0] * 6, [tree] * 6
    fresh = rng.integers(-1, 5000, (6, 3000)).astype(np.int32)
    leaves = model._descend(6, fresh, record_keys(np.arange(3000)))
    reached = np.stack([g.apply(fresh.T.astype(np.float32)) for g in (grower, other)])
    is_other = leaves >= tree.roots[1]
    assert np.array_equal(
        leaves - tree.roots[is_other.astype(int)], reached[is_other.astype(int), np.arange(3000)]
    )
    assert is_other.mean() == pytest.approx(0.5, abs=0.05), (
        "each record takes one of them by chance"
    )


def test_leaves_shrink_for_a_small_class_but_not_below_the_floor() -> None:
    model = trees(np.zeros((10, 1)), np.zeros(10, int), (0,))
    assert model._leaf_size(np.array([5000, 300])) == 20
    assert model._leaf_size(np.array([5000, 24])) == 12
    assert model._leaf_size(np.array([5000, 9])) == table_trees.MIN_LEAF
    assert model._leaf_size(np.array([5000, 2])) == 20, "a class that is not sampled does not count"


def test_leaves_that_have_grown_leave_a_rare_class_one_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(table_trees, "too_near", lambda *given, **named: True)
    y = np.repeat([0, 1], [128, 24])
    x = np.random.default_rng(3).normal(size=len(y)) + 8 * y
    model = trees(x[:, None], y, (0,))
    assert max(tree.size.max() for tree in model._trees) > 20, "leaves have grown"
    assert (draw(model, 1, 500) > 4).all()
    assert (draw(model, 0, 500) < 4).all()


def test_categories_of_many_levels_are_drawn_from_those_of_the_class() -> None:
    rng = np.random.default_rng(6)
    y = np.repeat([0, 1], 2000)
    level = rng.integers(0, 150, 4000) + 150 * y
    model = trees(level[:, None].astype(float), y, (300,))
    assert (draw(model, 0, 1000) < 150).mean() > 0.98
    assert (draw(model, 1, 1000) >= 150).mean() > 0.98


@pytest.mark.slow
def test_fit_is_the_same_on_one_thread_and_on_two(repository: object) -> None:
    code = (
        "import hashlib, numpy as np\n"
        "from prefect_augment.genmodels.base import *\n"
        "from prefect_augment.genmodels.trees.model import TableTrees\n"
        "from prefect_augment.params import TreesModel\n"
        "r = np.random.default_rng(0); n = 3000; y = r.integers(0, 3, n)\n"
        "X = np.column_stack([r.integers(0, 40, n), (y + r.integers(0, 30, n)) % 40, "
        "r.normal(size=n) + y])\n"
        "s = TableSpec(('a', 'b', 'c'), (True, True, False), (40, 40, 0), ('0', '1', '2'), "
        "tuple(np.bincount(y).tolist()))\n"
        "m = TableTrees.build(TreesModel(), s); m.fit(TableData(X.astype(float), y), "
        "FitContext(seed=0))\n"
        "d = hashlib.sha256()\n"
        "for k, a in sorted(m.state()[1].items()): d.update(a.tobytes())\n"
        "print(d.hexdigest())\n"
    )
    digests = set()
    for threads in ("1", "2"):
        environment = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        environment["PYTHONPATH"] = ":".join(p for p in sys.path if p)
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout)
    assert len(digests) == 1


def test_several_trees_follow_a_slope_more_closely_than_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One tree's cuts leave steps: within a leaf the column follows no more."""
    rng = np.random.default_rng(10)
    x = rng.normal(size=1500)
    X = np.column_stack([x, x + 0.1 * rng.normal(size=1500)])
    spread = {}
    for n in (1, 4):
        monkeypatch.setattr(tree_growth, "MAX_TREES", n)
        drawn = draw(trees(X, np.zeros(1500, int), (0, 0), min_leaf=50), 0, 6000)
        between = np.digitize(drawn[:, 0], np.quantile(x, np.linspace(0, 1, 121)[1:-1]))
        means = np.array(
            [(drawn[between == b, 1] - drawn[between == b, 0]).mean() for b in range(120)]
        )
        spread[n] = means[5:-5].std()
    assert spread[4] < 0.8 * spread[1]


def test_a_large_table_has_fewer_trees_a_column() -> None:
    assert tree_growth.n_trees(8000, 20) == tree_growth.MAX_TREES
    assert tree_growth.n_trees(100_000, 5) == 2
    assert tree_growth.n_trees(20_000, 1000) == 1


def test_a_class_keeps_its_weight_when_weights_are_drawn_anew() -> None:
    y = np.repeat([0, 2], [40, 3])
    weights = np.repeat([0.5, 4.0], [40, 3])
    drawn = tree_growth._resampled(weights, y, np.random.RandomState(0))
    assert (drawn > 0).all()
    assert np.ptp(drawn[:40]) > 0
    assert np.bincount(y, drawn) == pytest.approx([20.0, 0.0, 12.0])


def test_numbers_are_drawn_from_the_finest_to_the_coarsest_behind_categories() -> None:
    rng = np.random.default_rng(11)
    X = np.column_stack([rng.integers(0, 5, 200), rng.normal(size=200), rng.integers(0, 3, 200)])
    model = trees(X.astype(float), np.zeros(200, int), (0, 0, 3))
    assert model._sequence == [2, 1, 0]
    config, arrays = model.state()
    assert np.array_equal(draw(TableTrees.from_state(config, arrays), 0, 50), draw(model, 0, 50))


def test_params_of_another_kind_are_refused() -> None:
    spec = TableSpec(("x",), (False,), (0,), ("k",), (3,))
    with pytest.raises(ParameterError, match="TreesModel"):
        TableTrees.build(NoModel(), spec)


def test_random_numbers_are_uniform_and_independent_of_neighbouring_seeds() -> None:
    keys = record_keys(np.arange(-20_000, 20_000))
    first, second = uniform(keys, 0), uniform(keys, 1)
    for numbers in (first, second):
        assert numbers.min() >= 0.0
        assert numbers.max() < 1.0
        assert numbers.mean() == pytest.approx(0.5, abs=0.01)
        assert numbers.var() == pytest.approx(1 / 12, abs=0.002)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.02


def test_splitmix64_gives_its_published_numbers() -> None:
    """First outputs for seed 1234567, as in the reference implementation's test vectors."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert seeds_from(1234567, 0, 3).view(np.uint64).tolist() == expected


def wide(n: int = 1500, d: int = 96) -> np.ndarray:
    """Columns far from one another that belong together: j and j + d / 2; a category is one of each."""
    rng = np.random.default_rng(8)
    first = rng.normal(size=(n, d // 2))
    X = np.hstack([first, 0.8 * first + 0.6 * rng.normal(size=(n, d // 2))])
    X[:, 3] = np.digitize(X[:, 3], [-0.7, 0.7])
    return X


@pytest.mark.slow
def test_in_a_wide_table_what_belongs_together_is_found_and_kept() -> None:
    X = wide()
    d = X.shape[1]
    model = trees(X, np.zeros(len(X), int), (0, 0, 0, 3, *[0] * (d - 4)))
    # Place 0 is the class and place 1 the category; a tree is grown on some of them.
    assert max(len(np.unique(tree.feature)) for tree in model._trees) <= table_trees.MAX_PREDICTORS
    drawn = draw(model, 0, 2000)
    kept = [np.corrcoef(drawn[:, j], drawn[:, j + d // 2])[0, 1] for j in range(d // 2)]
    real = [np.corrcoef(X[:, j], X[:, j + d // 2])[0, 1] for j in range(d // 2)]
    assert np.abs(np.array(kept) - real).max() < 0.15


def test_predictors_are_those_that_tell_most_and_the_class() -> None:
    rng = np.random.default_rng(9)
    codes = rng.integers(0, 1000, (500, 60)).astype(np.int32)
    codes[:, 0] = 0
    codes[:, 7] = codes[:, 50] // 100
    codes[:, 9] = -codes[:, 50] + 1000
    codes[:, 11] = np.where(codes[:, 50] < 300, -1, 5)
    sizes = [1] + [0] * 59
    sizes[7] = 11
    found = Predictors(codes, sizes, most=5)
    assert found.of(4) == [0, 1, 2, 3]
    assert {0, 7, 9, 11} < set(found.of(50))
    assert len(found.of(50)) == 5
    assert found.of(50) == sorted(found.of(50))
    assert Predictors(codes, sizes, most=5, wide=59).of(50) == list(range(50)), "not wide"
    assert len(Predictors(codes, sizes, most=5, wide=58).of(50)) == 5
