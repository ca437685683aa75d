"""Adversarial networks of tables: penalties and distances by hand, and what is drawn."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'torch'")

from prefect_augment.genmodels.base import FitContext, TableData, TableSpec  # noqa: E402
from prefect_augment.genmodels.tables.gan import (  # noqa: E402
    GanNetwork,
    GanPhase,
    TableGan,
    energy_distance,
    gradient_penalty,
)
from prefect_augment.genmodels.tables.mixed_encoding import MixedSpace  # noqa: E402
from prefect_augment.genmodels.tables.training import Encoded  # noqa: E402
from prefect_augment.nn.devices import Device  # noqa: E402
from prefect_augment.params import GanModel  # noqa: E402


def test_the_penalty_of_a_linear_critic_is_its_slope_less_one_squared() -> None:
    weights = torch.tensor([3.0, 4.0])
    real, made, place = torch.randn(6, 2), torch.randn(6, 2), torch.rand(6, 1)
    penalty = gradient_penalty(lambda x: x @ weights, real, made, place)
    assert float(penalty.detach()) == pytest.approx(16.0, rel=1e-5)
    # Packs of two: one number, and a slope over both records.
    packed = gradient_penalty(lambda x: (x @ weights).view(3, 2).sum(1), real, made, place)
    assert float(packed.detach()) == pytest.approx((50**0.5 - 1) ** 2, rel=1e-5)


def test_the_energy_distance_is_nothing_for_the_same_and_grows_with_the_gap() -> None:
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 800, 2, generator=rng)
    assert abs(float(energy_distance(a, b))) < 0.02
    gaps = [float(energy_distance(a, b + shift)) for shift in (0.5, 1.0, 2.0)]
    assert gaps == sorted(gaps)
    assert gaps[0] > 0.05
    # One point against another: twice their distance.
    assert float(energy_distance(torch.zeros(1, 2), torch.ones(1, 2))) == pytest.approx(8**0.5)


def data_of(n: int = 800) -> tuple[TableData, TableSpec]:
    rng = np.random.default_rng(0)
    y = (np.arange(n) % 5 == 0).astype(np.int64)
    level = rng.integers(0, 3, n)
    x = np.where(rng.random(n) < 0.3, 0.0, 2.0 * level + 8 * y + 0.3 * rng.normal(size=n))
    counts = tuple(np.bincount(y).tolist())
    spec = TableSpec(("level", "x"), (True, False), (3, 0), ("a", "b"), counts)
    return TableData(np.column_stack([level, x]), y), spec


@pytest.mark.slow
def test_made_records_have_sharp_codes_and_no_score_where_the_code_says_so() -> None:
    data, spec = data_of(200)
    space = MixedSpace.fit(data, spec)
    network = GanNetwork(space, 2, n_latent=4, width=16, depth=1, pack=2)
    torch.nn.init.normal_(network.gan["generator"].last.weight)
    y = torch.zeros(50, dtype=torch.int64)
    made = network.records(torch.randn(50, 4), y, torch.randn(50, network.layout.total))
    codes, scores = made[:, : network.layout.total], made[:, network.layout.total :]
    torch.testing.assert_close(codes @ network.layout.owner, torch.ones(50, 2))
    assert set(codes.detach().round(decimals=4).flatten().tolist()) == {0.0, 1.0}
    other = codes[:, network.layout.columns(1)][:, -1]
    assert ((scores[:, 0] != 0) == (other > 0.5)).all()
    assert 0 < int((other > 0.5).sum()) < 50
    scores.sum().backward()
    assert network.gan["generator"].last.weight.grad is not None
    assert network.critic_scores(torch.randn(7, made.shape[1] + 2)).shape == (3,), (
        "whole packs alone"
    )


@pytest.mark.slow
def test_each_loss_moves_its_own_networks() -> None:
    data, spec = data_of(200)
    space = MixedSpace.fit(data, spec)
    encoded = Encoded.of(data.X, data.y, space, Device())
    network = GanNetwork(space, 2, n_latent=4, width=16, depth=1, pack=1)
    phase = GanPhase(network, encoded, GanModel(), 32)
    optimizers = phase.make_optimizers()
    assert optimizers["critic-0"] is optimizers["critic-1"]
    for name, silent in (("critic-0", network.gan), ("gan", network.critic)):
        network.zero_grad()
        phase.loss(name, phase.batch(name, torch.Generator().manual_seed(0))).backward()
        assert all(p.grad is None for p in silent.parameters())
    assert all(p.requires_grad for p in network.critic.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("pack", [1, 4])
def test_no_kind_of_record_is_left_out(pack: int) -> None:
    data, spec = data_of()
    params = GanModel(width=64, depth=1, pack=pack, learning_rate=0.005)
    model = TableGan.build(params, spec)
    model.fit(data, FitContext(seed=1, steps=400, threads=1, batch_size=128))
    for k in (0, 1):
        X = model.sample(np.full(600, k), seeds=np.arange(600, dtype=np.int64))
        assert np.bincount(X[:, 0].astype(int), minlength=3).min() > 100
        assert (X[:, 1] == 0).mean() == pytest.approx(0.3, abs=0.12)
        some = X[:, 1] != 0
        assert np.corrcoef(X[some].T)[0, 1] > 0.7
