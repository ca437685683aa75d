"""Margins of a flow's draws: as the training records have them, however little was learnt."""

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="the extra 'torch'")

from prefect_augment.genmodels.base import FitContext, TableData, TableSpec  # noqa: E402
from prefect_augment.genmodels.tables.flow import TableFlow  # noqa: E402
from prefect_augment.genmodels.tables.flow_marginals import (  # noqa: E402
    N_KNOTS,
    Compared,
    Margins,
    classes_to_draw,
    score_shifts,
    share_bias,
)
from prefect_augment.genmodels.tables.mixed_encoding import CodeLayout  # noqa: E402
from prefect_augment.params import FlowModel  # noqa: E402

CPU = torch.device("cpu")


def records(
    codes: NDArray[np.int64], scores: NDArray[np.float64], y: NDArray[np.int64]
) -> Compared:
    return Compared(codes, scores, np.ones(scores.shape, dtype=bool), y)


def of_codes(codes: list[int], y: list[int]) -> Compared:
    return records(np.array(codes)[:, None], np.zeros((len(y), 0)), np.array(y))


@pytest.fixture(scope="module")
def barely_trained() -> tuple[TableFlow, TableData]:
    """A flow of 10 steps, which has learnt nothing yet, and its records."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [3000, 600]).astype(np.int64)
    level = rng.choice(4, 3600, p=[0.6, 0.3, 0.08, 0.02])
    level = np.where((y == 1) & (rng.random(3600) < 0.5), 3, level)
    flag = rng.random(3600) < 0.15
    amount = np.exp(rng.normal(2.0 * y))
    X = np.column_stack([level, flag, amount]).astype(np.float64)
    spec = TableSpec(
        ("level", "flag", "amount"), (True, True, False), (4, 2, 0), ("a", "b"), (3000, 600)
    )
    model = TableFlow.build(FlowModel(width=16, depth=1), spec)
    model.fit(TableData(X, y), FitContext(seed=0, steps=10, batch_size=64))
    return model, TableData(X, y)


@pytest.mark.slow
@pytest.mark.parametrize("k", [0, 1])
def test_each_columns_own_distribution_is_the_classs(
    barely_trained: tuple[TableFlow, TableData], k: int
) -> None:
    model, data = barely_trained
    n = 4000
    X, real = model.sample(np.full(n, k), seeds=np.arange(n)), data.X[data.y == k]
    for j, n_levels in ((0, 4), (1, 2)):
        ours, theirs = (
            np.bincount(x[:, j].astype(int), minlength=n_levels) / len(x) for x in (X, real)
        )
        assert ours == pytest.approx(theirs, abs=0.03)
    at = np.linspace(0.05, 0.95, 19)
    edges = np.quantile(real[:, 2], at)
    # Of 600 records that an untrained network takes for others, six sevenths are believed.
    assert (X[:, 2, None] <= edges).mean(axis=0) == pytest.approx(at, abs=0.16 if k else 0.03)


def test_margins_are_kept_with_the_model(barely_trained: tuple[TableFlow, TableData]) -> None:
    model, _ = barely_trained
    again = TableFlow.from_state(*model.state())
    y, seeds = np.zeros(300, dtype=np.int64), np.arange(300)
    assert again.sample(y, seeds=seeds).tobytes() == model.sample(y, seeds=seeds).tobytes()
    again.margins = None
    assert again.sample(y, seeds=seeds).tobytes() != model.sample(y, seeds=seeds).tobytes()


def test_a_code_that_is_drawn_half_as_often_gets_the_logarithm_of_two() -> None:
    layout = CodeLayout((2,))
    real = of_codes([0] * 4000 + [1] * 4000, [0] * 8000)
    made = of_codes([0] * 1500 + [1] * 4500, [0] * 6000)
    found = share_bias(layout, real, made, 1)[0].numpy()
    assert found == pytest.approx(np.log([0.5 / 0.25, 0.5 / 0.75]), abs=0.01)


def test_a_small_class_follows_all_classes_and_gets_no_bias_of_its_own() -> None:
    layout = CodeLayout((2,))
    # Two records with code 0 do not say that the class never has code 1.
    real = of_codes([0] * 500 + [1] * 500 + [0, 0], [0] * 1000 + [1, 1])
    made = of_codes([0] * 500 + [1] * 500 + [0] * 100 + [1] * 100, [0] * 1000 + [1] * 200)
    assert np.abs(share_bias(layout, real, made, 2).numpy()).max() < 0.1
    # One that is drawn as it is, whatever the others are like and however many were drawn.
    real = of_codes([0] * 900 + [1] * 100 + [0] * 4 + [1] * 16, [0] * 1000 + [1] * 20)
    made = of_codes([0] * 900 + [1] * 100 + [0] * 200 + [1] * 800, [0] * 1000 + [1] * 1000)
    assert np.abs(share_bias(layout, real, made, 2).numpy()).max() < 1e-6


def test_scores_get_the_quantiles_of_their_class() -> None:
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 5000)
    real, made = rng.normal(size=(2, 10_000, 1))
    real = real * 0.5 + 2.0 * y[:, None]
    none = np.zeros((10_000, 0), dtype=np.int64)
    knots, shifts = score_shifts(records(none, real, y), records(none, made, y), 2)
    margins = Margins(torch.zeros(2, 0), knots, shifts)
    shifted = margins.shifted(torch.from_numpy(made), torch.from_numpy(y)).numpy()
    for k in (0, 1):
        assert shifted[y == k].mean() == pytest.approx(2.0 * k, abs=0.1)
        assert shifted[y == k].std() == pytest.approx(0.5, abs=0.05)


def test_a_shift_is_interpolated_and_stays_beyond_the_knots() -> None:
    knots = torch.linspace(-1.0, 1.0, N_KNOTS).repeat(1, 1, 1)
    margins = Margins(torch.zeros(1, 0), knots, 0.5 * knots)
    x = torch.tensor([[-7.0], [-1.0], [0.3], [1.0], [7.0]])
    expected = x + torch.tensor([[-0.5], [-0.5], [0.15], [0.5], [0.5]])
    assert margins.shifted(x, torch.zeros(5, dtype=torch.int64)).numpy() == pytest.approx(
        expected.numpy(), abs=1e-6
    )
    nothing = Margins.none(1, 0, 1, CPU)
    assert torch.equal(nothing.shifted(x, torch.zeros(5, dtype=torch.int64)), x)


def test_rare_classes_are_compared_by_more_records_than_their_share() -> None:
    y = classes_to_draw(np.array([9900, 100, 0]), 10, 1)
    n_of = np.bincount(y, minlength=3)
    assert n_of[1] / n_of[0] == pytest.approx(0.1, abs=0.01)
    assert n_of[2] == 0
    assert (classes_to_draw(np.array([9900, 100, 0]), 10, 1) == y).all()


@pytest.mark.parametrize(
    ("n", "n_columns", "most"), [(10**6, 5, 8192), (10**6, 10**4, 1024), (300, 5, 1200)]
)
def test_the_records_compared_are_bounded(n: int, n_columns: int, most: int) -> None:
    assert len(classes_to_draw(np.array([n]), n_columns, 1)) == most
