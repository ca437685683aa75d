"""Given values in a flow: every record has them, and the other columns follow."""

from math import comb

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.base import FitContext, SamplesWithValues, TableData, TableSpec
from prefect_augment.genmodels.counter_rng import seeds_from
from prefect_augment.genmodels.tables.flow import (
    N_TRIED,
    FlowNetwork,
    TableFlow,
    draw_choices_with_values,
)
from prefect_augment.params import FlowModel

N = 3000


@pytest.fixture(scope="module")
def model() -> TableFlow:
    """A side that shifts a number by 4, an amount that is often zero and follows it, and a level."""
    rng = np.random.default_rng(0)
    y = (rng.random(N) < 0.4).astype(np.int64)
    side = (rng.random(N) < np.where(y == 1, 0.8, 0.5)).astype(float)
    x = rng.normal(4 * side)
    amount = np.where(rng.random(N) < 0.5, 0.0, 10 + x + rng.random(N))
    level = np.where(side == 1, 2.0, rng.integers(0, 2, N))
    level[rng.random(N) < 0.1] = np.nan
    X = np.column_stack([x, amount, side, level, np.full(N, 7.0)])
    spec = TableSpec(
        names=("x", "amount", "side", "level", "fixed"),
        is_category=(False, False, True, True, False),
        n_levels=(0, 0, 2, 4, 0),
        classes=("a", "b"),
        class_counts=tuple(int(n) for n in np.bincount(y)),
    )
    flow = TableFlow.build(FlowModel(width=64, depth=2), spec)
    flow.fit(TableData(X, y), FitContext(seed=0, steps=800, batch_size=256))
    return flow


def draw(model: TableFlow, given: dict[int, float], k: int = 0, n: int = 2048) -> np.ndarray:
    kept, X = model.sample_with_values(
        np.full(n, k, dtype=np.int64), seeds=seeds_from(5, 0, n), values=given
    )
    assert len(kept) == len(X)
    assert (np.diff(kept) > 0).all()
    return X


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [{2: 1.0}, {3: 2.0}, {0: 2.5}, {1: 0.0}, {3: np.nan}, {2: 0.0, 3: 0.0, 1: 0.0}, {4: 7.0}],
)
def test_every_record_has_the_given_values(model: TableFlow, given: dict[int, float]) -> None:
    assert isinstance(model, SamplesWithValues)
    X = draw(model, given)
    assert len(X) > 5
    for j, value in given.items():
        assert np.array_equal(X[:, j], np.full(len(X), value), equal_nan=True)
    if 0 not in given:
        assert len(X) == 2048, "a choice is shown from the start, so that no draw is refused"


@pytest.mark.slow
def test_the_other_columns_follow_a_choice(model: TableFlow) -> None:
    """The level is said after the side and before it: any order of choices was learnt."""
    sides = [draw(model, {3: value})[:, 2].mean() for value in (0.0, 2.0)]
    assert sides[0] < 0.25
    assert sides[1] > 0.75
    X = draw(model, {2: 1.0})
    assert X[:, 0].mean() == pytest.approx(4.0, abs=0.8)
    known = ~np.isnan(X[:, 3])
    assert (X[known, 3] == 2.0).mean() > 0.8
    assert (X[:, 1] == 0).mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.slow
def test_the_other_columns_follow_a_number(model: TableFlow) -> None:
    """As among all that the model draws: those that happen to lie near the value."""
    free = model.sample(np.zeros(10_240, dtype=np.int64), seeds=seeds_from(9, 0, 10_240))
    for x in (-0.5, 4.5):
        X = draw(model, {0: x}, n=10_240)
        near = free[np.abs(free[:, 0] - x) < 0.15]
        assert X[:, 2].mean() == pytest.approx(near[:, 2].mean(), abs=0.15)
        paid = [np.median(rows[rows[:, 1] > 0, 1]) for rows in (X, near)]
        assert paid[0] == pytest.approx(paid[1], abs=0.7)


@pytest.mark.slow
def test_the_class_counts_beside_the_values(model: TableFlow) -> None:
    odds = [draw(model, {1: 0.0}, k=k)[:, 2].mean() for k in (0, 1)]
    assert odds == pytest.approx([0.5, 0.8], abs=0.12)


def test_codes_before_a_given_one_are_drawn_as_if_it_had_come_about() -> None:
    """By Bayes' rule, though the network does not know what a later code says of an earlier one."""
    network = FlowNetwork((2, 2), 0, 1, width=8, depth=0)
    weights = torch.zeros(4, 8)
    with torch.no_grad():
        network.choices.first.weight.zero_()
        network.choices.first.bias.zero_()
        for c in range(2):
            network.choices.first.weight[c, c] = 1.0  # of the first choice's codes alone
            weights[2 + c, c] = 0.8
        network.choices.last.weight.copy_(weights)
        network.choices.last.bias.copy_(torch.tensor([0.8, 0.2, 1.0, 1.0]).log())
        known = network.seen(torch.tensor([[0, 0], [1, 0]]), torch.zeros(2, dtype=torch.int64),
                             torch.tensor([[True, False]] * 2))  # fmt: skip
        likely = network.logits(known)[:, 2:].softmax(dim=1)[:, 1].numpy()
    n = 10_000
    uniforms = torch.rand(n, 2 * N_TRIED + 1, generator=torch.Generator().manual_seed(0)).double()
    codes = draw_choices_with_values(
        network, torch.zeros(n, dtype=torch.int64), uniforms, {1: 1}
    ).numpy()
    assert (codes[:, 1] == 1).all()
    exact = 0.2 * likely[1] / (0.2 * likely[1] + 0.8 * likely[0])
    # Of so many draws, k have the code; one is taken by how likely the given code is after it.
    k = np.arange(N_TRIED + 1)
    chance = np.array([comb(N_TRIED, i) for i in k]) * 0.2**k * 0.8 ** (N_TRIED - k)
    right = float(chance @ (k * likely[1] / (k * likely[1] + (N_TRIED - k) * likely[0])))
    assert codes[:, 0].mean() == pytest.approx(right, abs=0.02)
    assert right > 0.5 * (0.2 + exact) + 0.1, "far nearer to Bayes' rule than to knowing nothing"


@pytest.mark.slow
def test_what_no_training_record_has_is_refused(model: TableFlow) -> None:
    for given in ({3: 3.0}, {0: np.nan}, {0: 99.0}, {4: 6.0}):
        with pytest.raises(ParameterError, match="no training record has the requested value"):
            draw(model, given)


@pytest.mark.slow
def test_a_micro_batch_gives_the_same_bits_alone(model: TableFlow) -> None:
    """What stages rely on: whole micro-batches are drawn, and each has its place."""
    n = 2 * model.micro_batch
    classes, seeds = np.zeros(n, dtype=np.int64), seeds_from(1, 0, n)
    kept, X = model.sample_with_values(classes, seeds=seeds, values={0: 1.0, 2: 0.0})
    half = slice(model.micro_batch, n)
    rows, alone = model.sample_with_values(
        classes[half], seeds=seeds[half], values={0: 1.0, 2: 0.0}
    )
    late = kept >= model.micro_batch
    assert (rows + model.micro_batch).tolist() == kept[late].tolist()
    assert alone.tobytes() == X[late].tobytes()


@pytest.mark.slow
def test_records_without_given_values_are_as_before(model: TableFlow) -> None:
    classes, seeds = np.zeros(300, dtype=np.int64), seeds_from(2, 0, 300)
    kept, X = model.sample_with_values(classes, seeds=seeds, values={})
    assert len(kept) == 300
    assert X.tobytes() == model.sample(classes, seeds=seeds).tobytes()
