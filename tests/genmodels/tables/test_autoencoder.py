"""Densities of latent vectors where the answer is known, and what keeps autoencoders from copying."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'torch'")

from prefect_augment.genmodels.base import FitContext, TableData, TableSpec  # noqa: E402
from prefect_augment.genmodels.counter_rng import record_keys  # noqa: E402
from prefect_augment.genmodels.latents import (  # noqa: E402
    ClassDensities,
    ClassNeighbours,
    jacobian_norm,
    sparsity_divergence,
)
from prefect_augment.genmodels.network import RecordNumbers  # noqa: E402
from prefect_augment.genmodels.tables.autoencoder import (  # noqa: E402
    AutoencoderNetwork,
    AutoencoderPhase,
    TableAutoencoder,
)
from prefect_augment.genmodels.tables.mixed_encoding import MixedSpace  # noqa: E402
from prefect_augment.genmodels.tables.training import Encoded  # noqa: E402
from prefect_augment.nn.devices import Device  # noqa: E402
from prefect_augment.params import AutoencoderModel  # noqa: E402

VARIANTS = ("dense", "deep", "denoising", "sparse", "contractive")


def drawn(densities: ClassDensities, k: int, n: int) -> np.ndarray:
    keys = record_keys(np.arange(n, dtype=np.int64))
    numbers = RecordNumbers(keys, torch.device("cpu"))
    return densities.draw(torch.full((n,), k), numbers).numpy()


def test_a_density_has_the_moments_and_the_two_lumps_of_its_vectors() -> None:
    rng = np.random.default_rng(0)
    side = rng.choice([-4.0, 4.0], 2000)
    first = np.column_stack([side + 0.5 * rng.normal(size=2000), rng.normal(size=2000)])
    second = rng.normal(size=(500, 2)) @ np.array([[1.0, 0.9], [0.0, 0.3]])
    Z = np.concatenate([first, second]).astype(np.float32)
    densities = ClassDensities.fit(Z, np.repeat([0, 1], [2000, 500]), 2, seed=1)
    made = drawn(densities, 0, 4000)
    assert (np.abs(made[:, 0]) < 2).mean() < 0.02, "nothing between the lumps"
    assert (made[:, 0] > 0).mean() == pytest.approx((side > 0).mean(), abs=0.03)
    np.testing.assert_allclose(np.cov(drawn(densities, 1, 4000).T), np.cov(second.T), atol=0.12)


def test_a_tiny_class_borrows_the_spread_of_the_others() -> None:
    rng = np.random.default_rng(0)
    large = rng.normal(size=(400, 3))
    tiny = np.array([[9.0, 9.0, 9.0], [9.1, 9.0, 9.0]])
    Z = np.concatenate([large, tiny]).astype(np.float32)
    densities = ClassDensities.fit(Z, np.repeat([0, 1], [400, 2]), 3, seed=1)
    made = drawn(densities, 1, 2000)
    np.testing.assert_allclose(made.mean(axis=0), tiny.mean(axis=0), atol=0.1)
    assert (made.std(axis=0) > 0.5).all()
    assert np.isfinite(drawn(densities, 2, 10)).all(), "a class without records has all of them"


def test_densities_come_back_from_their_arrays() -> None:
    rng = np.random.default_rng(0)
    Z, y = rng.normal(size=(300, 2)).astype(np.float32), np.repeat([0, 1], 150)
    densities = ClassDensities.fit(Z, y, 2, seed=1)
    again = ClassDensities.from_arrays(densities.arrays())
    assert drawn(again, 1, 50).tobytes() == drawn(densities, 1, 50).tobytes()
    refitted = ClassDensities.fit(Z, y, 2, seed=1)
    assert drawn(refitted, 1, 50).tobytes() == drawn(densities, 1, 50).tobytes()


def test_interpolated_vectors_lie_between_neighbours_of_their_class() -> None:
    rng = np.random.default_rng(0)
    # Two lines of points far apart: between neighbours is on a line, between others it is not.
    first = np.column_stack([np.linspace(0, 1, 60), np.zeros(60)])
    second = np.column_stack([np.linspace(0, 1, 30), np.full(30, 9.0)])
    Z = np.concatenate([first, second, [[5.0, 5.0]]]).astype(np.float32)
    y = np.repeat([0, 1, 2], [60, 30, 1])
    order = rng.permutation(len(y))
    neighbours = ClassNeighbours.fit(Z[order], y[order], 3, seed=1)
    labels = torch.arange(3).repeat(200)

    def drawn_by(found: ClassNeighbours) -> np.ndarray:
        numbers = RecordNumbers(record_keys(np.arange(600)), torch.device("cpu"))
        return found.draw(labels, numbers).numpy()

    made = drawn_by(neighbours)
    assert (made[0::3, 1] == 0).all()
    assert (made[1::3, 1] == 9).all()
    assert (made[2::3] == 5).all(), "a lone record has no neighbour"
    gap = 1 / 59
    nearest = np.abs(made[0::3, :1] - first[:, 0]).min(axis=1)
    assert np.median(nearest) > gap / 20, "between the points, not on them"
    again = ClassNeighbours.from_arrays(neighbours.arrays())
    assert drawn_by(again).tobytes() == made.tobytes()


def test_the_contractive_estimate_is_the_exact_norm_in_the_mean() -> None:
    torch.manual_seed(0)
    space = MixedSpace.fit(*table())
    network = AutoencoderNetwork(space, 2, n_latent=4, width=16, depth=1)
    torch.nn.init.normal_(network.codec["encoder"].last.weight, std=0.5)
    one = torch.randn(1, network.n_record)
    exact = torch.autograd.functional.jacobian(lambda x: network.encode(x)[0], one).square().sum()
    inputs = one.repeat(20_000, 1).requires_grad_(True)
    estimate = jacobian_norm(network.encode(inputs), inputs, torch.randn(20_000, 4))
    assert float(estimate.detach().mean()) == pytest.approx(float(exact), rel=0.05)


def test_the_sparsity_divergence_is_that_of_two_coins() -> None:
    activations = torch.tensor([[0.1, 0.9], [0.3, 0.7]])  # means 0.2 and 0.8
    expected = sum(0.1 * np.log(0.1 / mean) + 0.9 * np.log(0.9 / (1 - mean)) for mean in (0.2, 0.8))
    assert float(sparsity_divergence(activations, 0.1)) == pytest.approx(expected, rel=1e-5)
    assert float(sparsity_divergence(torch.full((5, 3), 0.1), 0.1)) == pytest.approx(0, abs=1e-6)


def table(n: int = 600) -> tuple[TableData, TableSpec]:
    """A number that decides a category, and the other class far off."""
    rng = np.random.default_rng(0)
    y = (np.arange(n) % 4 == 0).astype(np.int64)
    x = rng.normal(size=n) + 5 * y
    level = (x > np.median(x)).astype(float) + 2 * y
    X = np.column_stack([x, level, x + 0.1 * rng.normal(size=n)])
    counts = tuple(np.bincount(y).tolist())
    spec = TableSpec(("x", "level", "near"), (False, True, False), (0, 4, 0), ("a", "b"), counts)
    return TableData(X, y), spec


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_draws_records_that_keep_the_rule(variant: str) -> None:
    data, spec = table()
    params = AutoencoderModel(variant=variant, width=48, depth=1, n_latent=4, learning_rate=0.01)
    model = TableAutoencoder.build(params, spec)
    model.fit(data, FitContext(seed=1, steps=250, threads=1, batch_size=64))
    X = model.sample(np.repeat([0, 1], 300), seeds=np.arange(600, dtype=np.int64))
    assert np.corrcoef(X[:, 0], X[:, 2])[0, 1] > 0.9
    assert X[300:, 0].mean() - X[:300, 0].mean() > 3.5
    assert (X[300:, 1] >= 2).mean() > 0.9
    Z = model.embed(data.X)
    assert Z.shape == (600, 4)
    if variant == "sparse":
        assert (Z >= 0).all()
        assert (Z <= 1).all()
    back = model.decode_latents(Z, data.y)
    assert np.corrcoef(back[:, 0], data.X[:, 0])[0, 1] > 0.9


@pytest.mark.slow
def test_penalties_do_what_they_are_named_for() -> None:
    data, spec = table()

    def fitted(variant: str, penalty: float) -> TableAutoencoder:
        params = AutoencoderModel(
            variant=variant, penalty=penalty, sparsity=0.1, width=32, depth=1, n_latent=6,
            learning_rate=0.01,
        )  # fmt: skip
        model = TableAutoencoder.build(params, spec)
        model.fit(data, FitContext(seed=1, steps=150, threads=1, batch_size=64))
        return model

    free, sparse = (fitted("sparse", p).embed(data.X).mean() for p in (0.0, 5.0))
    assert abs(sparse - 0.1) < abs(free - 0.1)

    def slope(model: TableAutoencoder) -> float:
        records, network = model.encoded(data.X[:100]), model.network
        inputs = network.inputs(records.codes, records.middle_scores).requires_grad_(True)
        directions = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
        return float(jacobian_norm(network.encode(inputs), inputs, directions).mean().detach())

    assert slope(fitted("contractive", 1.0)) < 0.5 * slope(fitted("contractive", 0.0))


def test_swap_noise_takes_whole_columns_from_other_records() -> None:
    data, spec = table()
    space = MixedSpace.fit(data, spec)
    encoded = Encoded.of(data.X, data.y, space, Device())
    network = AutoencoderNetwork(space, 2, n_latent=2, width=8, depth=1)
    params = AutoencoderModel(variant="denoising", noise=0.3)
    phase = AutoencoderPhase(network, encoded, params, 4000)
    codes, scores, _, _, seen_codes, seen_scores, _ = phase.batch(
        "autoencoder", torch.Generator().manual_seed(0)
    )
    moved = (seen_scores != scores).float().mean(dim=0)
    assert moved.numpy() == pytest.approx(0.3, abs=0.03)
    assert set(seen_codes.flatten().tolist()) == set(codes.flatten().tolist())
