"""Flow matching of tables where the answer is known: rules, Gaussians, posteriors by hand."""

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="the extra 'torch'")

from torch import Tensor  # noqa: E402

from prefect_augment.errors import EmptyClassError, ParameterError  # noqa: E402
from prefect_augment.genmodels.base import FitContext, TableData, TableSpec  # noqa: E402
from prefect_augment.genmodels.tables.flow import (  # noqa: E402
    FlowNetwork,
    FlowPhase,
    TableFlow,
    draw_choices,
    drawing_order,
    integrate_scores,
)
from prefect_augment.genmodels.tables.mixed_encoding import MixedSpace  # noqa: E402
from prefect_augment.genmodels.tables.training import Encoded, held_out_rows  # noqa: E402
from prefect_augment.nn.devices import Device  # noqa: E402
from prefect_augment.params import FlowModel, TreesModel  # noqa: E402

SMALL = FlowModel(width=64, depth=1, learning_rate=0.005)
SPREAD = 0.3


def spec_of(
    is_category: tuple[bool, ...], n_levels: tuple[int, ...], counts: tuple[int, ...]
) -> TableSpec:
    names = tuple(f"c{j}" for j in range(len(is_category)))
    return TableSpec(names, is_category, n_levels, tuple("abcdef"[: len(counts)]), counts)


def fitted(data: TableData, spec: TableSpec, steps: int, params: FlowModel = SMALL) -> TableFlow:
    model = TableFlow.build(params, spec)
    model.fit(data, FitContext(seed=3, steps=steps, threads=1, batch_size=128))
    return model


def drawn(model: TableFlow, k: int, n: int) -> NDArray[np.float64]:
    return model.sample(np.full(n, k, dtype=np.int64), seeds=np.arange(n, dtype=np.int64))


@pytest.mark.slow
def test_two_gaussians_keep_means_deviations_and_correlation() -> None:
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [1500, 300]).astype(np.int64)
    first = rng.normal(size=1800) + 3 * y
    # The correlation's sign depends on the class.
    second = np.where(y == 0, 0.8, -0.8) * (first - 3 * y) + 0.6 * rng.normal(size=1800)
    spec = spec_of((False, False), (0, 0), (1500, 300))
    model = fitted(TableData(np.column_stack([first, second]), y), spec, 700)
    for k, sign in ((0, 1), (1, -1)):
        X = drawn(model, k, 1500)
        assert X.mean(axis=0) == pytest.approx([3 * k, 0], abs=0.2)
        assert X.std(axis=0) == pytest.approx([1, 1], abs=0.2)
        assert np.corrcoef(X.T)[0, 1] == pytest.approx(0.8 * sign, abs=0.1)


@pytest.fixture(scope="module")
def ruled() -> tuple[TableFlow, TableData]:
    """Two names of one thing, a flag that implies a null, a number that follows the thing."""
    rng = np.random.default_rng(1)
    n = 1500
    y = (rng.random(n) < 0.2).astype(np.int64)
    level = (rng.integers(0, 4, n) + y).clip(0, 4)
    measured = rng.integers(0, 2, n)
    number = np.where(measured == 1, level + rng.normal(0, 0.1, n), np.nan)
    X = np.column_stack([level, 4 - level, measured, number]).astype(np.float64)
    counts = tuple(np.bincount(y).tolist())
    spec = spec_of((True, True, True, False), (5, 5, 2, 0), counts)
    return fitted(TableData(X, y), spec, 900), TableData(X, y)


@pytest.mark.slow
def test_redundant_categories_agree(ruled: tuple[TableFlow, TableData]) -> None:
    X = drawn(ruled[0], 0, 2000)
    assert (X[:, 1] == 4 - X[:, 0]).mean() > 0.97


@pytest.mark.slow
def test_a_flag_goes_with_its_null(ruled: tuple[TableFlow, TableData]) -> None:
    X = drawn(ruled[0], 1, 2000)
    assert (np.isnan(X[:, 3]) == (X[:, 2] == 0)).mean() > 0.97
    assert 0.4 < np.isnan(X[:, 3]).mean() < 0.6


@pytest.mark.slow
def test_numbers_follow_the_categories(ruled: tuple[TableFlow, TableData]) -> None:
    X = drawn(ruled[0], 0, 2000)
    seen = ~np.isnan(X[:, 3])
    assert (np.abs(X[seen, 3] - X[seen, 0]) < 0.6).mean() > 0.8  # a third by chance


@pytest.mark.slow
def test_levels_are_drawn_as_often_as_the_class_has_them(
    ruled: tuple[TableFlow, TableData],
) -> None:
    model, data = ruled
    for k in (0, 1):
        X = drawn(model, k, 2000)
        ours, theirs = (
            np.bincount(x.astype(int), minlength=5) / len(x)
            for x in (X[:, 0], data.X[data.y == k, 0])
        )
        assert np.abs(ours - theirs).max() < 0.08


@pytest.mark.slow
def test_threads_do_not_change_the_bits(ruled: tuple[TableFlow, TableData]) -> None:
    once, before = drawn(ruled[0], 0, 300), torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        again = drawn(ruled[0], 0, 300)
    finally:
        torch.set_num_threads(before)
    assert once.tobytes() == again.tobytes()


class Closed(FlowNetwork):
    """The exact velocity of scores that are normal with standard deviation ``SPREAD``."""

    def velocity(self, known: Tensor, x: Tensor, t: Tensor, has_score: Tensor) -> Tensor:
        t = t[:, None]
        return x * (t * SPREAD**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * SPREAD**2)


def test_scores_are_carried_with_at_least_second_order() -> None:
    network = Closed((2,), 3, 1, width=8, depth=1)
    noise = torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    known, has_score = torch.zeros(64, 3), torch.ones(64, 3, dtype=torch.bool)
    errors = [
        float((integrate_scores(network, known, noise, has_score, n) - SPREAD * noise).abs().max())
        for n in (40, 80)
    ]
    assert errors[1] < 0.002
    assert errors[0] / errors[1] > 3.5


def test_codes_are_drawn_from_the_posterior_given_those_before() -> None:
    """The first choice by its bias; the second copies the first, whatever the bias."""
    network = FlowNetwork((3, 3), 0, 1, width=8, depth=0)
    probabilities = np.array([0.2, 0.5, 0.3])
    weights = torch.zeros(6, 8)
    with torch.no_grad():
        network.choices.first.weight.zero_()
        network.choices.first.bias.zero_()
        for c in range(3):
            network.choices.first.weight[c, c] = 1.0  # one unit per code of the first choice
            weights[3 + c, c] = 100.0
        network.choices.last.weight.copy_(weights)
        network.choices.last.bias[:3] = torch.from_numpy(np.log(probabilities))
    uniforms = torch.rand(20_000, 2, generator=torch.Generator().manual_seed(0)).double()
    codes = draw_choices(network, torch.zeros(20_000, dtype=torch.int64), uniforms)
    shares = torch.bincount(codes[:, 0], minlength=3) / 20_000
    assert shares.numpy() == pytest.approx(probabilities, abs=0.02)
    assert torch.equal(codes[:, 0], codes[:, 1])


def test_loss_is_that_of_a_loop_over_records() -> None:
    rng = np.random.default_rng(0)
    network = FlowNetwork((2, 3), 2, 2, width=8, depth=1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(0, 0.5, parameter.shape)))
    codes = np.array([[0, 2], [1, 1], [0, 0]])
    shown = np.array([[True, False], [False, False], [False, True]])
    y = np.array([0, 1, 1])
    scores, noise = rng.normal(size=(2, 3, 2)).astype(np.float32)
    has_score = np.array([[True, False], [True, True], [False, False]])
    t = np.array([0.1, 0.5, 0.9], dtype=np.float32)
    batch = tuple(torch.from_numpy(a) for a in (codes, shown, y, scores, has_score, noise, t))
    found = {name: loss.detach() for name, loss in FlowPhase.part_losses(network, batch).items()}
    entropy, error = [], []
    for i in range(3):
        label = torch.tensor([y[i]])
        known = np.zeros(7, dtype=np.float32)
        for c, start in ((0, 0), (1, 2)):
            if shown[i, c]:
                known[start + codes[i, c]] = 1
        known[5 + y[i]] = 1
        logits = 20 * torch.tanh(network.choices(torch.from_numpy(known)[None])[0] / 20)
        hidden = [
            -torch.log_softmax(part, 0)[codes[i, c]]
            for c, part in ((0, logits[:2]), (1, logits[2:]))
            if not shown[i, c]
        ]
        entropy.append(float(torch.stack(hidden).detach().mean() + hidden[0].detach()))
        x = torch.from_numpy((1 - t[i]) * noise[i] + t[i] * scores[i])[None]
        ones = network.seen(torch.from_numpy(codes[i : i + 1]), label)
        has = torch.from_numpy(has_score[i : i + 1])
        v = network.velocity(ones, x, torch.from_numpy(t[i : i + 1]), has)[0].detach().numpy()
        if i % 2 == 0:  # scores are learnt from every second record
            error += [(v - (scores[i] - noise[i])) ** 2 * has_score[i]]
    assert float(found["choices"]) == pytest.approx(np.mean(entropy), rel=1e-5)
    assert float(found["scores"]) == pytest.approx(np.mean(error), rel=1e-5)


def test_most_records_hide_their_last_codes_as_when_they_are_drawn() -> None:
    n, n_choices = 8000, 5
    codes = torch.zeros(n, n_choices, dtype=torch.int64)
    none, space = torch.zeros(n, 0), MixedSpace(spec_of((), (), (n,)), [], [], {})
    records = Encoded(codes, none.double(), none.double(), none.bool(), torch.zeros(n), space)
    shown = FlowPhase.noisy(records, torch.arange(n), torch.Generator().manual_seed(0))[1].numpy()
    n_shown = shown.sum(axis=1)
    assert n_shown.max() == n_choices - 1, "something is hidden"
    one, two = shown[n_shown == 1], shown[n_shown == 2]
    # With none given the first is shown, with one given anything may be; and so for two.
    assert one[:, 0].mean() > 0.3
    assert (one.mean(axis=0) > 0.05).all()
    in_order = (two == (np.arange(n_choices) < 2)).all(axis=1)
    first_and_another = two[:, 0]
    assert in_order.mean() > 0.4
    assert first_and_another.mean() > 0.8
    assert (two[~in_order].mean(axis=0) > 0.1).all()


def test_neighbours_among_many_choices_are_not_drawn_at_once() -> None:
    assert drawing_order(5).tolist() == [0, 1, 2, 3, 4]
    order = drawing_order(70).tolist()
    assert sorted(order) == list(range(70))
    assert order[:4] == [0, 32, 64, 1]


@pytest.mark.parametrize(("power", "rare"), [(1.0, 0.1), (0.5, 0.25), (0.0, 0.5)])
def test_classes_are_drawn_by_a_power_of_their_counts(power: float, rare: float) -> None:
    y = np.repeat([0, 1], [90, 10]).astype(np.int64)
    data, spec = TableData(y[:, None] + 0.0, y), spec_of((True,), (2,), (90, 10))
    space = MixedSpace.fit(data, spec)
    encoded = Encoded.of(data.X, y, space, Device())
    network = FlowNetwork(space.n_codes, 0, 2, width=8, depth=1)
    params = FlowModel(class_power=power)
    phase = FlowPhase(network, encoded, params, 20_000)
    codes, shown, labels, *_ = phase.batch("flow", torch.Generator().manual_seed(0))
    assert float((labels == 1).float().mean()) == pytest.approx(rare, abs=0.01)
    assert torch.equal(codes[:, 0], labels), "labels stay with their records"
    assert not shown.any(), "of one choice, one is hidden"


def test_a_tenth_is_held_back_of_the_classes_that_can_spare_it() -> None:
    y = np.repeat([0, 1, 2], [200, 40, 8]).astype(np.int64)
    rows = held_out_rows(y, 5)
    assert np.bincount(y[rows], minlength=3).tolist() == [20, 4, 0]
    assert (held_out_rows(y, 5) == rows).all()
    assert set(held_out_rows(y, 6)) != set(rows)
    assert not len(held_out_rows(y[200:], 5)), "four records say too little"


def test_passes_over_the_records_are_limited_however_large_the_budget() -> None:
    rng = np.random.default_rng(0)
    data = TableData(rng.normal(size=(16_000, 1)), np.zeros(16_000, dtype=np.int64))
    spec = spec_of((False,), (0,), (16_000,))
    params = FlowModel(width=8, depth=1, epochs=4)
    # 90 % of the records, four times, in batches of 128.
    assert fitted(data, spec, 100_000, params).n_steps <= 450


@pytest.mark.slow
def test_noise_is_not_learnt_by_heart() -> None:
    """Few records of many columns and no rule: what is drawn is no nearer than others are."""
    rng = np.random.default_rng(0)
    real, others = rng.normal(size=(2, 800, 6))
    y = np.zeros(800, dtype=np.int64)
    params = FlowModel(width=192, depth=1, epochs=2000, learning_rate=0.005)
    model = fitted(TableData(real, y), spec_of((False,) * 6, (0,) * 6, (800,)), 1000, params)
    assert model.stopped
    made = drawn(model, 0, 500)

    def nearest(X: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.abs(X[:, None] - real[None]).sum(axis=2).min(axis=1)
        return found

    near = (nearest(made) < np.quantile(nearest(others), 0.05)).mean()
    assert near <= 0.1


@pytest.mark.slow
def test_a_thousand_columns_are_learnt() -> None:
    rng = np.random.default_rng(0)
    n = 120
    y = np.repeat([0, 1], [100, 20]).astype(np.int64)
    X = np.concatenate([rng.integers(0, 5, (n, 500)), rng.normal(size=(n, 500))], axis=1)
    X[rng.random(X.shape) < 0.02] = np.nan
    spec = spec_of((True,) * 500 + (False,) * 500, (5,) * 500 + (0,) * 500, (100, 20))
    made = drawn(fitted(TableData(X, y), spec, 2, FlowModel(width=16, depth=1)), 1, 3)
    assert made.shape == (3, 1000)
    assert np.isin(made[:, :500][~np.isnan(made[:, :500])], np.arange(5)).all()


@pytest.mark.slow
@pytest.mark.parametrize("is_category", [True, False])
def test_columns_of_one_kind_alone_are_learnt(is_category: bool) -> None:
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [150, 150]).astype(np.int64)
    x = (y + 2.0 * (rng.random(300) < 0.1)) if is_category else rng.normal(size=300) + 8 * y
    spec = spec_of((is_category,), (4 * is_category,), (150, 150))
    model = fitted(TableData(x[:, None], y), spec, 200)
    assert model.state()[0]["n_steps"] <= 200
    assert drawn(model, 1, 200).mean() - drawn(model, 0, 200).mean() > 0.8


def test_a_matrix_of_other_columns_is_refused() -> None:
    model = TableFlow.build(SMALL, spec_of((False,), (0,), (5,)))
    data = TableData(np.zeros((5, 2)), np.zeros(5, dtype=np.int64))
    with pytest.raises(ParameterError, match=r"shape \(5, 1\), found \(5, 2\)"):
        model.fit(data, FitContext(seed=0, steps=1))


def test_a_class_that_the_model_does_not_have_is_named_with_those_it_has() -> None:
    y = np.repeat([0, 1], 10).astype(np.int64)
    model = fitted(TableData(y[:, None] + 0.0, y), spec_of((True,), (2,), (10, 10)), 2)
    with pytest.raises(EmptyClassError, match="classes 0 to 1: a, b"):
        model.sample(np.array([2]), seeds=np.array([0]))


def test_params_of_another_kind_are_refused() -> None:
    with pytest.raises(ParameterError, match="FlowModel, not TreesModel"):
        TableFlow.build(TreesModel(), spec_of((False,), (0,), (5,)))
