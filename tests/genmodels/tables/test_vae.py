"""Variational autoencoder of tables: likelihoods by hand, and what is drawn where the answer is known."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'torch'")

from torch.distributions import Categorical, MixtureSameFamily, Normal, kl_divergence as torch_kl  # noqa: E402

from prefect_augment.genmodels.base import FitContext, TableData, TableSpec  # noqa: E402
from prefect_augment.genmodels.latents import kl_divergence  # noqa: E402
from prefect_augment.genmodels.tables.mixed_encoding import MixedSpace  # noqa: E402
from prefect_augment.genmodels.tables.training import Encoded  # noqa: E402
from prefect_augment.genmodels.tables.vae import (  # noqa: E402
    TableVae,
    VaeNetwork,
    VaePhase,
    draw_score,
    elbo_parts,
    mixture_nll,
    mixture_parts,
)
from prefect_augment.nn.devices import Device  # noqa: E402
from prefect_augment.params import VaeModel  # noqa: E402


def test_the_divergence_of_normals_is_the_closed_form() -> None:
    means, scales = torch.randn(2, 7, 3), torch.rand(2, 7, 3) + 0.2
    found = kl_divergence((means[0], scales[0].log()), (means[1], scales[1].log()))
    expected = torch_kl(Normal(means[0], scales[0]), Normal(means[1], scales[1])).sum(dim=1)
    torch.testing.assert_close(found, expected)


def test_scores_have_the_density_of_their_mixture_and_are_drawn_from_it() -> None:
    torch.manual_seed(0)
    raw = torch.randn(1, 3, 2, 5)
    log_weights, means, scales = mixture_parts(raw)
    mixture = MixtureSameFamily(Categorical(logits=log_weights), Normal(means, scales))
    scores = torch.randn(1, 2)
    torch.testing.assert_close(mixture_nll(raw, scores), -mixture.log_prob(scores))
    n = 50_000
    made = draw_score(raw.expand(n, -1, -1, -1), 1, torch.rand(n, 1).double(), torch.randn(n))
    assert float(made.mean()) == pytest.approx(float(mixture.mean[0, 1]), abs=0.03)
    assert float(made.std()) == pytest.approx(float(mixture.stddev[0, 1]), rel=0.03)


def data_of(n: int = 1200) -> tuple[TableData, TableSpec]:
    """A category that decides a number, in two classes whose rules are mirrored."""
    rng = np.random.default_rng(0)
    y = (np.arange(n) % 5 == 0).astype(np.int64)
    level = rng.integers(0, 3, n)
    x = np.where(y == 0, 3.0, -3.0) * (level - 1) + 0.3 * rng.normal(size=n)
    counts = tuple(np.bincount(y).tolist())
    spec = TableSpec(("level", "x"), (True, False), (3, 0), ("a", "b"), counts)
    return TableData(np.column_stack([level, x]), y), spec


@pytest.fixture(scope="module")
def ruled() -> tuple[TableVae, TableData]:
    data, spec = data_of()
    model = TableVae.build(VaeModel(width=64, depth=1, learning_rate=0.01), spec)
    model.fit(data, FitContext(seed=1, steps=350, threads=1, batch_size=128))
    return model, data


@pytest.mark.slow
def test_the_rule_of_each_class_is_kept(ruled: tuple[TableVae, TableData]) -> None:
    for k, sign in ((0, 1), (1, -1)):
        X = ruled[0].sample(np.full(600, k), seeds=np.arange(600, dtype=np.int64))
        assert np.corrcoef(X.T)[0, 1] == pytest.approx(sign * 0.97, abs=0.04)
        assert np.bincount(X[:, 0].astype(int), minlength=3).min() > 140, "levels as often as seen"


@pytest.mark.slow
def test_classes_that_differ_in_a_rule_alone_are_told_apart(
    ruled: tuple[TableVae, TableData],
) -> None:
    model, data = ruled
    rows = data.X[:, 0] != 1  # in the middle both rules agree
    scores = model.class_log_likelihoods(data.X[rows])
    assert (scores.argmax(axis=1) == data.y[rows]).mean() > 0.95
    strange = data.X[data.y == 0].copy()
    strange[:, 1] = 9.0
    usual = model.anomaly_scores(data.X)
    assert np.median(model.anomaly_scores(strange)) > np.quantile(usual, 0.9)


def test_the_columns_of_a_step_are_weighted_to_the_whole_record() -> None:
    """With the same error for every column, each way of hiding asks for all of them in the mean."""
    data, spec = data_of(300)
    space = MixedSpace.fit(data, spec)
    encoded = Encoded.of(data.X, data.y, space, Device())
    network = VaeNetwork(space, 2, n_latent=2, width=8, depth=1)
    phase = VaePhase(network, encoded, VaeModel(), 500)
    batch = phase.batch("vae", torch.Generator().manual_seed(0))
    weights, shown = batch[5], batch[6]
    torch.testing.assert_close(weights.sum(dim=1), torch.full((500,), 2.0))
    assert not (shown & (weights > 0)).any(), "what is shown is not asked for"
    assert shown[:, 0].any()
    assert not shown[:, 1].any(), "scores come after choices"
    reconstruction, divergence = elbo_parts(network, batch)
    assert reconstruction.shape == divergence.shape == (500,)


@pytest.mark.slow
def test_noise_is_not_learnt_by_heart() -> None:
    rng = np.random.default_rng(0)
    real, others = rng.normal(size=(2, 500, 5))
    spec = TableSpec(tuple("abcde"), (False,) * 5, (0,) * 5, ("all",), (500,))
    model = TableVae.build(VaeModel(width=96, depth=1, epochs=2000, learning_rate=0.005), spec)
    model.fit(
        TableData(real, np.zeros(500, dtype=np.int64)),
        FitContext(seed=1, steps=600, threads=1, batch_size=128),
    )
    made = model.sample(np.zeros(400, dtype=np.int64), seeds=np.arange(400, dtype=np.int64))
    made_near, others_near = (
        np.abs(X[:, None] - real[None]).sum(axis=2).min(axis=1) for X in (made, others)
    )
    assert (made_near < np.quantile(others_near, 0.05)).mean() <= 0.1
